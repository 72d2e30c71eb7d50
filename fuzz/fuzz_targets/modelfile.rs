#![no_main]

#[path = "../entries/modelfile.rs"]
mod entry;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| entry::modelfile(bytes));
