//! Conversion: read, transcode, write, with bounded memory, and with a journal that makes it resumable at any moment.
//!
//! The layout fixes every position first, so slabs can be written in any order by several threads. What is on disk for certain is
//! in the journal: data is synced, then journalled, in batches. A resumed run reads journalled slabs back and redoes those whose
//! bytes do not have the recorded checksum, so the result does not depend on what the kill left behind. Files have other
//! names (`.part`) until everything, checksums in the header included, is synced.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fathom_gguf::{File, Strings, Writer};
use sha2::{Digest, Sha256};

use crate::checkpoint::Completeness;
use crate::journal::{Head, Journal, SCHEMA};
use crate::options::Options;
use crate::prepare::{Output, Prepared, Role, prepare, suffixed};
use crate::progress::{Phase, Progress};
use crate::recipe::Family;
use crate::slab::{Conversion, Encoded, Scratch, Slab, hex, slabs};
use crate::transcode::quantize::ErrorSums;
use crate::workers::{self, Event};
use crate::{Error, disk, metadata};

/// What a finished conversion has to tell.
#[derive(Debug)]
pub struct Report {
    /// The finished files, the model's first.
    pub files: Vec<PathBuf>,
    /// Bytes of all files.
    pub bytes: u64,
    /// Bytes that an earlier, interrupted run had already written.
    pub resumed_bytes: u64,
    /// Errors of the lossy choices by family; empty for a lossless conversion.
    pub errors: BTreeMap<Family, ErrorSums>,
}

/// A batch is synced at the latest after this time, so that a slow disk does not lose minutes of work.
const SYNC_AFTER: Duration = Duration::from_secs(5);
/// Bytes of one chunk at most; more does not make it faster (docs/performance.md).
const CHUNK_BYTES: u64 = 256 << 10;
/// Slabs that are announced to the system ahead of time: some 30 MB of experts.
const AHEAD: usize = 8;
/// Bytes of one chunk at least: below this, calls cost more than work.
const LEAST_CHUNK_BYTES: u64 = 64 << 10;
/// What each worker holds is a few chunks: released bytes, stored bytes, and values for lossy types.
const CHUNKS_PER_WORKER: u64 = 4;

/// Converts a checkpoint.
///
/// # Errors
/// Anything that is wrong with the checkpoint, the choices or the disk. What was written stays under its `.part` name and is
/// continued by the same call.
pub fn convert(options: &Options, progress: &mut dyn Progress) -> Result<Report, Error> {
    let prepared = prepare(options, Completeness::Whole)?;
    for warning in &prepared.warnings {
        progress.warn(warning);
    }
    let threads = options.thread_count();
    let chunk_bytes = chunk_bytes(options.memory_bytes, threads, &prepared)?;
    if let Some(parent) = options.output.parent().filter(|parent| !parent.as_os_str().is_empty() && !parent.is_dir()) {
        return Err(Error::io("write to", parent)(std::io::ErrorKind::NotFound.into()));
    }
    let journal_path = suffixed(&options.output, "journal");
    if !journal_path.exists() {
        refuse_existing(options, &prepared)?; // before a journal is made
        refuse_strange_parts(options, &prepared)?;
    }
    let head = head(options, &prepared);
    let (mut journal, past) = Journal::open(&journal_path, &head, options.force)?;
    let sealed = past.finished && sealed_files_are_there(&prepared);
    if !sealed {
        let possible = refuse_existing(options, &prepared).and_then(|()| check_disk(&prepared, &past.abandoned));
        if let Err(error) = possible {
            journal.decline()?;
            return Err(error);
        }
    }
    // Their names are in the journal that is overwritten next.
    for path in &past.abandoned {
        fs::remove_file(path).map_err(Error::io("remove", path))?;
    }
    journal.begin(&head)?;
    if sealed {
        let done = past.done.into_iter().map(|(file, slab, encoded)| ((file, slab), encoded)).collect();
        return publish(&prepared, journal, &done, 0);
    }
    Run { options, prepared, journal, threads, chunk_bytes }.run(past.done, progress)
}

