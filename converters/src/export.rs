//! GGUF -> the released checkpoint: the same tensor names, dtypes, shapes and bytes, and the same JSON files. Only the cut into
//! shards may differ, so the index is new.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use crate::options::thread_count;
use crate::progress::{Phase, Progress};
use crate::shard::{encode_header, write_at};
use crate::slab::{Conversion, Piece, Scratch, Slab, hex};
use crate::staging::Staging;
use crate::stored::{DraftFile, Location, Recorded, Stored};
use crate::{Error, verify, workers};

/// What to export, and where to.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// The model, and its draft.
    pub model: Location,
    /// The directory to write.
    pub directory: PathBuf,
    /// Write into a directory that already holds a checkpoint.
    pub force: bool,
    /// Bytes of a shard, about.
    pub shard_bytes: u64,
    /// Worker threads; 0 = two for each core.
    pub threads: usize,
}

impl ExportOptions {
    /// Shards of 5 GB, as the usual upload tools make them.
    pub fn new(model: impl Into<Location>, directory: impl Into<PathBuf>) -> ExportOptions {
        ExportOptions {
            model: model.into(),
            directory: directory.into(),
            force: false,
            shard_bytes: 5_000_000_000,
            threads: 0,
        }
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportReport {
    /// Released tensors.
    pub tensors: usize,
    /// safetensors files.
    pub shards: usize,
    /// Bytes of tensor data.
    pub bytes: u64,
}

const CHUNK_BYTES: usize = 2 << 20;
const INDEX: &str = "model.safetensors.index.json";

/// One safetensors file, decided before it is written.
struct Shard {
    name: String,
    /// Everything before the tensor data.
    header: Vec<u8>,
    file_bytes: u64,
}

/// One safetensors file being written.
struct Opened {
    path: PathBuf,
    file: fs::File,
}

/// Where a released tensor goes.
#[derive(Clone, Copy)]
struct Place {
    shard: usize,
    at: u64,
    recorded: usize,
}

/// Exports a converted file.
///
/// # Errors
/// [`Error::Lossy`] when bytes are gone, [`Error::MissingDraft`], [`Error::Checksum`] when the file is damaged, [`Error::Disk`].
/// Of what was written nothing is left then. A kill leaves files under unfinished names, which the next export removes.
pub fn export(options: &ExportOptions, progress: &mut dyn Progress) -> Result<ExportReport, Error> {
    let stored = Stored::open(&options.model, DraftFile::Required)?;
    refuse_lossy(&stored)?;
    let plan = Plan::new(&stored, options.shard_bytes);
    verify::check_draft(&stored)?;
    let staging = Staging::begin(&options.directory, plan.names(), plan.bytes(), options.force)?;
    match write(&stored, &plan, &staging, options.threads, progress) {
        Ok(()) => staging.publish()?,
        Err(error) => {
            staging.discard();
            return Err(error);
        }
    }
    Ok(ExportReport { tensors: stored.released.len(), shards: plan.shards.len(), bytes: total_bytes(&stored) })
}

/// Everything that is decided before the first byte.
struct Plan<'a> {
    shards: Vec<Shard>,
    places: HashMap<&'a str, Place>,
    /// Names and texts of the JSON files, the index last.
    texts: Vec<(&'a str, Cow<'a, str>)>,
}

impl<'a> Plan<'a> {
    /// Cuts the recorded order into shards of about `shard_bytes`.
    fn new(stored: &'a Stored, shard_bytes: u64) -> Plan<'a> {
        let mut cuts: Vec<Vec<usize>> = vec![Vec::new()];
        let mut bytes = 0;
        for (index, one) in stored.released.iter().enumerate() {
            if bytes > 0 && bytes + one.bytes > shard_bytes {
                cuts.push(Vec::new());
                bytes = 0;
            }
            cuts.last_mut().expect("begun with one").push(index);
            bytes += one.bytes;
        }
        let (mut shards, mut places) = (Vec::new(), HashMap::new());
        for (number, cut) in cuts.iter().enumerate() {
            let name = format!("model-{:05}-of-{:05}.safetensors", number + 1, cuts.len());
            let recorded = cut.iter().map(|index| &stored.released[*index]);
            let tensors = recorded.map(|one| (one.name.clone(), one.dtype, one.shape.clone()));
            let (header, data_bytes) = encode_header(tensors);
            let mut at = header.len() as u64;
            for recorded in cut {
                let one = &stored.released[*recorded];
                places.insert(one.name.as_str(), Place { shard: number, at, recorded: *recorded });
                at += one.bytes;
            }
            shards.push(Shard { name, file_bytes: header.len() as u64 + data_bytes, header });
        }
        let mut texts: Vec<_> = stored.json.iter().map(|(name, text)| (*name, Cow::from(text))).collect();
        texts.push((INDEX, index(stored, &shards, &places).into()));
        Plan { shards, places, texts }
    }

    fn names(&self) -> Vec<String> {
        let shards = self.shards.iter().map(|shard| shard.name.clone());
        shards.chain(self.texts.iter().map(|(name, _)| (*name).to_owned())).collect()
    }

    fn bytes(&self) -> u64 {
        let shards: u64 = self.shards.iter().map(|shard| shard.file_bytes).sum();
        shards + self.texts.iter().map(|(_, text)| text.len() as u64).sum::<u64>()
    }
}

fn total_bytes(stored: &Stored) -> u64 {
    stored.released.iter().map(|one| one.bytes).sum()
}

fn index(stored: &Stored, shards: &[Shard], places: &HashMap<&str, Place>) -> String {
    let shard = |one: &Recorded| shards[places[one.name.as_str()].shard].name.as_str();
    let map: BTreeMap<&str, &str> = stored.released.iter().map(|one| (one.name.as_str(), shard(one))).collect();
    let index = serde_json::json!({ "metadata": { "total_size": total_bytes(stored) }, "weight_map": map });
    serde_json::to_string_pretty(&index).expect("plain data") + "\n"
}

/// Writes all files under their unfinished names and brings them to the disk.
fn write(
    stored: &Stored,
    plan: &Plan<'_>,
    staging: &Staging,
    threads: usize,
    progress: &mut dyn Progress,
) -> Result<(), Error> {
    for (name, text) in &plan.texts {
        staging.write_text(name, text)?;
    }
    let opened = plan.shards.iter().map(|shard| create(shard, staging)).collect::<Result<Vec<_>, _>>()?;
    let items = only_once(stored);
    progress.begin(Phase::Exporting, total_bytes(stored));
    let work = |(file, slab): &(usize, Slab), scratch: &mut Scratch, report: &dyn Fn(u64)| {
        let file = &stored.files[*file];
        let tensor = &file.tensors[slab.tensor];
        let parts = tensor.slab_parts(*slab);
        let conversion =
            Conversion { tensor, slab: *slab, scales: file.scales(tensor)?, chunk_bytes: CHUNK_BYTES, quantizer: None };
        let mut hashes: Vec<[Sha256; 2]> = parts.iter().map(|_| Default::default()).collect();
        let name = |part: usize, piece: Piece| match piece {
            Piece::Weight => parts[part].weight.as_str(),
            Piece::Scale => parts[part].scale.as_deref().expect("only scaled tensors have scale bytes"),
        };
        conversion.decode(file.data(tensor)?, scratch, &mut |part, piece, at, bytes| {
            hashes[part][usize::from(piece == Piece::Scale)].update(bytes);
            let place = plan.places[name(part, piece)];
            let shard = &opened[place.shard];
            write_at(&shard.file, place.at + at, bytes).map_err(Error::io("write", &shard.path))?;
            report(bytes.len() as u64);
            Ok(())
        })?;
        for (part, [weight, scale]) in hashes.into_iter().enumerate() {
            let pieces = [(Piece::Weight, weight), (Piece::Scale, scale)];
            for (piece, hash) in pieces.into_iter().take(1 + usize::from(parts[part].scale.is_some())) {
                let (name, computed) = (name(part, piece), hash.finalize().into());
                let recorded = stored.released[plan.places[name].recorded].sha256;
                if recorded != computed {
                    return Err(Error::Checksum {
                        tensor: name.into(),
                        recorded: hex(&recorded),
                        computed: hex(&computed),
                    });
                }
            }
        }
        Ok(())
    };
    workers::run(thread_count(threads), &items, work, |event| verify::advance(event, progress))?;
    opened.iter().try_for_each(|shard| shard.file.sync_all().map_err(Error::io("sync", &shard.path)))
}

/// Creates a file of its final size, with its header.
fn create(shard: &Shard, staging: &Staging) -> Result<Opened, Error> {
    let path = staging.unfinished(&shard.name);
    let file = fs::File::create(&path).map_err(Error::io("create", &path))?;
    write_at(&file, 0, &shard.header).map_err(Error::io("write", &path))?;
    file.set_len(shard.file_bytes).map_err(Error::io("resize", &path))?;
    Ok(Opened { path, file })
}

fn refuse_lossy(stored: &Stored) -> Result<(), Error> {
    let count = stored.released.iter().filter(|one| !one.lossless).count();
    if count == 0 {
        return Ok(());
    }
    let tensors = stored.files.iter().flat_map(|file| &file.tensors).filter(|tensor| !tensor.lossless());
    let examples: Vec<String> =
        tensors.clone().take(3).map(|tensor| format!("`{}` ({})", tensor.name, tensor.dtype.name())).collect();
    let rest = tensors.count() - examples.len();
    let rest = if rest > 0 { format!(" and {rest} more") } else { String::new() };
    Err(Error::Lossy { count, examples: examples.join(", ") + &rest })
}

/// Slabs whose released tensors belong to that file: an MTP draft also carries copies of the model's embedding and head.
fn only_once(stored: &Stored) -> Vec<(usize, Slab)> {
    let owner: HashMap<&str, usize> = stored.released.iter().map(|one| (one.name.as_str(), one.file)).collect();
    let mut items = stored.lossless_slabs();
    items.retain(|(file, slab)| {
        let tensor = &stored.files[*file].tensors[slab.tensor];
        owner.get(tensor.slab_parts(*slab)[0].weight.as_str()) == Some(file)
    });
    items
}
