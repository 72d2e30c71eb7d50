//! What a sequence keeps between steps: for each layer a window, and for CSA and HCA layers compressed rows with the compressor's
//! open state, for CSA layers also the indexer's keys with theirs. Source: deepseek-v4.md section 7.
//!
//! Rows lie in segments that stand for [`SEGMENT_TOKENS`] tokens. A full segment is never written again, so forks and snapshots share
//! it; they copy only windows and open states (and the segment that is still open, once one of the two writes it).

mod snapshot;
mod state;

pub use snapshot::Snapshot;
pub use state::{read, write};

use super::hparams::{Hparams, LayerKind};
use crate::engine::{Error, KvType};
use crate::ggml::cache::{Compressed, Pending, Rows, Window};
use crate::ggml::{LayerCache, RowType};

/// Tokens of one segment: of CSA rows it holds 256, of HCA rows 8.
pub const SEGMENT_TOKENS: usize = 1024;

/// The kinds and sizes of a model's caches.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    layers: Vec<LayerLayout>,
    pub row_type: RowType,
    pub key_type: RowType,
    n_swa: usize,
    row_bytes: usize,
    key_bytes: usize,
    width: usize,
    key_width: usize,
    n_rot: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct LayerLayout {
    kind: LayerKind,
}

impl LayerLayout {
    /// Channels of `u` and `z` over `d`, and how many positions are kept open.
    fn pending(self) -> (usize, usize) {
        match self.kind {
            LayerKind::Sliding => (0, 0),
            LayerKind::Csa => (2, 2 * self.kind.ratio()),
            LayerKind::Hca => (1, self.kind.ratio()),
        }
    }

    fn log2_segment_rows(self) -> u32 {
        (SEGMENT_TOKENS / self.kind.ratio().max(1)).ilog2()
    }
}

impl Layout {
    /// # Errors
    /// [`Error::Unsupported`] for a type that rows of this model cannot have.
    pub fn new(hparams: &Hparams, kv_type: KvType) -> Result<Layout, Error> {
        let unsupported = |what: String| Error::Unsupported { engine: super::NAME, what };
        let (row_type, key_type) = match kv_type {
            KvType::F32 => (RowType::F32, RowType::F32),
            KvType::F16 => (RowType::F16, RowType::F16),
            // Keys are rotated and rounded as the released runtime rounds them.
            KvType::Fp8 => (RowType::Fp8, RowType::Fp4),
            KvType::Q8_0 | KvType::Q4_0 => {
                return Err(unsupported(format!("keep a {kv_type} cache: it has f16, f32 and fp8")));
            }
        };
        let (d, width, n_rot) = (hparams.n_embd_head, hparams.index_width, hparams.n_rot);
        let bytes = |row_type: RowType, d: usize| {
            row_type.row_bytes(d, n_rot).ok_or_else(|| unsupported(format!("keep rows of {d} channels as {kv_type}")))
        };
        if key_type == RowType::Fp4 && !width.is_power_of_two() {
            return Err(unsupported(format!("rotate index keys of {width} channels for an fp8 cache")));
        }
        Ok(Layout {
            layers: hparams.layers.iter().map(|layer| LayerLayout { kind: layer.kind }).collect(),
            row_type,
            key_type,
            n_swa: hparams.n_swa,
            row_bytes: bytes(row_type, d)?,
            key_bytes: bytes(key_type, width)?,
            width: d,
            key_width: width,
            n_rot,
        })
    }

    /// Bytes of one sequence of `n_ctx` tokens.
    pub fn bytes(&self, n_ctx: usize) -> u64 {
        let segments = n_ctx.div_ceil(SEGMENT_TOKENS) as u64;
        let rows = |layer: &LayerLayout| {
            let bytes = match layer.kind {
                LayerKind::Sliding => 0,
                LayerKind::Csa => self.row_bytes + self.key_bytes,
                LayerKind::Hca => self.row_bytes,
            };
            ((bytes << layer.log2_segment_rows()) as u64).saturating_mul(segments)
        };
        self.layers.iter().map(rows).sum::<u64>() + self.fixed_bytes() as u64
    }

    /// Bytes of windows and open states: what a snapshot copies.
    pub fn fixed_bytes(&self) -> usize {
        let of = |layer: &LayerLayout| {
            let (halves, slots) = layer.pending();
            let keys = if layer.kind == LayerKind::Csa { self.key_width } else { 0 };
            self.n_swa * self.row_bytes + halves * slots * 2 * 4 * (self.width + keys)
        };
        self.layers.iter().map(of).sum()
    }

    /// Everything that a saved state depends on beside the model.
    pub fn describe(&self) -> String {
        format!("{:?} {:?} {} {} {}", self.row_type, self.key_type, self.n_swa, self.row_bytes, self.key_bytes)
    }