/// A conversion in progress.
struct Run<'a> {
    options: &'a Options,
    prepared: Prepared,
    journal: Journal,
    threads: usize,
    chunk_bytes: usize,
}

/// One slab to do.
struct Item {
    /// Its place in the list.
    number: usize,
    file: usize,
    slab: Slab,
    bytes: u64,
}

type Done = HashMap<(usize, Slab), Encoded>;

impl Run<'_> {
    fn run(mut self, past: Vec<(usize, Slab, Encoded)>, progress: &mut dyn Progress) -> Result<Report, Error> {
        let writers = self.prepared.files.iter().map(open_writer).collect::<Result<Vec<_>, _>>()?;
        let mut done = self.read_back(past, progress)?;
        let mut items = Vec::new();
        let (mut total, mut resumed) = (0, 0);
        for (file, output) in self.prepared.files.iter().enumerate() {
            for slab in slabs(&output.tensors) {
                let (_, bytes) = output.tensors[slab.tensor].slab_range(slab);
                total += bytes;
                match done.contains_key(&(file, slab)) {
                    true => resumed += bytes,
                    false => items.push(Item { number: 0, file, slab, bytes }),
                }
            }
        }
        // In the order of the shards: each is then read once from front to back. In file order the matrices of one kind of all experts
        // come together, and every read would skip two thirds of what the system has read ahead.
        let source = |item: &Item| {
            let output = &self.prepared.files[item.file];
            self.prepared.checkpoint.position(&output.tensors[item.slab.tensor].slab_parts(item.slab)[0].weight)
        };
        items.sort_by_key(source);
        items.iter_mut().enumerate().for_each(|(number, item)| item.number = number);
        progress.begin(Phase::Converting, total);
        progress.resumed(resumed);

        let mut batch = Batch { bytes: 0, begun: Instant::now(), entries: Vec::new() };
        let Run { options, prepared, journal, threads, chunk_bytes } = &mut self;
        let (files, checkpoint) = (&prepared.files, &prepared.checkpoint);
        let work = |item: &Item, scratch: &mut Scratch, report: &dyn Fn(u64)| {
            let output = &files[item.file];
            let tensor = &output.tensors[item.slab.tensor];
            if let Some(later) = items.get(item.number + AHEAD) {
                let parts = files[later.file].tensors[later.slab.tensor].slab_parts(later.slab).iter();
                parts
                    .flat_map(|part| std::iter::once(&part.weight).chain(&part.scale))
                    .for_each(|name| checkpoint.will_read(name));
            }
            let conversion = Conversion {
                tensor,
                slab: item.slab,
                scales: output.scales.get(&tensor.name).map_or(&[], Vec::as_slice),
                chunk_bytes: *chunk_bytes,
                quantizer: options.quantizer.as_deref().map(|quantizer| quantizer as _),
            };
            let info = &output.layout.tensors()[item.slab.tensor];
            conversion.encode(scratch, &|tensor, at, out| checkpoint.read(tensor, at, out), &|at, bytes| {
                writers[item.file].write_at(info, at, bytes)?;
                report(bytes.len() as u64);
                Ok(())
            })
        };
        workers::run(*threads, &items, work, |event| {
            match event {
                Event::Bytes(bytes) => progress.advance(bytes),
                Event::Done(index, encoded) => {
                    batch.bytes += items[index].bytes;
                    batch.entries.push((index, encoded));
                }
            }
            if progress.cancelled() {
                batch.commit(&items, files, &writers, journal, &mut done)?;
                return Err(Error::Cancelled);
            }
            if batch.bytes >= options.sync_bytes || batch.begun.elapsed() >= SYNC_AFTER {
                batch.commit(&items, files, &writers, journal, &mut done)?;
            }
            Ok(())
        })?;
        batch.commit(&items, files, &writers, journal, &mut done)?;
        drop(writers);
        seal(&self.prepared, &mut self.journal, &done)?;
        publish(&self.prepared, self.journal, &done, resumed)
    }

    /// Reads back what the journal claims and keeps what is true.
    fn read_back(&self, past: Vec<(usize, Slab, Encoded)>, progress: &mut dyn Progress) -> Result<Done, Error> {
        let files = &self.prepared.files;
        let known = |(file, slab, encoded): &(usize, Slab, Encoded)| {
            files.get(*file).and_then(|output| output.tensors.get(slab.tensor)).is_some_and(|tensor| {
                let released = tensor.slab_parts(Slab { part: 0, ..*slab }).len()
                    * if tensor.encoding.has_scale() { 2 } else { 1 };
                slab.part < tensor.slabs() && encoded.released.len() == released
            })
        };
        let past: Vec<_> = past.into_iter().filter(known).collect();
        if past.is_empty() {
            return Ok(Done::new());
        }
        let range = |file: usize, slab: Slab| files[file].tensors[slab.tensor].slab_range(slab);
        progress.begin(Phase::Resuming, past.iter().map(|(file, slab, _)| range(*file, *slab).1).sum());
        let written = files
            .iter()
            .map(|output| Ok(File::open_shards(&output.unfinished())?))
            .collect::<Result<Vec<_>, Error>>()?;
        let mut kept = vec![false; past.len()];
        workers::run(
            self.threads,
            &past,
            |(file, slab, encoded), scratch: &mut Scratch, report| {
                let output = &files[*file];
                let tensor = &output.tensors[slab.tensor];
                let (start, bytes) = range(*file, *slab);
                let data = written[*file].data(&written[*file].tensors()[slab.tensor]);
                let same = match encoded.stored {
                    Some(stored) => sha256(&data[start as usize..][..bytes as usize]) == stored,
                    None => {
                        let scales = output.scales.get(&tensor.name).map_or(&[][..], Vec::as_slice);
                        let conversion =
                            Conversion { tensor, slab: *slab, scales, chunk_bytes: self.chunk_bytes, quantizer: None };
                        conversion.hash(data, scratch).is_ok_and(|found| found == encoded.released)
                    }
                };
                report(bytes);
                Ok(same)
            },
            |event| {
                match event {
                    Event::Bytes(bytes) => progress.advance(bytes),
                    Event::Done(index, same) => kept[index] = same,
                }
                if progress.cancelled() { Err(Error::Cancelled) } else { Ok(()) }
            },
        )?;
        let lost = kept.iter().filter(|same| !**same).count();
        if lost > 0 {
            progress.warn(&format!("{lost} of {} finished pieces were damaged and are converted again", kept.len()));
        }
        let kept = past.into_iter().zip(kept).filter(|(_, same)| *same);
        Ok(kept.map(|((file, slab, encoded), _)| ((file, slab), encoded)).collect())
    }
}

