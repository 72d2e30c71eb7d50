//! `kv_compress` (`csrc/ops/kv_compress/args.h`).

use super::step::RowTables;
use super::{Rope, RowBuffer, RowFormat, Step, Version, count, run, sys};

/// Inputs of [`kv_compress`].
#[derive(Debug, Clone, Copy)]
pub struct KvCompress<'a> {
    /// The tokens.
    pub step: &'a Step,
    /// Tokens of a group.
    pub ratio: usize,
    /// Whether a row is made of two groups (CSA).
    pub overlap: bool,
    /// Whether rows are rotated by a Hadamard matrix before they are stored.
    pub hadamard: bool,
    /// Added to the mean square.
    pub eps: f32,
    /// The rotary part of a row.
    pub rope: Rope<'a>,
    /// f32 `[w, n_tokens]`, w = d or with `overlap` 2 d.
    pub u: &'a [f32],
    /// f32 `[w, n_tokens]`.
    pub z: &'a [f32],
    /// f32 `[w, ratio]`.
    pub ape: &'a [f32],
    /// f32 `[d]`.
    pub norm: &'a [f32],
    /// How rows are stored.
    pub format: RowFormat,
}

impl KvCompress<'_> {
    /// Positions that a later group may need.
    pub fn n_pending(&self) -> usize {
        self.ratio * self.parts()
    }

    fn parts(&self) -> usize {
        1 + usize::from(self.overlap)
    }
}

/// Open state of one sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct Pending {
    /// f32 `[w, n_pending]`.
    pub u: Vec<f32>,
    /// f32 `[w, n_pending]`, with `ape` added.
    pub z: Vec<f32>,
}

/// Makes the rows of all groups that the step completes and keeps what later groups need. `rows` of a sequence are segments of equal length.
///
/// # Panics
/// If a length does not fit the rest, or a row has no place.
pub fn kv_compress(
    version: Version,
    input: &KvCompress,
    pending: &mut [Pending],
    rows: &mut [Vec<RowBuffer>],
    nth: usize,
) {
    let KvCompress { step, ratio, overlap, hadamard, eps, rope, u, z, ape, norm, format } = *input;
    let d = norm.len();
    let w = d * input.parts();
    assert_eq!((format.d, format.n_rot), (d, rope.n_rot()));
    assert!(ratio > 0 && (!hadamard || d.is_power_of_two()));
    assert_eq!((u.len(), z.len(), ape.len()), (w * step.n_tokens(), w * step.n_tokens(), w * ratio));
    assert_eq!((pending.len(), rows.len()), (step.n_runs(), step.n_runs()));
    assert!(pending.iter().all(|p| p.u.len() == w * input.n_pending() && p.z.len() == w * input.n_pending()));
    let completed = step.runs().map(|(_, pos, n)| (pos + n as u64) / ratio as u64);
    let tables = RowTables::of_mut(rows, format, completed);
    let open: Vec<_> =
        pending.iter_mut().map(|p| sys::fathom_pending { u: p.u.as_mut_ptr(), z: p.z.as_mut_ptr() }).collect();
    let tokens = step.args();
    let args = sys::fathom_kv_compress_args {
        step: &raw const tokens,
        d: count(d),
        ratio: count(ratio),
        overlap: i32::from(overlap),
        n_pending: count(input.n_pending()),
        hadamard: i32::from(hadamard),
        eps,
        rope: rope.args(),
        u: u.as_ptr(),
        z: z.as_ptr(),
        ape: ape.as_ptr(),
        norm: norm.as_ptr(),
        pending: open.as_ptr(),
        rows: tables.as_ptr(),
    };
    // SAFETY: every length was compared with the sizes above, every completed row has a place in `rows`, and sequences share none
    // because they are borrowed mutably; `tokens`, `open` and `tables` live to the end.
    #[expect(unsafe_code, reason = "a call into csrc")]
    unsafe {
        match version {
            Version::Reference => sys::fathom_kv_compress_reference(&raw const args),
            Version::Kernel(isa) => {
                let table = isa.table().expect("an available set");
                run(table.kv_compress_rows, &args, nth);
                run(table.kv_compress_commit, &args, nth);
            }
        }
    }
}
