//! The journal of a conversion: what is on disk for certain.
//!
//! One JSON object a line. The first names what is being converted from what to what; each further one is a slab whose data was
//! synced before the line was written. A line that was cut off by a kill does not parse and ends the journal. The last line
//! says that only renaming is left.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::slab::{Encoded, Sha, Slab, from_hex, hex};
use crate::transcode::quantize::ErrorSums;

/// What a conversion is of. Two conversions with the same head write the same bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Head {
    pub(crate) schema: u32,
    /// Settings that change the output, for the message when they differ.
    pub(crate) settings: BTreeMap<String, String>,
    /// Name, size and time of change of every source file.
    pub(crate) sources: Vec<(String, u64, u64)>,
    /// SHA-256 over all headers as laid out: names, types, places and keys.
    pub(crate) layout: String,
}

/// Version of the journal's lines.
pub(crate) const SCHEMA: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    file: usize,
    tensor: usize,
    part: usize,
    sha256: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    stored: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    errors: Option<ErrorSums>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Finished {
    finished: bool,
}

/// What an earlier run left.
#[derive(Debug, Default)]
pub(crate) struct Past {
    pub(crate) done: Vec<(usize, Slab, Encoded)>,
    /// All data and headers are on disk; files may have been renamed.
    pub(crate) finished: bool,
}

/// An open journal; held locked, so that two conversions to one output exclude each other.
pub(crate) struct Journal {
    path: PathBuf,
    file: fs::File,
    buffer: Vec<u8>,
}

