//! Parses the header of a GGUF file: keys and tensor descriptions.
//!
//! Works on a byte slice and knows nothing of files, so that it can be fuzzed and run under Miri. Everything is copied out
//! of the slice, and text is checked *after* it was copied: the slice may be a memory map whose bytes another process can
//! change at any time, so nothing that was checked there stays true.
//!
//! The file in order: magic, version, number of tensors, number of keys; the keys, each a string, a value type and a
//! value; the tensors, each a name, axes, element type and offset; padding; tensor data. All numbers are little endian,
//! counts and lengths 64 bits wide.

use std::collections::HashSet;

use crate::error::{Defect, Fault, Place};
use crate::{Array, DType, Metadata, Strings, TensorInfo, Value, ValueType, limits};

/// What comes before the tensor data.
pub(crate) struct Header {
    pub version: u32,
    pub alignment: u32,
    pub metadata: Metadata,
    pub tensors: Vec<TensorInfo>,
    /// Start of the data section in the file.
    pub data_offset: u64,
}

/// A defect before it is known which key or tensor it belongs to: the caller adds that.
struct Raw {
    defect: Defect,
    at: u64,
}

impl Raw {
    fn of(self, place: Place) -> Fault {
        Fault { defect: self.defect, place, at: self.at }
    }
}

type Parsed<T> = Result<T, Raw>;

pub(crate) const MAGIC: &[u8; 4] = b"GGUF";
/// Alignment of a file that does not say otherwise.
pub(crate) const DEFAULT_ALIGNMENT: u32 = 32;
pub(crate) const ALIGNMENT_KEY: &str = "general.alignment";

/// Least bytes of a key: length, one character, value type, one byte of value.
const MIN_KEY_ENTRY_BYTES: u64 = 8 + 1 + 4 + 1;
/// Least bytes of a tensor description: length, one character, number of axes, type, offset.
const MIN_TENSOR_ENTRY_BYTES: u64 = 8 + 1 + 4 + 4 + 8;

/// Parses the file `bytes` and checks that every tensor's data lies inside it.
pub(crate) fn parse(bytes: &[u8]) -> Result<Header, Fault> {
    let mut cursor = Cursor { bytes, at: 0 };
    let (version, n_tensors, n_keys) = preamble(&mut cursor).map_err(|raw| raw.of(Place::Header))?;
    let (metadata, alignment) = keys(&mut cursor, n_keys)?;
    let (tensors, fields) = descriptions(&mut cursor, n_tensors, alignment)?;
    // Without tensors there is no data section, and writers leave the padding out.
    let end = cursor.at as u64;
    let data_offset = if tensors.is_empty() { end } else { end.next_multiple_of(u64::from(alignment)) };
    places(&tensors, &fields, data_offset, bytes.len() as u64)?;
    Ok(Header { version, alignment, metadata, tensors, data_offset })
}

fn preamble(cursor: &mut Cursor) -> Parsed<(u32, u64, u64)> {
    let magic = cursor.bytes.get(..4).unwrap_or(cursor.bytes);
    if magic != MAGIC {
        return Err(Raw { defect: Defect::NotGguf { found: magic.to_vec() }, at: 0 });
    }
    cursor.at = 4;
    let version = cursor.u32()?;
    match version {
        2 | 3 => {}
        // A small number with its bytes reversed has zeros where a little-endian one has its value.
        _ if version != 0 && version & 0xFFFF == 0 => {
            return Err(Raw { defect: Defect::BigEndian, at: 4 });
        }
        _ => {
            return Err(Raw { defect: Defect::Version { version }, at: 4 });
        }
    }
    let n_tensors = cursor.u64()?;
    if n_tensors > limits::MAX_TENSORS {
        return Err(Raw { defect: Defect::TooManyTensors { count: n_tensors }, at: 8 });
    }
    let n_keys = cursor.u64()?;
    if n_keys > limits::MAX_KEYS {
        return Err(Raw { defect: Defect::TooManyKeys { count: n_keys }, at: 16 });
    }
    cursor.expect_room(n_tensors, MIN_TENSOR_ENTRY_BYTES, 8)?;
    cursor.expect_room(n_keys, MIN_KEY_ENTRY_BYTES, 16)?;
    Ok((version, n_tensors, n_keys))
}

