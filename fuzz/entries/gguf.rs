//! What the fuzzer does with one input; also run by `crates/gguf/tests/suite/replay.rs` over the seeds and their mutants.

use fathom_gguf::{File, Layout, block};

/// Reads `bytes` as a GGUF file. What is accepted must be usable: every tensor's data can be looked at, known block types
/// decode, and written again the header reads as the same model.
pub fn gguf(bytes: &[u8]) {
    let Ok(file) = File::from_bytes(bytes.to_vec()) else { return };
    for tensor in file.tensors() {
        let data = file.data(tensor);
        assert_eq!(data.len() as u64, tensor.bytes, "{tensor:?}");
        if block::supported(tensor.dtype) {
            let mut values = vec![0f32; usize::try_from(tensor.elements()).expect("elements of data in memory")];
            block::decode(tensor.dtype, data, &mut values).expect("shape and size were checked");
        }
    }
    // The writer is stricter in two points only: the alignment has a cap, and three keys are its own.
    let Ok(layout) = Layout::new(file.metadata().clone(), file.tensors().to_vec(), None) else {
        assert!(file.alignment() > fathom_gguf::limits::MAX_WRITTEN_ALIGNMENT, "accepted by the reader only");
        return;
    };
    let mut again = layout.header(0);
    if layout.file_bytes(0) > bytes.len() as u64 + (1 << 24) {
        return; // a large alignment asks for more padding than a fuzzer should allocate
    }
    again.resize(layout.file_bytes(0) as usize, 0);
    let again = File::from_bytes(again).expect("what the writer lays out can be read");
    assert_eq!(again.tensors(), layout.tensors());
    assert_eq!(
        format!("{:?}", again.metadata()),
        format!("{:?}", layout.metadata()),
        "as text: NaN is not equal to itself"
    );
}
