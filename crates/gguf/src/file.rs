//! An open model: one file, or all shards of one.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::map::Bytes;
use crate::reader::{self, Header};
use crate::{Error, Metadata, TensorInfo, limits, split};

/// A GGUF model, mapped into memory. Opening reads keys and tensor descriptions; tensor data is paged in when it is
/// looked at.
///
/// ```no_run
/// let file = fathom_gguf::File::open("model.gguf")?;
/// println!("{} with {} tensors", file.metadata().str("general.architecture")?, file.tensors().len());
/// let embedding = file.tensor("token_embd.weight")?;
/// println!("{} {:?}: {} bytes", embedding.dtype, embedding.ne, file.data(embedding).len());
/// # Ok::<(), fathom_gguf::Error>(())
/// ```
pub struct File {
    version: u32,
    alignment: u32,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    index: HashMap<String, usize>,
    shards: Vec<Shard>,
}

/// One file of a model.
struct Shard {
    path: PathBuf,
    bytes: Bytes,
    data_offset: u64,
}

impl File {
    /// Opens the model at `path`. If that is a shard, any of them, all are opened.
    ///
    /// # Errors
    /// [`Error::Io`] when a file cannot be read, [`Error::Invalid`] when it is not a GGUF file that can be used, and the
    /// `Shard` variants when shards are missing or do not belong together.
    pub fn open(path: impl AsRef<Path>) -> Result<File, Error> {
        let path = path.as_ref();
        let opened = Opened::map(path)?;
        let count = opened.split_count()?;
        if count <= 1 {
            return File::from_shards(vec![opened]);
        }
        let number = opened.split_key(split::NO)?.unwrap_or(0);
        if number >= count {
            return Err(Error::ShardNumber { path: path.to_owned(), number, count });
        }
        let mut opened = Some(opened);
        let mut shards = Vec::new();
        for to in 0..count {
            if to == number
                && let Some(opened) = opened.take()
            {
                shards.push(opened);
                continue;
            }
            let sibling = split::sibling(path, number, to, count).ok_or_else(|| Error::ShardName {
                path: path.to_owned(),
                number: number + 1,
                count,
                expected: split::suffix(number, count),
            })?;
            if !sibling.exists() {
                return Err(Error::ShardMissing { path: sibling, number: to + 1, count });
            }
            shards.push(Opened::map(&sibling)?);
        }
        File::from_shards(shards)
    }

    /// Opens a model whose files are known, for stores that name files by their content: all shards, in any order.
    ///
    /// # Errors
    /// As [`File::open`].
    pub fn open_shards<P: AsRef<Path>>(paths: &[P]) -> Result<File, Error> {
        let mut opened = paths.iter().map(|path| Opened::map(path.as_ref())).collect::<Result<Vec<_>, _>>()?;
        // By what the files say of themselves; whether it makes sense is checked next. (A stable sort: files without the key
        // stay as they were given.)
        let number = |shard: &Opened| shard.split_key(split::NO).ok().flatten();
        opened.sort_by_key(|shard| number(shard).unwrap_or(u64::MAX));
        File::from_shards(opened)
    }

