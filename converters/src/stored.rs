//! A converted file, opened to be taken back: the same recipe as for conversion, asked which types the file has.

use std::path::{Path, PathBuf};

use fathom_gguf::{File, Metadata};

use crate::Error;
use crate::metadata::{self, DRAFT_FILE, DTYPES, FORMAT, FORMAT_VERSION, FP8_SCALE, JSON_FILES, NAMES, SHA256};
use crate::recipe::{self, Catalog, Dtype, Planned, Released};
use crate::slab::{Sha, Slab, from_hex, slabs};
use crate::transcode::Encoding;

/// A model and its draft.
pub(crate) struct Stored {
    /// The model's file, then the draft's.
    pub(crate) files: Vec<StoredFile>,
    /// Released tensors in recorded order, each once.
    pub(crate) released: Vec<Recorded>,
    /// Names of the JSON files and their text, as released.
    pub(crate) json: Vec<(&'static str, String)>,
}

/// One GGUF model and what is in it.
pub(crate) struct StoredFile {
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    pub(crate) tensors: Vec<Planned>,
}

/// What a file records of a released tensor.
#[derive(Debug, Clone)]
pub(crate) struct Recorded {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    /// Bytes and shape by the recipe.
    pub(crate) bytes: u64,
    pub(crate) shape: Vec<u64>,
    pub(crate) sha256: Sha,
    /// Index into [`Stored::files`].
    pub(crate) file: usize,
    /// Whether the released bytes can be rebuilt.
    pub(crate) lossless: bool,
}

/// Where a converted model lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A file, or any shard of one; its draft lies beside it under the name that it records.
    Path(PathBuf),
    /// Files whose names say nothing, as stores keep them.
    Files {
        /// All shards, in any order.
        weights: Vec<PathBuf>,
        /// The draft's file.
        draft: Option<PathBuf>,
    },
}

impl<P: Into<PathBuf>> From<P> for Location {
    fn from(path: P) -> Location {
        Location::Path(path.into())
    }
}

/// Whether the draft has to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DraftFile {
    Required,
    IfThere,
}

