//! Every byte position of a model, decided before the first byte is written.
//!
//! Because nothing moves later, a converter can reserve the disk space, write tensors in any order and from several
//! threads, and continue after it was killed. Values that are known only at the end (checksums) are put into the metadata
//! as place holders of the final size and replaced with [`Layout::fill`].

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::error::Unwritable;
use crate::reader::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT};
use crate::{Error, Metadata, TensorInfo, Value, encode, limits, split, tensor};

/// The positions of all keys and tensors of a model that is to be written. The same input gives the same layout.
#[derive(Clone, Debug)]
pub struct Layout {
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    index: HashMap<String, usize>,
    shards: Vec<Shard>,
    alignment: u32,
}

/// One file: its tensors (a range of the model's) and sizes.
#[derive(Clone, Debug)]
struct Shard {
    tensors: Range<usize>,
    data_offset: u64,
    file_bytes: u64,
}

impl Layout {
    /// Lays out `tensors` in the order given; their `offset`, `bytes` and `shard` are set here. The alignment is the value
    /// of the key `general.alignment`, 32 without it.
    ///
    /// With `split_max_bytes` a new shard begins before the tensor that would make the tensor data of the current one
    /// exceed that size, as in llama.cpp's `--split-max-size`; a single larger tensor gets a shard of its own. The first
    /// shard carries all keys. The keys `split.*` are written as needed; those in `metadata` are dropped.
    ///
    /// # Errors
    /// [`Error::UnwritableKey`] and [`Error::UnwritableTensor`] for what a reader would refuse, [`Error::TooManyShards`].
    pub fn new(
        mut metadata: Metadata,
        mut tensors: Vec<TensorInfo>,
        split_max_bytes: Option<u64>,
    ) -> Result<Layout, Error> {
        for key in [split::NO, split::COUNT, split::TENSORS] {
            metadata.remove(key);
        }
        let alignment = check_keys(&metadata)?;
        let index = check_tensors(&mut tensors)?;

        let mut shards = Vec::new();
        let mut start = 0;
        let mut data_bytes = 0u64;
        for (at, tensor) in tensors.iter_mut().enumerate() {
            // Below 2^63, so that adding a header cannot overflow either.
            let padded = tensor.bytes.next_multiple_of(u64::from(alignment));
            let end = data_bytes.checked_add(padded).filter(|&end| end <= i64::MAX as u64);
            let too_large = |end| split_max_bytes.is_some_and(|max| end > max);
            if at > start && end.is_none_or(too_large) {
                if end.is_none() && split_max_bytes.is_none() {
                    let (ne, dtype) = (tensor.ne.clone(), tensor.dtype);
                    let why = Unwritable::Shape { ne, dtype };
                    return Err(Error::UnwritableTensor { tensor: tensor.name.clone(), why });
                }
                shards.push(Shard { tensors: start..at, data_offset: 0, file_bytes: data_bytes });
                (start, data_bytes) = (at, 0);
            }
            (tensor.offset, tensor.shard) = (data_bytes, shards.len());
            data_bytes += padded;
        }
        shards.push(Shard { tensors: start..tensors.len(), data_offset: 0, file_bytes: data_bytes });
        if shards.len() as u64 > limits::MAX_SHARDS {
            return Err(Error::TooManyShards { shards: shards.len() as u64 });
        }

        let mut layout = Layout { metadata, tensors, index, shards, alignment };
        for number in 0..layout.shards.len() {
            let header_bytes = layout.header_bytes(number);
            let shard = &mut layout.shards[number];
            // Tensor data of a shard was summed up above; without tensors there is nothing to align.
            let no_data = shard.tensors.is_empty();
            shard.data_offset =
                if no_data { header_bytes } else { header_bytes.next_multiple_of(u64::from(alignment)) };
            shard.file_bytes += shard.data_offset;
        }
        Ok(layout)
    }

    /// The keys as they will be written, without those that describe shards.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Every tensor starts at a multiple of this in its data section.
    pub fn alignment(&self) -> u32 {
        self.alignment
    }

