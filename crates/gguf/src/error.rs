//! What can be wrong with a file, and with what a writer is asked for.

use std::path::PathBuf;

use crate::limits;

/// Why a file cannot be read or written, or a key cannot be used.
///
/// The text of a variant is complete: nothing is left to the source chain.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {action} `{}`: {error}", path.display())]
    Io { action: &'static str, path: PathBuf, error: std::io::Error },
    /// The bytes of one file are not a GGUF file that can be used.
    #[error("`{}`: {fault}", path.display())]
    Invalid { path: PathBuf, fault: Box<Fault> },

    #[error("key `{key}` is missing")]
    MissingKey { key: String },
    #[error("key `{key}` is of type {found}, expected {expected}")]
    WrongType { key: String, expected: &'static str, found: String },
    #[error("key `{key}` is {value}, which does not fit {expected}")]
    OutOfRange { key: String, value: i128, expected: &'static str },
    #[error("tensor `{name}` is missing")]
    MissingTensor { name: String },

    /// An empty list of shards.
    #[error("a model needs at least one file")]
    NoFiles,
    /// A shard's file name does not follow `NAME-00001-of-00003.gguf`, so the others cannot be found.
    #[error("`{}` is shard {number} of {count} but its name does not end in `{expected}`", path.display())]
    ShardName { path: PathBuf, number: u64, count: u64, expected: String },
    /// `split.no` is not less than `split.count`.
    #[error("`{}` says `split.no` = {number} and `split.count` = {count}; numbers start at 0", path.display())]
    ShardNumber { path: PathBuf, number: u64, count: u64 },
    /// A shard is not there.
    #[error("shard {number} of {count} is missing: `{}`", path.display())]
    ShardMissing { path: PathBuf, number: u64, count: u64 },
    /// `split.no` or `split.count` of a shard contradicts its place.
    #[error("`{}` says `{key}` = {found}, expected {expected}", path.display())]
    ShardKey { path: PathBuf, key: &'static str, found: String, expected: u64 },
    /// `split.tensors.count` differs from the tensors that the shards hold.
    #[error("`{}` says that its shards hold {claimed} tensors, they hold {found}", path.display())]
    ShardTensors { path: PathBuf, claimed: i128, found: u64 },
    /// Two shards hold a tensor of the same name.
    #[error("tensor `{tensor}` is in `{}` and again in `{}`", first.display(), second.display())]
    ShardDuplicate { tensor: String, first: PathBuf, second: PathBuf },

    #[error("cannot write key `{key}`: {why}")]
    UnwritableKey { key: String, why: Unwritable },
    #[error("cannot write tensor `{tensor}`: {why}")]
    UnwritableTensor { tensor: String, why: Unwritable },
    #[error("{shards} shards are more than the format can number ({})", limits::MAX_SHARDS)]
    TooManyShards { shards: u64 },
    /// A reserved value may be replaced by one of the same encoded size only.
    #[error("key `{key}` was reserved with {reserved} bytes and cannot be filled with {given}")]
    ReservedBytes { key: String, reserved: u64, given: u64 },
    /// Bytes were given for a place outside the tensor.
    #[error("tensor `{tensor}` has {bytes} bytes, cannot write {given} at {at}")]
    TensorBytes { tensor: String, bytes: u64, at: u64, given: u64 },
    /// A file that should be continued is not the one that was begun.
    #[error("`{}` has {found} bytes, expected {expected}", path.display())]
    ResumeBytes { path: PathBuf, found: u64, expected: u64 },
}

/// Why a key or a tensor cannot be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unwritable {
    #[error("its name is empty")]
    EmptyName,
    #[error("its name has {bytes} bytes, more than {max}")]
    NameTooLong { bytes: u64, max: u64 },
    #[error("its name is used twice")]
    Duplicate,
    #[error("it must be u32")]
    NotU32,
    #[error("it must be a power of two up to {}, not {alignment}", limits::MAX_WRITTEN_ALIGNMENT)]
    Alignment { alignment: u32 },
    #[error("{count} dimensions, expected 1 to {}", limits::MAX_DIMENSIONS)]
    Dimensions { count: usize },
    #[error("shape {ne:?} is not a whole number of {dtype} blocks in each row, or too large")]
    Shape { ne: Vec<u64>, dtype: crate::DType },
    #[error("{bytes} bytes, more than {max}")]
    TooLong { bytes: u64, max: u64 },
    #[error("arrays nested deeper than {}", limits::MAX_ARRAY_DEPTH)]
    TooDeep,
    #[error("{elements} elements, more than {max}")]
    TooManyElements { elements: u64, max: u64 },
}

/// A defect of a file: what, where in its structure, and at which byte.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{defect} ({place}, byte {at})")]
pub struct Fault {
    /// What is wrong.
    pub defect: Defect,
    /// The key or tensor concerned.
    pub place: Place,
    /// Offset in the file of the field concerned.
    pub at: u64,
}

/// The part of the file that a [`Fault`] is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Header,
    /// Key number such-and-such, when its name could not be read.
    KeyNumber(u64),
    Key(String),
    /// Tensor number such-and-such, when its name could not be read.
    TensorNumber(u64),
    Tensor(String),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Header => f.write_str("header"),
            Place::KeyNumber(number) => write!(f, "key number {number}"),
            Place::Key(key) => write!(f, "key `{}`", key.escape_debug()),
            Place::TensorNumber(number) => write!(f, "tensor number {number}"),
            Place::Tensor(name) => write!(f, "tensor `{}`", name.escape_debug()),
        }
    }
}

