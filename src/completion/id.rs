//! Ids of tool calls.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";

/// `call_` and 8 characters that nobody can guess to be those of another call, as Ollama writes them.
pub(super) fn tool_call() -> String {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    // std seeds this from the system's random numbers, anew for each hasher's key pair; the counter makes ids differ within a process.
    let mut bits = RandomState::new().hash_one(CALLS.fetch_add(1, Ordering::Relaxed));
    let mut id = String::from("call_");
    for _ in 0..8 {
        id.push(ALPHABET[(bits % 36) as usize] as char);
        bits /= 36;
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn ids_have_ollamas_form_and_differ() {
        let ids: HashSet<String> = (0..1000).map(|_| tool_call()).collect();
        assert_eq!(ids.len(), 1000);
        for id in ids {
            let random = id.strip_prefix("call_").unwrap();
            assert_eq!(random.len(), 8);
            assert!(random.bytes().all(|byte| ALPHABET.contains(&byte)), "{id}");
        }
    }
}
