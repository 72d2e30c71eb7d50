//! What the attention ops share: the tokens of a step, cached rows, rotary positions (`csrc/ops/step.h`).

use super::{Line, count, sys};

/// The tokens of one step: stretches of sequences, one after the other.
#[derive(Debug, Clone)]
pub struct Step {
    runs: Vec<sys::fathom_run>,
    run_of_token: Vec<i32>,
}

impl Step {
    /// One stretch for each `(position of its first token, tokens)`.
    pub fn new(runs: &[(u64, usize)]) -> Self {
        let mut step = Step { runs: Vec::new(), run_of_token: Vec::new() };
        for (r, &(pos, n_tokens)) in runs.iter().enumerate() {
            let first = count(step.run_of_token.len());
            let pos = i64::try_from(pos).expect("positions fit i64");
            step.runs.push(sys::fathom_run { first, n_tokens: count(n_tokens), pos });
            step.run_of_token.extend(std::iter::repeat_n(count(r), n_tokens));
        }
        step
    }

    /// Tokens of all stretches.
    pub fn n_tokens(&self) -> usize {
        self.run_of_token.len()
    }

    /// Number of stretches.
    pub fn n_runs(&self) -> usize {
        self.runs.len()
    }

    /// `(index of the first token, position of the first token, tokens)` of every stretch.
    pub fn runs(&self) -> impl Iterator<Item = (usize, u64, usize)> {
        self.runs.iter().map(|run| (run.first as usize, run.pos as u64, run.n_tokens as usize))
    }

    /// Position of a token.
    pub fn position(&self, token: usize) -> u64 {
        let run = &self.runs[self.run_of_token[token] as usize];
        run.pos as u64 + (token - run.first as usize) as u64
    }

    /// Borrows from `self`.
    pub(super) fn args(&self) -> sys::fathom_step {
        sys::fathom_step {
            n_tokens: count(self.n_tokens()),
            n_runs: count(self.n_runs()),
            runs: self.runs.as_ptr(),
            run_of_token: self.run_of_token.as_ptr(),
        }
    }
}

/// Rotary embedding of the last channels of a head.
#[derive(Debug, Clone, Copy)]
pub struct Rope<'a> {
    /// Radians per position of each pair of channels.
    pub freq: &'a [f32],
}

impl Rope<'_> {
    /// Rotary channels.
    pub fn n_rot(&self) -> usize {
        2 * self.freq.len()
    }

    pub(super) fn args(&self) -> sys::fathom_rope {
        sys::fathom_rope { n_rot: count(self.n_rot()), freq: self.freq.as_ptr() }
    }
}

/// How the numbers of a cached row are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowType {
    /// float32.
    F32 = sys::FATHOM_ROW_F32 as isize,
    /// float16.
    F16 = sys::FATHOM_ROW_F16 as isize,
    /// e4m3 with a scale for 64 channels, the rotary ones in bfloat16.
    Fp8 = sys::FATHOM_ROW_FP8 as isize,
    /// e2m1 with a scale for 32 channels: index keys after the Hadamard rotation.
    Fp4 = sys::FATHOM_ROW_FP4 as isize,
}

/// The shape and type of cached rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowFormat {
    /// How numbers are kept.
    pub row_type: RowType,
    /// Channels.
    pub d: usize,
    /// Rotary ones among them, the last.
    pub n_rot: usize,
}

impl RowFormat {
    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        assert!(self.d.is_multiple_of(32) && self.n_rot.is_multiple_of(2) && self.n_rot <= self.d, "{self:?}");
        // SAFETY: three numbers; nothing is read.
        #[expect(unsafe_code, reason = "a call into csrc")]
        let bytes = unsafe { sys::fathom_row_bytes(self.row_type as i32, count(self.d), count(self.n_rot)) };
        usize::try_from(bytes).expect("a size")
    }
}

/// Rows of one format, one after the other, aligned to a cache line.
#[derive(Clone)]
pub struct RowBuffer {
    format: RowFormat,
    n_rows: usize,
    memory: Vec<Line>,
}

impl RowBuffer {
    /// Rows of ones in every bit, which are NaN in all formats but FP4: what is read must have been written.
    pub fn new(format: RowFormat, n_rows: usize) -> Self {
        let bytes = format.row_bytes() * n_rows;
        RowBuffer { format, n_rows, memory: vec![Line([0xFF; 64]); bytes.div_ceil(64)] }
    }

    /// The format of its rows.
    pub fn format(&self) -> RowFormat {
        self.format
    }