/// Finished slabs that are not in the journal yet.
struct Batch {
    bytes: u64,
    begun: Instant,
    entries: Vec<(usize, Encoded)>,
}

impl Batch {
    /// Data to the disk, then its journal entries.
    fn commit(
        &mut self,
        items: &[Item],
        files: &[Output],
        writers: &[Writer],
        journal: &mut Journal,
        done: &mut Done,
    ) -> Result<(), Error> {
        let shard = |item: &Item| (item.file, files[item.file].layout.tensors()[item.slab.tensor].shard);
        let touched: BTreeSet<(usize, usize)> = self.entries.iter().map(|(index, _)| shard(&items[*index])).collect();
        for (file, shard) in touched {
            writers[file].sync_shard(shard)?;
        }
        for (index, encoded) in self.entries.drain(..) {
            let Item { file, slab, .. } = items[index];
            journal.add(file, slab, &encoded);
            done.insert((file, slab), encoded);
        }
        journal.sync()?;
        self.bytes = 0;
        self.begun = Instant::now();
        Ok(())
    }
}

/// Fills in the checksums and brings everything to the disk.
fn seal(prepared: &Prepared, journal: &mut Journal, done: &Done) -> Result<(), Error> {
    let mut draft_sha256 = None;
    for (number, output) in prepared.files.iter().enumerate() {
        let mut by_name: HashMap<&str, String> = HashMap::new();
        for slab in slabs(&output.tensors) {
            let parts = output.tensors[slab.tensor].slab_parts(slab).iter();
            let released = parts.flat_map(|part| std::iter::once(part.weight.as_str()).chain(part.scale.as_deref()));
            by_name.extend(released.zip(done[&(number, slab)].released.iter().map(hex)));
        }
        let mut layout = output.layout.clone();
        let names = layout.metadata().strings(metadata::NAMES)?;
        let sums: Strings = names.iter().map(|name| by_name[name].as_str()).collect();
        layout.fill(metadata::SHA256, sums)?;
        if let Some(sha256) = draft_sha256.take() {
            layout.fill(metadata::DRAFT_SHA256, sha256)?;
        }
        let unfinished = output.unfinished();
        let writer = Writer::resume(&layout, &unfinished)?;
        writer.write_header(&layout)?;
        writer.sync()?;
        if output.role == Role::Draft {
            draft_sha256 = Some(hash_files(&unfinished)?);
        }
    }
    journal.finish()
}

