//! Values of metadata keys.

/// A value's type as a number in the file, and its name in messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    /// All types, in the order of their ids.
    pub const ALL: [ValueType; 13] = [
        ValueType::U8,
        ValueType::I8,
        ValueType::U16,
        ValueType::I16,
        ValueType::U32,
        ValueType::I32,
        ValueType::F32,
        ValueType::Bool,
        ValueType::String,
        ValueType::Array,
        ValueType::U64,
        ValueType::I64,
        ValueType::F64,
    ];

    /// The type with this number in the file.
    pub fn from_id(id: u32) -> Option<ValueType> {
        ValueType::ALL.get(usize::try_from(id).ok()?).copied()
    }

    /// The number that stands for this type in a file.
    pub fn id(self) -> u32 {
        self as u32
    }

    /// Short name, as ggml prints it: `u32`, `str`, `arr`.
    pub fn name(self) -> &'static str {
        match self {
            ValueType::U8 => "u8",
            ValueType::I8 => "i8",
            ValueType::U16 => "u16",
            ValueType::I16 => "i16",
            ValueType::U32 => "u32",
            ValueType::I32 => "i32",
            ValueType::F32 => "f32",
            ValueType::Bool => "bool",
            ValueType::String => "str",
            ValueType::Array => "arr",
            ValueType::U64 => "u64",
            ValueType::I64 => "i64",
            ValueType::F64 => "f64",
        }
    }

    /// Least bytes that one value of this type takes in a file.
    pub(crate) fn min_bytes(self) -> u64 {
        match self {
            ValueType::U8 | ValueType::I8 | ValueType::Bool => 1,
            ValueType::U16 | ValueType::I16 => 2,
            ValueType::U32 | ValueType::I32 | ValueType::F32 => 4,
            ValueType::U64 | ValueType::I64 | ValueType::F64 => 8,
            ValueType::String => 8,    // its length
            ValueType::Array => 4 + 8, // element type and count
        }
    }
}

impl std::fmt::Display for ValueType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The value of one key.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    String(String),
    Array(Array),
}

impl Value {
    /// The type, without looking into arrays.
    pub fn kind(&self) -> ValueType {
        match self {
            Value::U8(_) => ValueType::U8,
            Value::I8(_) => ValueType::I8,
            Value::U16(_) => ValueType::U16,
            Value::I16(_) => ValueType::I16,
            Value::U32(_) => ValueType::U32,
            Value::I32(_) => ValueType::I32,
            Value::U64(_) => ValueType::U64,
            Value::I64(_) => ValueType::I64,
            Value::F32(_) => ValueType::F32,
            Value::F64(_) => ValueType::F64,
            Value::Bool(_) => ValueType::Bool,
            Value::String(_) => ValueType::String,
            Value::Array(_) => ValueType::Array,
        }
    }

    /// The type in words, with the element type of an array: `u32`, `arr[str]`.
    pub fn type_name(&self) -> String {
        match self {
            Value::Array(array) => format!("arr[{}]", array.kind()),
            other => other.kind().name().to_owned(),
        }
    }

    /// The number, if this is an integer of any width. `i128` holds every one of them.
    pub fn integer(&self) -> Option<i128> {
        match *self {
            Value::U8(v) => Some(v.into()),
            Value::I8(v) => Some(v.into()),
            Value::U16(v) => Some(v.into()),
            Value::I16(v) => Some(v.into()),
            Value::U32(v) => Some(v.into()),
            Value::I32(v) => Some(v.into()),
            Value::U64(v) => Some(v.into()),
            Value::I64(v) => Some(v.into()),
            _ => None,
        }
    }
}

macro_rules! from {
    ($($variant:ident $type:ty),+ $(,)?) => {
        $(impl From<$type> for Value {
            fn from(value: $type) -> Value {
                Value::$variant(value)
            }
        }
        impl From<Vec<$type>> for Value {
            fn from(values: Vec<$type>) -> Value {
                Value::Array(Array::$variant(values))
            }
        })+
    };
}

from!(U8 u8, I8 i8, U16 u16, I16 i16, U32 u32, I32 i32, U64 u64, I64 i64, F32 f32, F64 f64, Bool bool);

impl From<&str> for Value {
    fn from(value: &str) -> Value {
        Value::String(value.to_owned())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Value {
        Value::String(value)
    }
}

impl From<Strings> for Value {
    fn from(values: Strings) -> Value {
        Value::Array(Array::String(values))
    }
}

impl From<Array> for Value {
    fn from(array: Array) -> Value {
        Value::Array(array)
    }
}

/// An array: all elements of one type.
#[derive(Clone, Debug, PartialEq)]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bool(Vec<bool>),
    String(Strings),
    /// Arrays in an array. In the specification, but ggml refuses such files: nothing of ours writes them.
    Array(Vec<Array>),
}

