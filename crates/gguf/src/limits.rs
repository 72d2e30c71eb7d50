//! Caps on what a file may claim, with the reason for each.
//!
//! A count or a length from a file is compared with these *and* with the bytes that are left in the file before anything
//! is allocated for it. The second check is what keeps memory in proportion to the file; these caps bound the cases
//! where an entry is larger in memory than on disk, and refuse what no other reader could use.

/// Keys in one file. A model has 30 to 100, our lossless converter adds one per FP8 tensor (about 700 for Pro). An entry
/// costs some 200 bytes in memory and 14 on disk, so the cap also bounds that excess to a dozen MiB.
pub const MAX_KEYS: u64 = 1 << 16;

/// Tensors in one file. DeepSeek-V4-Pro has about 2 000; one tensor for each expert would give it 72 000.
pub const MAX_TENSORS: u64 = 1 << 20;

/// Bytes of a key: the GGUF specification's limit (2^16 - 1).
pub const MAX_KEY_BYTES: u64 = (1 << 16) - 1;

/// Bytes of a tensor name. ggml keeps names in a fixed array of 64 with a terminating zero, and refuses longer ones.
pub const MAX_TENSOR_NAME_BYTES: u64 = 63;

/// Bytes of one string, and of all strings of one array together; ggml's limit for a string. A tokenizer.json kept as a
/// value has about 8 MB. Offsets inside a string array are 32 bits wide because of it.
pub const MAX_STRING_BYTES: u64 = 1 << 30;

/// Elements of one array; ggml's limit.
pub const MAX_ARRAY_ELEMENTS: u64 = 1 << 30;

/// Arrays in arrays in arrays. ggml refuses any nesting and no known writer produces it; the specification allows it.
/// Bounded because the reader recurses.
pub const MAX_ARRAY_DEPTH: usize = 4;

/// Dimensions of a tensor, ggml's `GGML_MAX_DIMS`.
pub const MAX_DIMENSIONS: u32 = 4;

/// Alignment that the writer accepts. The reader takes any power of two; more than this would only waste space.
pub const MAX_WRITTEN_ALIGNMENT: u32 = 1 << 20;

/// Shards of one model: `split.count` is 16 bits wide.
pub const MAX_SHARDS: u64 = u16::MAX as u64;
