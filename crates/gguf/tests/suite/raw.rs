//! Builds files byte by byte, also wrong ones: independent of the crate's writer.

/// A file in the making. Each method appends one field.
#[derive(Clone, Default)]
pub struct Raw(pub Vec<u8>);

impl Raw {
    /// Magic, version and counts.
    pub fn file(version: u32, n_tensors: u64, n_keys: u64) -> Raw {
        Raw(b"GGUF".to_vec()).u32(version).u64(n_tensors).u64(n_keys)
    }

    pub fn bytes(mut self, bytes: &[u8]) -> Raw {
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn u8(self, value: u8) -> Raw {
        self.bytes(&[value])
    }

    pub fn u32(self, value: u32) -> Raw {
        self.bytes(&value.to_le_bytes())
    }

    pub fn u64(self, value: u64) -> Raw {
        self.bytes(&value.to_le_bytes())
    }

    pub fn str(self, text: &str) -> Raw {
        self.u64(text.len() as u64).bytes(text.as_bytes())
    }

    /// A key with the number of its value's type; the value follows.
    pub fn key(self, key: &str, type_id: u32) -> Raw {
        self.str(key).u32(type_id)
    }

    /// A tensor's description.
    pub fn tensor(self, name: &str, ne: &[u64], type_id: u32, offset: u64) -> Raw {
        let with_axes = ne.iter().fold(self.str(name).u32(ne.len() as u32), |raw, &axis| raw.u64(axis));
        with_axes.u32(type_id).u64(offset)
    }

    /// Zeros up to a multiple of `alignment`.
    pub fn pad(mut self, alignment: usize) -> Raw {
        self.0.resize(self.0.len().next_multiple_of(alignment), 0);
        self
    }

    /// The file's length so far.
    pub fn at(&self) -> u64 {
        self.0.len() as u64
    }
}
