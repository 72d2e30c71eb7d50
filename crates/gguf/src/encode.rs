//! The bytes of keys, values and tensor descriptions: the inverse of `reader`.

use crate::error::Unwritable;
use crate::{Array, Strings, TensorInfo, Value, limits};

/// What precedes the keys of a file.
pub(crate) fn preamble(out: &mut Vec<u8>, n_tensors: u64, n_keys: u64) {
    out.extend_from_slice(crate::reader::MAGIC);
    out.extend_from_slice(&3u32.to_le_bytes());
    out.extend_from_slice(&n_tensors.to_le_bytes());
    out.extend_from_slice(&n_keys.to_le_bytes());
}

pub(crate) const PREAMBLE_BYTES: u64 = 4 + 4 + 8 + 8;

pub(crate) fn entry(out: &mut Vec<u8>, key: &str, value: &Value) {
    string(out, key);
    out.extend_from_slice(&value.kind().id().to_le_bytes());
    match value {
        Value::U8(v) => out.push(*v),
        Value::I8(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::U16(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::I16(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::U32(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::I32(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::U64(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::I64(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::F32(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::F64(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::Bool(v) => out.push(u8::from(*v)),
        Value::String(v) => string(out, v),
        Value::Array(v) => array(out, v),
    }
}

pub(crate) fn description(out: &mut Vec<u8>, tensor: &TensorInfo) {
    string(out, &tensor.name);
    out.extend_from_slice(&(tensor.ne.len() as u32).to_le_bytes());
    numbers(out, &tensor.ne, u64::to_le_bytes);
    out.extend_from_slice(&tensor.dtype.id().to_le_bytes());
    out.extend_from_slice(&tensor.offset.to_le_bytes());
}

fn string(out: &mut Vec<u8>, string: &str) {
    out.extend_from_slice(&(string.len() as u64).to_le_bytes());
    out.extend_from_slice(string.as_bytes());
}

fn array(out: &mut Vec<u8>, array: &Array) {
    out.extend_from_slice(&array.kind().id().to_le_bytes());
    out.extend_from_slice(&(array.len() as u64).to_le_bytes());
    match array {
        Array::U8(v) => out.extend_from_slice(v),
        Array::I8(v) => numbers(out, v, i8::to_le_bytes),
        Array::U16(v) => numbers(out, v, u16::to_le_bytes),
        Array::I16(v) => numbers(out, v, i16::to_le_bytes),
        Array::U32(v) => numbers(out, v, u32::to_le_bytes),
        Array::I32(v) => numbers(out, v, i32::to_le_bytes),
        Array::U64(v) => numbers(out, v, u64::to_le_bytes),
        Array::I64(v) => numbers(out, v, i64::to_le_bytes),
        Array::F32(v) => numbers(out, v, f32::to_le_bytes),
        Array::F64(v) => numbers(out, v, f64::to_le_bytes),
        Array::Bool(v) => out.extend(v.iter().map(|&v| u8::from(v))),
        Array::String(v) => v.iter().for_each(|v| string(out, v)),
        Array::Array(v) => v.iter().for_each(|v| self::array(out, v)),
    }
}

fn numbers<const N: usize, T: Copy>(out: &mut Vec<u8>, values: &[T], bytes: impl Fn(T) -> [u8; N]) {
    out.extend(values.iter().flat_map(|&value| bytes(value)));
}

/// Bytes of a key with its value.
pub(crate) fn entry_bytes(key: &str, value: &Value) -> u64 {
    8 + key.len() as u64 + 4 + value_bytes(value)
}

/// Bytes of a value, without its type.
pub(crate) fn value_bytes(value: &Value) -> u64 {
    match value {
        Value::String(v) => 8 + v.len() as u64,
        Value::Array(v) => array_bytes(v),
        other => other.kind().min_bytes(), // numbers have one size
    }
}

fn array_bytes(array: &Array) -> u64 {
    let elements = match array {
        Array::String(v) => 8 * v.len() as u64 + v.text_bytes() as u64,
        Array::Array(v) => v.iter().map(array_bytes).sum(),
        other => other.len() as u64 * other.kind().min_bytes(),
    };
    4 + 8 + elements
}

/// Bytes of a tensor's description.
pub(crate) fn description_bytes(tensor: &TensorInfo) -> u64 {
    8 + tensor.name.len() as u64 + 4 + 8 * tensor.ne.len() as u64 + 4 + 8
}

/// Refuses what `reader` would refuse.
pub(crate) fn check(key: &str, value: &Value) -> Result<(), Unwritable> {
    let bytes = key.len() as u64;
    if bytes == 0 {
        return Err(Unwritable::EmptyName);
    }
    if bytes > limits::MAX_KEY_BYTES {
        return Err(Unwritable::NameTooLong { bytes, max: limits::MAX_KEY_BYTES });
    }
    match value {
        Value::String(v) => check_text(v.len()),
        Value::Array(v) => check_array(v, 1),
        _ => Ok(()),
    }
}

fn check_array(array: &Array, depth: usize) -> Result<(), Unwritable> {
    if depth > limits::MAX_ARRAY_DEPTH {
        return Err(Unwritable::TooDeep);
    }
    let elements = array.len() as u64;
    if elements > limits::MAX_ARRAY_ELEMENTS {
        return Err(Unwritable::TooManyElements { elements, max: limits::MAX_ARRAY_ELEMENTS });
    }
    match array {
        Array::String(v) => check_text(Strings::text_bytes(v)),
        Array::Array(v) => v.iter().try_for_each(|array| check_array(array, depth + 1)),
        _ => Ok(()),
    }
}

fn check_text(bytes: usize) -> Result<(), Unwritable> {
    let (bytes, max) = (bytes as u64, limits::MAX_STRING_BYTES);
    if bytes > max { Err(Unwritable::TooLong { bytes, max }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predicted_bytes_are_the_bytes_written() {
        let nested = Array::Array(vec![Array::U16(vec![1, 2]), Array::String(["a", "bc"].into_iter().collect())]);
        let values = [
            Value::from(1u8),
            Value::from(-1i64),
            Value::from(0.5f32),
            Value::from(true),
            Value::from("｜"),
            Value::from(vec![1.0f64, 2.0]),
            Value::from(vec![true, false, true]),
            Value::from(nested),
        ];
        for value in &values {
            let mut out = Vec::new();
            entry(&mut out, "key", value);
            assert_eq!(out.len() as u64, entry_bytes("key", value), "{value:?}");
        }
        let tensor = TensorInfo::new("t", crate::DType::I32, [6, 10]).unwrap();
        let mut out = Vec::new();
        description(&mut out, &tensor);
        assert_eq!(out.len() as u64, description_bytes(&tensor));
    }
}
