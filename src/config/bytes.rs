//! Sizes as people write them.

/// What a size should have looked like.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a size such as `24GiB`, `500MB` or a number of bytes")]
pub struct ParseBytesError;

/// Powers of 1000 and of 1024; a bare letter means 1024, as in most tools of this kind.
const UNITS: [(&str, u64); 13] = [
    ("", 1),
    ("b", 1),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("k", 1 << 10),
    ("m", 1 << 20),
    ("g", 1 << 30),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
];

/// Reads `1.5GiB`, `500 MB`, `4096`.
///
/// # Errors
/// [`ParseBytesError`] when it is no size, negative, or beyond what 64 bits hold.
pub fn parse_bytes(text: &str) -> Result<u64, ParseBytesError> {
    let text = text.trim().to_ascii_lowercase();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..end], text[end..].trim_start());
    let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit).ok_or(ParseBytesError)?;
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(*factor).ok_or(ParseBytesError);
    }
    let bytes = number.parse::<f64>().map_err(|_| ParseBytesError)? * *factor as f64;
    if bytes < u64::MAX as f64 { Ok(bytes as u64) } else { Err(ParseBytesError) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("500MB", 500_000_000),
            ("24GiB", 24 << 30),
            ("1.5 GiB", 3 << 29),
            ("2g", 2 << 30),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "GiB", "-1", "1.2.3", "1XB", "99999999999TiB", "18446744073709551616", "1e400"] {
            assert_eq!(parse_bytes(text), Err(ParseBytesError), "{text}");
        }
    }
}