fn keys(cursor: &mut Cursor, n_keys: u64) -> Result<(Metadata, u32), Fault> {
    let mut metadata = Metadata::new();
    let mut alignment = DEFAULT_ALIGNMENT;
    for number in 0..n_keys {
        let key_at = cursor.at as u64;
        let key = key(cursor).map_err(|raw| raw.of(Place::KeyNumber(number)))?;
        if metadata.contains(&key) {
            return Err(Fault { defect: Defect::DuplicateKey, place: Place::Key(key), at: key_at });
        }
        let value_at = cursor.at as u64;
        let value = match value(cursor) {
            Ok(value) => value,
            Err(raw) => return Err(raw.of(Place::Key(key))),
        };
        if key == ALIGNMENT_KEY {
            let defect = match value {
                Value::U32(given) if given.is_power_of_two() => {
                    alignment = given;
                    None
                }
                Value::U32(alignment) => Some(Defect::AlignmentNotPowerOfTwo { alignment }),
                ref other => Some(Defect::AlignmentType { found: other.type_name() }),
            };
            if let Some(defect) = defect {
                return Err(Fault { defect, place: Place::Key(key), at: value_at });
            }
        }
        metadata.insert(key, value);
    }
    Ok((metadata, alignment))
}

fn key(cursor: &mut Cursor) -> Parsed<String> {
    let at = cursor.at as u64;
    let bytes = cursor.u64()?;
    if bytes == 0 {
        return Err(Raw { defect: Defect::EmptyKey, at });
    }
    if bytes > limits::MAX_KEY_BYTES {
        return Err(Raw { defect: Defect::KeyTooLong { bytes }, at });
    }
    cursor.text(bytes)
}

fn value(cursor: &mut Cursor) -> Parsed<Value> {
    Ok(match value_type(cursor)? {
        ValueType::U8 => Value::U8(cursor.number(u8::from_le_bytes)?),
        ValueType::I8 => Value::I8(cursor.number(i8::from_le_bytes)?),
        ValueType::U16 => Value::U16(cursor.number(u16::from_le_bytes)?),
        ValueType::I16 => Value::I16(cursor.number(i16::from_le_bytes)?),
        ValueType::U32 => Value::U32(cursor.number(u32::from_le_bytes)?),
        ValueType::I32 => Value::I32(cursor.number(i32::from_le_bytes)?),
        ValueType::U64 => Value::U64(cursor.number(u64::from_le_bytes)?),
        ValueType::I64 => Value::I64(cursor.number(i64::from_le_bytes)?),
        ValueType::F32 => Value::F32(cursor.number(f32::from_le_bytes)?),
        ValueType::F64 => Value::F64(cursor.number(f64::from_le_bytes)?),
        ValueType::Bool => {
            let at = cursor.at as u64;
            Value::Bool(boolean(cursor.number(u8::from_le_bytes)?, at)?)
        }
        ValueType::String => {
            let bytes = cursor.string_length()?;
            Value::String(cursor.text(bytes)?)
        }
        ValueType::Array => Value::Array(array(cursor, 1)?),
    })
}

fn value_type(cursor: &mut Cursor) -> Parsed<ValueType> {
    let at = cursor.at as u64;
    let id = cursor.u32()?;
    ValueType::from_id(id).ok_or(Raw { defect: Defect::UnknownValueType { id }, at })
}

fn boolean(byte: u8, at: u64) -> Parsed<bool> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Raw { defect: Defect::InvalidBool { byte }, at }),
    }
}

