//! The fuzzer's entry over its seeds and thousands of mutants of each, without a fuzzer.

#[path = "../fuzz/entries/tool_calls.rs"]
mod entry;

use std::fs;

/// Mutants of each seed.
const MUTANTS: u64 = 1500;

/// What mutants are made of besides bytes: whatever the parser looks for.
const WORDS: &[&str] = &[
    "</think>",
    "<｜DSML｜tool_calls>",
    "</｜DSML｜tool_calls>",
    "<｜DSML｜invoke name=\"f\">",
    "</｜DSML｜invoke>",
    "<｜DSML｜parameter name=\"a\" string=\"false\">",
    "</｜DSML｜parameter>",
    "<｜DSML｜",
    "\n\n",
    "<",
    "\"",
    "世",
];

#[test]
fn seeds_and_their_mutants_are_read_alike_however_they_are_cut() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/tool_calls");
    let mut seeds = 0;
    for seed in fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()) {
        let seed = fs::read(seed).unwrap();
        entry::tool_calls(&seed);
        seeds += 1;
        for number in 0..MUTANTS {
            entry::tool_calls(&mutant(&seed, number));
        }
    }
    assert!(seeds > 4, "{seeds} seeds");
}

/// A few changes to `seed`, the same for the same number.
fn mutant(seed: &[u8], number: u64) -> Vec<u8> {
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
                let word = WORDS[below(WORDS.len())].bytes();
                let at = at.min(bytes.len());
                bytes.splice(at..at, word);
            }
        }
    }
    bytes
}