impl Stored {
    pub(crate) fn open(location: &Location, draft: DraftFile) -> Result<Stored, Error> {
        let trunk = match location {
            Location::Path(path) => File::open(path)?,
            Location::Files { weights, .. } => File::open_shards(weights)?,
        };
        let path = match location {
            Location::Path(path) => path.clone(),
            Location::Files { .. } => trunk.path().to_path_buf(),
        };
        let path = path.as_path();
        let keys = trunk.metadata();
        let not_ours = |reason: String| Error::NotOurs { path: path.into(), reason };
        if !keys.contains(FORMAT_VERSION) {
            return Err(not_ours(format!("it has no key `{FORMAT_VERSION}`, so fathom did not convert it")));
        }
        let version = keys.u32(FORMAT_VERSION)?;
        if version != FORMAT {
            return Err(not_ours(format!("its `{FORMAT_VERSION}` is {version}, this program knows {FORMAT}")));
        }
        if is_draft(keys) {
            return Err(Error::DraftGiven { path: path.into(), model: model_of(path, &trunk) });
        }
        let mut json = Vec::new();
        for (name, key, _) in JSON_FILES {
            if let Some(text) = keys.opt_str(key)? {
                json.push((name, text.to_owned()));
            }
        }
        let config = keys.str(JSON_FILES[0].1)?;
        let config: serde_json::Value = serde_json::from_str(config)
            .map_err(|error| not_ours(format!("its config.json does not parse: {error}")))?;

        let mut files = vec![(path.to_path_buf(), trunk)];
        if let Some(name) = files[0].1.metadata().opt_str(DRAFT_FILE)? {
            let beside = beside(path, name)
                .ok_or_else(|| not_ours(format!("`{DRAFT_FILE}` is `{name}`, no plain file name")))?;
            let found = match location {
                Location::Path(_) => beside.exists().then(|| beside.clone()),
                Location::Files { draft, .. } => draft.clone(),
            };
            match (found, location) {
                (Some(found), _) => files.push((found.clone(), File::open(&found)?)),
                (None, _) if draft == DraftFile::IfThere => {}
                (None, Location::Path(_)) => return Err(Error::MissingDraft { path: beside, in_store: false }),
                (None, Location::Files { .. }) => {
                    return Err(Error::MissingDraft { path: name.into(), in_store: true });
                }
            }
        }

        let mut catalog = Catalog::default();
        let mut records = Vec::new();
        for (number, (path, file)) in files.iter().enumerate() {
            for (name, dtype, sha256) in records_of(path, file.metadata())? {
                if catalog.get(&name).is_none() {
                    catalog.insert(name.clone(), Released { dtype, shape: None });
                    records.push((name, dtype, sha256, number));
                }
            }
        }
        // The recipe over the recorded names, with the types that the files have.
        let lookup = |name: &str| files.iter().find_map(|(_, file)| file.opt_tensor(name));
        let recipe = recipe::for_config(&config)?;
        let plan = (recipe.plan)(&config, &catalog, None, &mut |tensor| {
            let name = &tensor.name;
            match lookup(name) {
                Some(info) if info.ne == tensor.ne => Ok(info.dtype),
                Some(info) => {
                    Err(not_ours(format!("tensor `{name}` has shape {:?}, expected {:?}", info.ne, tensor.ne)))
                }
                None => Err(not_ours(format!("tensor `{name}` is missing"))),
            }
        })?;
        let plans = [Some(plan.trunk.tensors), plan.draft.map(|draft| draft.tensors)];
        let mut opened = Vec::new();
        for ((path, file), tensors) in files.into_iter().zip(plans.into_iter().flatten()) {
            for tensor in &tensors {
                match file.opt_tensor(&tensor.name) {
                    Some(info) if info.dtype == tensor.dtype && info.ne == tensor.ne => {}
                    _ => {
                        let reason =
                            format!("tensor `{}` is missing or of another type than in the other file", tensor.name);
                        return Err(Error::NotOurs { path, reason });
                    }
                }
                if tensor.encoding == Encoding::Fp8 && tensor.lossless() {
                    let scale_bytes = |part: &recipe::Part| tensor.encoding.scale_bytes(part.rows, part.columns);
                    let expected: u64 = tensor.parts.iter().map(scale_bytes).sum();
                    let found = scales(&file, tensor)?.len() as u64;
                    if found != expected {
                        let reason = format!("`{FP8_SCALE}{}` holds {found} bytes, expected {expected}", tensor.name);
                        return Err(Error::NotOurs { path, reason });
                    }
                }
            }
            opened.push(StoredFile { path, file, tensors });
        }
        let mut stored = Stored { files: opened, released: Vec::new(), json };
        stored.describe(records)?;
        Ok(stored)
    }

    /// Fills [`Stored::released`].
    fn describe(&mut self, records: Vec<(String, Dtype, Sha, usize)>) -> Result<(), Error> {
        let mut shapes = std::collections::HashMap::new();
        for stored in &self.files {
            for tensor in &stored.tensors {
                for part in &tensor.parts {
                    let bytes = part.rows * tensor.encoding.row_bytes(part.columns);
                    shapes.insert(part.weight.as_str(), (part.shape.clone(), bytes, tensor.lossless()));
                    if let Some(scale) = &part.scale {
                        let bytes = tensor.encoding.scale_bytes(part.rows, part.columns);
                        let columns = bytes / scale_rows(tensor.encoding, part.rows);
                        shapes.insert(scale, (vec![bytes / columns, columns], bytes, tensor.lossless()));
                    }
                }
            }
        }
        for (name, dtype, sha256, file) in records {
            // The recipe has found every recorded name, or it would have failed.
            let Some((shape, bytes, lossless)) = shapes.get(name.as_str()).cloned() else { continue };
            self.released.push(Recorded { name, dtype, bytes, shape, sha256, file, lossless });
        }
        Ok(())
    }

