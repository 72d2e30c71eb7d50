//! `gather_attention` (`csrc/ops/gather_attention/args.h`).

use super::step::RowTables;
use super::{Isa, Rope, RowBuffer, RowFormat, Segments, Selected, Step, Version, Workspace, count, or_null, run, sys};

/// Inputs of [`gather_attention`].
#[derive(Clone, Copy)]
pub struct GatherAttention<'a> {
    /// The tokens.
    pub step: &'a Step,
    /// Query heads.
    pub n_head: usize,
    /// Rows of the window.
    pub n_swa: usize,
    /// Tokens of a compressed row's group; 0: there are no such rows.
    pub ratio: usize,
    /// Factor of all logits.
    pub scale: f32,
    /// The rotary part of a head.
    pub rope: Rope<'a>,
    /// How rows are stored.
    pub format: RowFormat,
    /// f32 `[d, n_head, n_tokens]`.
    pub q: &'a [f32],
    /// One row for each token.
    pub kv: &'a RowBuffer,
    /// f32 `[n_head]`.
    pub sinks: &'a [f32],
    /// Chosen compressed rows; `None`: all that are visible.
    pub top: Option<&'a Selected>,
    /// Window of every stretch's sequence, `n_swa` rows each.
    pub windows: &'a [&'a RowBuffer],
    /// Compressed rows of every stretch's sequence; empty when `ratio` is 0.
    pub rows: &'a [Segments<'a>],
}

impl GatherAttention<'_> {
    fn check(&self) -> Option<RowTables> {
        let n_tokens = self.step.n_tokens();
        let RowFormat { d, n_rot, .. } = self.format;
        assert!(self.n_head > 0 && self.n_swa > 0 && n_rot == self.rope.n_rot());
        assert_eq!((self.q.len(), self.sinks.len()), (d * self.n_head * n_tokens, self.n_head));
        assert!(self.kv.format() == self.format && self.kv.n_rows() == n_tokens);
        assert_eq!(self.windows.len(), self.step.n_runs());
        assert!(self.windows.iter().all(|w| w.format() == self.format && w.n_rows() == self.n_swa));
        if self.ratio == 0 {
            assert!(self.rows.is_empty() && self.top.is_none());
            return None;
        }
        let visible = |pos: u64| pos / self.ratio as u64;
        if let Some(Selected { top, n_top }) = self.top {
            assert!(n_top.len() == n_tokens && top.len().is_multiple_of(n_tokens));
            for (t, (top, &n)) in top.chunks(top.len() / n_tokens).zip(n_top).enumerate() {
                let rows = 0..visible(self.step.position(t) + 1) as i64;
                let chosen = &top[..usize::try_from(n).expect("a number of rows")];
                assert!(chosen.iter().all(|&row| rows.contains(&i64::from(row))), "token {t} sees {rows:?}");
            }
        }
        assert_eq!(self.rows.len(), self.step.n_runs());
        let n_rows = self.step.runs().map(|(_, pos, n)| visible(pos + n as u64));
        Some(RowTables::of(self.rows, self.format, n_rows))
    }

    fn args(
        &self,
        tokens: &sys::fathom_step,
        windows: &[sys::fathom_window],
        tables: Option<&RowTables>,
    ) -> sys::fathom_gather_attention_args {
        sys::fathom_gather_attention_args {
            step: tokens,
            n_head: count(self.n_head),
            d: count(self.format.d),
            n_swa: count(self.n_swa),
            ratio: count(self.ratio),
            top_k: self.top.map_or(0, |s| count(s.top.len() / self.step.n_tokens())),
            row_type: self.format.row_type as i32,
            row_bytes: self.format.row_bytes() as i64,
            scale: self.scale,
            rope: self.rope.args(),
            q: self.q.as_ptr(),
            kv: self.kv.as_ptr(),
            sinks: self.sinks.as_ptr(),
            top: or_null(self.top.map(|s| &s.top[..])),
            n_top: or_null(self.top.map(|s| &s.n_top[..])),
            window: windows.as_ptr(),
            rows: tables.map_or(std::ptr::null(), RowTables::as_ptr),
            scratch: std::ptr::null_mut(),
            out: std::ptr::null_mut(),
        }
    }
}

fn window(rows: *mut std::ffi::c_void, format: RowFormat, n_slots: usize) -> sys::fathom_window {
    sys::fathom_window {
        rows,
        n_slots: count(n_slots),
        row_type: format.row_type as i32,
        row_bytes: format.row_bytes() as i64,
    }
}

/// Attention of every token: f32 `[d, n_head, n_tokens]`.
///
/// # Panics
/// If a length does not fit the rest, or a row is not visible or not there.
pub fn gather_attention(version: Version, input: &GatherAttention, nth: usize, workspace: &mut Workspace) -> Vec<f32> {
    let tables = input.check();
    let tokens = input.step.args();
    // Only commit writes to windows.
    let windows: Vec<_> =
        input.windows.iter().map(|w| window(w.as_ptr().cast_mut(), input.format, input.n_swa)).collect();
    let mut out = vec![f32::NAN; input.q.len()];
    let mut args = input.args(&tokens, &windows, tables.as_ref());
    args.out = out.as_mut_ptr();
    // SAFETY: `check` compared every length and index, scratch is as large as the kernels say; what `args` points to lives to the end.
    #[expect(unsafe_code, reason = "calls into csrc")]
    unsafe {
        match version {
            Version::Reference => sys::fathom_gather_attention_reference(&raw const args),
            Version::Kernel(isa) => {
                let table = isa.table().expect("an available set");
                let bytes = table.gather_attention_scratch_bytes.expect("every table is complete");
                args.scratch = workspace.at_least(bytes(&raw const args, count(nth)));
                run(table.gather_attention, &args, nth);
            }
        }
    }
    out
}

/// Copies the last rows of every stretch from `kv` to its window.
///
/// # Panics
/// If a window's format or length is not that of `kv` and `n_swa`.
pub fn gather_attention_commit(isa: Isa, step: &Step, kv: &RowBuffer, windows: &mut [RowBuffer], nth: usize) {
    let format = kv.format();
    let n_swa = windows.first().map_or(1, RowBuffer::n_rows);
    assert!(kv.n_rows() == step.n_tokens() && windows.len() == step.n_runs());
    assert!(windows.iter().all(|w| w.format() == format && w.n_rows() == n_swa));
    let tokens = step.args();
    let table: Vec<_> = windows.iter_mut().map(|w| window(w.as_mut_ptr(), format, n_swa)).collect();
    let input = GatherAttention {
        step,
        n_head: 0,
        n_swa,
        ratio: 0,
        scale: 0.0,
        rope: Rope { freq: &[] },
        format,
        q: &[],
        kv,
        sinks: &[],
        top: None,
        windows: &[],
        rows: &[],
    };
    let args = input.args(&tokens, &table, None);
    // SAFETY: commit reads the step, `kv` and the windows only, whose lengths were compared; windows are borrowed mutably.
    #[expect(unsafe_code, reason = "a call into csrc")]
    unsafe {
        run(isa.table().expect("an available set").gather_attention_commit, &args, nth);
    }
}
