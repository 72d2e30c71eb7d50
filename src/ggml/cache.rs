//! What one sequence keeps of one layer: the memory that our ops read and append to.
//!
//! - [`Window`]: the most recent key/value rows, a ring.
//! - [`Rows`]: compressed rows, append-only, in segments of a fixed number of rows. A full segment is never written again, so
//!   sequences that share a prefix share it by reference count; the last one is copied before a second owner writes it.
//! - [`Pending`]: what a compressor needs of tokens whose group is still open.
//!
//! The pointers that kernels get are made here ([`super::step`] binds them for one run) and point into memory that the
//! structs own. Layouts of rows: `csrc/ops/step.h`.

use std::ffi::c_void;
use std::sync::Arc;

use crate::kernels::sys;

/// How the numbers of a cached row are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowType {
    F32,
    F16,
    /// Key/value rows as the released runtime rounds them: e4m3 with scales, rotary channels in BF16.
    Fp8,
    /// Index keys as the released runtime rounds them: e2m1 with scales, after the Hadamard rotation.
    Fp4,
}

impl RowType {
    /// Its number in `csrc/ops/step.h`.
    pub(super) fn number(self) -> i32 {
        let number = match self {
            RowType::F32 => sys::FATHOM_ROW_F32,
            RowType::F16 => sys::FATHOM_ROW_F16,
            RowType::Fp8 => sys::FATHOM_ROW_FP8,
            RowType::Fp4 => sys::FATHOM_ROW_FP4,
        };
        i32::try_from(number).expect("row types are small numbers")
    }

    /// Bytes of a row of `d` channels, `n_rot` of them rotary; `None` for widths that the type cannot hold.
    pub fn row_bytes(self, d: usize, n_rot: usize) -> Option<usize> {
        match self {
            RowType::F32 => Some(d * 4),
            RowType::F16 => Some(d * 2),
            RowType::Fp8 => {
                let plain = d.checked_sub(n_rot)?;
                let bytes = plain + plain.div_ceil(64).next_multiple_of(2) + n_rot * 2;
                bytes.is_multiple_of(2).then_some(bytes)
            }
            RowType::Fp4 => d.is_multiple_of(32).then(|| d / 2 + d / 32),
        }
    }
}

/// 64 bytes that begin at a multiple of 64.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "read and written through pointers to the whole")] [u8; 64]);

/// Zeroed bytes at a multiple of 64.
#[derive(Clone)]
struct Memory {
    lines: Box<[Line]>,
    bytes: usize,
}

impl Memory {
    fn new(bytes: usize) -> Memory {
        Memory { lines: vec![Line([0; 64]); bytes.div_ceil(64)].into(), bytes }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: a `Line` is 64 bytes without padding; the slice covers exactly the lines.
        let all = unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast::<u8>(), self.lines.len() * 64) };
        &all[..self.bytes]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: a `Line` is 64 bytes without padding; the slice covers exactly the lines.
        let all =
            unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast::<u8>(), self.lines.len() * 64) };
        &mut all[..self.bytes]
    }
}

/// The most recent rows; the row of position `p` lies in slot `p % n_slots`.
#[derive(Clone)]
pub struct Window {
    memory: Memory,
    n_slots: usize,
    row_type: RowType,
    row_bytes: usize,
}

impl Window {
    pub fn new(n_slots: usize, row_type: RowType, row_bytes: usize) -> Window {
        Window { memory: Memory::new(n_slots * row_bytes), n_slots, row_type, row_bytes }
    }

    /// All slots.
    pub fn bytes(&self) -> &[u8] {
        self.memory.bytes()
    }

    /// All slots, to be restored.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.memory.bytes_mut()
    }

    pub(super) fn raw(&mut self) -> sys::fathom_window {
        sys::fathom_window {
            rows: self.memory.lines.as_mut_ptr().cast(),
            n_slots: self.n_slots as i32,
            row_type: self.row_type.number(),
            row_bytes: self.row_bytes as i64,
        }
    }
}

/// Compressed rows of one layer, appended in order.
pub struct Rows {
    row_type: RowType,
    row_bytes: usize,
    /// Rows of a segment: `1 << log2`.
    log2: u32,
    segments: Vec<Arc<Memory>>,
    /// Where each segment begins, for kernels.
    table: Vec<*mut c_void>,
    /// Rows that are computed.
    len: usize,
}

/// [`Rows`] at some moment, shared with the sequence they were taken from. Cheap: no row is copied.
#[derive(Clone)]
pub struct RowsSnapshot {
    segments: Vec<Arc<Memory>>,
    len: usize,
}

impl Rows {
    pub fn new(row_type: RowType, row_bytes: usize, log2_segment_rows: u32) -> Rows {
        Rows { row_type, row_bytes, log2: log2_segment_rows, segments: Vec::new(), table: Vec::new(), len: 0 }
    }

