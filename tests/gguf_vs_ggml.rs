//! `crates/gguf` against the linked ggml: type table, file layout in both directions, and block codecs bit for bit.

#![expect(unsafe_code, reason = "calls ggml's C functions directly; nothing safe wraps them")]

use std::collections::BTreeSet;
use std::ffi::{CStr, CString, c_char, c_void};
use std::path::Path;
use std::ptr;

use fathom_gguf::{Array, DType, File, Layout, Metadata, Strings, TensorInfo, Value, Writer, block};
use llama_cpp_sys_2 as sys;

/// # Safety
/// `text` is a C string that lives as long as the result is used.
unsafe fn text<'a>(text: *const c_char) -> &'a str {
    assert!(!text.is_null());
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(text) }.to_str().expect("ggml gives back the UTF-8 it was given")
}

#[test]
fn every_type_has_ggmls_name_and_sizes() {
    assert_eq!(sys::GGML_TYPE_COUNT, 43, "a new ggml: extend DType");
    for id in 0..sys::GGML_TYPE_COUNT {
        // SAFETY: every number below the count indexes ggml's table.
        let (name, elements, bytes) =
            unsafe { (text(sys::ggml_type_name(id)), sys::ggml_blck_size(id), sys::ggml_type_size(id)) };
        match DType::from_id(id) {
            Some(dtype) => {
                assert_eq!(dtype.name(), name);
                assert_eq!((dtype.block_elements(), dtype.block_bytes()), (elements as u64, bytes as u64), "{name}");
            }
            None => {
                assert_eq!((elements, bytes), (0, 0), "type {id} (`{name}`) is alive in ggml");
                assert!(DType::removed(id).is_some(), "type {id}");
            }
        }
    }
}

/// Keys of every type that ggml reads: all but nested arrays.
fn metadata() -> Metadata {
    let words: Strings = ["<｜begin▁of▁sentence｜>", "", "Ġthe"].into_iter().collect();
    [
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
        ("true", true.into()),
        ("false", false.into()),
        ("empty", "".into()),
        ("arr.u8", vec![1u8, 2, 255].into()),
        ("arr.i8", vec![-1i8, 2].into()),
        ("arr.u16", vec![1u16, 65535].into()),
        ("arr.i16", vec![-1i16, 5].into()),
        ("arr.u32", vec![1u32].into()),
        ("arr.i32", vec![0i32, 4, 128, -7].into()),
        ("arr.u64", vec![u64::MAX].into()),
        ("arr.i64", vec![i64::MIN, 1].into()),
        ("arr.f32", vec![10.0f32, -0.0].into()),
        ("arr.f64", vec![1e300f64].into()),
        ("arr.bool", vec![true, false, true].into()),
        ("arr.str", words.into()),
    ]
    .into_iter()
    .collect()
}

/// One tensor of every type, with 1 to 4 axes.
fn tensors() -> Vec<TensorInfo> {
    let tensor = |(number, dtype): (usize, DType)| {
        let axes = [2 * dtype.block_elements(), 3, 2, 2];
        TensorInfo::new(format!("blk.{number}.{dtype}"), dtype, &axes[..1 + number % 4]).expect("a valid tensor")
    };
    DType::all().enumerate().map(tensor).collect()
}

fn data(number: usize, info: &TensorInfo) -> Vec<u8> {
    (0..info.bytes).map(|at| (at as u8).wrapping_mul(7) ^ number as u8).collect()
}

/// ggml's view of a file; owns it.
struct Theirs(*mut sys::gguf_context);

impl Theirs {
    fn open(path: &Path) -> Theirs {
        let path = CString::new(path.to_str().expect("a UTF-8 path")).expect("no zero in a path");
        let params = sys::gguf_init_params { no_alloc: true, ctx: ptr::null_mut() };
        // SAFETY: the path is a C string and `params` asks for no tensors.
        let context = unsafe { sys::gguf_init_from_file(path.as_ptr(), params) };
        assert!(!context.is_null(), "ggml refuses {path:?}");
        Theirs(context)
    }

