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

use crate::prepare::suffixed;
use crate::slab::{Encoded, Sha, Slab, from_hex, hex};
use crate::transcode::quantize::ErrorSums;
use crate::{Error, lock};

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
    /// Names of the finished files, all beside the journal. What is given up later is known by them.
    #[serde(default)]
    pub(crate) files: Vec<String>,
}

/// `path` while the file is being written.
pub(crate) fn unfinished(path: &Path) -> PathBuf {
    suffixed(path, "part")
}

/// Version of the journal's lines.
pub(crate) const SCHEMA: u32 = 1;
/// How every journal begins.
pub(crate) const BEGINNING: &[u8] = b"{\"schema\":";

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
    /// Files of another conversion, which `force` gives up. To be removed before [`Journal::begin`].
    pub(crate) abandoned: Vec<PathBuf>,
}

/// An open journal; held locked, so that two conversions to one output exclude each other.
pub(crate) struct Journal {
    path: PathBuf,
    file: fs::File,
    buffer: Vec<u8>,
    /// Bytes of the lines that hold; 0 = it begins anew.
    good: u64,
    /// Whether there was none before.
    new: bool,
}

impl Journal {
    /// Opens the journal of `head`, or an empty one. What the file says stays as it is until [`Journal::begin`].
    ///
    /// # Errors
    /// [`Error::OtherJournal`] when one of another conversion is there (and `force` is not given), [`Error::NoJournal`] when
    /// the file is something else, [`Error::Locked`].
    pub(crate) fn open(path: &Path, head: &Head, force: bool) -> Result<(Journal, Past), Error> {
        let mut file = lock::open(path)?;
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(Error::io("read", path))?;
        let mut lines = text.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
        let first = lines.next();
        let found = first.and_then(|line| serde_json::from_slice::<Head>(line).ok());
        // A first line that was cut off by a kill: nothing else was written yet.
        let torn = first.is_none() && (text.starts_with(BEGINNING) || BEGINNING.starts_with(&text));
        if found.is_none() && !torn {
            return Err(Error::NoJournal { path: path.into() });
        }
        let (mut past, mut good) = (Past::default(), first.map_or(0, <[u8]>::len));
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
        // Forced or not, the same conversion is continued: a killed `--force` run is repeated with `--force`.
        match found {
            Some(found) if found != *head && !force => {
                return Err(Error::OtherJournal { path: path.into(), difference: difference(&found, head) });
            }
            Some(found) if found != *head => {
                let abandoned = leftovers(path, &found, past.finished, head);
                (past, good) = (Past { abandoned, ..Past::default() }, 0);
            }
            _ => {}
        }
        let journal = Journal { path: path.into(), file, buffer: Vec::new(), good: good as u64, new: text.is_empty() };
        Ok((journal, past))
    }

    /// Cuts off what does not hold, so that lines can be added; a journal that holds nothing begins with `head`.
    pub(crate) fn begin(&mut self, head: &Head) -> Result<(), Error> {
        self.file.set_len(self.good).map_err(Error::io("write", &self.path))?;
        self.file.seek(SeekFrom::End(0)).map_err(Error::io("write", &self.path))?;
        if self.good == 0 {
            self.push(head);
            self.sync()?;
        }
        Ok(())
    }

