//! Models on disk, in the layout Ollama uses: an existing Ollama folder works in place.
//!
//! ```text
//! blobs/sha256-<64 hex>                        content-addressed files
//! manifests/<host>/<namespace>/<model>/<tag>   JSON: which blobs make up the model
//! ```
//!
//! Blobs never change, so they are read without locks; a manifest appears by an atomic rename. Whoever adds or removes a
//! manifest, or removes blobs, holds the lock file of the root, so that two processes cannot prune what the other one is
//! about to use. Nothing here knows how a model is run.
//!
//! Names and digests become paths only through [`Name`] and [`Digest`], whose grammars exclude separators and `..`.

mod blob;
mod digest;
mod header;
mod manifest;
mod model;
mod name;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use model::Unreadable;

pub use blob::{BlobWriter, Conversion};
pub use digest::{Digest, InvalidDigest};
pub use header::{Header, parameter_size};
pub use manifest::{CONFIG_TYPE, Kind, Layer, MANIFEST_TYPE, Manifest};
pub use model::{Capability, Config, Details, Message, Model, ROUTING_SUFFIX, Source, routing_beside};
pub use name::{DEFAULT_HOST, DEFAULT_NAMESPACE, DEFAULT_TAG, Name, NameError};

/// A folder of models. Cheap to share; all methods take `&self` and block on the disk.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    /// What the headers of weights say, by the digests of their blobs: reading one means parsing a vocabulary.
    headers: Mutex<HashMap<Vec<Digest>, Arc<Header>>>,
}

/// What can go wrong with models on disk.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("model `{0}` is not installed")]
    NotFound(Name),
    #[error("the manifest of `{name}` is broken: {reason}")]
    BrokenManifest { name: Name, reason: String },
    #[error("`{name}` is incomplete: its {part} `{digest}` is missing")]
    MissingBlob { name: Name, part: &'static str, digest: Digest },
    #[error("the {part} of `{name}` cannot be read: {reason}")]
    BrokenLayer { name: Name, part: &'static str, reason: String },
    #[error("digest mismatch, expected \"{expected}\", got \"{found}\"")]
    DigestMismatch { expected: Digest, found: Digest },
    #[error("blob `{0}` is not in the store")]
    NoBlob(Digest),
    /// A path given in place of a name leads nowhere.
    #[error("there is no file `{}`", .0.display())]
    NoFile(PathBuf),
    /// A path given in place of a name leads to something else than a model.
    #[error("`{}` cannot be used as a model: {source}", path.display())]
    BadFile {
        path: PathBuf,
        #[source]
        source: fathom_gguf::Error,
    },
    #[error("cannot read `{}`: {source}", path.display())]
    Gguf {
        path: PathBuf,
        #[source]
        source: fathom_gguf::Error,
    },
    #[error("cannot {what} `{}`: {source}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// A manifest as found on disk.
#[derive(Clone, Debug)]
pub struct Found {
    /// In the spelling of the folder names.
    pub name: Name,
    pub manifest: Manifest,
    /// SHA-256 of the file's bytes.
    pub digest: Digest,
    pub modified: SystemTime,
}

/// What [`Store::maintain`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    pub blobs: usize,
    pub bytes: u64,
}

impl Error {
    fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { what, path, source }
    }
}

impl Store {
    /// Opens the folder `root`, making it if it is not there.
    ///
    /// # Errors
    /// [`Error::Io`] when the folder cannot be made.
    pub fn open(root: impl Into<PathBuf>) -> Result<Store, Error> {
        let store = Store { root: root.into(), headers: Mutex::default() };
        for folder in [store.blobs(), store.manifests()] {
            fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        }
        Ok(store)
    }

