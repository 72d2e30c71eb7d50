//! A directory while an export is written into it.
//!
//! Files are called `*.part` until all of them are on the disk; the index, without which a directory is no checkpoint, gets its
//! name last. A note beside them says which files are ours: it is locked while somebody writes, and what an interrupted export
//! has left is removed by it, and nothing else, when the next one begins.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::journal::{BEGINNING, SCHEMA, unfinished};
use crate::{Error, disk, lock};

/// The note's file name.
const NOTE: &str = "export.journal";

#[derive(Serialize, Deserialize)]
struct Note {
    schema: u32,
    /// Whether a checkpoint was there before, whose files may have the same names.
    replaces: bool,
    /// Names of the finished files.
    files: Vec<String>,
}

/// The files of an export, none of which has its final name yet.
pub(crate) struct Staging {
    dir: PathBuf,
    /// Held for its lock.
    _note: fs::File,
    /// The index is the last.
    names: Vec<String>,
    made_dir: bool,
}

impl Staging {
    /// Takes the directory, makes it if it is not there, and removes what an interrupted export has left. `names`: of all files
    /// to come, the index last.
    ///
    /// # Errors
    /// [`Error::Exists`] when a checkpoint is there (without `force`), [`Error::Disk`] when `bytes` do not fit,
    /// [`Error::Locked`], [`Error::NoJournal`]. Nothing has changed then.
    pub(crate) fn begin(dir: &Path, names: Vec<String>, bytes: u64, force: bool) -> Result<Staging, Error> {
        let path = dir.join(NOTE);
        let may_write = |earlier: Option<&Note>| {
            // Without a note, files called like our unfinished ones are somebody else's.
            let strange = earlier.is_none() && names.iter().any(|name| unfinished(&dir.join(name)).exists());
            let ours = |file: &Path| earlier.is_some_and(|note| note.left(dir).any(|left| left == file));
            match !force && (strange || holds_a_checkpoint(dir, &names, ours)) {
                true => Err(Error::Exists { path: dir.into() }),
                false => Ok(()),
            }
        };
        if !path.exists() {
            may_write(None)?;
            disk::check(existing(dir), bytes, 0)?;
        }
        let made_dir = !dir.exists();
        fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        let mut file = lock::open(&path)?;
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(Error::io("read", &path))?;
        let earlier = serde_json::from_slice::<Note>(&text).ok();
        // A note that was cut off by a kill: nothing else was written yet.
        let torn = !text.ends_with(b"\n") && (text.starts_with(BEGINNING) || BEGINNING.starts_with(&text));
        if earlier.is_none() && !torn {
            return Err(Error::NoJournal { path });
        }
        if let Some(earlier) = &earlier {
            may_write(Some(earlier))?;
            disk::check(dir, bytes, earlier.left(dir).filter_map(|left| disk::allocated(&left)).sum())?;
            for left in earlier.left(dir) {
                fs::remove_file(&left).map_err(Error::io("remove", &left))?;
            }
        }
        let replaces = holds_a_checkpoint(dir, &names, |_| false);
        let note = Note { schema: SCHEMA, replaces, files: names.clone() };
        let mut text = serde_json::to_vec(&note).expect("plain data into memory");
        text.push(b'\n');
        let write = |file: &mut fs::File| {
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
            file.write_all(&text)?;
            file.sync_all()
        };
        write(&mut file).map_err(Error::io("write", &path))?;
        disk::sync_directory(dir)?;
        Ok(Staging { dir: dir.into(), _note: file, names, made_dir })
    }

    /// Where a file lies until the end.
    pub(crate) fn unfinished(&self, name: &str) -> PathBuf {
        unfinished(&self.dir.join(name))
    }