    fn value(&self, id: i64) -> Value {
        /// # Safety
        /// Array number `id` exists and has elements of type `T`.
        unsafe fn array<T: Copy>(context: *const sys::gguf_context, id: i64) -> Vec<T> {
            // SAFETY: the caller's promise; ggml keeps elements in a byte vector, so they may be unaligned.
            unsafe {
                let start = sys::gguf_get_arr_data(context, id).cast::<T>();
                (0..sys::gguf_get_arr_n(context, id)).map(|at| start.add(at).read_unaligned()).collect()
            }
        }
        let context = self.0;
        // SAFETY: `id` is a key of this file, and each getter is called for the type that ggml reports.
        unsafe {
            match sys::gguf_get_kv_type(context, id) {
                sys::GGUF_TYPE_UINT8 => sys::gguf_get_val_u8(context, id).into(),
                sys::GGUF_TYPE_INT8 => sys::gguf_get_val_i8(context, id).into(),
                sys::GGUF_TYPE_UINT16 => sys::gguf_get_val_u16(context, id).into(),
                sys::GGUF_TYPE_INT16 => sys::gguf_get_val_i16(context, id).into(),
                sys::GGUF_TYPE_UINT32 => sys::gguf_get_val_u32(context, id).into(),
                sys::GGUF_TYPE_INT32 => sys::gguf_get_val_i32(context, id).into(),
                sys::GGUF_TYPE_UINT64 => sys::gguf_get_val_u64(context, id).into(),
                sys::GGUF_TYPE_INT64 => sys::gguf_get_val_i64(context, id).into(),
                sys::GGUF_TYPE_FLOAT32 => sys::gguf_get_val_f32(context, id).into(),
                sys::GGUF_TYPE_FLOAT64 => sys::gguf_get_val_f64(context, id).into(),
                sys::GGUF_TYPE_BOOL => sys::gguf_get_val_bool(context, id).into(),
                sys::GGUF_TYPE_STRING => text(sys::gguf_get_val_str(context, id)).into(),
                sys::GGUF_TYPE_ARRAY => match sys::gguf_get_arr_type(context, id) {
                    sys::GGUF_TYPE_UINT8 => array::<u8>(context, id).into(),
                    sys::GGUF_TYPE_INT8 => array::<i8>(context, id).into(),
                    sys::GGUF_TYPE_UINT16 => array::<u16>(context, id).into(),
                    sys::GGUF_TYPE_INT16 => array::<i16>(context, id).into(),
                    sys::GGUF_TYPE_UINT32 => array::<u32>(context, id).into(),
                    sys::GGUF_TYPE_INT32 => array::<i32>(context, id).into(),
                    sys::GGUF_TYPE_UINT64 => array::<u64>(context, id).into(),
                    sys::GGUF_TYPE_INT64 => array::<i64>(context, id).into(),
                    sys::GGUF_TYPE_FLOAT32 => array::<f32>(context, id).into(),
                    sys::GGUF_TYPE_FLOAT64 => array::<f64>(context, id).into(),
                    sys::GGUF_TYPE_BOOL => {
                        array::<u8>(context, id).into_iter().map(|byte| byte != 0).collect::<Vec<_>>().into()
                    }
                    sys::GGUF_TYPE_STRING => {
                        let n = sys::gguf_get_arr_n(context, id);
                        let strings = (0..n).map(|at| text(sys::gguf_get_arr_str(context, id, at)));
                        strings.collect::<Strings>().into()
                    }
                    other => panic!("array type {other}"),
                },
                other => panic!("value type {other}"),
            }
        }
    }

    fn metadata(&self) -> Metadata {
        // SAFETY: ids are below the number of keys.
        let entry = |id| (unsafe { text(sys::gguf_get_key(self.0, id)) }.to_owned(), self.value(id));
        // SAFETY: the context is open.
        (0..unsafe { sys::gguf_get_n_kv(self.0) }).map(entry).collect()
    }

    /// Name, type, shape (4 axes), offset, bytes.
    fn tensors(&self) -> Vec<(String, u32, [i64; 4], u64, u64)> {
        // SAFETY: ids are below the number of tensors; `ne` has GGML_MAX_DIMS (4) elements.
        unsafe {
            let tensor = |id| {
                let ne = sys::gguf_get_tensor_ne(self.0, id).cast::<[i64; 4]>().read();
                let name = text(sys::gguf_get_tensor_name(self.0, id)).to_owned();
                let (offset, bytes) = (sys::gguf_get_tensor_offset(self.0, id), sys::gguf_get_tensor_size(self.0, id));
                (name, sys::gguf_get_tensor_type(self.0, id), ne, offset as u64, bytes as u64)
            };
            (0..sys::gguf_get_n_tensors(self.0)).map(tensor).collect()
        }
    }
}

