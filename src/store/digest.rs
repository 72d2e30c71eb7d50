//! SHA-256 digests: the names of blobs.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

/// The SHA-256 of a blob's bytes. Shown as `sha256:` and 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

/// A text that is not `sha256:` and 64 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid digest format")]
pub struct InvalidDigest;

impl Digest {
    /// The digest of bytes in memory.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    /// 64 lower-case hex digits, without the algorithm.
    pub fn hex(&self) -> String {
        use fmt::Write;
        let mut hex = String::with_capacity(64);
        for byte in self.0 {
            write!(hex, "{byte:02x}").expect("writing to a string does not fail");
        }
        hex
    }

    /// The blob's file name, `sha256-` and the hex digits.
    pub fn file_name(&self) -> String {
        format!("sha256-{}", self.hex())
    }
}

/// `sha256:` or `sha256-`, then 64 hex digits in either case. Nothing else can become a path.
impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Digest, InvalidDigest> {
        let hex =
            text.strip_prefix("sha256:").or_else(|| text.strip_prefix("sha256-")).ok_or(InvalidDigest)?.as_bytes();
        if hex.len() != 64 {
            return Err(InvalidDigest);
        }
        let nibble = |b: u8| (b as char).to_digit(16).ok_or(InvalidDigest);
        let mut digest = [0; 32];
        for (byte, pair) in digest.iter_mut().zip(hex.chunks_exact(2)) {
            *byte = (nibble(pair[0])? * 16 + nibble(pair[1])?) as u8;
        }
        Ok(Digest(digest))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_sha256_is_a_digest() {
        let hex = "ab".repeat(32);
        let lower = format!("sha256:{hex}");
        for text in [lower.clone(), format!("sha256-{hex}"), format!("sha256:{}", hex.to_uppercase())] {
            let digest: Digest = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(digest.to_string(), lower);
            assert_eq!(digest.file_name(), format!("sha256-{hex}"));
        }
        for text in [
            "",
            &hex,
            "sha256:",
            &lower[..70],
            &format!("{lower}0"),
            &format!("SHA256:{hex}"),
            &format!("sha512:{hex}"),
            &format!("sha256:{}", "../".repeat(22)),
            &format!("sha256:{}/x", &hex[..62]),
            &format!("sha256:{}é", &hex[..62]),
            &format!("sha256:{}", "+f".repeat(32)),
        ] {
            assert_eq!(text.parse::<Digest>(), Err(InvalidDigest), "{text}");
        }
    }

    #[test]
    fn the_digest_of_nothing_is_the_known_one() {
        assert_eq!(Digest::of(b"").hex(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
