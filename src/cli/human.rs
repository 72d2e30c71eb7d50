//! Sizes, counts and times as Ollama prints them, so that scripts which read them go on working.

use std::time::Duration;

use jiff::Timestamp;

/// `4.7 GB`, `13 GB`, `512 B`: decimal units, one decimal below 10.
pub(super) fn bytes(n: u64) -> String {
    let (value, unit) = match n {
        0..1_000 => return format!("{n} B"),
        1_000..1_000_000 => (n as f64 / 1e3, "KB"),
        1_000_000..1_000_000_000 => (n as f64 / 1e6, "MB"),
        1_000_000_000..1_000_000_000_000 => (n as f64 / 1e9, "GB"),
        _ => (n as f64 / 1e12, "TB"),
    };
    if value >= 10.0 || value.fract() == 0.0 {
        format!("{} {unit}", value.trunc())
    } else {
        format!("{value:.1} {unit}")
    }
}

/// `284.3B`, `7B`, `134.52M`, `12K`: a number of parameters.
pub(super) fn count(n: u64) -> String {
    let with = |unit: f64, decimals: usize, name: &str| {
        let value = n as f64 / unit;
        let decimals = if value.fract() == 0.0 { 0 } else { decimals };
        format!("{value:.decimals$}{name}")
    };
    match n {
        0..1_000 => n.to_string(),
        1_000..1_000_000 => with(1e3, 0, "K"),
        1_000_000..1_000_000_000 => with(1e6, 2, "M"),
        _ => with(1e9, 1, "B"),
    }
}

/// `3 weeks ago`, `4 minutes from now`, `Forever`.
pub(super) fn when(t: Timestamp, now: Timestamp) -> String {
    let delta = now.duration_since(t);
    if delta.as_secs() / 3600 / 24 / 365 < -20 {
        return "Forever".into();
    }
    let span = rough(delta.unsigned_abs());
    if delta.is_negative() { format!("{span} from now") } else { format!("{span} ago") }
}

fn rough(d: Duration) -> String {
    let seconds = d.as_secs();
    match seconds {
        0 => return "Less than a second".into(),
        1 => return "1 second".into(),
        2..60 => return format!("{seconds} seconds"),
        60..120 => return "About a minute".into(),
        120..3600 => return format!("{} minutes", seconds / 60),
        _ => {}
    }
    // Minutes and seconds are cut, hours are rounded.
    let hours = (d.as_secs_f64() / 3600.0).round() as u64;
    match hours {
        0..=1 => "About an hour".into(),
        2..48 => format!("{hours} hours"),
        48..336 => format!("{} days", hours / 24),
        336..1440 => format!("{} weeks", hours / 24 / 7),
        1440..17520 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", seconds / 3600 / 24 / 365),
    }
}

/// A duration as Go prints it, to the digits a person reads: `1m2.35s`, `1.53s`, `213.4ms`.
pub(super) fn duration(d: Duration) -> String {
    let seconds = d.as_secs_f64();
    if seconds >= 3600.0 {
        let minutes = d.as_secs() / 60;
        format!("{}h{}m{}s", minutes / 60, minutes % 60, d.as_secs() % 60)
    } else if seconds >= 60.0 {
        format!("{}m{:.2}s", d.as_secs() / 60, seconds % 60.0)
    } else if seconds >= 1.0 {
        format!("{seconds:.3}s")
    } else if seconds >= 1e-3 {
        format!("{:.3}ms", seconds * 1e3)
    } else {
        format!("{:.3}µs", seconds * 1e6)
    }
}

/// How long something took, rounded for people: `95 ms`, `12.4 s`, `7 min 5 s`.
pub(super) fn elapsed(d: Duration) -> String {
    match d.as_secs_f64() {
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s < 60.0 => format!("{s:.1} s"),
        _ => format!("{} min {} s", d.as_secs() / 60, d.as_secs() % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (n, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1 KB"),
            (1_500, "1.5 KB"),
            (10_990, "10 KB"),
            (4_661_224_676, "4.7 GB"),
            (13_999_999_999, "13 GB"),
            (166_000_000_000, "166 GB"),
            (1_600_000_000_000, "1.6 TB"),
        ] {
            assert_eq!(bytes(n), text);
        }
    }

    #[test]
    fn counts() {
        for (n, text) in [
            (999, "999"),
            (12_345, "12K"),
            (134_515_008, "134.52M"),
            (7_000_000_000, "7B"),
            (284_300_000_000, "284.3B"),
        ] {
            assert_eq!(count(n), text);
        }
    }

    #[test]
    fn times_before_and_after_now() {
        let now: Timestamp = "2026-11-24T12:00:00Z".parse().unwrap();
        for (seconds, text) in [
            (0, "Less than a second ago"),
            (1, "1 second ago"),
            (59, "59 seconds ago"),
            (61, "About a minute ago"),
            (-290, "4 minutes from now"),
            (3_700, "About an hour ago"),
            (5_399, "About an hour ago"),
            (5_400, "2 hours ago"),
            (86_400, "24 hours ago"),
            (3 * 86_400, "3 days ago"),
            (21 * 86_400, "3 weeks ago"),
            (70 * 86_400, "2 months ago"),
            (800 * 86_400, "2 years ago"),
            (-100 * 365 * 86_400, "Forever"),
        ] {
            assert_eq!(when(now - jiff::SignedDuration::from_secs(seconds), now), text, "{seconds}");
        }
    }

    #[test]
    fn durations() {
        for (ms, text) in
            [(0.5, "500.000µs"), (213.4, "213.400ms"), (1534.0, "1.534s"), (62_350.0, "1m2.35s"), (3.7e6, "1h1m40s")]
        {
            assert_eq!(duration(Duration::from_secs_f64(ms / 1e3)), text);
        }
    }

    #[test]
    fn elapsed_times() {
        for (ms, text) in [(95, "95 ms"), (12_440, "12.4 s"), (425_000, "7 min 5 s")] {
            assert_eq!(elapsed(Duration::from_millis(ms)), text);
        }
    }
}
