//! `keep_alive`: seconds as a number, or a duration in Go's notation (`300ms`, `1h30m`, `-1m`) with Go's error texts.

use std::time::Duration;

use serde_json::Value;

use crate::scheduler::KeepAlive;

/// Why a duration was refused; the texts are those of Go's `time` package and of Ollama.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("time: invalid duration {0:?}")]
    Invalid(String),
    #[error("time: missing unit in duration {0:?}")]
    MissingUnit(String),
    #[error("time: unknown unit {unit:?} in duration {text:?}")]
    UnknownUnit { unit: String, text: String },
    #[error("Unsupported type: '{0}'")]
    Type(&'static str),
}

/// What a request's `keep_alive` means; absent or null = the server decides.
///
/// # Errors
/// [`Error`] for a text that is no duration, and for other types.
pub fn keep_alive(value: Option<&Value>) -> Result<KeepAlive, Error> {
    match value {
        None | Some(Value::Null) => Ok(KeepAlive::Unset),
        Some(Value::Number(seconds)) => {
            let seconds = seconds.as_f64().unwrap_or(f64::MAX);
            if seconds < 0.0 {
                return Ok(KeepAlive::Forever);
            }
            // What Go's durations cannot hold lies 292 years ahead.
            Ok(Duration::try_from_secs_f64(seconds)
                .ok()
                .filter(|d| d.as_nanos() <= i64::MAX as u128)
                .map_or(KeepAlive::Forever, KeepAlive::For))
        }
        Some(Value::String(text)) => {
            let nanos = parse(text)?;
            Ok(u64::try_from(nanos).map_or(KeepAlive::Forever, |n| KeepAlive::For(Duration::from_nanos(n))))
        }
        Some(Value::Bool(_)) => Err(Error::Type("bool")),
        Some(Value::Array(_)) => Err(Error::Type("[]interface {}")),
        Some(Value::Object(_)) => Err(Error::Type("map[string]interface {}")),
    }
}

/// Go's `time.ParseDuration`, in nanoseconds: `[-+]?` then `0`, or decimal numbers with units, such as `1h15m30.918273645s`.
///
/// # Errors
/// With Go's texts; a sum beyond 292 years is invalid.
pub fn parse(text: &str) -> Result<i64, Error> {
    let invalid = || Error::Invalid(text.to_string());
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let whole = digits(&mut rest);
        let fraction = match rest.strip_prefix('.') {
            Some(after) => {
                rest = after;
                Some(digits(&mut rest))
            }
            None => None,
        };
        if whole.is_empty() && fraction.is_none_or(str::is_empty) {
            return Err(invalid());
        }
        let unit_end = rest.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(rest.len());
        let (unit, after) = rest.split_at(unit_end);
        rest = after;
        if unit.is_empty() {
            return Err(Error::MissingUnit(text.to_string()));
        }
        let unit =
            unit_nanos(unit).ok_or_else(|| Error::UnknownUnit { unit: unit.to_string(), text: text.to_string() })?;
        total += scaled(whole, fraction.unwrap_or(""), unit).ok_or_else(invalid)?;
        if total > i128::from(i64::MAX) + i128::from(negative) {
            return Err(invalid());
        }
    }
    i64::try_from(if negative { -total } else { total }).map_err(|_| invalid())
}