    /// Leaves everything as it was before [`Journal::open`].
    pub(crate) fn decline(self) -> Result<(), Error> {
        if self.new { self.remove() } else { Ok(()) }
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

/// Files that a conversion which is given up has left. Under final names only what it has published itself: an older output is
/// kept until the new one replaces it.
fn leftovers(journal: &Path, old: &Head, finished: bool, new: &Head) -> Vec<PathBuf> {
    let is_file = |path: &Path| fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file());
    let plain = |name: &&String| Path::new(name.as_str()).file_name().is_some_and(|only| only == name.as_str());
    let mut found = Vec::new();
    for name in old.files.iter().filter(plain) {
        let path = journal.with_file_name(name);
        let part = unfinished(&path);
        if is_file(&part) {
            found.push(part);
        } else if finished && is_file(&path) && !new.files.contains(name) {
            found.push(path);
        }
    }
    found
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
            files: vec!["m.gguf".into()],
        }
    }

    fn begun(path: &Path, head: &Head, force: bool) -> Result<(Journal, Past), Error> {
        let (mut journal, past) = Journal::open(path, head, force)?;
        journal.begin(head)?;
        Ok((journal, past))
    }

    fn entry(part: usize) -> (usize, Slab, Encoded) {
        (1, Slab { tensor: 2, part }, Encoded { released: vec![[part as u8; 32], [7; 32]], stored: None, errors: None })
    }

    #[test]
    fn entries_come_back_and_a_torn_line_ends_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        let (mut journal, past) = begun(&path, &head("bf16"), false).unwrap();
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
            let (_, past) = begun(&path, &head("bf16"), false).unwrap();
            let lines = whole[..cut].iter().filter(|byte| **byte == b'\n').count();
            let expected: Vec<_> = (0..lines.saturating_sub(1)).map(entry).collect();
            assert_eq!(past.done, expected, "cut at {cut}");
        }
    }

    #[test]
    fn another_conversion_is_refused_with_the_difference() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        drop(begun(&path, &head("bf16"), false).unwrap());
        let error = begun(&path, &head("q8_0"), false).err().unwrap().to_string();
        assert!(error.contains("dense was `bf16`, now `q8_0`"), "{error}");
        let changed = Head { sources: vec![("model.safetensors".into(), 10, 21)], ..head("bf16") };
        let error = begun(&path, &changed, false).err().unwrap().to_string();
        assert!(error.contains("`model.safetensors` has changed"), "{error}");
        let (mut journal, _) = begun(&path, &head("q8_0"), true).unwrap();
        let (file, slab, encoded) = entry(0);
        journal.add(file, slab, &encoded);
        journal.sync().unwrap();
        drop(journal);
        let (_, past) = begun(&path, &head("q8_0"), true).unwrap();
        assert_eq!(past.done.len(), 1, "the forced conversion is continued when it is repeated");
    }

    #[test]
    fn two_at_once_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        let _first = begun(&path, &head("bf16"), false).unwrap();
        assert!(matches!(begun(&path, &head("bf16"), false), Err(Error::Locked { .. })));
    }

    #[test]
    fn what_is_no_journal_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        for text in ["my diary\n", "my diary", "{\"schema\":1}\n", "\n"] {
            fs::write(&path, text).unwrap();
            for force in [false, true] {
                assert!(matches!(begun(&path, &head("bf16"), force), Err(Error::NoJournal { .. })), "{text}");
                assert_eq!(fs::read_to_string(&path).unwrap(), text);
            }
        }
    }

    #[test]
    fn files_of_an_abandoned_conversion_are_named_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("j");
        let names = ["a.gguf", "b.gguf", "c.gguf", "../outside.gguf", "folder.gguf"];
        let old = Head { files: names.map(Into::into).to_vec(), ..head("bf16") };
        let new = Head { files: vec!["c.gguf".into()], ..head("q8_0") };
        let write = |name: &str| fs::write(dir.path().join(name), name).unwrap();
        ["a.gguf.part", "a.gguf", "b.gguf", "c.gguf", "other.gguf.part", "x.part"].iter().for_each(|name| write(name));
        fs::create_dir(dir.path().join("folder.gguf.part")).unwrap();
        let abandoned = |finished: bool| {
            fs::remove_file(&path).ok();
            let (mut journal, _) = begun(&path, &old, false).unwrap();
            if finished {
                journal.finish().unwrap();
            }
            drop(journal);
            let (journal, past) = Journal::open(&path, &new, true).unwrap();
            journal.decline().unwrap();
            assert!(path.exists(), "declined: the old journal stays");
            let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
            past.abandoned.iter().map(name).collect::<Vec<_>>()
        };
        assert_eq!(abandoned(false), ["a.gguf.part"], "final names may be an older output");
        assert_eq!(abandoned(true), ["a.gguf.part", "b.gguf"], "published; `c.gguf` is replaced in the end");
    }
}
