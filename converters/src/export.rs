//! GGUF -> the released checkpoint: the same tensor names, dtypes, shapes and bytes, and the same JSON files. Only the cut into
//! shards may differ, so the index is new.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::options::thread_count;
use crate::progress::{Phase, Progress};
use crate::shard::{encode_header, write_at};
use crate::slab::{Conversion, Piece, Scratch, Slab, hex};
use crate::stored::{DraftFile, Recorded, Stored};
use crate::{Error, verify, workers};

/// What to export, and where to.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// The model's file; its draft is found beside it.
    pub model: PathBuf,
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
    pub fn new(model: impl Into<PathBuf>, directory: impl Into<PathBuf>) -> ExportOptions {
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

/// One safetensors file being written.
struct Shard {
    name: String,
    unfinished: PathBuf,
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
/// [`Error::Lossy`] when bytes are gone, [`Error::MissingDraft`], [`Error::Checksum`] when the file is damaged. Nothing in the
/// directory looks finished then.
pub fn export(options: &ExportOptions, progress: &mut dyn Progress) -> Result<ExportReport, Error> {
    let stored = Stored::open(&options.model, DraftFile::Required)?;
    refuse_lossy(&stored)?;
    let dir = &options.directory;
    let index_path = dir.join(INDEX);
    if !options.force && holds_a_checkpoint(dir, &stored) {
        return Err(Error::Exists { path: dir.clone() });
    }
    verify::check_draft(&stored)?;
    fs::create_dir_all(dir).map_err(Error::io("create", dir))?;

    let (shards, places) = create_shards(&stored, options)?;
    let items = only_once(&stored);
    let total: u64 = stored.released.iter().map(|one| one.bytes).sum();
    progress.begin(Phase::Exporting, total);
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
            let place = places[name(part, piece)];
            let shard = &shards[place.shard];
            write_at(&shard.file, place.at + at, bytes).map_err(Error::io("write", &shard.unfinished))?;
            report(bytes.len() as u64);
            Ok(())
        })?;
        for (part, [weight, scale]) in hashes.into_iter().enumerate() {
            let pieces = [(Piece::Weight, weight), (Piece::Scale, scale)];
            for (piece, hash) in pieces.into_iter().take(1 + usize::from(parts[part].scale.is_some())) {
                let (name, computed) = (name(part, piece), hash.finalize().into());
                let recorded = stored.released[places[name].recorded].sha256;
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
    workers::run(thread_count(options.threads), &items, work, |event| verify::advance(event, progress))?;

    // A former checkpoint's index would make a mixture of old and new shards look finished.
    if let Err(error) = fs::remove_file(&index_path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(Error::io("remove", &index_path)(error));
    }
    for shard in &shards {
        shard.file.sync_all().map_err(Error::io("sync", &shard.unfinished))?;
        let path = dir.join(&shard.name);
        fs::rename(&shard.unfinished, &path).map_err(Error::io("rename", &shard.unfinished))?;
    }
    for (name, text) in &stored.json {
        write_text(&dir.join(name), text)?;
    }
    // Last: with its index the directory is a checkpoint.
    write_text(&index_path, &index(&stored, &shards, &places, total))?;
    Ok(ExportReport { tensors: stored.released.len(), shards: shards.len(), bytes: total })
}

/// Whether something in the directory would be replaced, or taken for a part of what is exported.
fn holds_a_checkpoint(dir: &Path, stored: &Stored) -> bool {
    let mut texts = stored.json.iter().map(|(name, _)| *name).chain([INDEX]);
    let shard = |entry: std::io::Result<fs::DirEntry>| {
        entry.is_ok_and(|entry| entry.path().extension().is_some_and(|extension| extension == "safetensors"))
    };
    texts.any(|name| dir.join(name).exists()) || fs::read_dir(dir).is_ok_and(|mut entries| entries.any(shard))
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

/// Cuts the recorded order into shards and writes their headers.
fn create_shards(stored: &Stored, options: &ExportOptions) -> Result<(Vec<Shard>, HashMap<String, Place>), Error> {
    let mut cuts: Vec<Vec<usize>> = vec![Vec::new()];
    let mut bytes = 0;
    for (index, one) in stored.released.iter().enumerate() {
        if bytes > 0 && bytes + one.bytes > options.shard_bytes {
            cuts.push(Vec::new());
            bytes = 0;
        }
        cuts.last_mut().expect("begun with one").push(index);
        bytes += one.bytes;
    }
    let (mut shards, mut places) = (Vec::new(), HashMap::new());
    for (number, cut) in cuts.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", number + 1, cuts.len());
        let unfinished = options.directory.join(format!("{name}.part"));
        let recorded = cut.iter().map(|index| &stored.released[*index]);
        let (header, data_bytes) = encode_header(recorded.map(|one| (one.name.clone(), one.dtype, one.shape.clone())));
        let file = fs::File::create(&unfinished).map_err(Error::io("create", &unfinished))?;
        write_at(&file, 0, &header).map_err(Error::io("write", &unfinished))?;
        file.set_len(header.len() as u64 + data_bytes).map_err(Error::io("resize", &unfinished))?;
        let mut at = header.len() as u64;
        for recorded in cut {
            let one = &stored.released[*recorded];
            places.insert(one.name.clone(), Place { shard: number, at, recorded: *recorded });
            at += one.bytes;
        }
        shards.push(Shard { name, unfinished, file });
    }
    Ok((shards, places))
}

fn index(stored: &Stored, shards: &[Shard], places: &HashMap<String, Place>, total: u64) -> String {
    let shard = |one: &Recorded| shards[places[&one.name].shard].name.as_str();
    let map: BTreeMap<&str, &str> = stored.released.iter().map(|one| (one.name.as_str(), shard(one))).collect();
    let index = serde_json::json!({ "metadata": { "total_size": total }, "weight_map": map });
    serde_json::to_string_pretty(&index).expect("plain data") + "\n"
}

fn write_text(path: &Path, text: &str) -> Result<(), Error> {
    let unfinished = crate::prepare::suffixed(path, "part");
    fs::write(&unfinished, text).map_err(Error::io("write", &unfinished))?;
    fs::rename(&unfinished, path).map_err(Error::io("rename", &unfinished))
}
