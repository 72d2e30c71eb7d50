//! Reserved values, resuming, and what the writer refuses.

use fathom_gguf::{DType, Error, File, Layout, Metadata, Strings, TensorInfo, Unwritable, Writer, write_to};

fn hex(digit: char) -> Strings {
    [digit.to_string().repeat(64), digit.to_string().repeat(64)].into_iter().collect()
}

fn layout() -> Layout {
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture", "test");
    metadata.insert("sums", hex('0'));
    metadata.insert("after", 7u32);
    let tensors =
        vec![TensorInfo::new("a", DType::BF16, [5, 3]).unwrap(), TensorInfo::new("b", DType::I32, [6, 2]).unwrap()];
    Layout::new(metadata, tensors, None).unwrap()
}

#[test]
fn reserved_values_are_filled_without_moving_anything() {
    let mut layout = layout();
    let folder = tempfile::tempdir().unwrap();
    let paths = vec![folder.path().join("out.gguf.partial")];
    let writer = Writer::create(&layout, &paths).unwrap();
    let (before, offsets) = (layout.header(0), layout.tensors().to_vec());
    writer.write_at(&offsets[1], 0, &[9; 48]).unwrap();

    layout.fill("sums", hex('f')).unwrap();
    writer.write_header(&layout).unwrap();
    writer.sync().unwrap();

    assert_eq!((layout.header(0).len(), layout.tensors()), (before.len(), &offsets[..]));
    let file = File::open(&paths[0]).unwrap();
    assert_eq!(file.metadata().strings("sums").unwrap(), &hex('f'));
    assert_eq!(file.metadata().u32("after").unwrap(), 7);
    assert_eq!(file.data(file.tensor("b").unwrap()), [9; 48]);
}

#[test]
fn a_reserved_value_keeps_type_and_size() {
    let mut layout = layout();
    let short: Strings = ["f"].into_iter().collect();
    assert!(matches!(layout.fill("sums", short), Err(Error::ReservedBytes { reserved: 156, given: 21, .. })));
    assert!(matches!(layout.fill("sums", 1u32), Err(Error::WrongType { .. })));
    assert!(matches!(layout.fill("gone", 1u32), Err(Error::MissingKey { .. })));
    layout.fill("after", 8u32).unwrap();
}

#[test]
fn an_interrupted_file_equals_an_uninterrupted_one() {
    let layout = layout();
    let folder = tempfile::tempdir().unwrap();
    let (whole, halves) = (vec![folder.path().join("whole")], vec![folder.path().join("halves")]);
    let (a, b) = (&layout.tensors()[0], &layout.tensors()[1]);

    let writer = Writer::create(&layout, &whole).unwrap();
    writer.write_at(a, 0, &[1; 30]).unwrap();
    writer.write_at(b, 0, &[2; 48]).unwrap();
    drop(writer);

    Writer::create(&layout, &halves).unwrap().write_at(b, 0, &[2; 48]).unwrap();
    let resumed = Writer::resume(&layout, &halves).unwrap();
    resumed.write_at(a, 10, &[1; 20]).unwrap();
    resumed.write_at(a, 0, &[1; 10]).unwrap();
    drop(resumed);
    assert_eq!(std::fs::read(&whole[0]).unwrap(), std::fs::read(&halves[0]).unwrap());

    let tensors = [(a.clone(), vec![1; 30]), (b.clone(), vec![2; 48])];
    let mut streamed = Vec::new();
    write_to(&mut streamed, layout.metadata().clone(), &tensors).unwrap().unwrap();
    assert_eq!(streamed, std::fs::read(&whole[0]).unwrap());

    std::fs::File::options().write(true).open(&halves[0]).unwrap().set_len(100).unwrap();
    assert!(matches!(Writer::resume(&layout, &halves), Err(Error::ResumeBytes { found: 100, .. })));
    std::fs::remove_file(&halves[0]).unwrap();
    let error = Writer::resume(&layout, &halves).unwrap_err().to_string();
    assert!(error.starts_with(&format!("cannot open `{}`", halves[0].display())), "{error}");
}