/// Gives sealed files their names. The draft comes first: a model under its final name always has its draft beside it.
fn publish(prepared: &Prepared, journal: Journal, done: &Done, resumed_bytes: u64) -> Result<Report, Error> {
    for output in &prepared.files {
        for (part, path) in output.unfinished().iter().zip(&output.paths).filter(|(part, _)| part.exists()) {
            fs::rename(part, path).map_err(Error::io("rename", part))?;
        }
    }
    disk::sync_directory(folder_of(&prepared.files[0].paths[0]))?;
    journal.remove()?;

    let mut errors: BTreeMap<Family, ErrorSums> = BTreeMap::new();
    // In slab order: sums of floats depend on it, and a resumed run must report the same numbers.
    for (number, output) in prepared.files.iter().enumerate() {
        for slab in slabs(&output.tensors) {
            if let Some(sums) = done.get(&(number, slab)).and_then(|encoded| encoded.errors) {
                errors.entry(output.tensors[slab.tensor].family).or_default().merge(&sums);
            }
        }
    }
    let files = prepared.files.iter().rev().flat_map(|output| output.paths.clone()).collect();
    Ok(Report {
        files,
        bytes: prepared.files.iter().map(|output| output.layout.total_bytes()).sum(),
        resumed_bytes,
        errors,
    })
}

/// Continues the files of a former run, or creates them.
fn open_writer(output: &Output) -> Result<Writer, Error> {
    let paths = output.unfinished();
    if paths.iter().all(|path| path.exists())
        && let Ok(writer) = Writer::resume(&output.layout, &paths)
    {
        writer.write_header(&output.layout)?;
        return Ok(writer);
    }
    Ok(Writer::create(&output.layout, &paths)?)
}

/// Whether every output of a sealed conversion is there, under one name or the other.
fn sealed_files_are_there(prepared: &Prepared) -> bool {
    let mut files = prepared.files.iter().flat_map(|output| output.unfinished().into_iter().zip(&output.paths));
    files.all(|(part, path)| part.exists() || path.exists())
}

fn refuse_existing(options: &Options, prepared: &Prepared) -> Result<(), Error> {
    let paths = || prepared.files.iter().flat_map(|output| &output.paths);
    // Seen now and not when all is converted and renaming fails.
    if let Some(directory) = paths().find(|path| path.is_dir()) {
        return Err(Error::io("write to", directory)(std::io::ErrorKind::IsADirectory.into()));
    }
    match paths().find(|path| path.exists()) {
        Some(path) if !options.force => Err(Error::Exists { path: path.clone() }),
        _ => Ok(()),
    }
}

