//! What is written is read back, whatever it is.

use fathom_gguf::{Array, DType, File, Layout, Metadata, Strings, TensorInfo, Value, Writer};
use proptest::collection::vec;
use proptest::prelude::*;

fn number_or_text() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        any::<f32>().prop_map(Value::F32),
        any::<f64>().prop_map(Value::F64),
        any::<bool>().prop_map(Value::Bool),
        any::<String>().prop_map(Value::String),
    ]
}

fn flat_array() -> impl Strategy<Value = Array> {
    prop_oneof![
        vec(any::<u8>(), 0..9).prop_map(Array::U8),
        vec(any::<i8>(), 0..9).prop_map(Array::I8),
        vec(any::<u16>(), 0..9).prop_map(Array::U16),
        vec(any::<i16>(), 0..9).prop_map(Array::I16),
        vec(any::<u32>(), 0..9).prop_map(Array::U32),
        vec(any::<i32>(), 0..9).prop_map(Array::I32),
        vec(any::<u64>(), 0..9).prop_map(Array::U64),
        vec(any::<i64>(), 0..9).prop_map(Array::I64),
        vec(any::<f32>(), 0..9).prop_map(Array::F32),
        vec(any::<f64>(), 0..9).prop_map(Array::F64),
        vec(any::<bool>(), 0..9).prop_map(Array::Bool),
        vec(any::<String>(), 0..9).prop_map(|strings| Array::String(Strings::from(strings))),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    let array = flat_array().prop_recursive(3, 8, 3, |inner| vec(inner, 0..3).prop_map(Array::Array));
    prop_oneof![number_or_text(), array.prop_map(Value::Array)]
}

pub fn metadata() -> impl Strategy<Value = Metadata> {
    let alignment = prop_oneof![Just(None), (0..8u32).prop_map(|log2| Some(1u32 << log2))];
    (vec(("[a-z]{1,3}(\\.[a-z_]{1,9})?", value()), 0..6), alignment).prop_map(|(entries, alignment)| {
        let mut metadata: Metadata = entries.into_iter().collect();
        if let Some(alignment) = alignment {
            metadata.insert("general.alignment", alignment);
        }
        metadata
    })
}

/// Tensors with distinct names; data is filled in by the test.
pub fn tensors() -> impl Strategy<Value = Vec<TensorInfo>> {
    let dtype = prop::sample::select(DType::all().collect::<Vec<_>>());
    vec((dtype, 0..4u64, vec(0..4u64, 0..4)), 0..7).prop_map(|shapes| {
        let tensor = |(number, (dtype, blocks, axes)): (usize, (DType, u64, Vec<u64>))| {
            let ne: Vec<u64> = [blocks * dtype.block_elements()].into_iter().chain(axes).collect();
            TensorInfo::new(format!("blk.{number}.{dtype}"), dtype, ne).unwrap()
        };
        shapes.into_iter().enumerate().map(tensor).collect()
    })
}

/// Bytes that differ from tensor to tensor and from place to place.
fn data(number: usize, bytes: u64) -> Vec<u8> {
    (0..bytes).map(|at| (at as u8).wrapping_mul(31) ^ (number as u8 + 1)).collect()
}

/// Miri is some thousand times slower.
fn cases() -> ProptestConfig {
    ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 256 })
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn writer_then_reader_is_identity(
        metadata in metadata(),
        tensors in tensors(),
        split_max_bytes in prop::option::of(1..3000u64),
        pieces in 1..100u64,
        open in any::<prop::sample::Index>(),
    ) {
        let layout = Layout::new(metadata.clone(), tensors.clone(), split_max_bytes).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let paths = layout.paths(&folder.path().join("model.gguf"));
        let writer = Writer::create(&layout, &paths).unwrap();
        for (number, info) in layout.tensors().iter().enumerate().rev() {
            for (at, piece) in (0..).step_by(pieces as usize).zip(data(number, info.bytes).chunks(pieces as usize)) {
                writer.write_at(info, at, piece).unwrap();
            }
        }
        drop(writer);

        let file = File::open(open.get(&paths)).unwrap();
        let without_split: Metadata = file
            .metadata()
            .iter()
            .filter(|(key, _)| !key.starts_with("split."))
            .map(|(key, value)| (key, value.clone()))
            .collect();
        prop_assert_eq!(&without_split, &metadata);
        prop_assert_eq!(file.tensors(), layout.tensors());
        prop_assert_eq!(file.tensors().len(), tensors.len());
        for (number, info) in file.tensors().iter().enumerate() {
            prop_assert_eq!(file.data(info), data(number, info.bytes));
            prop_assert_eq!(file.data_range(info), layout.data_range(info));
            prop_assert_eq!(info.offset % u64::from(file.alignment()), 0);
        }
        for (shard, path) in paths.iter().enumerate() {
            let bytes = std::fs::read(path).unwrap();
            prop_assert_eq!(bytes.len() as u64, layout.file_bytes(shard));
            prop_assert_eq!(&bytes[..layout.data_offset(shard) as usize], layout.header(shard));
            prop_assert!(layout.tensors().iter().filter(|info| info.shard == shard).count() > 0 || tensors.is_empty());
        }
        // What was read lays out as what was written.
        let again = Layout::new(file.metadata().clone(), file.tensors().to_vec(), split_max_bytes).unwrap();
        prop_assert_eq!(again.header(0), layout.header(0));
    }

    #[test]
    fn damaged_files_are_refused_or_read_but_never_panic(
        metadata in metadata(),
        tensors in tensors(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let tensors: Vec<_> = tensors.into_iter().map(|info| (info.clone(), data(0, info.bytes))).collect();
        let mut bytes = Vec::new();
        fathom_gguf::write_to(&mut bytes, metadata, &tensors).unwrap().unwrap();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        crate::replay::entry::gguf(&bytes);
    }
}
