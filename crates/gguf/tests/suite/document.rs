//! `docs/gguf.md` says what the code does.

use std::path::Path;

use fathom_gguf::{DType, block, limits};

/// The lines between `<!-- NAME` and `<!-- end -->`.
fn section(name: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/gguf.md");
    let text = std::fs::read_to_string(path).unwrap();
    let begin = format!("<!-- {name}");
    text.lines()
        .skip_while(|line| !line.starts_with(&begin))
        .skip(1)
        .take_while(|line| *line != "<!-- end -->")
        .map(str::to_owned)
        .collect()
}

#[track_caller]
fn assert_same(name: &str, expected: Vec<String>) {
    assert_eq!(section(name), expected, "docs/gguf.md should say:\n{}\n", expected.join("\n"));
}

#[test]
fn table_of_types() {
    let mut lines = vec![
        "| id | type | elements in a block | bytes of a block | bits per element | codec |".to_owned(),
        "|---|---|---|---|---|---|".to_owned(),
    ];
    lines.extend(DType::all().map(|dtype| {
        let codec = if block::supported(dtype) { "yes" } else { "" };
        let (elements, bytes) = (dtype.block_elements(), dtype.block_bytes());
        format!("| {} | {dtype} | {elements} | {bytes} | {} | {codec} |", dtype.id(), dtype.bits_per_element())
    }));
    assert_same("types", lines);
}

#[test]
fn table_of_limits() {
    let rows = [
        ("keys in a file", limits::MAX_KEYS),
        ("tensors in a file", limits::MAX_TENSORS),
        ("shards of a model", limits::MAX_SHARDS),
        ("bytes of a key", limits::MAX_KEY_BYTES),
        ("bytes of a tensor's name", limits::MAX_TENSOR_NAME_BYTES),
        ("axes of a tensor", limits::MAX_DIMENSIONS.into()),
        ("bytes of a string, or of all strings of an array", limits::MAX_STRING_BYTES),
        ("elements of an array", limits::MAX_ARRAY_ELEMENTS),
        ("arrays inside each other", limits::MAX_ARRAY_DEPTH as u64),
        ("alignment, when writing", limits::MAX_WRITTEN_ALIGNMENT.into()),
    ];
    let mut lines = vec!["| limit | value |".to_owned(), "|---|---|".to_owned()];
    lines.extend(rows.map(|(what, value)| format!("| {what} | {value} |")));
    assert_same("limits", lines);
}
