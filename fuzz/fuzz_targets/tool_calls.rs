#![no_main]

#[path = "../entries/tool_calls.rs"]
mod entry;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| entry::tool_calls(bytes));
