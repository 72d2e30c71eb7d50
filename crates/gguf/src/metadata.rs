//! The keys of a file, in the order of the file, with typed access.

use std::collections::HashMap;

use crate::{Array, Error, Strings, Value};

/// Keys and values. Order is kept because it is the order in the file; lookup is by hash.
///
/// The typed getters take an integer of any width whose value fits: writers disagree about widths, and every one of them
/// means the same number. Floats, bools, strings and arrays must have the type asked for. A key that has another type is
/// an error also for the `opt_` forms, which return `None` for a missing key only.
///
/// ```
/// let mut metadata = fathom_gguf::Metadata::new();
/// metadata.insert("general.architecture", "deepseek4");
/// metadata.insert("deepseek4.block_count", 43u32);
/// assert_eq!(metadata.str("general.architecture")?, "deepseek4");
/// assert_eq!(metadata.u64("deepseek4.block_count")?, 43);
/// assert_eq!(metadata.opt_f32("deepseek4.rope.freq_base")?, None);
/// # Ok::<(), fathom_gguf::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
    index: HashMap<String, usize>,
}

impl PartialEq for Metadata {
    fn eq(&self, other: &Metadata) -> bool {
        self.entries == other.entries
    }
}

impl std::fmt::Debug for Metadata {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

macro_rules! integer {
    ($name:ident $opt:ident $type:ty) => {
        #[doc = concat!("The value of `key` as `", stringify!($type), "`.")]
        pub fn $name(&self, key: &str) -> Result<$type, Error> {
            self.$opt(key)?.ok_or_else(|| missing(key))
        }

        #[doc = concat!("The value of `key` as `", stringify!($type), "`, if there is one.")]
        pub fn $opt(&self, key: &str) -> Result<Option<$type>, Error> {
            let Some(value) = self.get(key) else {
                return Ok(None);
            };
            let number = value.integer().ok_or_else(|| wrong_type(key, "an integer", value))?;
            match <$type>::try_from(number) {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(Error::OutOfRange { key: key.to_owned(), value: number, expected: stringify!($type) }),
            }
        }
    };
}

macro_rules! exact {
    ($name:ident $opt:ident $type:ty, $expected:literal, $pattern:pat => $result:expr) => {
        #[doc = concat!("The value of `key`, which must be ", $expected, ".")]
        pub fn $name(&self, key: &str) -> Result<$type, Error> {
            self.$opt(key)?.ok_or_else(|| missing(key))
        }

        #[doc = concat!("The value of `key`, if there is one; it must be ", $expected, ".")]
        pub fn $opt(&self, key: &str) -> Result<Option<$type>, Error> {
            match self.get(key) {
                None => Ok(None),
                Some($pattern) => Ok(Some($result)),
                Some(other) => Err(wrong_type(key, $expected, other)),
            }
        }
    };
}

impl Metadata {
    /// No keys.
    pub fn new() -> Metadata {
        Metadata::default()
    }

    /// Sets `key`: in its place if it exists, at the end otherwise. Returns the former value.
    pub fn insert(&mut self, key: impl Into<String>, value: impl Into<Value>) -> Option<Value> {
        let (key, value) = (key.into(), value.into());
        if let Some(&at) = self.index.get(&key) {
            return Some(std::mem::replace(&mut self.entries[at].1, value));
        }
        self.index.insert(key.clone(), self.entries.len());
        self.entries.push((key, value));
        None
    }

    /// Removes `key`; the order of the others stays.
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        let at = self.index.remove(key)?;
        let (_, value) = self.entries.remove(at);
        for position in self.index.values_mut() {
            if *position > at {
                *position -= 1;
            }
        }
        Some(value)
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.index.get(key).map(|&at| &self.entries[at].1)
    }

    /// Whether `key` exists.
    pub fn contains(&self, key: &str) -> bool {
        self.index.contains_key(key)
    }

    /// Keys and values in the order of the file.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> + DoubleEndedIterator {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    integer!(u8 opt_u8 u8);
    integer!(u16 opt_u16 u16);
    integer!(u32 opt_u32 u32);
    integer!(u64 opt_u64 u64);
    integer!(i32 opt_i32 i32);
    integer!(i64 opt_i64 i64);
    integer!(usize opt_usize usize);

