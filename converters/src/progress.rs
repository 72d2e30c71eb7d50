//! How the library tells its caller what it is doing. The library never prints.

/// What a stretch of work is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Reading back what an interrupted conversion had written.
    Resuming,
    /// Checkpoint to GGUF; bytes are output bytes.
    Converting,
    /// GGUF to checkpoint; bytes are output bytes.
    Exporting,
    /// Checking checksums; bytes are bytes read.
    Verifying,
}

/// Receives progress on the thread that called.
pub trait Progress {
    /// A phase begins; `bytes` is its total.
    fn begin(&mut self, phase: Phase, bytes: u64);
    /// So many more bytes of the current phase are done.
    fn advance(&mut self, bytes: u64);
    /// So many bytes of the current phase were done by an earlier run: they say nothing about speed.
    fn resumed(&mut self, bytes: u64) {
        self.advance(bytes);
    }
    /// Something the user should know; not an error.
    fn warn(&mut self, message: &str);
    /// Asked between pieces of work; `true` stops with [`crate::Error::Cancelled`], and the work can be resumed.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Reports to nobody.
#[derive(Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&mut self, _: Phase, _: u64) {}
    fn advance(&mut self, _: u64) {}
    fn warn(&mut self, _: &str) {}
}
