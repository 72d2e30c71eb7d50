//! The bytes of every token, in one block of memory.

use crate::ids::TokenId;

use super::vocabulary::{Vocabulary, kind};

/// Byte strings by token id.
pub(super) struct Pieces {
    bytes: Vec<u8>,
    /// Token `i` is `bytes[ends[i - 1]..ends[i]]`.
    ends: Vec<usize>,
}

/// How a vocabulary spells bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    /// GPT-2's alphabet of 256 printable characters.
    ByteLevel,
    /// SentencePiece: `▁` is a space, `<0x0A>` a byte.
    SentencePiece,
}

impl Pieces {
    pub(super) fn new(vocabulary: &Vocabulary, spelling: Spelling, is_added: impl Fn(u32) -> bool) -> Pieces {
        let alphabet = alphabet();
        let mut pieces = Pieces { bytes: Vec::new(), ends: Vec::with_capacity(vocabulary.tokens.len()) };
        for (id, text) in vocabulary.tokens.iter().enumerate() {
            let start = pieces.bytes.len();
            match spelling {
                _ if is_added(id as u32) => pieces.bytes.extend_from_slice(text.as_bytes()),
                Spelling::ByteLevel => {
                    for c in text.chars() {
                        match alphabet.get(c as usize) {
                            Some(Some(byte)) => pieces.bytes.push(*byte),
                            _ => {
                                // Not spelled in the alphabet at all, so it stands for itself.
                                pieces.bytes.truncate(start);
                                pieces.bytes.extend_from_slice(text.as_bytes());
                                break;
                            }
                        }
                    }
                }
                Spelling::SentencePiece => match byte_token(text) {
                    Some(byte) if vocabulary.kinds.is_empty() || vocabulary.kind(id) == kind::BYTE => {
                        pieces.bytes.push(byte);
                    }
                    _ => pieces.bytes.extend_from_slice(text.replace('▁', " ").as_bytes()),
                },
            }
            pieces.ends.push(pieces.bytes.len());
        }
        pieces
    }

    /// Nothing for an id that does not exist.
    pub(super) fn get(&self, token: TokenId) -> &[u8] {
        let id = token.0 as usize;
        let Some(end) = self.ends.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start..*end]
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }
}

/// `<0x0A>` as its byte.
pub(super) fn byte_token(text: &str) -> Option<u8> {
    let hex = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let digits = hex.len() == 2 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    if digits { u8::from_str_radix(hex, 16).ok() } else { None }
}

/// Byte of each character of GPT-2's alphabet: printable bytes are themselves, the others follow from U+0100 on.
fn alphabet() -> Vec<Option<u8>> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut table = vec![None; 0x100 + (0..=255).filter(|b| !printable(*b)).count()];
    let mut next = 0x100;
    for byte in 0..=255u8 {
        if printable(byte) {
            table[usize::from(byte)] = Some(byte);
        } else {
            table[next] = Some(byte);
            next += 1;
        }
    }
    table
}

/// The character that GPT-2's alphabet has for each byte.
pub(super) fn letters() -> [char; 256] {
    let mut letters = ['\0'; 256];
    for (letter, byte) in (0..).zip(alphabet()) {
        if let Some(byte) = byte {
            letters[usize::from(byte)] = char::from_u32(letter).expect("below U+0200");
        }
    }
    letters
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_is_that_of_the_tokenizers_crate() {
        use tokenizers::pre_tokenizers::byte_level::ByteLevel;
        let ours: std::collections::BTreeSet<char> =
            alphabet().iter().enumerate().filter_map(|(c, byte)| byte.and_then(|_| char::from_u32(c as u32))).collect();
        assert_eq!(ours.len(), 256);
        assert_eq!(ours, ByteLevel::alphabet().into_iter().collect());
        assert_eq!(ours, letters().into_iter().collect());
        assert_eq!((letters()[usize::from(b' ')], letters()[usize::from(b'a')]), ('Ġ', 'a'));
        assert_eq!(alphabet()['Ġ' as usize], Some(b' '));
        assert_eq!(alphabet()['Ċ' as usize], Some(b'\n'));
    }

    #[test]
    fn byte_tokens() {
        assert_eq!(byte_token("<0x0A>"), Some(10));
        assert_eq!(byte_token("<0xfF>"), Some(255));
        assert_eq!(byte_token("<0x100>"), None);
        assert_eq!(byte_token("<0x+A>"), None);
        assert_eq!(byte_token("x"), None);
    }
}