    /// Number of rows.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// The bytes of all rows.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: lines are arrays of bytes without padding, and hold as many rows as `new` was asked for.
        #[expect(unsafe_code, reason = "lines as bytes")]
        unsafe {
            std::slice::from_raw_parts(self.memory.as_ptr().cast(), self.format.row_bytes() * self.n_rows)
        }
    }

    /// The bytes of one row.
    pub fn row(&self, row: usize) -> &[u8] {
        let bytes = self.format.row_bytes();
        &self.bytes()[row * bytes..][..bytes]
    }

    /// Writes one row, rounding as its type does.
    ///
    /// # Panics
    /// If there is no such row, or `x` does not have its channels.
    pub fn store(&mut self, row: usize, x: &[f32]) {
        let RowFormat { row_type, d, n_rot } = self.format;
        assert!(row < self.n_rows && x.len() == d);
        // SAFETY: `x` has d numbers, and the row lies within the memory: `row` is below their number.
        #[expect(unsafe_code, reason = "a call into csrc")]
        unsafe {
            let to = self.as_mut_ptr().cast::<u8>().add(row * self.format.row_bytes());
            sys::fathom_row_store(row_type as i32, count(d), count(n_rot), x.as_ptr(), to.cast());
        }
    }

    /// Reads one row.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn load(&self, row: usize) -> Vec<f32> {
        let RowFormat { row_type, d, n_rot } = self.format;
        let mut x = vec![0.0; d];
        let from = self.row(row);
        // SAFETY: `x` has room for d numbers; `from` is one row of this format.
        #[expect(unsafe_code, reason = "a call into csrc")]
        unsafe {
            sys::fathom_row_load(row_type as i32, count(d), count(n_rot), from.as_ptr().cast(), x.as_mut_ptr());
        }
        x
    }

    pub(super) fn as_ptr(&self) -> *const std::ffi::c_void {
        self.memory.as_ptr().cast()
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut std::ffi::c_void {
        self.memory.as_mut_ptr().cast()
    }
}

/// The compressed rows or index keys of one sequence: segments of equal, power-of-two length.
#[derive(Clone, Copy)]
pub struct Segments<'a> {
    /// In the order of rows. Sequences may share them.
    pub segments: &'a [&'a RowBuffer],
}

/// [`Segments`] of several sequences as the contracts want them; what they point to is borrowed.
pub(super) struct RowTables {
    _pointers: Vec<Vec<*mut std::ffi::c_void>>,
    tables: Vec<sys::fathom_rows>,
}

impl RowTables {
    /// Checks that sequence i has `n_rows[i]` rows of `format`.
    pub(super) fn of(sequences: &[Segments], format: RowFormat, n_rows: impl Iterator<Item = u64>) -> Self {
        let mut pointers = Vec::new();
        for (sequence, n_rows) in sequences.iter().zip(n_rows) {
            let length = segment_rows(sequence.segments.first().map(|s| s.n_rows()));
            assert!(sequence.segments.iter().all(|s| s.format() == format && s.n_rows() == length));
            assert!(n_rows <= (length * sequence.segments.len()) as u64, "rows that are not there");
            // Kernels that read only never write through these.
            pointers.push(sequence.segments.iter().map(|s| s.as_ptr().cast_mut()).collect::<Vec<_>>());
        }
        let lengths = sequences.iter().map(|s| segment_rows(s.segments.first().map(|s| s.n_rows())));
        Self::new(pointers, lengths.collect(), format)
    }

    /// The same for rows that are written.
    pub(super) fn of_mut(
        sequences: &mut [Vec<RowBuffer>],
        format: RowFormat,
        n_rows: impl Iterator<Item = u64>,
    ) -> Self {
        let mut pointers = Vec::new();
        let mut lengths = Vec::new();
        for (segments, n_rows) in sequences.iter_mut().zip(n_rows) {
            let length = segment_rows(segments.first().map(RowBuffer::n_rows));
            assert!(segments.iter().all(|s| s.format() == format && s.n_rows() == length));
            assert!(n_rows <= (length * segments.len()) as u64, "rows that are not there");
            pointers.push(segments.iter_mut().map(RowBuffer::as_mut_ptr).collect::<Vec<_>>());
            lengths.push(length);
        }
        Self::new(pointers, lengths, format)
    }

    fn new(pointers: Vec<Vec<*mut std::ffi::c_void>>, lengths: Vec<usize>, format: RowFormat) -> Self {
        let table = |(pointers, length): (&Vec<*mut std::ffi::c_void>, usize)| sys::fathom_rows {
            segments: pointers.as_ptr(),
            log2_segment_rows: length.trailing_zeros() as i32,
            row_type: format.row_type as i32,
            row_bytes: format.row_bytes() as i64,
        };
        let tables = pointers.iter().zip(lengths).map(table).collect();
        RowTables { _pointers: pointers, tables }
    }

    pub(super) fn as_ptr(&self) -> *const sys::fathom_rows {
        self.tables.as_ptr()
    }
}

fn segment_rows(first: Option<usize>) -> usize {
    let length = first.unwrap_or(1);
    assert!(length.is_power_of_two(), "segments of {length} rows");
    length
}
