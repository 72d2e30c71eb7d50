//! Proves that a converted file holds what was released: every lossless tensor is taken back to its released bytes and compared
//! with the recorded SHA-256, and, given the checkpoint, the checkpoint's bytes are compared with the same checksums.

use std::collections::HashMap;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use crate::Error;
use crate::checkpoint::{Checkpoint, Completeness};
use crate::metadata::{DRAFT_FILE, DRAFT_SHA256};
use crate::options::thread_count;
use crate::pipeline::hash_files;
use crate::progress::{Phase, Progress};
use crate::slab::{Conversion, Scratch, Sha, Slab, hex};
use crate::stored::{DraftFile, Location, Stored};
use crate::workers::{self, Event};

/// What to verify.
#[derive(Debug, Clone)]
pub struct VerifyOptions {
    /// The model.
    pub model: Location,
    /// The checkpoint to compare with.
    pub against: Option<PathBuf>,
    /// Worker threads; 0 = two for each core.
    pub threads: usize,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyReport {
    /// Released tensors rebuilt and equal to their checksums.
    pub verified: usize,
    /// Released tensors that a lossy choice has changed; their bytes cannot be rebuilt.
    pub lossy: usize,
    /// Released tensors of the checkpoint that were compared, with `against`.
    pub compared: Option<usize>,
    /// The draft file that belongs to the model but is not beside it.
    pub missing_draft: Option<String>,
}

const CHUNK_BYTES: usize = 2 << 20;

/// Verifies a converted file.
///
/// # Errors
/// [`Error::Checksum`] or [`Error::NotRepresentable`] naming the first tensor that differs.
pub fn verify(options: &VerifyOptions, progress: &mut dyn Progress) -> Result<VerifyReport, Error> {
    let stored = Stored::open(&options.model, DraftFile::IfThere)?;
    let threads = thread_count(options.threads);
    let checkpoint = options.against.as_deref().map(|dir| Checkpoint::open(dir, Completeness::Whole)).transpose()?;
    let items = stored.lossless_slabs();
    let bytes: u64 =
        items.iter().map(|(file, slab)| stored.files[*file].tensors[slab.tensor].slab_range(*slab).1).sum();
    let source_bytes =
        |checkpoint: &Checkpoint| stored.released.iter().map(|one| checkpoint.bytes(&one.name)).sum::<u64>();
    progress.begin(Phase::Verifying, bytes + checkpoint.as_ref().map_or(0, source_bytes));

    let recorded: HashMap<&str, Sha> = stored.released.iter().map(|one| (one.name.as_str(), one.sha256)).collect();
    let work = |(file, slab): &(usize, Slab), scratch: &mut Scratch, report: &dyn Fn(u64)| {
        let file = &stored.files[*file];
        let tensor = &file.tensors[slab.tensor];
        let conversion =
            Conversion { tensor, slab: *slab, scales: file.scales(tensor)?, chunk_bytes: CHUNK_BYTES, quantizer: None };
        let sums = conversion.hash(file.data(tensor)?, scratch)?;
        report(tensor.slab_range(*slab).1);
        let parts = tensor.slab_parts(*slab).iter();
        for (name, found) in parts.flat_map(|part| std::iter::once(&part.weight).chain(&part.scale)).zip(sums) {
            compare(name, recorded[name.as_str()], found)?;
        }
        Ok(())
    };
    workers::run(threads, &items, work, |event| advance(event, progress))?;

    check_draft(&stored)?;
    let compared = checkpoint.map(|checkpoint| compare_with(&stored, &checkpoint, threads, progress)).transpose()?;
    let missing_draft = stored.files[0].file.metadata().opt_str(DRAFT_FILE)?.filter(|_| stored.files.len() == 1);
    let lossy = stored.released.iter().filter(|one| !one.lossless).count();
    Ok(VerifyReport {
        verified: stored.released.len() - lossy,
        lossy,
        compared,
        missing_draft: missing_draft.map(Into::into),
    })
}

/// The draft file, if it is there, against the checksum that the model records: a draft's own checksums only show that it is some
/// whole draft, not that it is this model's.
pub(crate) fn check_draft(stored: &Stored) -> Result<(), Error> {
    let Some(draft) = stored.files.get(1) else { return Ok(()) };
    let paths: Vec<PathBuf> = draft.file.shards().map(Into::into).collect();
    let recorded = stored.files[0].file.metadata().str(DRAFT_SHA256)?;
    let computed = hash_files(&paths)?;
    if recorded == computed {
        return Ok(());
    }
    Err(Error::Checksum { tensor: draft.path.display().to_string(), recorded: recorded.into(), computed })
}

/// The checkpoint's bytes against the recorded checksums, JSON files included.
fn compare_with(
    stored: &Stored,
    checkpoint: &Checkpoint,
    threads: usize,
    progress: &mut dyn Progress,
) -> Result<usize, Error> {
    for (name, text) in &stored.json {
        let theirs = checkpoint.json().get(name).map_or("", String::as_str);
        if theirs != text {
            let sum = |text: &str| hex(&Sha256::digest(text).into());
            return Err(Error::Checksum { tensor: (*name).into(), recorded: sum(text), computed: sum(theirs) });
        }
    }
    let known: std::collections::HashSet<&str> = stored.released.iter().map(|one| one.name.as_str()).collect();
    let draft_is_here = stored.files.len() > 1 || stored.files[0].file.metadata().get(DRAFT_FILE).is_none();
    if let Some(extra) =
        checkpoint.catalog().names().iter().find(|name| draft_is_here && !known.contains(name.as_str()))
    {
        return Err(Error::UnknownTensor {
            tensor: extra.clone(),
            others: 0,
            hint: "the file was converted from another checkpoint",
        });
    }
    let work = |one: &crate::stored::Recorded, buffer: &mut Vec<u8>, report: &dyn Fn(u64)| {
        let bytes = checkpoint.bytes(&one.name);
        if checkpoint.catalog().get(&one.name).is_none() {
            return Err(Error::MissingTensor { tensor: one.name.clone(), others: 0 });
        }
        let mut hash = Sha256::new();
        let mut at = 0;
        while at < bytes {
            buffer.resize((bytes - at).min(CHUNK_BYTES as u64) as usize, 0);
            checkpoint.read(&one.name, at, buffer)?;
            hash.update(&buffer);
            at += buffer.len() as u64;
            report(buffer.len() as u64);
        }
        compare(&one.name, one.sha256, hash.finalize().into())
    };
    workers::run(threads, &stored.released, work, |event| advance(event, progress))?;
    Ok(stored.released.len())
}

fn compare(name: &str, recorded: Sha, computed: Sha) -> Result<(), Error> {
    if recorded == computed {
        return Ok(());
    }
    Err(Error::Checksum { tensor: name.into(), recorded: hex(&recorded), computed: hex(&computed) })
}

pub(crate) fn advance<R>(event: Event<R>, progress: &mut dyn Progress) -> Result<(), Error> {
    if let Event::Bytes(bytes) = event {
        progress.advance(bytes);
    }
    if progress.cancelled() { Err(Error::Cancelled) } else { Ok(()) }
}
