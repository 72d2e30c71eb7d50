//! Inputs that are almost right, for replaying what fuzzers do without a fuzzer.

/// A few changes to `seed`, the same for the same number: bytes changed, cut out, and `words` put in.
pub fn mutant(seed: &[u8], words: &[&str], number: u64) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut below = |n: usize| {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % n as u64) as usize
    };
    let mut bytes = seed.to_vec();
    for _ in 0..=below(4) {
        let at = below(bytes.len().max(1));
        let end = (at + below(12)).min(bytes.len());
        match below(4) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..end)),
            2 if at < bytes.len() => bytes[at] = below(256) as u8,
            _ => {
                let word = words[below(words.len())].bytes();
                let at = at.min(bytes.len());
                bytes.splice(at..at, word);
            }
        }
    }
    bytes
}
