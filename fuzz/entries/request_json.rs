//! What the fuzzer does with one input; also run by `tests/texts.rs` over the seeds and their mutants.

use fathom::api::Error;
use fathom::api::extract::decode;
use fathom::api::ollama::chat::ChatRequest;
use fathom::api::ollama::generate::GenerateRequest;
use fathom::api::ollama::types::{CopyRequest, CreateRequest, DeleteRequest, ShowRequest};

/// Reads `bytes` as the body of every kind of request. A refusal is the client's fault (400) and has a text.
pub fn request_json(bytes: &[u8]) {
    fn read<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Option<T> {
        match decode::<T>(bytes) {
            Ok(request) => Some(request),
            Err(error) => {
                assert!(matches!(error, Error::MissingBody | Error::Json(_)), "{error:?}");
                assert!(!error.to_string().is_empty());
                None
            }
        }
    }
    read::<GenerateRequest>(bytes);
    read::<ChatRequest>(bytes);
    read::<CopyRequest>(bytes);
    read::<DeleteRequest>(bytes);
    read::<ShowRequest>(bytes);
    // What our own client would send of it is understood as the same.
    if let Some(request) = read::<CreateRequest>(bytes) {
        let sent = serde_json::to_vec(&request).expect("a request is JSON");
        assert_eq!(read::<CreateRequest>(&sent), Some(request));
    }
}
