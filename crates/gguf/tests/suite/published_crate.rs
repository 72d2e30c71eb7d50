//! The published `gguf` crate reads what we write: an independent parser. It knows element types up to 15 only.

use fathom_gguf::{Array, DType, Metadata, Strings, TensorInfo, Value, write_to};
use gguf::{GGUFFile, GGUFMetadataValue as Theirs};

fn same(ours: &Value, theirs: &Theirs) -> bool {
    match (ours, theirs) {
        (Value::U8(a), Theirs::Uint8(b)) => a == b,
        (Value::I8(a), Theirs::Int8(b)) => a == b,
        (Value::U16(a), Theirs::Uint16(b)) => a == b,
        (Value::I16(a), Theirs::Int16(b)) => a == b,
        (Value::U32(a), Theirs::Uint32(b)) => a == b,
        (Value::I32(a), Theirs::Int32(b)) => a == b,
        (Value::U64(a), Theirs::Uint64(b)) => a == b,
        (Value::I64(a), Theirs::Int64(b)) => a == b,
        (Value::F32(a), Theirs::Float32(b)) => a == b,
        (Value::F64(a), Theirs::Float64(b)) => a == b,
        (Value::Bool(a), Theirs::Bool(b)) => a == b,
        (Value::String(a), Theirs::String(b)) => a == b,
        (Value::Array(Array::I32(a)), Theirs::Array(b)) => {
            a.len() == b.value.len() && a.iter().zip(&b.value).all(|(&a, b)| same(&Value::I32(a), b))
        }
        (Value::Array(Array::String(a)), Theirs::Array(b)) => {
            a.len() == b.value.len() && a.iter().zip(&b.value).all(|(a, b)| same(&a.into(), b))
        }
        _ => false,
    }
}

#[test]
fn reads_our_files_of_old_types() {
    let words: Strings = ["<｜begin▁of▁sentence｜>", "", "Ġthe"].into_iter().collect();
    let metadata: Metadata = [
        ("general.architecture", Value::from("test")),
        ("u8", 200u8.into()),
        ("i8", (-100i8).into()),
        ("u16", 60_000u16.into()),
        ("i16", (-30_000i16).into()),
        ("u32", u32::MAX.into()),
        ("i32", i32::MIN.into()),
        ("u64", u64::MAX.into()),
        ("i64", i64::MIN.into()),
        ("f32", 1e-6f32.into()),
        ("f64", std::f64::consts::PI.into()),
        ("bool", true.into()),
        ("ratios", vec![0i32, 4, 128].into()),
        ("words", words.into()),
    ]
    .into_iter()
    .collect();
    let tensors: Vec<_> = DType::all()
        .filter(|dtype| dtype.id() <= 15)
        .map(|dtype| TensorInfo::new(format!("t.{dtype}"), dtype, [256, 3]).unwrap())
        .map(|info| (info.clone(), vec![0u8; info.bytes as usize]))
        .collect();
    let mut bytes = Vec::new();
    write_to(&mut bytes, metadata.clone(), &tensors).unwrap().unwrap();

    let theirs = GGUFFile::read(&bytes).unwrap().expect("a complete file");
    let ours = fathom_gguf::File::from_bytes(bytes).unwrap();

    assert_eq!(theirs.header.version, ours.version());
    assert_eq!(theirs.header.metadata.len(), metadata.len());
    for ((key, value), entry) in metadata.iter().zip(&theirs.header.metadata) {
        assert_eq!(key, entry.key);
        assert!(same(value, &entry.value), "{key}: {value:?} was read as {:?}", entry.value);
    }
    assert_eq!(theirs.tensors.len(), 14);
    for (ours, theirs) in ours.tensors().iter().zip(&theirs.tensors) {
        assert_eq!((&ours.name, &ours.ne, ours.offset), (&theirs.name, &theirs.dimensions, theirs.offset));
        assert_eq!(ours.dtype.id(), theirs.tensor_type as u32);
    }
}
