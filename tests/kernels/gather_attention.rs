//! `gather_attention` against its reference.

use fathom::kernels::{
    GatherAttention, IndexTopk, Isa, Rope, RowBuffer, RowFormat, RowType, Segments, Selected, Step, Version, Workspace,
    gather_attention, gather_attention_commit, index_topk,
};

use super::{Bound, Random, assert_close, frequencies};

/// exp with a relative error of 2^-22, dot products of 512 terms, sums over up to a thousand rows, in f32.
const F32: Bound = Bound { element: 2e-5, rms: 2e-6 };
const SEGMENT: usize = 32;
const ROW_TYPES: [RowType; 3] = [RowType::F32, RowType::F16, RowType::Fp8];

/// Which compressed rows a layer has.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Sliding,
    /// ratio, rows to keep
    Csa(usize, usize),
    Hca(usize),
}

impl Kind {
    fn ratio(self) -> usize {
        match self {
            Kind::Sliding => 0,
            Kind::Csa(ratio, _) | Kind::Hca(ratio) => ratio,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Layer {
    kind: Kind,
    n_head: usize,
    n_swa: usize,
    format: RowFormat,
}

/// What one sequence has, position by position: rows, queries, and for CSA the rows that were chosen.
struct Sequence {
    kv: Vec<Vec<f32>>,
    seed: u64,
    compressed: Vec<RowBuffer>,
    top: Vec<Vec<i32>>,
}

impl Sequence {
    fn random(random: &mut Random, layer: &Layer, n_tokens: usize) -> Self {
        let format = layer.format;
        let ratio = layer.kind.ratio();
        let n_rows = n_tokens.checked_div(ratio).unwrap_or(0);
        let mut compressed = vec![RowBuffer::new(format, SEGMENT); n_rows.div_ceil(SEGMENT)];
        (0..n_rows).for_each(|row| compressed[row / SEGMENT].store(row % SEGMENT, &random.normals(format.d)));
        let mut choose = |t: usize| match layer.kind {
            Kind::Csa(ratio, top_k) => {
                let mut rows: Vec<i32> = (0..((t + 1) / ratio) as i32).collect();
                while rows.len() > top_k {
                    rows.remove(random.below(rows.len()));
                }
                rows
            }
            _ => Vec::new(),
        };
        let top = (0..n_tokens).map(&mut choose).collect();
        Sequence { kv: (0..n_tokens).map(|_| random.normals(format.d)).collect(), seed: random.bits(), compressed, top }
    }

    /// The query at position `pos`; most are never asked for.
    fn q(&self, layer: &Layer, pos: usize) -> Vec<f32> {
        Random::new(self.seed.wrapping_add(pos as u64)).normals(layer.format.d * layer.n_head)
    }

    /// The window before position `pos`.
    fn window(&self, layer: &Layer, pos: usize) -> RowBuffer {
        let mut window = RowBuffer::new(layer.format, layer.n_swa);
        (pos.saturating_sub(layer.n_swa)..pos).for_each(|p| window.store(p % layer.n_swa, &self.kv[p]));
        window
    }
}

/// One step over stretches of sequences: `(sequence, first position, tokens, window)`.
fn attend(
    version: Version,
    layer: &Layer,
    sinks: &[f32],
    runs: &[(&Sequence, usize, usize, &RowBuffer)],
    nth: usize,
) -> (Vec<f32>, Step, RowBuffer) {
    let step = Step::new(&runs.iter().map(|&(_, pos, n, _)| (pos as u64, n)).collect::<Vec<_>>());
    let tokens: Vec<_> = runs.iter().flat_map(|&(s, pos, n, _)| (pos..pos + n).map(move |p| (s, p))).collect();
    let mut kv = RowBuffer::new(layer.format, tokens.len());
    tokens.iter().enumerate().for_each(|(t, (s, p))| kv.store(t, &s.kv[*p]));
    let q = tokens.iter().flat_map(|(s, p)| s.q(layer, *p)).collect::<Vec<_>>();
    let selected = if let Kind::Csa(_, top_k) = layer.kind {
        let padded = |(s, p): &(&Sequence, usize)| {
            s.top[*p].iter().copied().chain(std::iter::repeat(-1)).take(top_k).collect::<Vec<_>>()
        };
        let n_top = tokens.iter().map(|(s, p)| s.top[*p].len() as i32).collect();
        Some(Selected { top: tokens.iter().flat_map(padded).collect(), n_top })
    } else {
        None
    };
    let pointers: Vec<Vec<&RowBuffer>> = runs.iter().map(|(s, ..)| s.compressed.iter().collect()).collect();
    let rows: Vec<_> = pointers.iter().map(|segments| Segments { segments }).collect();
    let freq = frequencies(layer.format.n_rot);
    let input = GatherAttention {
        step: &step,
        n_head: layer.n_head,
        n_swa: layer.n_swa,
        ratio: layer.kind.ratio(),
        scale: (layer.format.d as f32).sqrt().recip(),
        rope: Rope { freq: &freq },
        format: layer.format,
        q: &q,
        kv: &kv,
        sinks,
        top: selected.as_ref(),
        windows: &runs.iter().map(|&(.., window)| window).collect::<Vec<_>>(),
        rows: if layer.kind == Kind::Sliding { &[] } else { &rows },
    };
    let out = gather_attention(version, &input, nth, &mut Workspace::default());
    (out, step, kv)
}

fn layer(kind: Kind, n_head: usize, n_swa: usize, (d, n_rot): (usize, usize), row_type: RowType) -> Layer {
    Layer { kind, n_head, n_swa, format: RowFormat { row_type, d, n_rot } }
}

#[test]
fn kernels_equal_the_reference() {
    let random = &mut Random::new(1);
    for row_type in ROW_TYPES {
        for (kind, n_head, n_swa, shape) in [
            (Kind::Sliding, 8, 128, (512, 64)),
            (Kind::Csa(4, 40), 64, 128, (512, 64)),
            (Kind::Hca(16), 6, 128, (512, 64)),
            (Kind::Csa(4, 16), 4, 32, (128, 32)),
            (Kind::Hca(8), 3, 32, (96, 32)),
        ] {
            let layer = layer(kind, n_head, n_swa, shape, row_type);
            let sinks = random.normals(n_head);
            let sequences: Vec<_> = (0..4).map(|_| Sequence::random(random, &layer, 330)).collect();
            // From nothing, before the window is full, after it has wrapped, and across its end.
            let runs = [(0, 3), (20, 2), (n_swa - 1, 2), (320, 3)];
            let windows: Vec<_> = sequences.iter().zip(runs).map(|(s, (pos, _))| s.window(&layer, pos)).collect();
            let runs: Vec<_> = sequences.iter().zip(runs).zip(&windows).map(|((s, (p, n)), w)| (s, p, n, w)).collect();
            let (expected, ..) = attend(Version::Reference, &layer, &sinks, &runs, 1);
            for version in Version::kernels() {
                let (found, ..) = attend(version, &layer, &sinks, &runs, 2);
                assert_close(&format!("{version:?}, {layer:?}"), &found, &expected, F32);
            }
        }
    }
}

#[test]
fn a_token_does_not_depend_on_its_neighbours_nor_on_threads() {
    let random = &mut Random::new(2);
    for kind in [Kind::Sliding, Kind::Csa(4, 24), Kind::Hca(8)] {
        let layer = layer(kind, 10, 32, (128, 32), RowType::F16);
        let sinks = random.normals(10);
        let sequences: Vec<_> = (0..3).map(|_| Sequence::random(random, &layer, 200)).collect();
        let runs = [(0, 5), (70, 1), (150, 7)];
        let windows: Vec<_> = sequences.iter().zip(runs).map(|(s, (pos, _))| s.window(&layer, pos)).collect();
        let runs: Vec<_> = sequences.iter().zip(runs).zip(&windows).map(|((s, (p, n)), w)| (s, p, n, w)).collect();
        for version in Version::kernels() {
            let (together, ..) = attend(version, &layer, &sinks, &runs, 1);
            for nth in [2, 3, 16] {
                assert_eq!(
                    attend(version, &layer, &sinks, &runs, nth).0,
                    together,
                    "{version:?}, {kind:?}, {nth} threads"
                );
            }
            let mut alone = Vec::new();
            for &(sequence, pos, n, _) in &runs {
                for p in pos..pos + n {
                    alone
                        .extend(attend(version, &layer, &sinks, &[(sequence, p, 1, &sequence.window(&layer, p))], 2).0);
                }
            }
            assert_eq!(alone, together, "{version:?}, {kind:?}: one token at a time");
        }
    }
}

/// A prompt in chunks, with the window that `commit` leaves from one to the next.
#[test]
fn chunks_of_a_prompt_do_not_show() {
    let random = &mut Random::new(3);
    for (kind, row_type) in
        [(Kind::Sliding, RowType::Fp8), (Kind::Csa(4, 20), RowType::F16), (Kind::Hca(8), RowType::F32)]
    {
        let layer = layer(kind, 4, 32, (128, 32), row_type);
        let sinks = random.normals(4);
        let n_tokens = 600;
        let sequence = Sequence::random(random, &layer, n_tokens);
        for isa in Isa::available() {
            let run = |chunk: usize| {
                let mut windows = [RowBuffer::new(layer.format, layer.n_swa)];
                let mut out = Vec::new();
                for pos in (0..n_tokens).step_by(chunk) {
                    let n = chunk.min(n_tokens - pos);
                    let (part, step, kv) =
                        attend(Version::Kernel(isa), &layer, &sinks, &[(&sequence, pos, n, &windows[0])], 2);
                    out.extend(part);
                    gather_attention_commit(isa, &step, &kv, &mut windows, 2);
                    assert_eq!(
                        windows[0].bytes(),
                        sequence.window(&layer, pos + n).bytes(),
                        "{isa:?}: after {}",
                        pos + n
                    );
                }
                out
            };
            let whole = run(n_tokens);
            for chunk in [1, 7, 31, 32, 33, 128, 512] {
                assert!(run(chunk) == whole, "{isa:?}, {kind:?}, chunks of {chunk}");
            }
        }
    }
}

/// Chosen rows and all rows are the same walk while there are no more than top_k, and differ by one row after that.
#[test]
fn the_sparse_path_equals_a_dense_walk_around_top_k() {
    let random = &mut Random::new(4);
    let (top_k, ratio, n_index_head, n_embd) = (24, 4, 8, 64);
    for n_rows in [0, top_k - 1, top_k, top_k + 1] {
        let pos = n_rows * ratio + 1;
        let sparse = layer(Kind::Csa(ratio, top_k), 8, 32, (128, 32), RowType::F16);
        let dense = Layer { kind: Kind::Hca(ratio), ..sparse };
        let sinks = random.normals(8);
        let mut sequence = Sequence::random(random, &sparse, pos + 1);
        let window = sequence.window(&sparse, pos);
        let index = RowFormat { row_type: RowType::F16, d: n_embd, n_rot: 0 };
        let mut keys = RowBuffer::new(index, 32);
        (0..n_rows).for_each(|row| keys.store(row, &random.normals(n_embd)));
        let (q, weights) = (random.normals(n_index_head * n_embd), random.normals(n_index_head));
        let step = Step::new(&[(pos as u64, 1)]);
        let input = IndexTopk {
            step: &step,
            n_head: n_index_head,
            n_embd,
            ratio,
            top_k,
            scale: 1.0,
            q: &q,
            weights: &weights,
            key_type: RowType::F16,
            keys: &[Segments { segments: &[&keys] }],
        };
        for version in Version::kernels() {
            let selected = index_topk(version, &input, 2, &mut Workspace::default());
            let n_top = selected.n_top[0] as usize;
            assert_eq!(n_top, n_rows.min(top_k));
            sequence.top[pos] = selected.top[..n_top].to_vec();
            let run = |version, layer| attend(version, layer, &sinks, &[(&sequence, pos, 1, &window)], 1).0;
            if n_rows <= top_k {
                assert_eq!(run(version, &sparse), run(version, &dense), "{version:?}, {n_rows} rows");
            } else {
                let score = |row: usize| {
                    let key = keys.load(row);
                    let dot = |q: &[f32]| q.iter().zip(&key).map(|(a, b)| f64::from(a * b)).sum::<f64>();
                    q.chunks(n_embd).zip(&weights).map(|(q, &w)| f64::from(w) * dot(q).max(0.0)).sum::<f64>()
                };
                let worst = (0..n_rows).min_by(|&a, &b| score(a).total_cmp(&score(b))).expect("rows") as i32;
                assert!(!selected.top.contains(&worst));
                assert_close(&format!("{version:?}"), &run(version, &sparse), &run(Version::Reference, &sparse), F32);
                assert!(run(version, &sparse) != run(version, &dense), "one row less");
            }
        }
    }
}

/// One row of ones against a larger sink: the output is e^x / (1 + e^x).
#[test]
fn weights_follow_the_exponential() {
    let format = RowFormat { row_type: RowType::F32, d: 64, n_rot: 0 };
    let mut kv = RowBuffer::new(format, 1);
    kv.store(0, &[1.0; 64]);
    let window = RowBuffer::new(format, 1);
    let step = Step::new(&[(0, 1)]);
    let mut worst = 0f64;
    for version in Version::kernels() {
        for i in 0..4000 {
            let x = -0.02 * i as f32;
            let mut q = [0.0; 64];
            q[0] = x;
            let input = GatherAttention {
                step: &step,
                n_head: 1,
                n_swa: 1,
                ratio: 0,
                scale: 1.0,
                rope: Rope { freq: &[] },
                format,
                q: &q,
                kv: &kv,
                sinks: &[0.0],
                top: None,
                windows: &[&window],
                rows: &[],
            };
            let found = f64::from(gather_attention(version, &input, 1, &mut Workspace::default())[0]);
            let expected = f64::from(x).exp() / (1.0 + f64::from(x).exp());
            worst = worst.max((found / expected - 1.0).abs());
        }
    }
    // exp itself is off by less than 2^-22; a sum, a reciprocal and a product are rounded after it.
    assert!(worst < 2f64.powi(-22) + 3.0 * 2f64.powi(-24), "relative error {worst:e}");
}
