//! The attention ops on the shapes of DeepSeek-V4-Flash, beside what the processor can do at most.
//!
//! `cargo bench --no-default-features --bench attention [-- THREADS [OP]]`; default: all cores, all ops. Times are the best of several
//! runs, for one token. FLOP/s count the work that the formula asks for, so that scores in bytes can exceed the roof of float32;
//! GB/s count the cached rows that are read.

use std::time::{Duration, Instant};

use fathom::kernels::{
    GatherAttention, IndexTopk, Isa, KvCompress, NormRope, Pending, Roof, Rope, RowBuffer, RowFormat, RowType,
    Segments, Selected, Step, Version, Workspace, gather_attention, index_topk, kv_compress, norm_rope,
};

const N_HEAD: usize = 64;
const D: usize = 512;
const N_ROT: usize = 64;
const N_SWA: usize = 128;
const TOP_K: usize = 512;
const INDEX_HEADS: usize = 64;
const INDEX_D: usize = 128;
const SEGMENT: usize = 1024;

/// Numbers between -1 and 1, about normal.
struct Random(u64);

impl Random {
    fn uniform(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn numbers(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.uniform() + self.uniform() + self.uniform()).collect()
    }

    fn rows(&mut self, format: RowFormat, n_rows: usize) -> RowBuffer {
        let mut rows = RowBuffer::new(format, n_rows);
        (0..n_rows).for_each(|row| rows.store(row, &self.numbers(format.d)));
        rows
    }
}

struct Bench {
    version: Version,
    nth: usize,
    roof: Roof,
    random: Random,
    workspace: Workspace,
}

/// Best of at least five runs and half a second.
fn best(mut run: impl FnMut()) -> Duration {
    let start = Instant::now();
    let mut best = Duration::MAX;
    for i in 0.. {
        let one = Instant::now();
        run();
        best = best.min(one.elapsed());
        if i >= 4 && start.elapsed() > Duration::from_millis(500) {
            break;
        }
    }
    best
}

impl Bench {
    fn row(&self, name: &str, n_tokens: usize, flop: f64, bytes: f64, time: Duration) {
        let seconds = time.as_secs_f64();
        println!(
            "| {name} | {n_tokens} | {:.1} | {:.1} | {:.0} % | {:.2} | {:.0} % |",
            1e6 * seconds / n_tokens as f64,
            1e-9 * flop / seconds,
            100.0 * flop / seconds / self.roof.flops,
            1e-9 * bytes / seconds,
            100.0 * bytes / seconds / self.roof.read_bytes,
        );
    }

    fn index_topk(&mut self) {
        for key_type in [RowType::F16, RowType::Fp4, RowType::F32] {
            let format = RowFormat { row_type: key_type, d: INDEX_D, n_rot: 0 };
            let keys: Vec<_> = (0..32).map(|_| self.random.rows(format, SEGMENT)).collect();
            let pointers: Vec<_> = keys.iter().collect();
            for (n_rows, n_tokens) in [(1024, 1), (4096, 1), (16384, 1), (32768, 1), (4096, 512), (32768, 64)] {
                let step = Step::new(&[((4 * n_rows - n_tokens) as u64, n_tokens)]);
                let q = self.random.numbers(INDEX_D * INDEX_HEADS * n_tokens);
                let weights = self.random.numbers(INDEX_HEADS * n_tokens);
                let keys = [Segments { segments: &pointers }];
                let input = IndexTopk {
                    step: &step,
                    n_head: INDEX_HEADS,
                    n_embd: INDEX_D,
                    ratio: 4,
                    top_k: TOP_K,
                    scale: 0.01,
                    q: &q,
                    weights: &weights,
                    key_type,
                    keys: &keys,
                };
                let time = best(|| {
                    index_topk(self.version, &input, self.nth, &mut self.workspace);
                });
                let scored = (n_rows * n_tokens) as f64;
                let flop = 2.0 * scored * (INDEX_HEADS * INDEX_D) as f64;
                self.row(
                    &format!("index_topk {key_type:?}, {n_rows} rows"),
                    n_tokens,
                    flop,
                    scored * format.row_bytes() as f64,
                    time,
                );
            }
        }
    }