impl Drop for Theirs {
    fn drop(&mut self) {
        // SAFETY: the context came from ggml and is freed once.
        unsafe { sys::gguf_free(self.0) }
    }
}

fn expected(info: &TensorInfo) -> (String, u32, [i64; 4], u64, u64) {
    let ne = std::array::from_fn(|axis| info.ne.get(axis).map_or(1, |&n| n as i64));
    (info.name.clone(), info.dtype.id(), ne, info.offset, info.bytes)
}

const SPLIT_KEYS: [&str; 3] = ["split.no", "split.count", "split.tensors.count"];

#[test]
fn ggml_reads_what_we_write() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (alignment, split_max_bytes) in [(None, None), (Some(1u32), None), (Some(256), None), (Some(64), Some(2000))] {
        let mut metadata = metadata();
        if let Some(alignment) = alignment {
            metadata.insert("general.alignment", alignment);
        }
        let layout = Layout::new(metadata.clone(), tensors(), split_max_bytes).expect("a layout");
        let paths = layout.paths(&folder.path().join(format!("ours-{alignment:?}.gguf")));
        assert_eq!(paths.len() > 2, split_max_bytes.is_some());
        let writer = Writer::create(&layout, &paths).expect("written");
        for (number, info) in layout.tensors().iter().enumerate() {
            writer.write_at(info, 0, &data(number, info)).expect("written");
        }
        for (shard, path) in paths.iter().enumerate() {
            let theirs = Theirs::open(path);
            // SAFETY: the context is open.
            let (version, theirs_alignment, data_offset) = unsafe {
                let context = theirs.0;
                (sys::gguf_get_version(context), sys::gguf_get_alignment(context), sys::gguf_get_data_offset(context))
            };
            assert_eq!((version, theirs_alignment), (3, alignment.unwrap_or(32) as usize));
            assert_eq!(data_offset as u64, layout.data_offset(shard));
            let ours: Vec<_> = layout.tensors().iter().filter(|info| info.shard == shard).map(expected).collect();
            assert_eq!(theirs.tensors(), ours);

            let theirs = theirs.metadata();
            let split = SPLIT_KEYS.map(|key| theirs.get(key));
            let count = paths.len();
            let expected = [Value::U16(shard as u16), Value::U16(count as u16), Value::I32(tensors().len() as i32)];
            assert_eq!(split, expected.each_ref().map(|value| (count > 1).then_some(value)));
            let mut rest = theirs.clone();
            for key in SPLIT_KEYS {
                rest.remove(key);
            }
            match shard {
                0 => assert_eq!(rest, metadata),
                _ => assert_eq!(rest, [("general.alignment", 64u32)].into_iter().collect()),
            }
        }
    }
}