impl Journal {
    /// Opens or begins the journal of `head`.
    ///
    /// # Errors
    /// [`Error::OtherJournal`] when one of another conversion is there (and `force` is not given), [`Error::Locked`].
    pub(crate) fn open(path: &Path, head: &Head, force: bool) -> Result<(Journal, Past), Error> {
        let file = fs::File::options().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = file.map_err(Error::io("create", path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(Error::Locked { path: path.into() }),
            Err(fs::TryLockError::Error(source)) => return Err(Error::io("lock", path)(source)),
        }
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(Error::io("read", path))?;
        let mut lines = text.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
        // A journal without a whole first line was killed before anything was written.
        let first = lines.next().and_then(|line| Some((serde_json::from_slice::<Head>(line).ok()?, line.len())));
        let (mut past, mut good) = (Past::default(), 0);
        // Forced or not, the same conversion is continued: a killed `--force` run is repeated with `--force`.
        if let Some((found, bytes)) = first.filter(|(found, _)| found == head || !force) {
            if found != *head {
                return Err(Error::OtherJournal { path: path.into(), difference: difference(&found, head) });
            }
            good = bytes;
            for line in lines {
                if let Some(entry) = parse(line) {
                    past.done.push(entry);
                } else if serde_json::from_slice::<Finished>(line).is_ok_and(|line| line.finished) {
                    past.finished = true;
                } else {
                    break;
                }
                good += line.len();
            }
        }
        file.set_len(good as u64).map_err(Error::io("write", path))?;
        file.seek(SeekFrom::End(0)).map_err(Error::io("write", path))?;
        let mut journal = Journal { path: path.into(), file, buffer: Vec::new() };
        if good == 0 {
            journal.push(head);
            journal.sync()?;
        }
        Ok((journal, past))
    }

    /// Adds a slab whose data is already synced.
    pub(crate) fn add(&mut self, file: usize, slab: Slab, encoded: &Encoded) {
        self.push(&Line {
            file,
            tensor: slab.tensor,
            part: slab.part,
            sha256: encoded.released.iter().map(hex).collect(),
            stored: encoded.stored.as_ref().map(hex),
            errors: encoded.errors,
        });
    }

    /// Says that only renaming is left.
    pub(crate) fn finish(&mut self) -> Result<(), Error> {
        self.push(&Finished { finished: true });
        self.sync()
    }

    /// Brings what was added to the disk.
    pub(crate) fn sync(&mut self) -> Result<(), Error> {
        self.file.write_all(&self.buffer).map_err(Error::io("write", &self.path))?;
        self.buffer.clear();
        self.file.sync_data().map_err(Error::io("sync", &self.path))
    }

    /// Removes the journal: the conversion is complete.
    pub(crate) fn remove(self) -> Result<(), Error> {
        fs::remove_file(&self.path).map_err(Error::io("remove", &self.path))
    }

    fn push(&mut self, line: &impl Serialize) {
        serde_json::to_writer(&mut self.buffer, line).expect("plain data into memory");
        self.buffer.push(b'\n');
    }
}

fn parse(line: &[u8]) -> Option<(usize, Slab, Encoded)> {
    let line: Line = serde_json::from_slice(line).ok()?;
    let released = line.sha256.iter().map(|text| from_hex(text)).collect::<Option<Vec<Sha>>>()?;
    let stored = match line.stored {
        None => None,
        Some(text) => Some(from_hex(&text)?),
    };
    Some((line.file, Slab { tensor: line.tensor, part: line.part }, Encoded { released, stored, errors: line.errors }))
}

/// The first thing in which two conversions differ, in words.
fn difference(found: &Head, wanted: &Head) -> String {
    for (key, value) in &wanted.settings {
        match found.settings.get(key) {
            Some(other) if other != value => return format!("{key} was `{other}`, now `{value}`"),
            Some(_) => {}
            None => return format!("{key} was not set, now `{value}`"),
        }
    }
    if let Some((key, value)) = found.settings.iter().find(|(key, _)| !wanted.settings.contains_key(*key)) {
        return format!("{key} was `{value}`, now not set");
    }
    for (source, other) in wanted.sources.iter().zip(&found.sources) {
        if source != other {
            return format!("`{}` has changed", source.0);
        }
    }
    if wanted.sources.len() != found.sources.len() {
        return "the checkpoint has another number of shards".into();
    }
    "it was begun by another version of fathom, or the checkpoint's JSON files have changed".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(dense: &str) -> Head {
        Head {
            schema: SCHEMA,
            settings: BTreeMap::from([("dense".into(), dense.into())]),
            sources: vec![("model.safetensors".into(), 10, 20)],
            layout: "x".into(),
        }
    }

    fn entry(part: usize) -> (usize, Slab, Encoded) {
        (1, Slab { tensor: 2, part }, Encoded { released: vec![[part as u8; 32], [7; 32]], stored: None, errors: None })
    }

    #[test]
    fn entries_come_back_and_a_torn_line_ends_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        let (mut journal, past) = Journal::open(&path, &head("bf16"), false).unwrap();
        assert!(past.done.is_empty() && !past.finished);
        for part in 0..3 {
            let (file, slab, encoded) = entry(part);
            journal.add(file, slab, &encoded);
        }
        journal.sync().unwrap();
        drop(journal);
        let whole = fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let (_, past) = Journal::open(&path, &head("bf16"), false).unwrap();
            let lines = whole[..cut].iter().filter(|byte| **byte == b'\n').count();
            let expected: Vec<_> = (0..lines.saturating_sub(1)).map(entry).collect();
            assert_eq!(past.done, expected, "cut at {cut}");
        }
    }

    #[test]
    fn another_conversion_is_refused_with_the_difference() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        drop(Journal::open(&path, &head("bf16"), false).unwrap());
        let error = Journal::open(&path, &head("q8_0"), false).err().unwrap().to_string();
        assert!(error.contains("dense was `bf16`, now `q8_0`"), "{error}");
        let changed = Head { sources: vec![("model.safetensors".into(), 10, 21)], ..head("bf16") };
        let error = Journal::open(&path, &changed, false).err().unwrap().to_string();
        assert!(error.contains("`model.safetensors` has changed"), "{error}");
        let (mut journal, _) = Journal::open(&path, &head("q8_0"), true).unwrap();
        let (file, slab, encoded) = entry(0);
        journal.add(file, slab, &encoded);
        journal.sync().unwrap();
        drop(journal);
        let (_, past) = Journal::open(&path, &head("q8_0"), true).unwrap();
        assert_eq!(past.done.len(), 1, "the forced conversion is continued when it is repeated");
    }

    #[test]
    fn two_at_once_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        let _first = Journal::open(&path, &head("bf16"), false).unwrap();
        assert!(matches!(Journal::open(&path, &head("bf16"), false), Err(Error::Locked { .. })));
    }
}