    /// All tensors with their places.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor with this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.index.get(name).map(|&at| &self.tensors[at])
    }

    /// Number of files.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// The files of a model that the user asked to be written to `out`: `out` itself, or `NAME-00001-of-0000N.gguf` beside
    /// it when there are several.
    pub fn paths(&self, out: &Path) -> Vec<PathBuf> {
        let count = self.shards.len() as u64;
        match count {
            1 => vec![out.to_owned()],
            _ => (0..count).map(|number| split::path(out, number, count)).collect(),
        }
    }

    /// Where the data section of a shard starts in its file.
    ///
    /// # Panics
    /// When there is no such shard.
    pub fn data_offset(&self, shard: usize) -> u64 {
        self.shards[shard].data_offset
    }

    /// Size of the finished file of a shard, final padding included.
    ///
    /// # Panics
    /// When there is no such shard.
    pub fn file_bytes(&self, shard: usize) -> u64 {
        self.shards[shard].file_bytes
    }

    /// Size of all files together.
    pub fn total_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.file_bytes).sum()
    }

    /// Where a tensor's data goes in the file of its shard.
    pub fn data_range(&self, tensor: &TensorInfo) -> Range<u64> {
        let start = self.data_offset(tensor.shard) + tensor.offset;
        start..start + tensor.bytes
    }

    /// Everything of a shard's file before the tensor data, padding included.
    ///
    /// # Panics
    /// When there is no such shard.
    pub fn header(&self, shard: usize) -> Vec<u8> {
        let Shard { tensors, data_offset, .. } = &self.shards[shard];
        let mut out = Vec::with_capacity(*data_offset as usize);
        encode::preamble(&mut out, tensors.len() as u64, self.entries(shard).count() as u64);
        for (key, value) in self.entries(shard) {
            encode::entry(&mut out, key, &value);
        }
        for tensor in &self.tensors[tensors.clone()] {
            encode::description(&mut out, tensor);
        }
        debug_assert!(out.len() as u64 <= *data_offset);
        out.resize(*data_offset as usize, 0);
        out
    }

    /// Replaces the value of a key by one of the same type and size, so that nothing moves: for values that were reserved
    /// with place holders. [`Writer::write_header`](crate::Writer::write_header) brings it to the file.
    ///
    /// # Errors
    /// [`Error::MissingKey`], [`Error::WrongType`], [`Error::ReservedBytes`].
    pub fn fill(&mut self, key: &str, value: impl Into<Value>) -> Result<(), Error> {
        let value = value.into();
        let Some(reserved) = self.metadata.get(key) else {
            return Err(Error::MissingKey { key: key.to_owned() });
        };
        if reserved.type_name() != value.type_name() {
            let expected = reserved.kind().name();
            return Err(Error::WrongType { key: key.to_owned(), expected, found: value.type_name() });
        }
        let (reserved, given) = (encode::value_bytes(reserved), encode::value_bytes(&value));
        if reserved != given {
            return Err(Error::ReservedBytes { key: key.to_owned(), reserved, given });
        }
        encode::check(key, &value).map_err(|why| Error::UnwritableKey { key: key.to_owned(), why })?;
        self.metadata.insert(key, value);
        Ok(())
    }

    /// The keys of one shard: all in the first, in the others only what is needed to read them.
    fn entries(&self, shard: usize) -> impl Iterator<Item = (&str, std::borrow::Cow<'_, Value>)> {
        use std::borrow::Cow;
        let own = self.metadata.iter().filter(move |(key, _)| shard == 0 || *key == ALIGNMENT_KEY);
        let count = self.shards.len();
        // Types are those of llama.cpp: u16, u16, i32.
        let split = [
            (split::NO, Value::U16(shard as u16)),
            (split::COUNT, Value::U16(count as u16)),
            (split::TENSORS, Value::I32(self.tensors.len() as i32)),
        ];
        own.map(|(key, value)| (key, Cow::Borrowed(value)))
            .chain(split.into_iter().filter(move |_| count > 1).map(|(key, value)| (key, Cow::Owned(value))))
    }

    fn header_bytes(&self, shard: usize) -> u64 {
        let entries: u64 = self.entries(shard).map(|(key, value)| encode::entry_bytes(key, &value)).sum();
        let tensors = &self.tensors[self.shards[shard].tensors.clone()];
        encode::PREAMBLE_BYTES + entries + tensors.iter().map(encode::description_bytes).sum::<u64>()
    }
}

/// Checks every key; returns the alignment.
fn check_keys(metadata: &Metadata) -> Result<u32, Error> {
    let unwritable = |key: &str, why| Error::UnwritableKey { key: key.to_owned(), why };
    if metadata.len() as u64 > limits::MAX_KEYS - 3 {
        let (elements, max) = (metadata.len() as u64, limits::MAX_KEYS - 3); // three for `split.*`
        let last = metadata.iter().next_back().map_or("", |(key, _)| key);
        return Err(unwritable(last, Unwritable::TooManyElements { elements, max }));
    }
    for (key, value) in metadata.iter() {
        encode::check(key, value).map_err(|why| unwritable(key, why))?;
    }
    match metadata.get(ALIGNMENT_KEY) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(&Value::U32(alignment)) if alignment.is_power_of_two() && alignment <= limits::MAX_WRITTEN_ALIGNMENT => {
            Ok(alignment)
        }
        Some(&Value::U32(alignment)) => Err(unwritable(ALIGNMENT_KEY, Unwritable::Alignment { alignment })),
        Some(_) => Err(unwritable(ALIGNMENT_KEY, Unwritable::NotU32)),
    }
}

/// Checks every tensor and sets its size; returns the places by name.
fn check_tensors(tensors: &mut [TensorInfo]) -> Result<HashMap<String, usize>, Error> {
    let mut index = HashMap::with_capacity(tensors.len());
    for (at, info) in tensors.iter_mut().enumerate() {
        let unwritable = |why| Error::UnwritableTensor { tensor: info.name.clone(), why };
        let bytes = tensor::check(&info.name, info.dtype, &info.ne).map_err(unwritable)?;
        if at as u64 >= limits::MAX_TENSORS {
            return Err(unwritable(Unwritable::TooManyElements { elements: at as u64 + 1, max: limits::MAX_TENSORS }));
        }
        if index.insert(info.name.clone(), at).is_some() {
            return Err(unwritable(Unwritable::Duplicate));
        }
        info.bytes = bytes;
    }
    Ok(index)
}