    exact!(f32 opt_f32 f32, "f32", Value::F32(value) => *value);
    exact!(bool opt_bool bool, "bool", Value::Bool(value) => *value);
    exact!(str opt_str &str, "str", Value::String(value) => value);
    exact!(array opt_array &Array, "arr", Value::Array(value) => value);
    exact!(strings opt_strings &Strings, "arr[str]", Value::Array(Array::String(values)) => values);
    exact!(u8s opt_u8s &[u8], "arr[u8]", Value::Array(Array::U8(values)) => values);
    exact!(f32s opt_f32s &[f32], "arr[f32]", Value::Array(Array::F32(values)) => values);
    exact!(bools opt_bools &[bool], "arr[bool]", Value::Array(Array::Bool(values)) => values);

    /// The value of `key`, an array of integers of any width whose values fit `i64`.
    pub fn integers(&self, key: &str) -> Result<Vec<i64>, Error> {
        self.opt_integers(key)?.ok_or_else(|| missing(key))
    }

    /// The value of `key`, if there is one; it must be an array of integers of any width whose values fit `i64`.
    pub fn opt_integers(&self, key: &str) -> Result<Option<Vec<i64>>, Error> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let Value::Array(array) = value else {
            return Err(wrong_type(key, "an array of integers", value));
        };
        let wide = array.integers().ok_or_else(|| wrong_type(key, "an array of integers", value))?;
        wide.into_iter()
            .map(|value| {
                let out_of_range = |_| Error::OutOfRange { key: key.to_owned(), value, expected: "i64" };
                i64::try_from(value).map_err(out_of_range)
            })
            .collect::<Result<_, _>>()
            .map(Some)
    }
}

impl<K: Into<String>, V: Into<Value>> FromIterator<(K, V)> for Metadata {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Metadata {
        let mut metadata = Metadata::new();
        for (key, value) in entries {
            metadata.insert(key, value);
        }
        metadata
    }
}

fn missing(key: &str) -> Error {
    Error::MissingKey { key: key.to_owned() }
}

fn wrong_type(key: &str, expected: &'static str, found: &Value) -> Error {
    Error::WrongType { key: key.to_owned(), expected, found: found.type_name() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Metadata {
        let mut metadata = Metadata::new();
        metadata.insert("n", 7u16);
        metadata.insert("negative", -1i32);
        metadata.insert("words", ["a", "b"].into_iter().collect::<Strings>());
        metadata.insert("ratios", vec![0i32, 4, 128]);
        metadata
    }

    #[test]
    fn integers_are_read_in_any_width_that_fits() {
        let metadata = sample();
        assert_eq!(metadata.u32("n").unwrap(), 7);
        assert_eq!(metadata.i64("negative").unwrap(), -1);
        assert_eq!(metadata.u32("negative").unwrap_err().to_string(), "key `negative` is -1, which does not fit u32");
        assert_eq!(metadata.integers("ratios").unwrap(), [0, 4, 128]);
    }

    #[test]
    fn errors_name_key_expected_and_found_type() {
        let metadata = sample();
        assert_eq!(metadata.str("words").unwrap_err().to_string(), "key `words` is of type arr[str], expected str");
        assert_eq!(metadata.f32("n").unwrap_err().to_string(), "key `n` is of type u16, expected f32");
        assert_eq!(metadata.bool("gone").unwrap_err().to_string(), "key `gone` is missing");
        assert!(matches!(metadata.opt_bool("gone"), Ok(None)));
        assert!(metadata.opt_bool("n").is_err(), "a wrong type is an error, not an absence");
    }

    #[test]
    fn insert_keeps_the_place_and_remove_keeps_the_order() {
        let mut metadata = sample();
        assert_eq!(metadata.insert("n", 8u16), Some(Value::U16(7)));
        assert_eq!(metadata.remove("negative"), Some(Value::I32(-1)));
        let keys: Vec<_> = metadata.iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["n", "words", "ratios"]);
        assert_eq!(metadata.strings("words").unwrap().len(), 2);
        assert_eq!(metadata.u32("n").unwrap(), 8);
    }
}
