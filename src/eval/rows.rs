//! Rows of logits in a file without a name: written by the reference, read in the same order by the model. F32 as they came, since
//! a noise floor of 1e-7 would not survive less.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

use super::Error;
use crate::engine::{self, machine};

/// More than a row of the largest vocabulary, so that a row is one call to the system.
const BUFFER_BYTES: usize = 1 << 20;

pub(super) struct Writer {
    out: BufWriter<File>,
    dir: PathBuf,
    total_bytes: u64,
    bytes: Vec<u8>,
}

impl Writer {
    /// A file in `dir` for `rows` rows of `n_vocab` numbers.
    ///
    /// # Errors
    /// [`engine::Error::Disk`] when they will not fit.
    pub(super) fn create(dir: &Path, rows: u64, n_vocab: usize) -> Result<Writer, Error> {
        let needed = rows.saturating_mul(n_vocab as u64).saturating_mul(4);
        let available = machine::free_disk_bytes(dir);
        if needed > available {
            return Err(engine::Error::Disk { dir: dir.to_owned(), needed, available }.into());
        }
        let file = tempfile::tempfile_in(dir).map_err(scratch("creating a file", dir))?;
        let out = BufWriter::with_capacity(BUFFER_BYTES, file);
        Ok(Writer { out, dir: dir.to_owned(), total_bytes: needed, bytes: Vec::new() })
    }

    /// What all rows together take.
    pub(super) fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    pub(super) fn write(&mut self, row: &[f32]) -> Result<(), Error> {
        self.bytes.clear();
        self.bytes.extend(row.iter().flat_map(|value| value.to_le_bytes()));
        self.out.write_all(&self.bytes).map_err(scratch("writing logits", &self.dir))
    }

    /// The same rows, from the first.
    pub(super) fn finish(self) -> Result<Reader, Error> {
        let dir = self.dir;
        let rewound = self.out.into_inner().map_err(|error| error.into_error()).and_then(|mut file| {
            file.rewind()?;
            Ok(file)
        });
        let file = rewound.map_err(scratch("writing logits", &dir))?;
        Ok(Reader { from: BufReader::with_capacity(BUFFER_BYTES, file), dir, bytes: self.bytes })
    }
}

pub(super) struct Reader {
    from: BufReader<File>,
    dir: PathBuf,
    /// One row, as long as those that were written.
    bytes: Vec<u8>,
}

impl Reader {
    /// The next row.
    pub(super) fn read(&mut self, row: &mut Vec<f32>) -> Result<(), Error> {
        self.from.read_exact(&mut self.bytes).map_err(scratch("reading logits", &self.dir))?;
        row.clear();
        row.extend(self.bytes.as_chunks().0.iter().map(|word| f32::from_le_bytes(*word)));
        Ok(())
    }
}

fn scratch<'a>(what: &'static str, dir: &'a Path) -> impl Fn(io::Error) -> Error + 'a {
    move |source| Error::Scratch { what, dir: dir.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_bit_by_bit() {
        let dir = tempfile::tempdir().unwrap();
        let rows = [[1.0_f32, -0.0, f32::MIN_POSITIVE], [f32::NEG_INFINITY, 3.25, 1e-45]];
        let mut writer = Writer::create(dir.path(), 2, 3).unwrap();
        assert_eq!(writer.total_bytes(), 24);
        rows.iter().for_each(|row| writer.write(row).unwrap());
        let mut reader = writer.finish().unwrap();
        let mut row = Vec::new();
        for expected in &rows {
            reader.read(&mut row).unwrap();
            assert_eq!(row.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), expected.map(f32::to_bits));
        }
        assert!(matches!(reader.read(&mut row), Err(Error::Scratch { what: "reading logits", .. })));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the file has no name");
    }

    #[test]
    fn what_does_not_fit_is_refused_before_it_is_computed() {
        let dir = tempfile::tempdir().unwrap();
        let error = Writer::create(dir.path(), u64::MAX, 1 << 17).map(drop).unwrap_err();
        assert!(matches!(error, Error::Engine(engine::Error::Disk { .. })), "{error}");
        let missing = Writer::create(&dir.path().join("none"), 1, 1).map(drop).unwrap_err();
        assert!(missing.to_string().contains("none"), "{missing}");
    }
}