fn array(cursor: &mut Cursor, depth: usize) -> Parsed<Array> {
    let at = cursor.at as u64;
    if depth > limits::MAX_ARRAY_DEPTH {
        return Err(Raw { defect: Defect::ArrayTooDeep, at });
    }
    let kind = value_type(cursor)?;
    let count_at = cursor.at as u64;
    let count = cursor.u64()?;
    if count > limits::MAX_ARRAY_ELEMENTS {
        return Err(Raw { defect: Defect::ArrayTooLong { count }, at: count_at });
    }
    cursor.expect_room(count, kind.min_bytes(), count_at)?;
    let count = count as usize; // at most the file's length, which is a usize
    Ok(match kind {
        ValueType::U8 => Array::U8(cursor.take(count)?.to_vec()),
        ValueType::I8 => Array::I8(cursor.numbers(count, i8::from_le_bytes)?),
        ValueType::U16 => Array::U16(cursor.numbers(count, u16::from_le_bytes)?),
        ValueType::I16 => Array::I16(cursor.numbers(count, i16::from_le_bytes)?),
        ValueType::U32 => Array::U32(cursor.numbers(count, u32::from_le_bytes)?),
        ValueType::I32 => Array::I32(cursor.numbers(count, i32::from_le_bytes)?),
        ValueType::U64 => Array::U64(cursor.numbers(count, u64::from_le_bytes)?),
        ValueType::I64 => Array::I64(cursor.numbers(count, i64::from_le_bytes)?),
        ValueType::F32 => Array::F32(cursor.numbers(count, f32::from_le_bytes)?),
        ValueType::F64 => Array::F64(cursor.numbers(count, f64::from_le_bytes)?),
        ValueType::Bool => {
            let start = cursor.at as u64;
            let bytes = cursor.take(count)?;
            Array::Bool((start..).zip(bytes).map(|(at, &byte)| boolean(byte, at)).collect::<Parsed<_>>()?)
        }
        ValueType::String => Array::String(strings(cursor, count)?),
        ValueType::Array => {
            let mut arrays = Vec::new();
            for _ in 0..count {
                arrays.push(array(cursor, depth + 1)?);
            }
            Array::Array(arrays)
        }
    })
}

/// Copies all strings into one text, then checks the text as a whole: one pass instead of a call for each of 129 280 short
/// strings.
fn strings(cursor: &mut Cursor, count: usize) -> Parsed<Strings> {
    let start = cursor.at;
    let mut text = Vec::new();
    let mut ends = Vec::with_capacity(count);
    for _ in 0..count {
        let at = cursor.at as u64;
        let bytes = cursor.string_length()?;
        text.extend_from_slice(cursor.take_u64(bytes)?);
        if text.len() as u64 > limits::MAX_STRING_BYTES {
            return Err(Raw { defect: Defect::StringsTooLong, at });
        }
        ends.push(text.len() as u32);
    }
    // The whole may be UTF-8 although a character is torn between two strings, so boundaries are checked too.
    let text = String::from_utf8(text).map_err(|error| error.into_bytes());
    match text {
        Ok(text) if ends.iter().all(|&end| text.is_char_boundary(end as usize)) => Ok(Strings::from_parts(text, ends)),
        Ok(text) => Err(first_not_utf8(text.as_bytes(), &ends, start)),
        Err(text) => Err(first_not_utf8(&text, &ends, start)),
    }
}

/// Finds the string to blame, now that it is known that there is one.
fn first_not_utf8(text: &[u8], ends: &[u32], start: usize) -> Raw {
    let mut at = start;
    let mut begin = 0;
    for &end in ends {
        let string = &text[begin..end as usize];
        if let Err(error) = std::str::from_utf8(string) {
            return Raw { defect: Defect::NotUtf8 { valid_bytes: error.valid_up_to() as u64 }, at: at as u64 };
        }
        at += 8 + string.len();
        begin = end as usize;
    }
    unreachable!("strings that are UTF-8 one by one are UTF-8 together")
}