/// Writes `metadata` and `tensors` to `path` with ggml's functions.
fn write_with_ggml(path: &Path, metadata: &Metadata, tensors: &[TensorInfo]) {
    let c = |text: &str| CString::new(text).expect("no zero in the text");
    // SAFETY: every pointer passed is valid during the call; ggml copies keys, values and names. Tensors live in a ggml
    // context that is large enough (checked by ggml) and freed after the file was written.
    unsafe {
        let file = sys::gguf_init_empty();
        for (key, value) in metadata.iter() {
            let key = c(key);
            let key = key.as_ptr();
            let array = |type_id, data: *const c_void, n| sys::gguf_set_arr_data(file, key, type_id, data, n);
            match value {
                Value::U8(v) => sys::gguf_set_val_u8(file, key, *v),
                Value::I8(v) => sys::gguf_set_val_i8(file, key, *v),
                Value::U16(v) => sys::gguf_set_val_u16(file, key, *v),
                Value::I16(v) => sys::gguf_set_val_i16(file, key, *v),
                Value::U32(v) => sys::gguf_set_val_u32(file, key, *v),
                Value::I32(v) => sys::gguf_set_val_i32(file, key, *v),
                Value::U64(v) => sys::gguf_set_val_u64(file, key, *v),
                Value::I64(v) => sys::gguf_set_val_i64(file, key, *v),
                Value::F32(v) => sys::gguf_set_val_f32(file, key, *v),
                Value::F64(v) => sys::gguf_set_val_f64(file, key, *v),
                Value::Bool(v) => sys::gguf_set_val_bool(file, key, *v),
                Value::String(v) => sys::gguf_set_val_str(file, key, c(v).as_ptr()),
                Value::Array(Array::U8(v)) => array(sys::GGUF_TYPE_UINT8, v.as_ptr().cast(), v.len()),
                Value::Array(Array::I8(v)) => array(sys::GGUF_TYPE_INT8, v.as_ptr().cast(), v.len()),
                Value::Array(Array::U16(v)) => array(sys::GGUF_TYPE_UINT16, v.as_ptr().cast(), v.len()),
                Value::Array(Array::I16(v)) => array(sys::GGUF_TYPE_INT16, v.as_ptr().cast(), v.len()),
                Value::Array(Array::U32(v)) => array(sys::GGUF_TYPE_UINT32, v.as_ptr().cast(), v.len()),
                Value::Array(Array::I32(v)) => array(sys::GGUF_TYPE_INT32, v.as_ptr().cast(), v.len()),
                Value::Array(Array::U64(v)) => array(sys::GGUF_TYPE_UINT64, v.as_ptr().cast(), v.len()),
                Value::Array(Array::I64(v)) => array(sys::GGUF_TYPE_INT64, v.as_ptr().cast(), v.len()),
                Value::Array(Array::F32(v)) => array(sys::GGUF_TYPE_FLOAT32, v.as_ptr().cast(), v.len()),
                Value::Array(Array::F64(v)) => array(sys::GGUF_TYPE_FLOAT64, v.as_ptr().cast(), v.len()),
                Value::Array(Array::Bool(v)) => array(sys::GGUF_TYPE_BOOL, v.as_ptr().cast(), v.len()),
                Value::Array(Array::String(v)) => {
                    let strings: Vec<_> = v.iter().map(c).collect();
                    let mut pointers: Vec<_> = strings.iter().map(|string| string.as_ptr()).collect();
                    sys::gguf_set_arr_str(file, key, pointers.as_mut_ptr(), pointers.len());
                }
                Value::Array(Array::Array(_)) => panic!("ggml has no nested arrays"),
            }
        }
        let mem_size = 1 << 20;
        let context = sys::ggml_init(sys::ggml_init_params { mem_size, mem_buffer: ptr::null_mut(), no_alloc: false });
        for (number, info) in tensors.iter().enumerate() {
            let ne: Vec<i64> = info.ne.iter().map(|&n| n as i64).collect();
            let tensor = sys::ggml_new_tensor(context, info.dtype.id(), ne.len() as i32, ne.as_ptr());
            let data = data(number, info);
            assert_eq!(sys::ggml_nbytes(tensor), data.len());
            (*tensor).data.cast::<u8>().copy_from_nonoverlapping(data.as_ptr(), data.len());
            sys::ggml_set_name(tensor, c(&info.name).as_ptr());
            sys::gguf_add_tensor(file, tensor);
        }
        assert!(sys::gguf_write_to_file(file, c(path.to_str().expect("UTF-8")).as_ptr(), false), "written");
        sys::ggml_free(context);
        sys::gguf_free(file);
    }
}

#[test]
fn we_read_what_ggml_writes_and_write_the_same_bytes() {
    // In the default alignment: ggml's writer lays out by 32 whatever `general.alignment` it is told to write.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("theirs.gguf");
    write_with_ggml(&path, &metadata(), &tensors());

    let file = File::open(&path).expect("ggml writes valid files");
    assert_eq!(file.metadata(), &metadata());
    let layout = Layout::new(metadata(), tensors(), None).expect("a layout");
    assert_eq!(file.tensors(), layout.tensors());
    for (number, info) in file.tensors().iter().enumerate() {
        assert_eq!(file.data(info), data(number, info), "{}", info.name);
    }

    let with_data: Vec<_> =
        tensors().into_iter().enumerate().map(|(at, info)| (info.clone(), data(at, &info))).collect();
    let mut ours = Vec::new();
    fathom_gguf::write_to(&mut ours, metadata(), &with_data).expect("valid").expect("written");
    let theirs = std::fs::read(&path).expect("readable");
    let first = ours.iter().zip(&theirs).position(|(a, b)| a != b);
    assert_eq!((ours.len(), first), (theirs.len(), None), "same length, no different byte");
}

const CODECS: [DType; 5] = [DType::F16, DType::BF16, DType::Q8_0, DType::MXFP4, DType::NVFP4];

/// Small generator of the test's own (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// About normally distributed, deviation 1: a sum of twelve.
    fn normal(&mut self) -> f32 {
        (0..12).map(|_| (self.next() >> 40) as f32 / (1u64 << 24) as f32).sum::<f32>() - 6.0
    }
}