    /// Writes a small file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn write_text(&self, name: &str, text: &str) -> Result<(), Error> {
        let path = self.unfinished(name);
        let write = || {
            let mut file = fs::File::create(&path)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()
        };
        write().map_err(Error::io("write", &path))
    }

    /// Gives all files their names; their data is on the disk already.
    ///
    /// # Errors
    /// [`Error::Io`]; the next export begins by clearing up then.
    pub(crate) fn publish(self) -> Result<(), Error> {
        let (index, others) = self.names.split_last().expect("an export has an index");
        // A former checkpoint's index would make a mixture of old and new shards look finished.
        let index_path = self.dir.join(index);
        if let Err(error) = fs::remove_file(&index_path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(Error::io("remove", &index_path)(error));
        }
        disk::sync_directory(&self.dir)?;
        let rename = |name: &String| {
            let part = self.unfinished(name);
            fs::rename(&part, self.dir.join(name)).map_err(Error::io("rename", &part))
        };
        others.iter().try_for_each(rename)?;
        disk::sync_directory(&self.dir)?;
        rename(index)?;
        disk::sync_directory(&self.dir)?;
        self.remove_note()
    }

    /// Removes everything: the export has failed. That this may fail too is left to the next one, which has the note.
    pub(crate) fn discard(self) {
        let removed = self.names.iter().map(|name| self.unfinished(name)).filter(|path| path.exists());
        if removed.map(fs::remove_file).all(|removed| removed.is_ok()) && self.remove_note().is_ok() && self.made_dir {
            // Somebody else may have put something there.
            let _ = fs::remove_dir(&self.dir);
        }
    }

    fn remove_note(&self) -> Result<(), Error> {
        let path = self.dir.join(NOTE);
        fs::remove_file(&path).map_err(Error::io("remove", path))
    }
}

impl Note {
    /// What lies in `dir` of that export.
    fn left<'a>(&'a self, dir: &'a Path) -> impl Iterator<Item = PathBuf> + 'a {
        let plain = |name: &&String| Path::new(name.as_str()).file_name().is_some_and(|only| only == name.as_str());
        let paths = self.files.iter().filter(plain).flat_map(|name| {
            let path = dir.join(name);
            // A file under a final name may belong to the checkpoint that was to be replaced.
            [Some(unfinished(&path)), (!self.replaces).then_some(path)]
        });
        paths.flatten().filter(|path| fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file()))
    }
}

