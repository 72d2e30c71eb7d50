//! Generated tokens to whole characters, up to where the answer ends.

use std::sync::Arc;

use crate::ids::TokenId;

use super::{Ended, Tokenizer};

/// Turns one answer's tokens into text. Nothing is given out that could still be part of an unfinished character or of a
/// stop string; nothing else is held back.
///
/// What comes out does not depend on how the text is cut into tokens: of several stop strings the one that is complete first
/// ends the answer, and of those that are complete at once the longest.
pub struct Stream {
    tokenizer: Arc<Tokenizer>,
    stops: Vec<String>,
    ignore_end_tokens: bool,
    /// The beginning of a character.
    bytes: Vec<u8>,
    /// Whole characters that may begin a stop string.
    held: String,
}

impl Stream {
    /// Empty stop strings are ignored.
    pub fn new(tokenizer: Arc<Tokenizer>, mut stops: Vec<String>) -> Stream {
        stops.retain(|stop| !stop.is_empty());
        Stream { tokenizer, stops, ignore_end_tokens: false, bytes: Vec::new(), held: String::new() }
    }

    /// Goes on after end tokens; they have no text then.
    #[must_use]
    pub fn ignoring_end_tokens(mut self) -> Stream {
        self.ignore_end_tokens = true;
        self
    }

    /// Appends the text that became certain with `token`. After `Some` the answer is over: what was held back is in `out`,
    /// an end token or stop string is not.
    pub fn push(&mut self, token: TokenId, out: &mut String) -> Option<Ended> {
        if self.tokenizer.is_end(token) {
            if self.ignore_end_tokens {
                return None;
            }
            self.finish(out);
            return Some(Ended::EndToken);
        }
        self.bytes.extend_from_slice(self.tokenizer.piece(token));
        self.take_text(out)
    }

    /// Appends what became certain with the bytes that were added.
    fn take_text(&mut self, out: &mut String) -> Option<Ended> {
        take_characters(&mut self.bytes, &mut self.held);
        if let Some((start, stop)) = self.find_stop() {
            out.push_str(&self.held[..start]);
            self.held.clear();
            self.bytes.clear();
            return Some(Ended::StopString(stop));
        }
        let keep = self.undecided();
        out.push_str(&self.held[..keep]);
        self.held.drain(..keep);
        None
    }

    /// As [`Stream::push`] of a token with these bytes.
    #[cfg(test)]
    pub(super) fn push_bytes(&mut self, bytes: &[u8], out: &mut String) -> Option<Ended> {
        self.bytes.extend_from_slice(bytes);
        self.take_text(out)
    }

    /// The answer was cut off: gives out what was held back, an unfinished character as U+FFFD.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
        if !self.bytes.is_empty() {
            out.push(char::REPLACEMENT_CHARACTER);
            self.bytes.clear();
        }
    }

    /// Start of the first stop string to be complete, and which.
    fn find_stop(&self) -> Option<(usize, String)> {
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str()).map(|start| (start, stop)));
        let (start, stop) = found.min_by_key(|(start, stop)| (start + stop.len(), *start))?;
        Some((start, stop.clone()))
    }

    /// Where the longest tail of the held text starts that begins a stop string.
    fn undecided(&self) -> usize {
        let held = self.held.as_bytes();
        let longest = self.stops.iter().map(|stop| {
            let stop = stop.as_bytes();
            (1..=held.len().min(stop.len() - 1)).rev().find(|n| held.ends_with(&stop[..*n])).unwrap_or(0)
        });
        held.len() - longest.max().unwrap_or(0)
    }
}

/// Moves whole characters from `bytes` to `text`, each run of bytes that cannot be one as U+FFFD.
fn take_characters(bytes: &mut Vec<u8>, text: &mut String) {
    let mut at = 0;
    loop {
        match std::str::from_utf8(&bytes[at..]) {
            Ok(valid) => {
                text.push_str(valid);
                at = bytes.len();
                break;
            }
            Err(error) => {
                let valid = at + error.valid_up_to();
                text.push_str(&String::from_utf8_lossy(&bytes[at..valid]));
                at = valid;
                match error.error_len() {
                    Some(bad) => {
                        text.push(char::REPLACEMENT_CHARACTER);
                        at += bad;
                    }
                    None => break,
                }
            }
        }
    }
    bytes.drain(..at);
}
