#![no_main]

#[path = "../entries/request_json.rs"]
mod entry;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| entry::request_json(bytes));