#[test]
fn data_outside_a_tensor_is_refused() {
    let layout = layout();
    let folder = tempfile::tempdir().unwrap();
    let writer = Writer::create(&layout, &layout.paths(&folder.path().join("x.gguf"))).unwrap();
    let a = &layout.tensors()[0];
    for (at, given) in [(0, 31), (30, 1), (u64::MAX, 1)] {
        let error = writer.write_at(a, at, &vec![0; given]).unwrap_err();
        assert!(matches!(error, Error::TensorBytes { bytes: 30, .. }), "{error}");
    }
    let short = [(a.clone(), [0u8; 29])];
    let error = write_to(&mut Vec::new(), Metadata::new(), &short).unwrap_err();
    assert_eq!(error.to_string(), "tensor `a` has 30 bytes, cannot write 29 at 0");
}

#[test]
fn what_no_reader_takes_is_not_written() {
    let refused = |metadata: Metadata, names: &[&str]| {
        let tensors = names.iter().map(|name| TensorInfo::new(*name, DType::F32, [1]).unwrap()).collect();
        match Layout::new(metadata, tensors, None).unwrap_err() {
            Error::UnwritableKey { why, .. } | Error::UnwritableTensor { why, .. } => why,
            other => panic!("{other}"),
        }
    };
    let key = |key: &str, value: fathom_gguf::Value| [(key, value)].into_iter().collect::<Metadata>();
    assert_eq!(refused(key("", 1u32.into()), &[]), Unwritable::EmptyName);
    assert_eq!(refused(key("general.alignment", 1u64.into()), &[]), Unwritable::NotU32);
    assert_eq!(refused(key("general.alignment", 24u32.into()), &[]), Unwritable::Alignment { alignment: 24 });
    assert_eq!(refused(Metadata::new(), &["x", "y", "x"]), Unwritable::Duplicate);
    let bytes = 1 << 16;
    assert_eq!(
        refused(key(&"k".repeat(bytes), 1u32.into()), &[]),
        Unwritable::NameTooLong { bytes: bytes as u64, max: 65535 }
    );
    let nested = (0..4).fold(fathom_gguf::Array::U8(vec![]), |array, _| fathom_gguf::Array::Array(vec![array]));
    assert_eq!(refused(key("k", nested.into()), &[]), Unwritable::TooDeep);
}

#[test]
fn a_tensor_larger_than_a_shard_gets_one_of_its_own() {
    let sizes = [4, 100, 4, 4];
    let tensor = |(number, &rows): (usize, &u64)| TensorInfo::new(format!("t{number}"), DType::F32, [rows]).unwrap();
    let tensors: Vec<_> = sizes.iter().enumerate().map(tensor).collect();
    let layout = Layout::new(Metadata::new(), tensors, Some(64)).unwrap();
    let shards: Vec<_> = layout.tensors().iter().map(|info| (info.shard, info.offset)).collect();
    assert_eq!(shards, [(0, 0), (1, 0), (2, 0), (2, 32)]);
}

#[test]
fn tensors_are_written_from_several_threads() {
    let tensor = |number| TensorInfo::new(format!("t{number}"), DType::I8, [1000]).unwrap();
    let layout = Layout::new(Metadata::new(), (0..16).map(tensor).collect(), Some(4096)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let paths = layout.paths(&folder.path().join("x.gguf"));
    let writer = Writer::create(&layout, &paths).unwrap();
    std::thread::scope(|scope| {
        for (number, info) in layout.tensors().iter().enumerate() {
            let writer = &writer;
            scope.spawn(move || {
                for at in (0..1000).step_by(50) {
                    writer.write_at(info, at, &[number as u8; 50]).unwrap();
                }
            });
        }
    });
    let file = File::open(&paths[0]).unwrap();
    for (number, info) in file.tensors().iter().enumerate() {
        assert_eq!(file.data(info), [number as u8; 1000], "{}", info.name);
    }
}
