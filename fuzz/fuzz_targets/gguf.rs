#![no_main]

#[path = "../entries/gguf.rs"]
mod entry;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| entry::gguf(bytes));