impl Array {
    /// The type of the elements.
    pub fn kind(&self) -> ValueType {
        match self {
            Array::U8(_) => ValueType::U8,
            Array::I8(_) => ValueType::I8,
            Array::U16(_) => ValueType::U16,
            Array::I16(_) => ValueType::I16,
            Array::U32(_) => ValueType::U32,
            Array::I32(_) => ValueType::I32,
            Array::U64(_) => ValueType::U64,
            Array::I64(_) => ValueType::I64,
            Array::F32(_) => ValueType::F32,
            Array::F64(_) => ValueType::F64,
            Array::Bool(_) => ValueType::Bool,
            Array::String(_) => ValueType::String,
            Array::Array(_) => ValueType::Array,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Array::U8(v) => v.len(),
            Array::I8(v) => v.len(),
            Array::U16(v) => v.len(),
            Array::I16(v) => v.len(),
            Array::U32(v) => v.len(),
            Array::I32(v) => v.len(),
            Array::U64(v) => v.len(),
            Array::I64(v) => v.len(),
            Array::F32(v) => v.len(),
            Array::F64(v) => v.len(),
            Array::Bool(v) => v.len(),
            Array::String(v) => v.len(),
            Array::Array(v) => v.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements as numbers, if they are integers of any width.
    pub fn integers(&self) -> Option<Vec<i128>> {
        fn widen<T: Copy + Into<i128>>(values: &[T]) -> Option<Vec<i128>> {
            Some(values.iter().map(|&v| v.into()).collect())
        }
        match self {
            Array::U8(v) => widen(v),
            Array::I8(v) => widen(v),
            Array::U16(v) => widen(v),
            Array::I16(v) => widen(v),
            Array::U32(v) => widen(v),
            Array::I32(v) => widen(v),
            Array::U64(v) => widen(v),
            Array::I64(v) => widen(v),
            _ => None,
        }
    }
}

/// A list of strings in two allocations: one text, and where each string ends in it. A vocabulary has 129 280 strings of
/// a few bytes each; as `Vec<String>` it would be 129 280 allocations and three times the memory.
///
/// ```
/// let words: fathom_gguf::Strings = ["to", "be"].into_iter().collect();
/// assert_eq!(&words[1], "be");
/// assert_eq!(words.iter().map(str::len).sum::<usize>(), 4);
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Strings {
    text: String,
    /// End of string `i` in `text`; it starts where string `i - 1` ends. 32 bits suffice: `limits::MAX_STRING_BYTES`.
    ends: Vec<u32>,
}

impl Strings {
    /// No strings yet, with room for some.
    pub fn with_capacity(strings: usize, bytes: usize) -> Strings {
        Strings { text: String::with_capacity(bytes), ends: Vec::with_capacity(strings) }
    }

    /// Appends a string.
    ///
    /// # Panics
    /// When all strings together would exceed 4 GiB (the reader refuses such arrays long before).
    pub fn push(&mut self, string: &str) {
        let end = u32::try_from(self.text.len() + string.len()).expect("a string array holds less than 4 GiB");
        self.text.push_str(string);
        self.ends.push(end);
    }

    /// Number of strings.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Bytes of all strings together.
    pub fn text_bytes(&self) -> usize {
        self.text.len()
    }

    /// String number `index`.
    pub fn get(&self, index: usize) -> Option<&str> {
        let end = *self.ends.get(index)? as usize;
        let start = if index == 0 { 0 } else { self.ends[index - 1] as usize };
        Some(&self.text[start..end])
    }

    /// The strings in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> + DoubleEndedIterator {
        (0..self.len()).map(|index| &self[index])
    }

    /// From text and ends that are known to be in order and on character boundaries.
    pub(crate) fn from_parts(text: String, ends: Vec<u32>) -> Strings {
        debug_assert!(ends.is_sorted() && ends.iter().all(|&end| text.is_char_boundary(end as usize)));
        Strings { text, ends }
    }
}

impl std::ops::Index<usize> for Strings {
    type Output = str;

    fn index(&self, index: usize) -> &str {
        self.get(index).unwrap_or_else(|| panic!("string {index} of {}", self.len()))
    }
}

impl std::fmt::Debug for Strings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<S: AsRef<str>> FromIterator<S> for Strings {
    fn from_iter<I: IntoIterator<Item = S>>(strings: I) -> Strings {
        let strings = strings.into_iter();
        let mut all = Strings::with_capacity(strings.size_hint().0, 0);
        for string in strings {
            all.push(string.as_ref());
        }
        all
    }
}

impl<S: AsRef<str>> From<&[S]> for Strings {
    fn from(strings: &[S]) -> Strings {
        strings.iter().collect()
    }
}

impl From<Vec<String>> for Strings {
    fn from(strings: Vec<String>) -> Strings {
        strings.iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_give_back_what_was_pushed() {
        let given = ["", "ä", "｜", "", "abc"];
        let strings: Strings = given.into_iter().collect();
        assert_eq!(strings.iter().collect::<Vec<_>>(), given);
        assert_eq!(strings.get(5), None);
        assert_eq!(strings.iter().next_back(), Some("abc"));
        assert_eq!(format!("{strings:?}"), format!("{given:?}"));
    }

    #[test]
    fn value_types_have_ggmls_numbers() {
        for (id, kind) in ValueType::ALL.into_iter().enumerate() {
            assert_eq!(kind.id() as usize, id);
            assert_eq!(ValueType::from_id(id as u32), Some(kind));
        }
        assert_eq!(ValueType::from_id(13), None);
    }

    #[test]
    fn integers_of_every_width_are_seen_as_numbers() {
        assert_eq!(Value::from(-3i8).integer(), Some(-3));
        assert_eq!(Value::from(u64::MAX).integer(), Some(u64::MAX.into()));
        assert_eq!(Value::from(1.0f32).integer(), None);
        assert_eq!(Array::U16(vec![1, 2]).integers(), Some(vec![1, 2]));
        assert_eq!(Value::from(vec![true]).type_name(), "arr[bool]");
    }
}