/// Where in the file the fields of one tensor's description stand, for messages.
struct Fields {
    name_at: u64,
    offset_at: u64,
}

fn descriptions(cursor: &mut Cursor, n_tensors: u64, alignment: u32) -> Result<(Vec<TensorInfo>, Vec<Fields>), Fault> {
    let count = n_tensors as usize; // capped, and proportional to the file
    let mut tensors: Vec<TensorInfo> = Vec::with_capacity(count);
    let mut fields = Vec::with_capacity(count);
    for number in 0..n_tensors {
        let name_at = cursor.at as u64;
        let name = tensor_name(cursor).map_err(|raw| raw.of(Place::TensorNumber(number)))?;
        match description(cursor, alignment) {
            Ok((dtype, ne, offset, bytes)) => {
                fields.push(Fields { name_at, offset_at: cursor.at as u64 - 8 });
                tensors.push(TensorInfo { name, dtype, ne, offset, bytes, shard: 0 });
            }
            Err(raw) => return Err(raw.of(Place::Tensor(name))),
        }
    }
    let mut seen = HashSet::with_capacity(count);
    for (tensor, &Fields { name_at, .. }) in tensors.iter().zip(&fields) {
        if !seen.insert(tensor.name.as_str()) {
            let place = Place::Tensor(tensor.name.clone());
            return Err(Fault { defect: Defect::DuplicateTensor, place, at: name_at });
        }
    }
    Ok((tensors, fields))
}

fn tensor_name(cursor: &mut Cursor) -> Parsed<String> {
    let at = cursor.at as u64;
    let bytes = cursor.u64()?;
    if bytes == 0 {
        return Err(Raw { defect: Defect::EmptyTensorName, at });
    }
    if bytes > limits::MAX_TENSOR_NAME_BYTES {
        return Err(Raw { defect: Defect::TensorNameTooLong { bytes }, at });
    }
    cursor.text(bytes)
}

fn description(cursor: &mut Cursor, alignment: u32) -> Parsed<(DType, Vec<u64>, u64, u64)> {
    let ne_at = cursor.at as u64;
    let n_dims = cursor.u32()?;
    if n_dims > limits::MAX_DIMENSIONS {
        return Err(Raw { defect: Defect::TooManyDimensions { count: n_dims }, at: ne_at });
    }
    let mut ne = cursor.numbers(n_dims as usize, u64::from_le_bytes)?;
    if ne.is_empty() {
        ne.push(1); // a scalar: ggml, too, takes missing axes as 1
    }
    let type_at = cursor.at as u64;
    let id = cursor.u32()?;
    let Some(dtype) = DType::from_id(id) else {
        let defect = match DType::removed(id) {
            Some(name) => Defect::RemovedType { id, name },
            None => Defect::UnknownType { id },
        };
        return Err(Raw { defect, at: type_at });
    };
    let Some(bytes) = dtype.tensor_bytes(&ne) else {
        let defect = match ne[0].is_multiple_of(dtype.block_elements()) {
            true => Defect::ShapeTooLarge { ne, dtype },
            false => Defect::PartialBlock { ne0: ne[0], dtype },
        };
        return Err(Raw { defect, at: ne_at });
    };
    let offset_at = cursor.at as u64;
    let offset = cursor.u64()?;
    if !offset.is_multiple_of(u64::from(alignment)) {
        return Err(Raw { defect: Defect::Unaligned { offset, alignment }, at: offset_at });
    }
    Ok((dtype, ne, offset, bytes))
}

