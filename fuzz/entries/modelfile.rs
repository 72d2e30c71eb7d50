//! What the fuzzer does with one input; also run by `tests/texts.rs` over the seeds and their mutants.

use fathom::modelfile::{parse, parse_bytes, write};

/// Reads `bytes` as a Modelfile. What was understood is written and read again, and must be the same; an error must be able
/// to show its line.
pub fn modelfile(bytes: &[u8]) {
    match parse_bytes(bytes) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(parsed) => {
            // What cannot be written is refused, never changed.
            if let Ok(text) = write(&parsed.modelfile) {
                let again = parse(&text).unwrap_or_else(|error| panic!("{error}\nin {text:?}"));
                assert_eq!(again.modelfile, parsed.modelfile, "{text:?}");
                assert!(again.warnings.is_empty(), "{text:?}");
            }
        }
    }
}