fn unit_nanos(unit: &str) -> Option<i128> {
    Some(match unit {
        "ns" => 1,
        // The micro sign and the Greek letter.
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

/// Takes the leading digits off `rest`.
fn digits<'a>(rest: &mut &'a str) -> &'a str {
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (digits, after) = rest.split_at(end);
    *rest = after;
    digits
}

/// `whole.fraction` units in nanoseconds, truncated; `None` when the whole part has more digits than a duration can use.
fn scaled(whole: &str, fraction: &str, unit: i128) -> Option<i128> {
    let whole = whole.trim_start_matches('0');
    if whole.len() > 19 {
        return None;
    }
    let mut nanos = if whole.is_empty() { 0 } else { whole.parse::<i128>().ok()?.checked_mul(unit)? };
    // Digits beyond the eighteenth are less than a nanosecond of an hour.
    let mut place = unit;
    let mut remainder = 0i128;
    let mut scale = 1i128;
    for digit in fraction.bytes().take(18) {
        scale *= 10;
        remainder = remainder * 10 + i128::from(digit - b'0');
    }
    place = place.checked_mul(remainder)?;
    nanos += place / scale;
    Some(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, nanos) in [
            ("0", 0),
            ("-0", 0),
            ("+0", 0),
            ("5s", 5_000_000_000),
            ("30s", 30_000_000_000),
            ("1478s", 1_478_000_000_000),
            ("-5s", -5_000_000_000),
            ("+5s", 5_000_000_000),
            ("5.0s", 5_000_000_000),
            ("5.6s", 5_600_000_000),
            ("5.s", 5_000_000_000),
            (".5s", 500_000_000),
            ("1.0040s", 1_004_000_000),
            ("10ns", 10),
            ("11us", 11_000),
            ("12\u{b5}s", 12_000),
            ("12\u{3bc}s", 12_000),
            ("13ms", 13_000_000),
            ("14s", 14_000_000_000),
            ("15m", 900_000_000_000),
            ("16h", 57_600_000_000_000),
            ("3h30m", 12_600_000_000_000),
            ("10.5s4m", 250_500_000_000),
            ("-2m3.4s", -123_400_000_000),
            ("1h2m3s4ms5us6ns", 3_723_004_005_006),
            ("0.3333333333333333333h", 1_200_000_000_000 - 1),
            ("9223372036854775807ns", i64::MAX),
            ("-9223372036854775808ns", i64::MIN),
            ("5m0s", 300_000_000_000),
        ] {
            assert_eq!(parse(text), Ok(nanos), "{text}");
        }
    }

    #[test]
    fn bad_durations_have_go_texts() {
        for (text, error) in [
            ("", "time: invalid duration \"\""),
            ("abc", "time: invalid duration \"abc\""),
            ("10", "time: missing unit in duration \"10\""),
            ("-", "time: invalid duration \"-\""),
            ("s", "time: invalid duration \"s\""),
            (".", "time: invalid duration \".\""),
            (".s", "time: invalid duration \".s\""),
            ("1d", "time: unknown unit \"d\" in duration \"1d\""),
            (" 5m", "time: invalid duration \" 5m\""),
            ("5 m", "time: unknown unit \" m\" in duration \"5 m\""),
            ("1h30", "time: missing unit in duration \"1h30\""),
            ("9223372036854775808ns", "time: invalid duration \"9223372036854775808ns\""),
            ("3000000h", "time: invalid duration \"3000000h\""),
            ("99999999999999999999999999s", "time: invalid duration \"99999999999999999999999999s\""),
        ] {
            assert_eq!(parse(text).map_err(|e| e.to_string()), Err(error.to_string()), "{text}");
        }
    }

    #[test]
    fn keep_alive_takes_seconds_and_durations() {
        let of = |value: Value| keep_alive(Some(&value)).map_err(|e| e.to_string());
        let seconds = |s| Ok(KeepAlive::For(Duration::from_secs_f64(s)));
        assert_eq!(keep_alive(None), Ok(KeepAlive::Unset));
        assert_eq!(of(Value::Null), Ok(KeepAlive::Unset));
        assert_eq!(of(json!(0)), seconds(0.0));
        assert_eq!(of(json!(1.5)), seconds(1.5));
        assert_eq!(of(json!(300)), seconds(300.0));
        assert_eq!(of(json!(-1)), Ok(KeepAlive::Forever));
        assert_eq!(of(json!(1e300)), Ok(KeepAlive::Forever));
        assert_eq!(of(json!("5m")), seconds(300.0));
        assert_eq!(of(json!("5m0s")), seconds(300.0));
        assert_eq!(of(json!("0s")), seconds(0.0));
        assert_eq!(of(json!("-1m")), Ok(KeepAlive::Forever));
        assert_eq!(of(json!(true)), Err("Unsupported type: 'bool'".into()));
        assert_eq!(of(json!("10")), Err("time: missing unit in duration \"10\"".into()));
    }

    proptest::proptest! {
        #[test]
        fn any_text_gives_an_answer(text in "[-+0-9.nuµmsh ]{0,30}|.{0,12}") {
            let _ = parse(&text);
        }
    }
}