/// Whether something in `dir` would be replaced, or taken for a part of what is exported; what is `ours` does not count.
fn holds_a_checkpoint(dir: &Path, names: &[String], ours: impl Fn(&Path) -> bool) -> bool {
    let is_shard = |path: &Path| path.extension().is_some_and(|extension| extension == "safetensors");
    let files = || fs::read_dir(dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let shards = files().filter(|path| is_shard(path));
    let same = names.iter().map(|name| dir.join(name)).filter(|path| path.exists());
    same.chain(shards).any(|path| !ours(&path))
}

/// The nearest directory that is there: its file system is the one that `dir` will be on.
fn existing(dir: &Path) -> &Path {
    let ancestors = dir.ancestors().map(|at| if at.as_os_str().is_empty() { Path::new(".") } else { at });
    ancestors.into_iter().find(|at| at.exists()).unwrap_or(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Vec<String> {
        ["a.safetensors", "config.json", "index.json"].map(Into::into).to_vec()
    }

    fn listing(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = entries.collect();
        names.sort();
        names
    }

    fn begin(dir: &Path, force: bool) -> Result<Staging, Error> {
        Staging::begin(dir, names(), 0, force)
    }

    fn write_all(staging: &Staging) {
        names().iter().for_each(|name| staging.write_text(name, "new").unwrap());
    }

    #[test]
    fn files_get_their_names_at_the_end() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("new/dir");
        let staging = begin(&dir, false).unwrap();
        assert!(matches!(begin(&dir, true), Err(Error::Locked { .. })));
        write_all(&staging);
        assert!(listing(&dir).iter().all(|name| name.ends_with(".part") || name == NOTE));
        staging.publish().unwrap();
        assert_eq!(listing(&dir), ["a.safetensors", "config.json", "index.json"]);
        assert!(matches!(begin(&dir, false), Err(Error::Exists { .. })));
    }

    #[test]
    fn a_failed_export_leaves_nothing() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("new");
        let staging = begin(&dir, false).unwrap();
        write_all(&staging);
        staging.discard();
        assert!(!dir.exists());
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("README.md"), "mine").unwrap();
        begin(&dir, false).unwrap().discard();
        assert_eq!(listing(&dir), ["README.md"]);
    }

    /// Every moment at which a kill can come, by the number of files that have their names.
    #[test]
    fn what_a_kill_left_is_removed_and_nothing_else() {
        for named in 0..=3 {
            let dir = tempfile::tempdir().unwrap();
            let dir = dir.path();
            fs::write(dir.join("README.md"), "mine").unwrap();
            let staging = begin(dir, false).unwrap();
            write_all(&staging);
            for name in &names()[..named] {
                fs::rename(staging.unfinished(name), dir.join(name)).unwrap();
            }
            drop(staging);
            // The next one has other shards.
            let other = ["b.safetensors", "index.json"].map(Into::into).to_vec();
            let staging = Staging::begin(dir, other, 0, false).unwrap();
            assert_eq!(listing(dir), ["README.md", NOTE], "after {named} renames");
            staging.write_text("b.safetensors", "new").unwrap();
            staging.write_text("index.json", "new").unwrap();
            staging.publish().unwrap();
            assert_eq!(listing(dir), ["README.md", "b.safetensors", "index.json"]);
        }
    }

    #[test]
    fn a_checkpoint_that_was_to_be_replaced_is_not_taken_for_ours() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        names().iter().for_each(|name| fs::write(dir.join(name), "old").unwrap());
        assert!(matches!(begin(dir, false), Err(Error::Exists { .. })));
        let staging = begin(dir, true).unwrap();
        write_all(&staging);
        drop(staging); // killed
        assert!(matches!(begin(dir, false), Err(Error::Exists { .. })), "still the old checkpoint");
        assert_eq!(fs::read_to_string(dir.join("a.safetensors")).unwrap(), "old");
        let staging = begin(dir, true).unwrap();
        write_all(&staging);
        staging.publish().unwrap();
        assert_eq!(listing(dir), names());
        assert_eq!(fs::read_to_string(dir.join("index.json")).unwrap(), "new");
    }

    #[test]
    fn strangers_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        fs::write(dir.join("a.safetensors.part"), "half of a download").unwrap();
        assert!(matches!(begin(dir, false), Err(Error::Exists { .. })));
        assert_eq!(listing(dir), ["a.safetensors.part"]);
        fs::remove_file(dir.join("a.safetensors.part")).unwrap();
        for text in ["my diary", "my diary\n", "{\"schema\":1}\n"] {
            fs::write(dir.join(NOTE), text).unwrap();
            assert!(matches!(begin(dir, true), Err(Error::NoJournal { .. })), "{text}");
            assert_eq!(fs::read_to_string(dir.join(NOTE)).unwrap(), text);
        }
        for torn in ["", "{\"sch", "{\"schema\":1,\"repl"] {
            fs::write(dir.join(NOTE), torn).unwrap();
            begin(dir, false).unwrap().discard();
        }
        // A note that names files elsewhere has power over nothing.
        let outside = dir.join("outside.part");
        fs::create_dir(dir.join("in")).unwrap();
        fs::write(&outside, "mine").unwrap();
        fs::write(dir.join("in").join(NOTE), "{\"schema\":1,\"replaces\":false,\"files\":[\"../outside\"]}\n").unwrap();
        begin(&dir.join("in"), false).unwrap().discard();
        assert!(outside.exists());
    }

    #[test]
    fn space_is_checked_before_anything_is_made() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("a/b");
        let error = Staging::begin(&dir, names(), u64::MAX, false).err().unwrap();
        assert!(matches!(error, Error::Disk { needed: u64::MAX, .. }), "{error}");
        assert!(listing(parent.path()).is_empty());
    }
}