/// What is wrong at the place of a [`Fault`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Defect {
    #[error("not a GGUF file: it begins with `{}`", found.escape_ascii())]
    NotGguf { found: Vec<u8> },
    #[error("big-endian GGUF files are not supported")]
    BigEndian,
    #[error("GGUF version {version} is not supported, only 2 and 3 are")]
    Version { version: u32 },
    #[error("the file is cut off: {needed} more bytes expected, {left} left")]
    CutOff { needed: u64, left: u64 },
    #[error("{count} keys, more than {}", limits::MAX_KEYS)]
    TooManyKeys { count: u64 },
    #[error("{count} tensors, more than {}", limits::MAX_TENSORS)]
    TooManyTensors { count: u64 },
    #[error("{count} entries cannot fit in the {left} bytes that are left")]
    ImpossibleCount { count: u64, left: u64 },
    #[error("a string of {bytes} bytes, more than {}", limits::MAX_STRING_BYTES)]
    StringTooLong { bytes: u64 },
    #[error("strings of more than {} bytes in one array", limits::MAX_STRING_BYTES)]
    StringsTooLong,
    #[error("text is not UTF-8 at its byte {valid_bytes}")]
    NotUtf8 { valid_bytes: u64 },
    #[error("the key is empty")]
    EmptyKey,
    #[error("a key of {bytes} bytes, more than {}", limits::MAX_KEY_BYTES)]
    KeyTooLong { bytes: u64 },
    #[error("the key occurs twice")]
    DuplicateKey,
    #[error("unknown value type {id}")]
    UnknownValueType { id: u32 },
    #[error("a bool must be 0 or 1, not {byte}")]
    InvalidBool { byte: u8 },
    #[error("an array of {count} elements, more than {}", limits::MAX_ARRAY_ELEMENTS)]
    ArrayTooLong { count: u64 },
    #[error("arrays nested deeper than {}", limits::MAX_ARRAY_DEPTH)]
    ArrayTooDeep,
    #[error("the alignment must be u32, not {found}")]
    AlignmentType { found: String },
    #[error("the alignment {alignment} is not a power of two")]
    AlignmentNotPowerOfTwo { alignment: u32 },
    #[error("the tensor name is empty")]
    EmptyTensorName,
    #[error("a tensor name of {bytes} bytes, more than {}", limits::MAX_TENSOR_NAME_BYTES)]
    TensorNameTooLong { bytes: u64 },
    #[error("the tensor occurs twice")]
    DuplicateTensor,
    #[error("{count} dimensions, more than {}", limits::MAX_DIMENSIONS)]
    TooManyDimensions { count: u32 },
    #[error("element type {id} (`{name}`) was removed from the format; convert the model again")]
    RemovedType { id: u32, name: &'static str },
    #[error("unknown element type {id}")]
    UnknownType { id: u32 },
    #[error("rows of {ne0} elements are not a whole number of {dtype} blocks of {}", dtype.block_elements())]
    PartialBlock { ne0: u64, dtype: crate::DType },
    #[error("shape {ne:?} of {dtype} has more than 2^63 elements or bytes")]
    ShapeTooLarge { ne: Vec<u64>, dtype: crate::DType },
    #[error("offset {offset} is not a multiple of the alignment {alignment}")]
    Unaligned { offset: u64, alignment: u32 },
    #[error("offset {offset} plus {bytes} bytes is more than 2^64")]
    OffsetOverflow { offset: u64, bytes: u64 },
    #[error("the file is cut off: the tensor ends at byte {end}, the file at {file_bytes}")]
    PastEnd { end: u64, file_bytes: u64 },
    #[error("the data overlaps tensor `{}`", other.escape_debug())]
    Overlap { other: String },
}

#[cfg(test)]
mod tests {
    #[test]
    fn errors_are_small_enough_to_be_returned_by_value() {
        // Errors of the layers above contain this one; clippy's limit for them is 128 bytes.
        assert!(size_of::<super::Error>() <= 80, "{}", size_of::<super::Error>());
    }
}