/// Without a journal, files that are called like our unfinished ones are somebody else's: browsers name downloads so.
fn refuse_strange_parts(options: &Options, prepared: &Prepared) -> Result<(), Error> {
    match prepared.files.iter().flat_map(Output::unfinished).find(|path| path.exists()) {
        Some(path) if !options.force => Err(Error::Exists { path }),
        _ => Ok(()),
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn head(options: &Options, prepared: &Prepared) -> Head {
    let dir = prepared.checkpoint.dir();
    // The same directory under another name is the same checkpoint.
    let dir = fs::canonicalize(dir).unwrap_or_else(|_| dir.into());
    let mut settings = BTreeMap::from([
        ("checkpoint".to_owned(), dir.display().to_string()),
        ("release".to_owned(), prepared.release.key().to_owned()),
        ("dense".to_owned(), options.dense.map_or("bf16", |choice| choice.name()).to_owned()),
        ("experts".to_owned(), options.experts.map_or("lossless", |choice| choice.name()).to_owned()),
    ]);
    if let Some(bytes) = options.split_max_bytes {
        settings.insert("split-max-size".into(), bytes.to_string());
    }
    let shard = |shard: &crate::checkpoint::Shard| (shard.name.clone(), shard.bytes, shard.modified_ns);
    let mut layout = Sha256::new();
    for output in &prepared.files {
        for shard in 0..output.layout.shards() {
            layout.update(output.layout.header(shard));
        }
    }
    Head {
        schema: SCHEMA,
        settings,
        sources: prepared.checkpoint.shards().iter().map(shard).collect(),
        layout: hex(&layout.finalize().into()),
        files: prepared.files.iter().flat_map(|output| &output.paths).map(|path| file_name(path)).collect(),
    }
}

/// Memory for one chunk. What is fixed was measured on header-only checkpoints of Flash (270 MiB) and Pro (310 MiB): about 1.5 KB
/// for each released tensor, headers a few times while they are made, and the JSON files as parsed trees.
fn chunk_bytes(memory_bytes: u64, threads: usize, prepared: &Prepared) -> Result<usize, Error> {
    let tensors = prepared.checkpoint.catalog().names().len() as u64;
    let headers: u64 = prepared.files.iter().map(|output| output.layout.data_offset(0)).sum();
    let json: u64 = prepared.checkpoint.json().values().map(|text| text.len() as u64).sum();
    let fixed = (32 << 20) + tensors * 1500 + headers * 6 + json * 8;
    let workers = threads as u64 * CHUNKS_PER_WORKER;
    let least = fixed + workers * LEAST_CHUNK_BYTES;
    if memory_bytes < least {
        return Err(Error::Memory { given: memory_bytes, least });
    }
    Ok(((memory_bytes - fixed) / workers).min(CHUNK_BYTES) as usize)
}

/// Fails before writing when the output does not fit, also after `abandoned` files are removed.
fn check_disk(prepared: &Prepared, abandoned: &[PathBuf]) -> Result<(), Error> {
    let total: u64 = prepared.files.iter().map(|output| output.layout.total_bytes()).sum();
    let parts = prepared.files.iter().flat_map(Output::unfinished).filter(|part| !abandoned.contains(part));
    let written: u64 = parts.filter_map(|part| disk::allocated(&part)).sum();
    let freed: u64 = abandoned.iter().filter_map(|path| disk::allocated(path)).sum();
    disk::check(folder_of(&prepared.files[0].paths[0]), total.saturating_sub(written), freed)
}

fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// SHA-256 of files one after the other, in hex.
pub(crate) fn hash_files(paths: &[PathBuf]) -> Result<String, Error> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    for path in paths {
        let mut file = fs::File::open(path).map_err(Error::io("read", path))?;
        loop {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(bytes) => hash.update(&buffer[..bytes]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("read", path)(error)),
            }
        }
    }
    Ok(hex(&hash.finalize().into()))
}