    fn gather_attention(&mut self) {
        let freq = vec![0.01; N_ROT / 2];
        for row_type in [RowType::F16, RowType::Fp8, RowType::F32] {
            let format = RowFormat { row_type, d: D, n_rot: N_ROT };
            let segments: Vec<_> = (0..32).map(|_| self.random.rows(format, SEGMENT)).collect();
            let pointers: Vec<_> = segments.iter().collect();
            let window = self.random.rows(format, N_SWA);
            // (name, tokens of a group, compressed rows, whether they are chosen)
            for (name, ratio, n_rows, chosen) in [
                ("window", 0, 0, false),
                ("CSA at 128k", 4, 32768, true),
                ("HCA at 16k", 128, 128, false),
                ("HCA at 128k", 128, 1024, false),
            ] {
                for n_tokens in [1, 64] {
                    let pos = if ratio == 0 { 1000 } else { ratio * n_rows - n_tokens };
                    let step = Step::new(&[(pos as u64, n_tokens)]);
                    let q = self.random.numbers(D * N_HEAD * n_tokens);
                    let kv = self.random.rows(format, n_tokens);
                    let visible = |t: usize| (pos + t + 1).checked_div(ratio).unwrap_or(0);
                    let spread = |t: usize| (0..TOP_K).map(move |i| (i * visible(t) / TOP_K) as i32);
                    let top =
                        Selected { top: (0..n_tokens).flat_map(spread).collect(), n_top: vec![TOP_K as i32; n_tokens] };
                    let input = GatherAttention {
                        step: &step,
                        n_head: N_HEAD,
                        n_swa: N_SWA,
                        ratio,
                        scale: 0.05,
                        rope: Rope { freq: &freq },
                        format,
                        q: &q,
                        kv: &kv,
                        sinks: &[0.0; N_HEAD],
                        top: chosen.then_some(&top),
                        windows: &[&window],
                        rows: if ratio == 0 { &[] } else { &[Segments { segments: &pointers }] },
                    };
                    let time = best(|| {
                        gather_attention(self.version, &input, self.nth, &mut self.workspace);
                    });
                    let attended = |t| N_SWA + if chosen { TOP_K } else { visible(t) };
                    let attended = (0..n_tokens).map(attended).sum::<usize>() as f64;
                    let flop = 4.0 * attended * (N_HEAD * D) as f64;
                    let bytes = attended * format.row_bytes() as f64;
                    self.row(&format!("gather_attention {row_type:?}, {name}"), n_tokens, flop, bytes, time);
                }
            }
        }
    }

    fn norm_rope(&mut self) {
        let freq = vec![0.01; N_ROT / 2];
        for n_tokens in [1, 64] {
            let step = Step::new(&[(1000, n_tokens)]);
            let x = self.random.numbers(D * N_HEAD * n_tokens);
            let rope = Rope { freq: &freq };
            let input = NormRope {
                step: &step,
                n_head: N_HEAD,
                eps: Some(1e-6),
                rope,
                x: &x,
                weight: None,
                row_type: RowType::F32,
            };
            let time = best(|| {
                norm_rope(self.version, &input, self.nth);
            });
            let bytes = 2.0 * size_of_val(&x[..]) as f64;
            self.row("norm_rope, queries", n_tokens, 3.0 * x.len() as f64, bytes, time);
        }
    }

    fn kv_compress(&mut self) {
        let freq = vec![0.01; N_ROT / 2];
        for (name, ratio, overlap, d, row_type) in [
            ("CSA rows", 4, true, D, RowType::F16),
            ("HCA rows", 128, false, D, RowType::F16),
            ("index keys", 4, true, INDEX_D, RowType::Fp4),
        ] {
            let n_tokens = 512;
            let w = d * (1 + usize::from(overlap));
            let step = Step::new(&[(0, n_tokens)]);
            let (u, z) = (self.random.numbers(w * n_tokens), self.random.numbers(w * n_tokens));
            let (ape, norm) = (self.random.numbers(w * ratio), self.random.numbers(d));
            let format = RowFormat { row_type, d, n_rot: N_ROT };
            let input = KvCompress {
                step: &step,
                ratio,
                overlap,
                hadamard: row_type == RowType::Fp4,
                eps: 1e-6,
                rope: Rope { freq: &freq },
                u: &u,
                z: &z,
                ape: &ape,
                norm: &norm,
                format,
            };
            let open = vec![0.0; w * input.n_pending()];
            let mut pending = [Pending { u: open.clone(), z: open }];
            let mut rows = [vec![RowBuffer::new(format, 128)]];
            let time = best(|| kv_compress(self.version, &input, &mut pending, &mut rows, self.nth));
            let slots = (n_tokens * w) as f64;
            // exp counts as one operation: what it takes is the kernel's affair.
            self.row(&format!("kv_compress, {name}"), n_tokens, 5.0 * slots, 8.0 * slots, time);
        }
    }
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let nth = words.first().map_or(cores, |word| word.parse().expect("a number of threads"));
    let isa = Isa::in_use();
    let roof = Roof::measure(isa, nth);
    println!(
        "{isa:?}, {nth} threads: {:.1} GFLOP/s in float32, {:.1} Gop/s in bytes, {:.1} GB/s read\n",
        1e-9 * roof.flops,
        1e-9 * roof.byte_ops,
        1e-9 * roof.read_bytes
    );
    println!("| op | tokens | us/token | GFLOP/s | of the roof | GB/s | of the roof |\n|---|---|---|---|---|---|---|");
    let mut bench =
        Bench { version: Version::Kernel(isa), nth, roof, random: Random(1), workspace: Workspace::default() };
    type Op = fn(&mut Bench);
    let ops: [(&str, Op); 4] = [
        ("norm_rope", Bench::norm_rope),
        ("kv_compress", Bench::kv_compress),
        ("index_topk", Bench::index_topk),
        ("gather_attention", Bench::gather_attention),
    ];
    for (name, run) in ops {
        if words.get(1).is_none_or(|word| word == name) {
            run(&mut bench);
        }
    }
}
