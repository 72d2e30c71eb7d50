//! Models in several files.

use std::path::{Path, PathBuf};

use fathom_gguf::{DType, Error, File, Layout, Metadata, TensorInfo, Writer};

/// Three shards of one tensor each in `folder`.
fn three(folder: &Path) -> Vec<PathBuf> {
    let tensors = ["a", "b", "c"].map(|name| TensorInfo::new(name, DType::F32, [8]).unwrap());
    let metadata: Metadata = [("general.architecture", "test")].into_iter().collect();
    let layout = Layout::new(metadata, tensors.to_vec(), Some(40)).unwrap();
    let paths = layout.paths(&folder.join("m.gguf"));
    let writer = Writer::create(&layout, &paths).unwrap();
    for (number, info) in layout.tensors().iter().enumerate() {
        writer.write_at(info, 0, &[number as u8; 32]).unwrap();
    }
    paths
}

#[test]
fn any_shard_opens_the_whole_model() {
    let folder = tempfile::tempdir().unwrap();
    let paths = three(folder.path());
    assert_eq!(paths[1].file_name().unwrap(), "m-00002-of-00003.gguf");
    for path in &paths {
        let file = File::open(path).unwrap();
        assert_eq!(file.shards().collect::<Vec<_>>(), paths);
        assert_eq!(file.metadata().str("general.architecture").unwrap(), "test");
        assert_eq!(file.metadata().u64("split.count").unwrap(), 3);
        for (number, info) in file.tensors().iter().enumerate() {
            assert_eq!((info.shard, file.data(info)), (number, &[number as u8; 32][..]));
        }
    }
}

#[test]
fn shards_under_other_names_open_when_listed() {
    let folder = tempfile::tempdir().unwrap();
    let paths = three(folder.path());
    let renamed: Vec<_> = (0..3).map(|number| folder.path().join(format!("sha256-{number}"))).collect();
    for (from, to) in paths.iter().zip(&renamed) {
        std::fs::rename(from, to).unwrap();
    }
    assert_eq!(File::open_shards(&renamed).unwrap().tensors().len(), 3);

    let error = File::open(&renamed[1]).unwrap_err();
    assert!(matches!(&error, Error::ShardName { number: 2, count: 3, .. }), "{error}");
    let swapped = File::open_shards(&[&renamed[2], &renamed[0], &renamed[1]]).unwrap();
    assert!(swapped.shards().eq(&renamed), "in the order of their numbers, not of the list");
    let error = File::open_shards(&[&renamed[0], &renamed[1], &renamed[1]]).unwrap_err();
    assert!(matches!(&error, Error::ShardKey { key: "split.no", expected: 2, .. }), "{error}");
    let error = File::open_shards(&renamed[..2]).unwrap_err();
    assert!(matches!(&error, Error::ShardKey { key: "split.count", expected: 2, .. }), "{error}");
    let error = File::open_shards(&renamed[..1]).unwrap_err();
    assert!(
        matches!(&error, Error::ShardKey { key: "split.count", expected: 1, .. }),
        "a part is not a model: {error}"
    );
    assert!(matches!(File::open_shards::<&Path>(&[]), Err(Error::NoFiles)));
}

#[test]
fn a_missing_shard_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let paths = three(folder.path());
    std::fs::remove_file(&paths[2]).unwrap();
    let error = File::open(&paths[0]).unwrap_err().to_string();
    assert_eq!(error, format!("shard 3 of 3 is missing: `{}`", paths[2].display()));
}

#[test]
fn shards_that_do_not_belong_together_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let paths = three(folder.path());
    let write = |path: &Path, metadata: Metadata, name: &str| {
        let tensor = TensorInfo::new(name, DType::F32, [8]).unwrap();
        // The writer makes `split.*` itself, so bytes of another key of the same length are renamed.
        let mut bytes = Vec::new();
        fathom_gguf::write_to(&mut bytes, metadata, &[(tensor, [0u8; 32])]).unwrap().unwrap();
        let at = |bytes: &[u8]| bytes.windows(6).position(|window| window == b"SPLIT.");
        while let Some(at) = at(&bytes) {
            bytes[at..at + 5].copy_from_slice(b"split");
        }
        std::fs::write(path, bytes).unwrap();
    };
    let keys = |no: u16, count: u16| [("SPLIT.no", no), ("SPLIT.count", count)].into_iter().collect::<Metadata>();

    write(&paths[1], keys(1, 3), "a");
    let error = File::open(&paths[0]).unwrap_err();
    assert!(matches!(&error, Error::ShardDuplicate { tensor, .. } if tensor == "a"), "{error}");

    write(&paths[1], keys(0, 3), "b");
    let error = File::open(&paths[0]).unwrap_err();
    assert!(matches!(&error, Error::ShardKey { key: "split.no", found, expected: 1, .. } if found == "0"), "{error}");

    write(&paths[1], Metadata::new(), "b");
    let error = File::open(&paths[0]).unwrap_err();
    assert!(matches!(&error, Error::ShardKey { found, .. } if found == "nothing"), "{error}");

    write(&paths[1], keys(7, 3), "b");
    let error = File::open(&paths[1]).unwrap_err();
    assert!(matches!(&error, Error::ShardNumber { number: 7, count: 3, .. }), "{error}");

    let mut wrong_total = keys(0, 3);
    wrong_total.insert("SPLIT.tensors.count", 4i32);
    write(&paths[0], wrong_total, "a");
    write(&paths[1], keys(1, 3), "b");
    let error = File::open(&paths[0]).unwrap_err();
    assert!(matches!(&error, Error::ShardTensors { claimed: 4, found: 3, .. }), "{error}");
}
