//! A checkpoint directory: config.json, the shard index, and tensors that are read when asked for.
//!
//! Only files named by `model.safetensors.index.json` are looked at (without an index: `model.safetensors`). Headers are checked by
//! the safetensors crate's own rules; data is read by position into the caller's buffer, never mapped, so that memory stays what
//! the caller gave, however large a tensor is.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::metadata::JSON_FILES;
use crate::recipe::{Catalog, Released};
use crate::shard::{read_at, read_header};

/// Whether the data must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completeness {
    /// Every shard has all its bytes.
    Whole,
    /// Headers suffice: for a plan of a checkpoint that is not downloaded yet.
    Headers,
}

/// An open checkpoint.
pub struct Checkpoint {
    dir: PathBuf,
    config: serde_json::Value,
    json: HashMap<&'static str, String>,
    shards: Vec<Shard>,
    catalog: Catalog,
    places: HashMap<String, Place>,
    whole: bool,
}

/// One safetensors file.
pub struct Shard {
    /// File name.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Last change, in nanoseconds since 1970 (0 if the file system does not say).
    pub modified_ns: u64,
    file: fs::File,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    shard: usize,
    start: u64,
    bytes: u64,
}

/// The largest real JSON file is a tokenizer.json of 8 MB, the largest index one of 10 MB.
const MAX_JSON_BYTES: u64 = 1 << 28;

/// Of a directory, a pipe or a device.
const NO_FILE: &str = "it is no plain file";

/// What is read ahead at once.
const WINDOW_BYTES: u64 = 4 << 20;

impl Checkpoint {
    /// Opens a directory.
    ///
    /// # Errors
    /// A missing, damaged or truncated file, or an index that does not agree with its shards.
    pub fn open(dir: &Path, completeness: Completeness) -> Result<Checkpoint, Error> {
        let mut json = HashMap::new();
        for (file, _, required) in JSON_FILES {
            let path = dir.join(file);
            match read_json(&path)? {
                Some(text) => {
                    json.insert(file, text);
                }
                None if required => {
                    let hint =
                        "give the directory of a checkpoint as published: config.json, tokenizer.json, *.safetensors";
                    return Err(Error::MissingFile { dir: dir.into(), file: file.into(), hint });
                }
                None => {}
            }
        }
        let config = parse(&dir.join("config.json"), &json["config.json"])?;
        let weight_map = weight_map(dir)?;
        let mut checkpoint = Checkpoint {
            dir: dir.into(),
            config,
            json,
            shards: Vec::new(),
            catalog: Catalog::default(),
            places: HashMap::new(),
            whole: true,
        };
        for (shard, tensors) in weight_map {
            checkpoint.add_shard(shard, tensors, completeness)?;
        }
        Ok(checkpoint)
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// config.json, parsed.
    pub fn config(&self) -> &serde_json::Value {
        &self.config
    }

    /// The texts of the JSON files, verbatim, by file name.
    pub fn json(&self) -> &HashMap<&'static str, String> {
        &self.json
    }

    /// A JSON file, parsed, if it is there.
    ///
    /// # Errors
    /// [`Error::BadJson`].
    pub fn parsed(&self, file: &'static str) -> Result<Option<serde_json::Value>, Error> {
        self.json.get(file).map(|text| parse(&self.dir.join(file), text)).transpose()
    }

    /// The released tensors, by shard name and then by place.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The safetensors files in the order of their names.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// Whether every shard has all its bytes.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Bytes of a tensor. 0 for a tensor that is not there.
    pub fn bytes(&self, tensor: &str) -> u64 {
        self.places.get(tensor).map_or(0, |place| place.bytes)
    }

    /// Where a tensor lies: shard and offset, to be sorted by. Unknown tensors come first.
    pub(crate) fn position(&self, tensor: &str) -> (usize, u64) {
        self.places.get(tensor).map_or((0, 0), |place| (place.shard, place.start))
    }

    /// Reads a piece of a tensor.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::MissingTensor`] for a name that the catalog does not have.
    ///
    /// # Panics
    /// If the piece is not inside the tensor.
    pub fn read(&self, tensor: &str, at: u64, out: &mut [u8]) -> Result<(), Error> {
        let place = self.places.get(tensor).ok_or_else(|| Error::MissingTensor { tensor: tensor.into(), others: 0 })?;
        assert!(at.checked_add(out.len() as u64).is_some_and(|end| end <= place.bytes), "a piece of `{tensor}`");
        let (window, next) = (at / WINDOW_BYTES, (at + out.len() as u64) / WINDOW_BYTES);
        if window != next {
            self.will_read_window(place, (next + 1) * WINDOW_BYTES);
        } else if at == 0 {
            self.will_read_window(place, WINDOW_BYTES);
        }
        let shard = &self.shards[place.shard];
        read_at(&shard.file, place.start + at, out).map_err(Error::io("read", self.dir.join(&shard.name)))
    }

    /// Tells the system that the beginning of a tensor will be read soon. Several threads read one shard at several places, which
    /// hides from the system that the shard as a whole is read from front to back.
    pub(crate) fn will_read(&self, tensor: &str) {
        if let Some(place) = self.places.get(tensor) {
            self.will_read_window(place, 0);
        }
    }

    fn will_read_window(&self, place: &Place, at: u64) {
        if at < place.bytes {
            advise(&self.shards[place.shard].file, place.start + at, WINDOW_BYTES.min(place.bytes - at));
        }
    }

    /// Reads a whole tensor; for small ones.
    ///
    /// # Errors
    /// As [`Checkpoint::read`].
    pub fn read_all(&self, tensor: &str) -> Result<Vec<u8>, Error> {
        let mut out = vec![0; self.bytes(tensor) as usize];
        self.read(tensor, 0, &mut out)?;
        Ok(out)
    }

