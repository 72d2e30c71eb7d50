//! `docs/gguf.md` lists every key and tensor that a converted file has, with its type.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use fathom_converters::synthetic::{Draft, Spec};
use fathom_gguf::File;

use crate::support::{Place, mtp};

/// `name type` for each name of each table row that has names and a type in its first two columns.
fn documented() -> BTreeSet<String> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/gguf.md")).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    let entries = rows.flat_map(|row| {
        let mut columns = row.split('|').map(str::trim).skip(1);
        let (names, kind) = (columns.next().unwrap(), columns.next().unwrap());
        names.split(", ").map(move |name| format!("{} {kind}", name.trim_matches('`')))
    });
    entries.collect()
}

/// A name as the document writes it.
fn key(name: &str, documented: &BTreeSet<String>, kind: &str) -> String {
    if name.starts_with("fathom.fp8_scale.") {
        return format!("fathom.fp8_scale.TENSOR {kind}");
    }
    let own = format!("{name} {kind}");
    match name.strip_prefix("fathom-dspark.") {
        Some(rest) if !documented.contains(&own) => format!("deepseek4.{rest} {kind}"),
        _ => own,
    }
}

#[test]
fn every_key_and_tensor_is_in_the_document() {
    let documented = documented();
    let mut found = BTreeSet::new();
    for spec in [mtp(), Spec { draft: Draft::Dspark, ..mtp() }] {
        let place = Place::new(&spec);
        place.convert().unwrap();
        for name in ["model.gguf", "model.draft.gguf"] {
            let file = File::open(place.dir.path().join(name)).unwrap();
            let keys = file.metadata().iter().map(|(name, value)| key(name, &documented, &value.type_name()));
            found.extend(keys);
            for tensor in file.tensors().iter().filter(|tensor| !tensor.name.starts_with("mtp.")) {
                let in_layer = tensor.name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
                found.insert(format!("{} {}", in_layer.map_or(tensor.name.as_str(), |(_, rest)| rest), tensor.dtype));
            }
        }
    }
    let missing: Vec<_> = found.difference(&documented).collect();
    assert!(missing.is_empty(), "not in docs/gguf.md: {missing:#?}");
    let invented: Vec<_> = documented.difference(&found).collect();
    assert!(invented.is_empty(), "in docs/gguf.md, but in no converted file: {invented:#?}");
}
