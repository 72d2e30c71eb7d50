//! Durations as Go and Ollama write them: `1h30m`, `1.5s`, `300` (seconds); negative = without end.

use std::time::Duration;

/// What a duration should have looked like.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a duration such as `90s`, `1h30m` or a number of seconds")]
pub struct ParseDurationError;

/// Units of Go's `time.ParseDuration`, in nanoseconds. Longer names first, so that `ms` is not read as `m`.
const UNITS: [(&str, f64); 8] =
    [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("μs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 60e9), ("h", 3600e9)];

/// Reads a duration; `None` = negative, which everywhere in the interface means "without end".
///
/// # Errors
/// [`ParseDurationError`] when the text is neither a Go duration nor a number of seconds.
pub fn parse_duration(text: &str) -> Result<Option<Duration>, ParseDurationError> {
    let text = text.trim();
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let mut rest = digits;
    let mut nanos = 0f64;
    if rest.is_empty() {
        return Err(ParseDurationError);
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let value: f64 = rest[..end].parse().map_err(|_| ParseDurationError)?;
        let (unit, after) = if rest[end..].is_empty() && rest.len() == digits.len() {
            (1e9, "")
        } else {
            UNITS
                .iter()
                .find_map(|(name, unit)| rest[end..].strip_prefix(name).map(|after| (*unit, after)))
                .filter(|(_, after)| after.is_empty() || after.starts_with(|c: char| c.is_ascii_digit() || c == '.'))
                .ok_or(ParseDurationError)?
        };
        nanos += value * unit;
        rest = after;
    }
    if negative && nanos > 0.0 {
        return Ok(None);
    }
    // Go's durations end at 292 years; whoever asks for more means "without end".
    if nanos >= i64::MAX as f64 {
        return Ok(None);
    }
    Ok(Some(Duration::from_nanos(nanos.round() as u64)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_durations_and_plain_seconds() {
        for (text, expected) in [
            ("5m", Some(Duration::from_secs(300))),
            ("1h30m", Some(Duration::from_secs(5400))),
            ("1.5s", Some(Duration::from_millis(1500))),
            ("250ms", Some(Duration::from_millis(250))),
            ("10µs", Some(Duration::from_micros(10))),
            ("42", Some(Duration::from_secs(42))),
            ("0", Some(Duration::ZERO)),
            ("-0", Some(Duration::ZERO)),
            ("0s", Some(Duration::ZERO)),
            ("-1", None),
            ("-1m", None),
            ("9999999h", None),
        ] {
            assert_eq!(parse_duration(text), Ok(expected), "{text}");
        }
        for text in ["", "x", "5 m", "5mm", "1h30", "m", "--1", "1..2s", "nan", "5d"] {
            assert_eq!(parse_duration(text), Err(ParseDurationError), "{text}");
        }
    }
}