    /// `tensors`: what the index places in this shard; `None` without an index.
    fn add_shard(
        &mut self,
        name: String,
        tensors: Option<Vec<String>>,
        completeness: Completeness,
    ) -> Result<(), Error> {
        let path = self.dir.join(&name);
        // Before it is opened: opening a pipe waits for somebody to write.
        if fs::metadata(&path).is_ok_and(|meta| !meta.is_file()) {
            return Err(Error::BadShard { path, reason: NO_FILE.into() });
        }
        let file = match fs::File::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(match tensors {
                    Some(tensors) => {
                        Error::MissingShard { shard: name, others: tensors.len() - 1, tensor: tensors[0].clone() }
                    }
                    None => Error::MissingFile {
                        dir: self.dir.clone(),
                        file: name,
                        hint: "give the directory of a checkpoint as published: config.json, tokenizer.json, *.safetensors",
                    },
                });
            }
            other => other.map_err(Error::io("open", &path))?,
        };
        let meta = file.metadata().map_err(Error::io("inspect", &path))?;
        let (header, data_start) = read_header(&file, meta.len(), &path)?;
        let mut offsets: Vec<_> = header.tensors().into_iter().collect();
        offsets.sort_by(|a, b| (a.1.data_offsets.0, &a.0).cmp(&(b.1.data_offsets.0, &b.0)));
        let data_bytes = offsets.last().map_or(0, |(_, info)| info.data_offsets.1 as u64);
        let expected = data_start + data_bytes;
        if meta.len() < expected && completeness == Completeness::Whole {
            return Err(Error::TruncatedShard { path, expected, found: meta.len() });
        }
        if meta.len() > expected {
            let reason = format!("{} bytes follow its last tensor", meta.len() - expected);
            return Err(Error::BadShard { path, reason });
        }
        self.whole &= meta.len() == expected;

        if let Some(tensors) = tensors {
            for tensor in &tensors {
                if header.info(tensor).is_none() {
                    return Err(Error::IndexMismatch { tensor: tensor.clone(), shard: name });
                }
            }
            if tensors.len() != offsets.len() {
                let here: std::collections::HashSet<&String> = tensors.iter().collect();
                let extra =
                    offsets.iter().find(|(tensor, _)| !here.contains(tensor)).expect("the index names fewer tensors");
                return Err(Error::NotInIndex { tensor: extra.0.clone(), shard: name });
            }
        }
        let shard = self.shards.len();
        for (tensor, info) in offsets {
            let (start, end) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
            self.places.insert(tensor.clone(), Place { shard, start: data_start + start, bytes: end - start });
            let shape = info.shape.iter().map(|axis| *axis as u64).collect();
            self.catalog.insert(tensor, Released { dtype: info.dtype, shape: Some(shape) });
        }
        let modified_ns = meta.modified().ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
        let modified_ns = modified_ns.map_or(0, |since| since.as_nanos() as u64);
        self.shards.push(Shard { name, bytes: meta.len(), modified_ns, file });
        Ok(())
    }
}

/// Shard names with the tensors that the index places there, in the order of the names.
fn weight_map(dir: &Path) -> Result<BTreeMap<String, Option<Vec<String>>>, Error> {
    let path = dir.join("model.safetensors.index.json");
    let Some(text) = read_json(&path)? else {
        return Ok(BTreeMap::from([("model.safetensors".to_owned(), None)]));
    };
    let bad = |reason: &str| Error::BadJson { path: path.clone(), reason: reason.into() };
    let index = parse(&path, &text)?;
    let map =
        index.get("weight_map").and_then(|map| map.as_object()).ok_or_else(|| bad("`weight_map` is no object"))?;
    let mut shards: BTreeMap<String, Option<Vec<String>>> = BTreeMap::new();
    for (tensor, shard) in map {
        let shard = shard.as_str().ok_or_else(|| bad("a shard in `weight_map` is no string"))?;
        let plain = Path::new(shard).file_name().is_some_and(|name| name == shard);
        if !plain || shard.contains(['/', '\\']) {
            return Err(Error::ShardPath { shard: shard.into() });
        }
        shards.entry(shard.into()).or_default().get_or_insert_default().push(tensor.clone());
    }
    if shards.is_empty() { Err(bad("`weight_map` is empty")) } else { Ok(shards) }
}

#[cfg(target_os = "linux")]
fn advise(file: &fs::File, at: u64, bytes: u64) {
    // Only a hint: when the file system does not take it, reading is slower and nothing else.
    let _ = rustix::fs::fadvise(file, at, std::num::NonZero::new(bytes), rustix::fs::Advice::WillNeed);
}

#[cfg(not(target_os = "linux"))]
fn advise(_: &fs::File, _: u64, _: u64) {}

fn read_json(path: &Path) -> Result<Option<String>, Error> {
    let meta = match fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(Error::io("read", path))?,
    };
    if !meta.is_file() {
        return Err(Error::BadJson { path: path.into(), reason: NO_FILE.into() });
    }
    if meta.len() > MAX_JSON_BYTES {
        return Err(Error::BadJson { path: path.into(), reason: format!("it is {} bytes long", meta.len()) });
    }
    let bytes = fs::read(path).map_err(Error::io("read", path))?;
    String::from_utf8(bytes).map(Some).map_err(|error| Error::BadJson { path: path.into(), reason: error.to_string() })
}

fn parse(path: &Path, text: &str) -> Result<serde_json::Value, Error> {
    serde_json::from_str(text).map_err(|error| Error::BadJson { path: path.into(), reason: error.to_string() })
}