    /// Rows that are computed.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    pub fn row_type(&self) -> RowType {
        self.row_type
    }

    fn segment_bytes(&self) -> usize {
        self.row_bytes << self.log2
    }

    /// Makes room for rows up to `end`; those from `len` on become this sequence's own.
    pub fn reserve(&mut self, end: usize) {
        let segments = end.div_ceil(1 << self.log2);
        let open = self.len >> self.log2;
        if open < segments
            && let Some(segment) = self.segments.get_mut(open)
            && Arc::get_mut(segment).is_none()
        {
            *segment = Arc::new(Memory::clone(segment));
        }
        while self.segments.len() < segments {
            self.segments.push(Arc::new(Memory::new(self.segment_bytes())));
        }
        // Entries of full segments stay as they are, else every token would pay for the whole context.
        let first = open.min(self.table.len());
        self.table.resize(self.segments.len(), std::ptr::null_mut());
        for (index, (segment, entry)) in self.segments.iter_mut().zip(&mut self.table).enumerate().skip(first) {
            *entry = match Arc::get_mut(segment) {
                Some(own) if index >= open => own.lines.as_mut_ptr().cast(),
                _ => segment.lines.as_ptr().cast_mut().cast(), // full: kernels only read it
            };
        }
    }

    /// Rows up to `end` are computed now.
    pub fn set_len(&mut self, end: usize) {
        assert!(end <= self.segments.len() << self.log2, "`reserve` made room");
        self.len = end;
    }

    /// The bytes of one computed row.
    pub fn row(&self, index: usize) -> &[u8] {
        let within = index & ((1 << self.log2) - 1);
        &self.segments[index >> self.log2].bytes()[within * self.row_bytes..][..self.row_bytes]
    }

    /// The bytes of a row that was reserved, to be restored. `None` when another sequence shares it.
    pub fn row_mut(&mut self, index: usize) -> Option<&mut [u8]> {
        let within = index & ((1 << self.log2) - 1);
        let segment = Arc::get_mut(self.segments.get_mut(index >> self.log2)?)?;
        Some(&mut segment.bytes_mut()[within * self.row_bytes..][..self.row_bytes])
    }

    pub fn snapshot(&self) -> RowsSnapshot {
        RowsSnapshot { segments: self.segments.clone(), len: self.len }
    }

    /// Becomes what was taken. Rows of the same type and width only.
    pub fn restore(&mut self, from: &RowsSnapshot) {
        self.segments.clone_from(&from.segments);
        self.len = from.len;
        // `reserve` fills it before the next run.
        self.table.clear();
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.segments.clear();
        self.table.clear();
        self.len = 0;
    }

    /// Bytes of all segments, shared or not.
    pub fn allocated_bytes(&self) -> usize {
        self.segments.len() * self.segment_bytes()
    }

    pub(super) fn reserved(&self) -> usize {
        self.table.len() << self.log2
    }

    pub(super) fn raw(&mut self) -> sys::fathom_rows {
        sys::fathom_rows {
            segments: self.table.as_ptr(),
            log2_segment_rows: self.log2 as i32,
            row_type: self.row_type.number(),
            row_bytes: self.row_bytes as i64,
        }
    }
}

impl RowsSnapshot {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// `u` and `z` of the last positions of one compressor: f32 `[width, n_slots]` each.
#[derive(Clone)]
pub struct Pending {
    u: Vec<f32>,
    z: Vec<f32>,
}

impl Pending {
    pub fn new(width: usize, n_slots: usize) -> Pending {
        Pending { u: vec![0.0; width * n_slots], z: vec![0.0; width * n_slots] }
    }

    /// `u` and `z`.
    pub fn parts(&self) -> [&[f32]; 2] {
        [&self.u, &self.z]
    }

    /// `u` and `z`, to be restored.
    pub fn parts_mut(&mut self) -> [&mut [f32]; 2] {
        [&mut self.u, &mut self.z]
    }

    pub fn bytes(&self) -> usize {
        size_of_val(&*self.u) + size_of_val(&*self.z)
    }

    pub(super) fn raw(&mut self) -> sys::fathom_pending {
        sys::fathom_pending { u: self.u.as_mut_ptr(), z: self.z.as_mut_ptr() }
    }

    pub(super) fn len(&self) -> usize {
        self.u.len()
    }
}

/// A compressor's rows and its open state.
pub struct Compressed {
    pub rows: Rows,
    pub pending: Pending,
}

/// One layer of one sequence.
pub struct LayerCache {
    pub window: Window,
    /// CSA and HCA layers.
    pub compressed: Option<Compressed>,
    /// CSA layers: the indexer's keys.
    pub index: Option<Compressed>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_the_sizes_of_the_released_runtime() {
        assert_eq!(RowType::Fp8.row_bytes(512, 64), Some(584));
        assert_eq!(RowType::Fp4.row_bytes(128, 64), Some(68));
        assert_eq!(RowType::F16.row_bytes(512, 64), Some(1024));
        assert_eq!(RowType::Fp8.row_bytes(128, 32), Some(96 + 2 + 64));
    }

    #[test]
    fn a_shared_segment_is_copied_before_it_is_written() {
        let mut a = Rows::new(RowType::F32, 16, 2);
        a.reserve(6);
        for row in 0..6 {
            a.row_mut(row).unwrap().fill(row as u8);
        }
        a.set_len(6);
        let mut b = Rows::new(RowType::F32, 16, 2);
        b.restore(&a.snapshot());
        assert!(b.row_mut(6).is_none(), "shared");
        b.reserve(7);
        b.row_mut(6).unwrap().fill(77);
        b.row_mut(5).unwrap().fill(55);
        assert!(b.row_mut(0).is_none(), "full segments stay shared");
        assert_eq!(a.row(5), [5; 16]);
        assert_eq!(b.row(4), [4; 16]);
        assert_eq!(b.row(1), a.row(1));
    }
}