    /// A model that is in memory already. Its [`path`](File::path) is `memory`.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn from_bytes(bytes: Vec<u8>) -> Result<File, Error> {
        File::from_shards(vec![Opened::new(PathBuf::from("memory"), Bytes::Owned(bytes))?])
    }

    /// The path of the (first) file.
    pub fn path(&self) -> &Path {
        &self.shards[0].path
    }

    /// The files of the model in order.
    pub fn shards(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.shards.iter().map(|shard| shard.path.as_path())
    }

    /// Format version of the (first) file: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Every tensor's data starts at a multiple of this in the data section; a power of two, possibly 1.
    pub fn alignment(&self) -> u32 {
        self.alignment
    }

    /// The keys (of the first shard: the others repeat nothing).
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// All tensors in the order of the files.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor with this name.
    ///
    /// # Errors
    /// [`Error::MissingTensor`].
    pub fn tensor(&self, name: &str) -> Result<&TensorInfo, Error> {
        self.opt_tensor(name).ok_or_else(|| Error::MissingTensor { name: name.to_owned() })
    }

    /// The tensor with this name, if there is one.
    pub fn opt_tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.index.get(name).map(|&at| &self.tensors[at])
    }

    /// Where the data section of a shard starts in its file.
    ///
    /// # Panics
    /// When there is no such shard.
    pub fn data_offset(&self, shard: usize) -> u64 {
        self.shards[shard].data_offset
    }

    /// Where a tensor's data lies in the file of its shard, for callers that read the file themselves.
    ///
    /// # Panics
    /// When `tensor` is not one of this model.
    pub fn data_range(&self, tensor: &TensorInfo) -> Range<u64> {
        let start = self.data_offset(tensor.shard) + tensor.offset;
        start..start + tensor.bytes
    }

    /// A tensor's data.
    ///
    /// # Panics
    /// When `tensor` is not one of this model: those were checked to lie inside their file.
    pub fn data(&self, tensor: &TensorInfo) -> &[u8] {
        if tensor.bytes == 0 {
            return &[]; // its offset may be the end of the file, before padding that is not there
        }
        let range = self.data_range(tensor);
        &self.shards[tensor.shard].bytes[range.start as usize..range.end as usize]
    }

    /// Bytes of all tensors together, without padding.
    pub fn tensor_bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.bytes).sum()
    }

    /// Bytes of all files together.
    pub fn file_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.bytes.len() as u64).sum()
    }

    fn from_shards(opened: Vec<Opened>) -> Result<File, Error> {
        if opened.is_empty() {
            return Err(Error::NoFiles);
        }
        let count = opened.len() as u64;
        for (number, shard) in opened.iter().enumerate() {
            // A file that stands alone needs neither key, but must not be a part of something larger.
            if count > 1 || shard.split_count()? > 1 {
                shard.expect_key(split::COUNT, count)?;
                shard.expect_key(split::NO, number as u64)?;
            }
        }
        let mut file = File {
            version: 0,
            alignment: 0,
            metadata: Metadata::new(),
            tensors: Vec::new(),
            index: HashMap::new(),
            shards: Vec::with_capacity(opened.len()),
        };
        for (number, shard) in opened.into_iter().enumerate() {
            let Opened { path, bytes, header } = shard;
            if number == 0 {
                (file.version, file.alignment, file.metadata) = (header.version, header.alignment, header.metadata);
            }
            file.shards.push(Shard { path, bytes, data_offset: header.data_offset });
            file.append(header.tensors, number)?;
        }
        file.expect_tensor_count()?;
        Ok(file)
    }

    fn append(&mut self, tensors: Vec<TensorInfo>, shard: usize) -> Result<(), Error> {
        for mut tensor in tensors {
            tensor.shard = shard;
            if let Some(first) = self.index.insert(tensor.name.clone(), self.tensors.len()) {
                return Err(Error::ShardDuplicate {
                    first: self.shards[self.tensors[first].shard].path.clone(),
                    second: self.shards[shard].path.clone(),
                    tensor: tensor.name,
                });
            }
            self.tensors.push(tensor);
        }
        Ok(())
    }

    fn expect_tensor_count(&self) -> Result<(), Error> {
        let found = self.tensors.len() as u64;
        match self.metadata.get(split::TENSORS).and_then(crate::Value::integer) {
            Some(claimed) if self.shards.len() > 1 && claimed != i128::from(found) => {
                Err(Error::ShardTensors { path: self.path().to_owned(), claimed, found })
            }
            _ => Ok(()),
        }
    }
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("File")
            .field("path", &self.path())
            .field("shards", &self.shards.len())
            .field("keys", &self.metadata.len())
            .field("tensors", &self.tensors.len())
            .finish_non_exhaustive()
    }
}

/// A file whose header was read, before it is known what it belongs to.
struct Opened {
    path: PathBuf,
    bytes: Bytes,
    header: Header,
}

impl Opened {
    fn map(path: &Path) -> Result<Opened, Error> {
        Opened::new(path.to_owned(), Bytes::map(path)?)
    }

    fn new(path: PathBuf, bytes: Bytes) -> Result<Opened, Error> {
        match reader::parse(&bytes) {
            Ok(header) => Ok(Opened { path, bytes, header }),
            Err(fault) => Err(Error::Invalid { path, fault: Box::new(fault) }),
        }
    }

    fn split_key(&self, key: &'static str) -> Result<Option<u64>, Error> {
        self.header.metadata.opt_u64(key)
    }

    fn split_count(&self) -> Result<u64, Error> {
        let shards = self.split_key(split::COUNT)?.unwrap_or(1);
        if shards > limits::MAX_SHARDS {
            return Err(Error::TooManyShards { shards });
        }
        Ok(shards)
    }

    fn expect_key(&self, key: &'static str, expected: u64) -> Result<(), Error> {
        match self.header.metadata.get(key) {
            Some(value) if value.integer() == Some(expected.into()) => Ok(()),
            value => {
                let found = match value {
                    None => "nothing".to_owned(),
                    Some(value) => value.integer().map_or_else(|| value.type_name(), |number| number.to_string()),
                };
                Err(Error::ShardKey { path: self.path.clone(), key, found, expected })
            }
        }
    }
}
