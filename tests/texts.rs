//! The fuzzers' entries for texts that people and programs send, over their seeds and many mutants of each.

#[path = "../fuzz/entries/modelfile.rs"]
mod modelfile;
#[path = "../fuzz/entries/request_json.rs"]
mod request_json;

use std::fs;
use std::path::Path;

use crate::support::mutant;

/// Mutants of each seed.
const MUTANTS: u64 = 1500;

fn replay(target: &str, words: &[&str], entry: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let mut seeds = 0;
    for seed in fs::read_dir(folder).expect("a folder of seeds") {
        let seed = fs::read(seed.expect("an entry").path()).expect("a seed");
        entry(&seed);
        for number in 0..MUTANTS {
            entry(&mutant(&seed, words, number));
        }
        seeds += 1;
    }
    assert!(seeds > 4, "{seeds} seeds");
}

#[test]
fn modelfiles_are_read_and_written_or_refused() {
    let words =
        ["\n", "\r\n", "\"", "\"\"\"", "FROM ", "SYSTEM ", "PARAMETER ", "MESSAGE user ", "#", " ", "é", "stop", "-1"];
    replay("modelfile", &words, modelfile::modelfile);
}

#[test]
fn request_bodies_are_read_or_refused() {
    let words =
        ["{", "}", "[", "]", ":", ",", "\"", "null", "\\ud83d", "\\", "\"model\"", "\"Files\"", "1e999", "-0", "é"];
    replay("request_json", &words, request_json::request_json);
}