    /// Every slab of lossless tensors, by file.
    pub(crate) fn lossless_slabs(&self) -> Vec<(usize, Slab)> {
        let slabs = |(number, stored): (usize, &StoredFile)| {
            let lossless: Vec<_> =
                slabs(&stored.tensors).filter(|slab| stored.tensors[slab.tensor].lossless()).collect();
            lossless.into_iter().map(move |slab| (number, slab))
        };
        self.files.iter().enumerate().flat_map(slabs).collect()
    }
}

impl StoredFile {
    /// The data of a planned tensor.
    pub(crate) fn data(&self, tensor: &Planned) -> Result<&[u8], Error> {
        Ok(self.file.data(self.file.tensor(&tensor.name)?))
    }

    /// The recorded FP8 scales of a planned tensor; empty for other encodings.
    pub(crate) fn scales(&self, tensor: &Planned) -> Result<&[u8], Error> {
        match tensor.encoding {
            Encoding::Fp8 => scales(&self.file, tensor),
            _ => Ok(&[]),
        }
    }
}

fn scales<'a>(file: &'a File, tensor: &Planned) -> Result<&'a [u8], Error> {
    Ok(file.metadata().u8s(&format!("{FP8_SCALE}{}", tensor.name))?)
}

fn scale_rows(encoding: Encoding, rows: u64) -> u64 {
    match encoding {
        Encoding::Fp8 => rows.div_ceil(crate::transcode::fp8::BLOCK),
        _ => rows,
    }
}

/// Whether a converted file holds draft blocks and not a model.
fn is_draft(keys: &Metadata) -> bool {
    let draft_blocks = |names: &fathom_gguf::Strings| names.iter().any(|name| name.starts_with("mtp."));
    keys.strings(NAMES).is_ok_and(draft_blocks)
}

/// The model that names `draft` as its draft, if it lies in the same folder.
fn model_of(path: &Path, draft: &File) -> Option<PathBuf> {
    let name = draft.path().file_name()?.to_str()?;
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "gguf"));
    files.sort();
    let names_it = |file: &File| file.metadata().opt_str(DRAFT_FILE).ok().flatten() == Some(name);
    let found = files.into_iter().find(|file| File::open(file).is_ok_and(|file| names_it(&file)))?;
    Some(path.with_file_name(found.file_name()?))
}

fn beside(path: &Path, name: &str) -> Option<PathBuf> {
    let plain = Path::new(name).file_name().is_some_and(|file| file == name) && !name.contains(['/', '\\']);
    plain.then(|| path.with_file_name(name))
}

fn records_of(path: &Path, keys: &Metadata) -> Result<Vec<(String, Dtype, Sha)>, Error> {
    let not_ours = |reason: String| Error::NotOurs { path: path.into(), reason };
    let (names, dtypes, sums) = (keys.strings(NAMES)?, keys.strings(DTYPES)?, keys.strings(SHA256)?);
    if names.len() != dtypes.len() || names.len() != sums.len() {
        return Err(not_ours(format!("`{NAMES}`, `{DTYPES}` and `{SHA256}` have different lengths")));
    }
    let mut out = Vec::with_capacity(names.len());
    for ((name, dtype), sum) in names.iter().zip(dtypes.iter()).zip(sums.iter()) {
        let parsed = serde_json::from_value(serde_json::Value::String(dtype.into()));
        let dtype = parsed.map_err(|_| not_ours(format!("`{dtype}` of `{name}` is no safetensors dtype")))?;
        let sha256 = from_hex(sum).filter(|_| sum != metadata::UNKNOWN_SHA256);
        let sha256 = sha256
            .ok_or_else(|| not_ours(format!("it has no checksum for `{name}`: the conversion did not finish")))?;
        out.push((name.to_owned(), dtype, sha256));
    }
    Ok(out)
}
