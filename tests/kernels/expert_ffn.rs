//! `expert_ffn` against its reference.

use fathom::kernels::{ElementType, ExpertFfn, Experts, Version, expert_ffn};
use fathom_gguf::{DType, block};

use super::{Random, assert_close};

/// An FFN with random weights of one type.
struct Ffn {
    n_embd: usize,
    n_ff: usize,
    n_used: usize,
    element_type: ElementType,
    matrices: [Vec<Vec<u8>>; 3],
}

fn encode(element_type: ElementType, values: &[f32]) -> Vec<u8> {
    let dtype = DType::from_id(element_type as u32).expect("ggml's numbers");
    let mut bytes = vec![0; dtype.row_bytes(values.len() as u64).expect("whole blocks") as usize];
    block::encode(dtype, values, &mut bytes).expect("lengths match");
    bytes
}

impl Ffn {
    fn random(
        random: &mut Random,
        element_type: ElementType,
        (n_embd, n_ff): (usize, usize),
        n_expert: usize,
        n_used: usize,
    ) -> Self {
        let mut matrices = |n: usize| -> Vec<Vec<u8>> {
            let deviation = (n as f32).sqrt().recip();
            let mut values = || random.normals(n_embd * n_ff).iter().map(|v| v * deviation).collect::<Vec<_>>();
            (0..n_expert).map(|_| encode(element_type, &values())).collect()
        };
        let matrices = [matrices(n_embd), matrices(n_embd), matrices(n_ff)];
        Ffn { n_embd, n_ff, n_used, element_type, matrices }
    }

    fn run(&self, version: Version, exact: bool, x: &[f32], ids: &[i32], weights: &[f32], nth: usize) -> Vec<f32> {
        let tables = self.matrices.each_ref().map(|m| m.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let experts = |at: usize| Experts { element_type: self.element_type, matrices: &tables[at], scales: None };
        let (gate, up, down) = (experts(0), experts(1), experts(2));
        let Ffn { n_embd, n_ff, n_used, .. } = *self;
        let input = ExpertFfn { n_embd, n_ff, n_used, exact, clamp: 10.0, gate, up, down, x, ids, weights };
        expert_ffn(version, &input, nth)
    }
}

/// `n_used` different experts for every token; about one of five is a hole.
fn routes(random: &mut Random, n_expert: usize, n_used: usize, n_tokens: usize) -> (Vec<i32>, Vec<f32>) {
    let mut ids = Vec::new();
    for _ in 0..n_tokens {
        let mut all: Vec<i32> = (0..n_expert as i32).collect();
        for _ in 0..n_used {
            let id = all.swap_remove(random.below(all.len()));
            ids.push(if random.below(5) == 0 { -1 } else { id });
        }
    }
    // A hole's weight is poison.
    let weights = ids.iter().map(|&id| if id < 0 { f32::NAN } else { random.uniform() }).collect();
    (ids, weights)
}

#[test]
fn exact_mode_equals_the_reference() {
    let random = &mut Random::new(3);
    for element_type in ElementType::ALL {
        let ffn = Ffn::random(random, element_type, (128, 64), 8, 2);
        for n_tokens in [1, 2, 7, 70] {
            let x = random.normals(128 * n_tokens);
            let (ids, weights) = routes(random, 8, 2, n_tokens);
            let expected = ffn.run(Version::Reference, true, &x, &ids, &weights, 1);
            for version in Version::kernels() {
                let found = ffn.run(version, true, &x, &ids, &weights, 2);
                // f32 products and sums of up to 128 terms.
                assert_close(&format!("{element_type:?}, {version:?}, {n_tokens} tokens"), &found, &expected, 1e-5);
            }
        }
    }
}
