//! The GGUF file format: a reader, a streaming writer, and the block types that DeepSeek-V4 is stored in.
//!
//! * [`File`] opens a model (one file or shards): [`Metadata`] with typed getters, [`TensorInfo`]s, tensor data as slices.
//! * [`Layout`] fixes every byte position of a model that is to be written, before the first byte; [`Writer`] then takes
//!   tensor data in any order, from any thread. [`write_file`] does both for small models.
//! * [`DType`] knows every element type of ggml 0.26; [`block`] encodes and decodes some of them.
//!
//! The crate does not know any model: names and meanings of keys and tensors belong to its users. It does no I/O beyond a
//! memory map and writing to files it was told to write.
//!
//! Files come from strangers. Reading one never panics, allocates in proportion to the file, and reports a defect with the
//! key or tensor and the byte position ([`Fault`]); see [`limits`] for the caps.

pub mod block;
mod dtype;
mod encode;
mod error;
mod file;
mod layout;
pub mod limits;
mod map;
mod metadata;
mod reader;
mod split;
mod tensor;
mod value;
mod writer;

pub use dtype::DType;
pub use error::{Defect, Error, Fault, Place, Unwritable};
pub use file::File;
pub use layout::Layout;
pub use metadata::Metadata;
pub use split::is_shard_name;
pub use tensor::TensorInfo;
pub use value::{Array, Strings, Value, ValueType};
pub use writer::{Writer, write_file, write_to};