/// Checks that the data of every tensor is inside the file and that no two overlap. Order and gaps are free here, although
/// ggml itself accepts only tensors one after the other.
fn places(tensors: &[TensorInfo], fields: &[Fields], data_offset: u64, file_bytes: u64) -> Result<(), Fault> {
    let fault = |index: usize, defect| {
        Err(Fault { defect, place: Place::Tensor(tensors[index].name.clone()), at: fields[index].offset_at })
    };
    for (index, tensor) in tensors.iter().enumerate() {
        let (offset, bytes) = (tensor.offset, tensor.bytes);
        match data_offset.checked_add(offset).and_then(|start| start.checked_add(bytes)) {
            None => return fault(index, Defect::OffsetOverflow { offset, bytes }),
            Some(end) if end > file_bytes && bytes > 0 => {
                return fault(index, Defect::PastEnd { end, file_bytes });
            }
            Some(_) => {}
        }
    }
    let mut by_offset: Vec<usize> = (0..tensors.len()).filter(|&index| tensors[index].bytes > 0).collect();
    by_offset.sort_unstable_by_key(|&index| tensors[index].offset);
    for pair in by_offset.windows(2) {
        let (before, after) = (&tensors[pair[0]], &tensors[pair[1]]);
        if before.offset + before.bytes > after.offset {
            return fault(pair[1], Defect::Overlap { other: before.name.clone() });
        }
    }
    Ok(())
}

/// Reads forward; never past the end.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    fn take(&mut self, bytes: usize) -> Parsed<&'a [u8]> {
        let taken = self.at.checked_add(bytes).and_then(|end| self.bytes.get(self.at..end));
        let Some(taken) = taken else {
            let defect = Defect::CutOff { needed: bytes as u64, left: self.left() };
            return Err(Raw { defect, at: self.at as u64 });
        };
        self.at += bytes;
        Ok(taken)
    }

    fn take_u64(&mut self, bytes: u64) -> Parsed<&'a [u8]> {
        match usize::try_from(bytes) {
            Ok(bytes) => self.take(bytes),
            Err(_) => Err(Raw { defect: Defect::CutOff { needed: bytes, left: self.left() }, at: self.at as u64 }),
        }
    }

    fn number<const N: usize, T>(&mut self, from: impl Fn([u8; N]) -> T) -> Parsed<T> {
        let bytes = self.take(N)?;
        Ok(from(bytes.try_into().expect("took exactly N bytes")))
    }

    fn numbers<const N: usize, T>(&mut self, count: usize, from: impl Fn([u8; N]) -> T) -> Parsed<Vec<T>> {
        let bytes = self.take_u64(count as u64 * N as u64)?; // at most 2^30 * 8
        let (numbers, _) = bytes.as_chunks::<N>();
        Ok(numbers.iter().map(|&bytes| from(bytes)).collect())
    }

    fn u32(&mut self) -> Parsed<u32> {
        self.number(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Parsed<u64> {
        self.number(u64::from_le_bytes)
    }

    fn string_length(&mut self) -> Parsed<u64> {
        let at = self.at as u64;
        let bytes = self.u64()?;
        if bytes > limits::MAX_STRING_BYTES {
            return Err(Raw { defect: Defect::StringTooLong { bytes }, at });
        }
        Ok(bytes)
    }

    /// Copies, then checks the copy.
    fn text(&mut self, bytes: u64) -> Parsed<String> {
        let at = self.at as u64;
        String::from_utf8(self.take_u64(bytes)?.to_vec()).map_err(|error| {
            let valid_bytes = error.utf8_error().valid_up_to() as u64;
            Raw { defect: Defect::NotUtf8 { valid_bytes }, at }
        })
    }

    /// Refuses a count whose entries, each of at least `min_bytes`, cannot be in the rest of the file.
    fn expect_room(&self, count: u64, min_bytes: u64, at: u64) -> Parsed<()> {
        match count.checked_mul(min_bytes) {
            Some(bytes) if bytes <= self.left() => Ok(()),
            _ => Err(Raw { defect: Defect::ImpossibleCount { count, left: self.left() }, at }),
        }
    }
}
