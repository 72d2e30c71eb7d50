//! The routed experts on the shapes of DeepSeek-V4-Flash, beside what the processor can do at most.
//!
//! `cargo bench --no-default-features --bench experts [-- THREADS [TYPE [SET]]]`, for example `-- 2 Mxfp4 Avx2`; default: all cores, all
//! types, the fastest set. Times are the best of several runs. Every run chooses other experts, so that no cache has them.
//! GB/s count the expert weights that are read, operations the products of the formula. With default features ggml computes the same beside
//! it, its weights as in the file and repacked.

mod support;
#[cfg(feature = "native")]
#[path = "support/ggml.rs"]
mod theirs;

use fathom::kernels::{ElementType, ExpertFfn, Experts, MoeRoute, Version, Workspace, expert_ffn, moe_route};
use fathom_gguf::{DType, block};
use support::{Random, best, row};

const N_EMBD: usize = 4096;
const N_FF: usize = 2048;
/// Of the 256 that the model has: enough to be beyond every cache.
const N_EXPERT: usize = 64;
const N_USED: usize = 6;

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

/// The same by ggml's ops.
#[cfg(feature = "native")]
fn by_ggml(weights: &Weights, nth: usize, x: &[f32], ids: &[i32], mut row: impl FnMut(&str, std::time::Duration)) {
    let n_tokens = x.len() / N_EMBD;
    let shape = theirs::Shape { n_embd: N_EMBD, n_ff: N_FF, n_expert: N_EXPERT, n_used: N_USED, n_tokens };
    // Every matrix has the same bytes.
    let stack = &weights.bytes[..weights.bytes.len() / 3];
    let shares = vec![0.25; N_USED * n_tokens];
    for (name, repack) in [("ggml", false), ("ggml, repacked", true)] {
        let dtype = weights.element_type as u32;
        let Some(mut experts) = theirs::GgmlExperts::new(&shape, dtype, [stack; 3], x, &shares, repack, nth) else {
            continue;
        };
        let mut random = Random(2);
        let shifted = || {
            let by = random.below(N_EXPERT) as i32;
            ids.iter().map(|id| (id + by) % N_EXPERT as i32).collect::<Vec<_>>()
        };
        row(&format!("{name} {:?}", weights.element_type), best(shifted, |ids| experts.run(ids)));
    }
}

fn main() {
    let (nth, words) = support::words();
    let isa = support::isa(words.get(2));
    let version = Version::Kernel(isa);
    let roof = support::roof(isa, nth);

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
            #[cfg(feature = "native")]
            if k == N_USED {
                by_ggml(&weights, nth, &x, &ids, |name, time| row(name, n_tokens, time, ops, bytes, &roof, floats));
            }
        }
    }
}
