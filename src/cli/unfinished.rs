//! Files that appear when they are finished: until then what they are made of can fail, and nobody sees half of one.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// A file in the making.
pub(super) struct Unfinished {
    file: tempfile::NamedTempFile,
    path: PathBuf,
}

impl Unfinished {
    /// # Errors
    /// Nothing can be written into its folder.
    pub(super) fn create(path: &Path) -> anyhow::Result<Unfinished> {
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut unfinished = tempfile::Builder::new();
        #[cfg(unix)]
        unfinished.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let file = unfinished
            .prefix(".fathom-unfinished-")
            .tempfile_in(dir)
            .with_context(|| format!("cannot write into `{}`", dir.display()))?;
        Ok(Unfinished { file, path: path.to_owned() })
    }

    /// Writes all of it and gives it its name.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn write(mut self, text: &str) -> anyhow::Result<()> {
        self.file.write_all(text.as_bytes()).with_context(|| format!("cannot write `{}`", self.path.display()))?;
        self.file.persist(&self.path).with_context(|| format!("cannot write `{}`", self.path.display()))?;
        Ok(())
    }
}