    /// The folder this store lies in.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    fn manifests(&self) -> PathBuf {
        self.root.join("manifests")
    }

    fn manifest_path(&self, name: &Name) -> PathBuf {
        self.manifests().join(name.path())
    }

    /// The installed spelling of `name`. Parts that no installed model has in any case stay as typed, so that creating
    /// `Foo` where `foo` exists replaces `foo`.
    pub fn resolve(&self, name: &Name) -> Name {
        let parts = name.parts();
        let mut path = self.manifests();
        let mut found: Vec<String> = Vec::new();
        if !descend(&mut path, &parts, &mut found) {
            // No complete match: adopt the spelling as deep as it goes.
            path = self.manifests();
            found.clear();
            for part in parts {
                let spelled = spellings(&path, part).into_iter().next();
                let spelled = spelled.unwrap_or_else(|| part.to_string());
                path.push(&spelled);
                found.push(spelled);
            }
        }
        Name::from_parts(&found[0], &found[1], &found[2], &found[3]).unwrap_or_else(|_| name.clone())
    }

    /// The manifest of `name`, found in any case.
    ///
    /// # Errors
    /// [`Error::NotFound`], or [`Error::BrokenManifest`] when the file is there but makes no sense.
    pub fn manifest(&self, name: &Name) -> Result<Found, Error> {
        let name = self.resolve(name);
        let path = self.manifest_path(&name);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if absent(&e) => return Err(Error::NotFound(name)),
            Err(e) => return Err(Error::io("read", path)(e)),
        };
        let modified = fs::metadata(&path).and_then(|m| m.modified()).map_err(Error::io("read", &path))?;
        match Manifest::parse(&bytes) {
            Ok(manifest) => Ok(Found { name, manifest, digest: Digest::of(&bytes), modified }),
            Err(e) => Err(Error::BrokenManifest { name, reason: e.to_string() }),
        }
    }

    /// `name` with everything its layers say.
    ///
    /// # Errors
    /// As [`Store::manifest`]; [`Error::MissingBlob`] and [`Error::BrokenLayer`] name the part that is not usable.
    pub fn model(&self, name: &Name) -> Result<Model, Error> {
        Model::from_manifest(self, self.manifest(name)?, Unreadable::Refused)
    }

    /// All installed models, newest first. What cannot be read is left out with a warning in the log; weights in a format that
    /// this program does not know are listed with what the config says about them.
    ///
    /// # Errors
    /// [`Error::Io`] when the folder of manifests itself cannot be read.
    pub fn list(&self) -> Result<Vec<Model>, Error> {
        let mut listed = Vec::new();
        for name in self.names()? {
            let model = self.manifest(&name).and_then(|found| Model::from_manifest(self, found, Unreadable::Tolerated));
            match model {
                Ok(model) => listed.push((name, model)),
                Err(error) => tracing::warn!(%name, %error, "left out of the list"),
            }
        }
        listed.sort_by(|(a, first), (b, second)| (second.modified, a).cmp(&(first.modified, b)));
        Ok(listed.into_iter().map(|(_, model)| model).collect())
    }

    /// Names of all manifest files, broken ones included, sorted.
    fn names(&self) -> Result<Vec<Name>, Error> {
        let mut names = Vec::new();
        let root = self.manifests();
        for host in entries(&root).map_err(Error::io("read", &root))? {
            for namespace in entries(&root.join(&host)).unwrap_or_default() {
                let folder = root.join(&host).join(&namespace);
                for model in entries(&folder).unwrap_or_default() {
                    for tag in entries(&folder.join(&model)).unwrap_or_default() {
                        if !folder.join(&model).join(&tag).is_file() {
                            continue;
                        }
                        match Name::from_parts(&host, &namespace, &model, &tag) {
                            Ok(name) => names.push(name),
                            // Editors and file managers leave files such as `.DS_Store` behind.
                            Err(_) => tracing::debug!(%host, %namespace, %model, %tag, "not a model name"),
                        }
                    }
                }
            }
        }
        names.sort();
        Ok(names)
    }

    /// Stores `manifest` under `name` (in the installed spelling, if there is one) and removes the blobs of the manifest
    /// it replaces that nothing uses any more.
    ///
    /// # Errors
    /// [`Error::NoBlob`] when a blob that the manifest names is not in the store.
    pub fn write_manifest(&self, name: &Name, manifest: &Manifest) -> Result<(), Error> {
        let lock = self.lock()?;
        for digest in manifest.digests() {
            if !self.blob_path(&digest).is_file() {
                return Err(Error::NoBlob(digest));
            }
        }
        let name = self.resolve(name);
        let replaced = self.manifest(&name).ok();
        self.write_manifest_bytes(&name, &manifest.to_bytes())?;
        if let Some(replaced) = replaced {
            self.remove_unused(&lock, replaced.manifest.digests())?;
        }
        Ok(())
    }

    fn write_manifest_bytes(&self, name: &Name, bytes: &[u8]) -> Result<(), Error> {
        let path = self.manifest_path(name);
        let folder = path.parent().expect("a manifest lies in a folder");
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        // Made outside the folder of manifests: nobody who lists models sees half a file.
        let mut file = tempfile::Builder::new()
            .prefix(blob::SCRATCH_PREFIX)
            .tempfile_in(&self.root)
            .map_err(Error::io("create a file in", &self.root))?;
        file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(Error::io("write", file.path()))?;
        blob::share(file.as_file(), file.path())?;
        file.persist(&path).map_err(|e| Error::io("write", &path)(e.error))?;
        Ok(())
    }

    /// Makes `destination` name the same manifest as `source`, replacing what it named before.
    ///
    /// # Errors
    /// [`Error::NotFound`] for the source.
    pub fn copy(&self, source: &Name, destination: &Name) -> Result<(), Error> {
        let lock = self.lock()?;
        let source = self.resolve(source);
        let destination = self.resolve(destination);
        let path = self.manifest_path(&source);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if absent(&e) => return Err(Error::NotFound(source)),
            Err(e) => return Err(Error::io("read", path)(e)),
        };
        if source == destination {
            return Ok(());
        }
        let replaced = self.manifest(&destination).ok();
        self.write_manifest_bytes(&destination, &bytes)?;
        if let Some(replaced) = replaced {
            self.remove_unused(&lock, replaced.manifest.digests())?;
        }
        Ok(())
    }

    /// Removes `name` and the blobs that only it used. A broken manifest is removed, its blobs are not known and stay.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn delete(&self, name: &Name) -> Result<(), Error> {
        let lock = self.lock()?;
        let name = self.resolve(name);
        let found = match self.manifest(&name) {
            Ok(found) => Some(found),
            Err(Error::BrokenManifest { .. }) => None,
            Err(e) => return Err(e),
        };
        let path = self.manifest_path(&name);
        fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        // Folders that became empty; a folder that is not empty refuses, which is what we want.
        for folder in path.ancestors().skip(1).take(3) {
            if fs::remove_dir(folder).is_err() {
                break;
            }
        }
        match found {
            Some(found) => self.remove_unused(&lock, found.manifest.digests()),
            None => Ok(()),
        }
    }

    /// Start-up maintenance: blobs named in an old style get their name, blobs that no manifest uses and that are older
    /// than `grace` go, unless a manifest cannot be read (then nobody knows what it uses). Unfinished downloads stay: they
    /// are progress.
    ///
    /// # Errors
    /// [`Error::Io`] when the folders cannot be read.
    pub fn maintain(&self, grace: Duration) -> Result<Pruned, Error> {
        let lock = self.lock()?;
        let blobs = self.blobs();
        for file in entries(&blobs).map_err(Error::io("read", &blobs))? {
            if let (Some(_), Ok(digest)) = (file.strip_prefix("sha256:"), file.parse::<Digest>()) {
                let (from, to) = (blobs.join(&file), self.blob_path(&digest));
                fs::rename(&from, &to).map_err(Error::io("rename", &from))?;
            }
        }
        self.sweep(&lock)?;
        let Some(used) = self.used()? else {
            return Ok(Pruned::default());
        };
        self.prune(&lock, &used, grace)
    }

    /// Every digest that a manifest names; `None` when one of them cannot be read.
    fn used(&self) -> Result<Option<HashSet<Digest>>, Error> {
        let mut used = HashSet::new();
        for name in self.names()? {
            match self.manifest(&name) {
                Ok(found) => used.extend(found.manifest.digests()),
                Err(error) => {
                    tracing::warn!(%name, %error, "unused blobs are kept: nobody knows what this manifest uses");
                    return Ok(None);
                }
            }
        }
        Ok(Some(used))
    }

    /// The manifests are right already, so a blob that cannot be removed is only worth a warning.
    fn remove_unused(&self, _lock: &Lock, candidates: impl Iterator<Item = Digest>) -> Result<(), Error> {
        let Some(used) = self.used()? else {
            return Ok(());
        };
        for digest in candidates.filter(|d| !used.contains(d)) {
            match fs::remove_file(self.blob_path(&digest)) {
                Err(error) if !absent(&error) => tracing::warn!(%digest, %error, "an unused blob stays"),
                _ => {}
            }
        }
        Ok(())
    }

    fn lock(&self) -> Result<Lock, Error> {
        let path = self.root.join(".fathom.lock");
        let file =
            File::options().create(true).truncate(false).write(true).open(&path).map_err(Error::io("open", &path))?;
        file.lock().map_err(Error::io("lock", &path))?;
        Ok(Lock(file))
    }
}

/// Held while manifests or unused blobs change; the lock goes with the file handle.
struct Lock(#[expect(dead_code, reason = "closing the file releases the lock")] File);

/// Nothing is there: also when a folder on the way is a file.
fn absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Names inside a folder, sorted; names that are not UTF-8 cannot be ours.
fn entries(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        if let Ok(name) = entry?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Entries of `folder` that equal `part` but for case; the exact one first.
fn spellings(folder: &Path, part: &str) -> Vec<String> {
    let mut names = entries(folder).unwrap_or_default();
    names.retain(|n| n.eq_ignore_ascii_case(part));
    names.sort_by_key(|n| n != part);
    names
}

/// Walks to a manifest whose path spells `parts` in any case.
fn descend(path: &mut PathBuf, parts: &[&str], found: &mut Vec<String>) -> bool {
    let Some((part, rest)) = parts.split_first() else {
        return path.is_file();
    };
    for spelled in spellings(path, part) {
        path.push(&spelled);
        found.push(spelled);
        if descend(path, rest, found) {
            return true;
        }
        path.pop();
        found.pop();
    }
    false
}