/// Rows that look like weights, at scales over the whole range, and rows made of what is hard: ties, zeros, both signs of
/// zero, largest values just below and at powers of two, values far apart.
fn rows(dtype: DType) -> Vec<f32> {
    let mut random = Random(7);
    let mut values = Vec::new();
    // NVFP4 and F16 have small exponent ranges of their own; beyond them is tested too. 2^-100 keeps MXFP4 away from
    // scales that are undefined in C.
    for exponent in -100..100 {
        let scale = 2f32.powi(exponent);
        values.extend((0..64 * 20).map(|_| random.normal() * scale));
    }
    let hard = [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0];
    for round in 0..2000 {
        let scale = 2f32.powi((random.next() % 40) as i32 - 20);
        let largest = [8f32.next_down(), 8.0, 8f32.next_up(), 6.0, 4f32.next_down(), 4.0, 7.999, 5.999][round % 8];
        let pick = |_| {
            let bits = random.next();
            let value: f32 = hard[(bits % 16) as usize];
            let value = match bits >> 8 & 3 {
                0 => value.next_up(),
                1 => value.next_down(),
                _ => value,
            };
            value.min(largest) * scale * if bits >> 10 & 1 == 0 { 1.0 } else { -1.0 }
        };
        let mut row: Vec<f32> = (0..64).map(pick).collect();
        row[random.next() as usize % 64] = largest * scale;
        values.extend(row);
    }
    values.extend([0.0; 64]);
    values.extend([-0.0; 64]);
    values.extend((0..64).map(|at| if at == 13 { 1e30 } else { at as f32 }));
    if matches!(dtype, DType::F16 | DType::BF16) {
        values.extend((0..1 << 16).map(|_| f32::from_bits(random.next() as u32)));
        values.extend([f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 65519.0, 65520.0, 1e-45]);
        values.resize(values.len().next_multiple_of(64), 0.0);
    }
    values
}

#[test]
fn encoding_gives_ggmls_bytes() {
    for dtype in CODECS {
        let values = rows(dtype);
        let mut ours = vec![0u8; dtype.row_bytes(values.len() as u64).expect("whole blocks") as usize];
        let mut theirs = vec![0u8; ours.len()];
        block::encode(dtype, &values, &mut ours).expect("lengths match");
        // SAFETY: one row of `values.len()` elements, and `theirs` has the bytes of that row.
        let written = unsafe {
            let n = values.len() as i64;
            sys::ggml_quantize_chunk(dtype.id(), values.as_ptr(), theirs.as_mut_ptr().cast(), 0, 1, n, ptr::null())
        };
        assert_eq!(written, ours.len());
        let (elements, bytes) = (dtype.block_elements() as usize, dtype.block_bytes() as usize);
        for (number, (ours, theirs)) in ours.chunks(bytes).zip(theirs.chunks(bytes)).enumerate() {
            let values = &values[number * elements..][..elements];
            assert_eq!(ours, theirs, "{dtype} block {number}: {values:?}");
        }
    }
}

#[test]
fn decoding_gives_ggmls_numbers() {
    for dtype in CODECS {
        let mut random = Random(11);
        let n = 1usize << 18; // F16 and BF16: every pattern four times
        let mut bytes = vec![0u8; dtype.row_bytes(n as u64).expect("whole blocks") as usize];
        bytes.iter_mut().for_each(|byte| *byte = random.next() as u8);
        if dtype.block_bytes() == 2 {
            bytes.as_chunks_mut().0.iter_mut().zip(0u32..).for_each(|(bits, at)| *bits = (at as u16).to_le_bytes());
        }
        let (mut ours, mut theirs) = (vec![0f32; n], vec![0f32; n]);
        block::decode(dtype, &bytes, &mut ours).expect("lengths match");
        // SAFETY: the traits of an existing type are a static table; `bytes` holds `n` elements and `theirs` takes them.
        unsafe {
            let to_float = (*sys::ggml_get_type_traits(dtype.id())).to_float.expect("a type with numbers in it");
            to_float(bytes.as_ptr().cast(), theirs.as_mut_ptr(), n as i64);
        }
        let mut scales = BTreeSet::new();
        for (at, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
            let same = ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan();
            assert!(same, "{dtype} element {at}: {ours:?} is {theirs:?} in ggml");
            scales.insert(bytes[at / dtype.block_elements() as usize * dtype.block_bytes() as usize]);
        }
        assert_eq!(scales.len(), 256, "{dtype}: every first byte of a block occurred");
    }
}