    fn layer(&self, layer: LayerLayout) -> LayerCache {
        let (halves, slots) = layer.pending();
        let compressed = |row_type, row_bytes, d: usize| Compressed {
            rows: Rows::new(row_type, row_bytes, layer.log2_segment_rows()),
            pending: Pending::new(halves * d, slots),
        };
        let has_rows = layer.kind != LayerKind::Sliding;
        LayerCache {
            window: Window::new(self.n_swa, self.row_type, self.row_bytes),
            compressed: has_rows.then(|| compressed(self.row_type, self.row_bytes, self.width)),
            index: (layer.kind == LayerKind::Csa).then(|| compressed(self.key_type, self.key_bytes, self.key_width)),
        }
    }
}

/// The cache of one sequence.
pub struct Cache {
    /// One entry per layer.
    pub layers: Vec<LayerCache>,
    layout: Layout,
}

impl Cache {
    pub fn new(layout: &Layout) -> Cache {
        Cache { layers: layout.layers.iter().map(|&layer| layout.layer(layer)).collect(), layout: layout.clone() }
    }

    /// Room for every row of the tokens before position `end`.
    pub fn reserve(&mut self, end: u64) {
        self.each_rows(|rows, ratio| rows.reserve((end / ratio as u64) as usize));
    }

    /// Tokens up to position `end` are computed now.
    pub fn advance(&mut self, end: u64) {
        self.each_rows(|rows, ratio| rows.set_len((end / ratio as u64) as usize));
    }

    /// As if everything before `end` had been computed: rows of random numbers, each in its own memory. For benchmarks at a depth that
    /// takes too long to fill.
    pub fn jump(&mut self, end: u64) {
        let n_rot = self.layout.n_rot;
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        self.each_rows(|rows, ratio| {
            let rows_end = (end / ratio as u64) as usize;
            rows.reserve(rows_end);
            let row_type = rows.row_type();
            for index in 0..rows_end {
                if let Some(row) = rows.row_mut(index) {
                    fill(row, row_type, n_rot, &mut state);
                }
            }
            rows.set_len(rows_end);
        });
    }

    /// Bytes of this sequence's rows, shared or not, windows and open states.
    pub fn bytes(&self) -> usize {
        let rows = |side: &Option<Compressed>| side.as_ref().map_or(0, |side| side.rows.allocated_bytes());
        let rows: usize = self.layers.iter().map(|layer| rows(&layer.compressed) + rows(&layer.index)).sum();
        rows + self.layout.fixed_bytes()
    }

    fn each_rows(&mut self, mut each: impl FnMut(&mut Rows, usize)) {
        for (layer, layout) in self.layers.iter_mut().zip(&self.layout.layers) {
            for side in [&mut layer.compressed, &mut layer.index].into_iter().flatten() {
                each(&mut side.rows, layout.kind.ratio());
            }
        }
    }
}

/// Random finite numbers of magnitude around 1 in a row's own format.
fn fill(row: &mut [u8], row_type: RowType, n_rot: usize, state: &mut u64) {
    let mut random = || {
        // xorshift64
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    };
    // Sign and mantissa as they come, exponents of 0.5 to 2.
    let f16 = |bits: u64| ((bits as u16) & 0x83ff) | (0x3800 + ((bits >> 16) as u16 & 0x0400));
    let bf16 = |bits: u64| ((bits as u16) & 0x807f) | (0x3f00 + ((bits >> 16) as u16 & 0x0080));
    match row_type {
        RowType::F32 => {
            for value in row.as_chunks_mut::<4>().0 {
                *value = (u32::from(bf16(random())) << 16).to_le_bytes();
            }
        }
        RowType::F16 => {
            for value in row.as_chunks_mut::<2>().0 {
                *value = f16(random()).to_le_bytes();
            }
        }
        RowType::Fp8 => {
            let (plain, rotary) = row.split_at_mut(row.len() - 2 * n_rot);
            // e4m3 of any sign with exponents of 0.5 and 1, then scales of 1; a scale byte read as a number would be harmless too.
            plain.fill_with(|| (random() as u8 & 0x87) | 0x30);
            let n_groups = (1..).find(|n: &usize| plain.len() <= n * 64 + n.next_multiple_of(2)).unwrap_or(1);
            let scales = plain.len() - n_groups.next_multiple_of(2);
            plain[scales..].fill(127);
            for value in rotary.as_chunks_mut::<2>().0 {
                *value = bf16(random()).to_le_bytes();
            }
        }
        RowType::Fp4 => {
            let codes = row.len() / 17 * 16;
            row[..codes].fill_with(|| random() as u8);
            row[codes..].fill(126);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumped_rows_are_finite_numbers() {
        let mut state = 1;
        let mut row = vec![0; 1024];
        fill(&mut row, RowType::F16, 64, &mut state);
        for value in row.as_chunks::<2>().0 {
            let value = half::f16::from_le_bytes(*value).to_f32().abs();
            assert!((0.5..2.0).contains(&value), "{value}");
        }
        let mut row = vec![0; 584];
        fill(&mut row, RowType::Fp8, 64, &mut state);
        assert!(row[..448].iter().all(|byte| byte & 0x7f < 0x40), "e4m3 below 2");
        assert_eq!(row[448..456], [127; 8], "seven scales and a byte of padding");
    }
}
