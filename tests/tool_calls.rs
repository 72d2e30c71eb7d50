//! The fuzzer's entry over its seeds and thousands of mutants of each, without a fuzzer.

#[path = "../fuzz/entries/tool_calls.rs"]
mod entry;

use std::fs;

use crate::support::mutant;

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
            entry::tool_calls(&mutant(&seed, WORDS, number));
        }
    }
    assert!(seeds > 4, "{seeds} seeds");
}
