//! One token from the 129 280 logits of a DeepSeek-V4 vocabulary, by the parameters that people use.
//!
//! `cargo bench --no-default-features --bench sampler`. The logits are normally distributed (standard deviation 2) with 50 likely
//! tokens on top, which hold 98 % of the probability; filters that cut at a probability take longer the flatter the row is.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use fathom::ids::TokenId;
use fathom::sampler::{Mirostat, Params, Rng, Sampler};

const N_VOCAB: usize = 129_280;

fn logits() -> Vec<f32> {
    let mut rng = Rng::new(1);
    let mut row: Vec<f32> =
        (0..N_VOCAB).map(|_| (0..12).map(|_| rng.unit()).sum::<f64>() as f32 * 2.0 - 12.0).collect();
    for rank in 0..50 {
        row[(rng.next_u64() % N_VOCAB as u64) as usize] = 18.0 - 2.0 * (1.0 + rank as f32).ln();
    }
    row
}

fn sampler(c: &mut Criterion) {
    let row = logits();
    let history: Vec<TokenId> = (0..4096).map(|i| TokenId(i * 31 % N_VOCAB as u32)).collect();
    let base = Params { seed: Some(1), ..Params::default() };
    let all = Params { top_k: 0, top_p: 1.0, ..base.clone() };
    let cases = [
        ("greedy", Params::greedy()),
        ("default: top-k 40, top-p 0.9", base.clone()),
        ("default and repeat penalty over 64", Params { repeat_penalty: 1.1, ..base.clone() }),
        ("default and repeat penalty over 4096", Params { repeat_penalty: 1.1, repeat_last_n: None, ..base.clone() }),
        ("default and 20 logprobs", Params { logprobs: Some(20), ..base.clone() }),
        ("temperature only", all.clone()),
        ("top-p 0.95 without top-k", Params { top_p: 0.95, ..all.clone() }),
        ("min-p 0.05 without top-k", Params { min_p: 0.05, ..all.clone() }),
        ("typical 0.9 without top-k", Params { typical_p: 0.9, ..all.clone() }),
        ("mirostat 2", Params { mirostat: Mirostat::V2 { tau: 5.0, eta: 0.1 }, ..base }),
    ];
    let mut group = c.benchmark_group("sampler");
    group.throughput(Throughput::Bytes(size_of_val(&row[..]) as u64));
    for (name, params) in cases {
        let mut sampler = Sampler::new(&params, N_VOCAB).expect("good parameters");
        sampler.accept(&history);
        group.bench_function(name, |b| {
            b.iter_batched_ref(
                || row.clone(),
                |row| sampler.sample(black_box(row), None).map(|choice| choice.token),
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, sampler);
criterion_main!(benches);
