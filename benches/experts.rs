//! The routed experts on the shapes of DeepSeek-V4-Flash, beside what the processor can do at most.
//!
//! `cargo bench --no-default-features --bench experts [-- THREADS [TYPE [SET]]]`, for example `-- 2 Mxfp4 Avx2`; default: all cores, all
//! types, the fastest set. Times are the best of several runs. Every run chooses other experts, so that no cache has them.
//! GB/s count the expert weights that are read, operations the products of the formula.

use std::time::{Duration, Instant};

use fathom::kernels::{
    ElementType, ExpertFfn, Experts, Isa, MoeRoute, Roof, Version, Workspace, expert_ffn, moe_route,
};
use fathom_gguf::{DType, block};

const N_EMBD: usize = 4096;
const N_FF: usize = 2048;
/// Of the 256 that the model has: enough to be beyond every cache.
const N_EXPERT: usize = 64;
const N_USED: usize = 6;

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }

    fn numbers(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.below(2001) as f32 / 1000.0 - 1.0).collect()
    }
}

/// All matrices of one type: the values do not matter for speed, so that every matrix is the same block, repeated.
struct Weights {
    element_type: ElementType,
    bytes: Vec<u8>,
}

impl Weights {
    fn new(random: &mut Random, element_type: ElementType) -> Self {
        let dtype = DType::from_id(element_type as u32).expect("ggml's numbers");
        let mut row = vec![0; element_type.row_bytes(N_EMBD)];
        block::encode(dtype, &random.numbers(N_EMBD), &mut row).expect("lengths match");
        let bytes = row.repeat(3 * N_EXPERT * N_FF);
        Weights { element_type, bytes }
    }

    fn matrix_bytes(&self) -> usize {
        self.element_type.row_bytes(N_EMBD) * N_FF
    }

    /// Gate, up or down of every expert: matrix after matrix, as in a cache of experts.
    fn matrices(&self, which: usize) -> Vec<&[u8]> {
        self.bytes.chunks_exact(self.matrix_bytes()).skip(which).step_by(3).collect()
    }
}

/// Best of at least ten runs and two seconds; `prepare` is not timed.
fn best<T>(mut prepare: impl FnMut() -> T, mut run: impl FnMut(&T)) -> Duration {
    let start = Instant::now();
    let mut best = Duration::MAX;
    for i in 0.. {
        let input = prepare();
        let one = Instant::now();
        run(&input);
        best = best.min(one.elapsed());
        if i >= 9 && start.elapsed() > Duration::from_secs(2) {
            break;
        }
    }
    best
}

/// Experts of every token, all different, the first `k` of `N_USED` slots; the others are holes.
fn routes(random: &mut Random, n_tokens: usize, k: usize) -> Vec<i32> {
    let mut ids = vec![-1; N_USED * n_tokens];
    for slots in ids.chunks_exact_mut(N_USED) {
        let first = random.below(N_EXPERT);
        let step = 2 * random.below(N_EXPERT / 2) + 1; // odd: a walk that meets every expert of a power of two
        (0..k).for_each(|j| slots[j] = ((first + j * step) % N_EXPERT) as i32);
    }
    ids
}

fn row(name: &str, n_tokens: usize, time: Duration, ops: f64, bytes: f64, roof: &Roof, floats: bool) {
    let seconds = time.as_secs_f64();
    let most = if floats { roof.flops } else { roof.byte_ops };
    println!(
        "| {name} | {n_tokens} | {:.0} | {:.1} | {:.0} % | {:.1} | {:.0} % |",
        1e6 * seconds,
        1e-9 * ops / seconds,
        100.0 * ops / seconds / most,
        1e-9 * bytes / seconds,
        100.0 * bytes / seconds / roof.read_bytes
    );
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let nth = words.first().map_or(cores, |word| word.parse().expect("a number of threads"));
    let named = |isa: &Isa| words.get(2).is_none_or(|word| *word == format!("{isa:?}"));
    let isa = Isa::available().filter(named).last().expect("an instruction set of this processor");
    let version = Version::Kernel(isa);
    let roof = Roof::measure(isa, nth);
    println!(
        "{isa:?}, {nth} threads: {:.1} GFLOP/s in float32, {:.1} Gop/s in bytes, {:.1} GB/s read\n",
        1e-9 * roof.flops,
        1e-9 * roof.byte_ops,
        1e-9 * roof.read_bytes
    );
    println!("| op | tokens | us | Gop/s | of the roof | GB/s | of the roof |\n|---|---|---|---|---|---|---|");

    let random = &mut Random(1);
    let (n_expert, logits) = (256, random.numbers(256));
    let time = best(
        || (),
        |()| {
            let input = MoeRoute {
                n_expert,
                n_used: N_USED,
                scale: 1.5,
                logits: &logits,
                bias: None,
                table: None,
                routing: &[],
            };
            moe_route(version, &input, 1);
        },
    );
    // A softplus and a root, counted as one operation each.
    row("moe_route", 1, time, 2.0 * n_expert as f64, 4.0 * n_expert as f64, &roof, true);

    for element_type in ElementType::ALL {
        if words.get(1).is_some_and(|word| *word != format!("{element_type:?}")) {
            continue;
        }
        let weights = Weights::new(random, element_type);
        let tables = [0, 1, 2].map(|which| weights.matrices(which));
        let experts = |which: usize| Experts { element_type, matrices: &tables[which], scales: None };
        let mut workspace = Workspace::default();
        for (n_tokens, k) in [(1, 6), (1, 5), (1, 4), (1, 3), (4, 6), (16, 6), (128, 6), (512, 6)] {
            let (x, shares) = (random.numbers(N_EMBD * n_tokens), vec![0.25; N_USED * n_tokens]);
            let ids = routes(random, n_tokens, k);
            let mut n_experts: Vec<i32> = ids.iter().copied().filter(|&id| id >= 0).collect();
            n_experts.sort_unstable();
            n_experts.dedup();
            // The same experts shifted: as many of them, but others.
            let shifted = || {
                let by = random.below(N_EXPERT);
                ids.iter().map(|&id| if id < 0 { id } else { (id + by as i32) % N_EXPERT as i32 }).collect::<Vec<_>>()
            };
            let time = best(shifted, |ids| {
                let input = ExpertFfn {
                    n_embd: N_EMBD,
                    n_ff: N_FF,
                    n_used: N_USED,
                    exact: false,
                    clamp: 10.0,
                    gate: experts(0),
                    up: experts(1),
                    down: experts(2),
                    x: &x,
                    ids,
                    weights: &shares,
                };
                expert_ffn(version, &input, nth, &mut workspace);
            });
            let ops = 6.0 * (N_EMBD * N_FF * k * n_tokens) as f64;
            let bytes = (3 * weights.matrix_bytes() * n_experts.len()) as f64;
            let floats = element_type.block().0 == 1;
            row(&format!("expert_ffn {element_type:?}, k = {k}"), n_tokens, time, ops, bytes, &roof, floats);
        }
    }
}
