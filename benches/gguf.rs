//! Opening a file with the vocabulary of DeepSeek-V4, and the block codecs in GB/s of `f32`.
//!
//! `cargo bench --no-default-features --bench gguf`

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fathom_gguf::{DType, File, Metadata, Strings, TensorInfo, block, write_file};

/// Tokens and merges of DeepSeek-V4, and bytes of its tokenizer.json, which our converter keeps verbatim.
const N_VOCAB: usize = 129_280;
const N_MERGES: usize = 127_741;
const TOKENIZER_JSON_BYTES: usize = 7_850_000;
/// About the tensors of V4-Flash: 43 layers of 31.
const N_TENSORS: usize = 43 * 31 + 6;

fn metadata() -> Metadata {
    let tokens: Strings = (0..N_VOCAB).map(|id| format!("Ġ{id:x}")).collect();
    let merges: Strings = (0..N_MERGES).map(|id| format!("Ġ{:x} {:x}", id, id % 977)).collect();
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture", "deepseek4");
    metadata.insert("tokenizer.ggml.tokens", tokens);
    metadata.insert("tokenizer.ggml.token_type", vec![1i32; N_VOCAB]);
    metadata.insert("tokenizer.ggml.merges", merges);
    metadata.insert("tokenizer.huggingface.json", "{\"ä\": 1} ".repeat(TOKENIZER_JSON_BYTES / 10));
    metadata
}

fn open(c: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("vocabulary.gguf");
    let tensor =
        |at| (TensorInfo::new(format!("blk.{at}.ffn_gate_exps.weight"), DType::F32, [8]).expect("valid"), [0u8; 32]);
    write_file(&path, metadata(), &(0..N_TENSORS).map(tensor).collect::<Vec<_>>()).expect("written");

    let bytes = std::fs::metadata(&path).expect("written").len();
    let mut group = c.benchmark_group("open");
    group.throughput(Throughput::BytesDecimal(bytes));
    group.bench_function("vocabulary of 129280", |b| b.iter(|| File::open(&path).expect("valid")));
    // The roof: the same bytes copied out of the page cache once, without looking at them.
    group.bench_function("only read the bytes", |b| b.iter(|| std::fs::read(&path).expect("readable")));
    group.finish();
}

fn codecs(c: &mut Criterion) {
    let n = 1 << 20;
    let values: Vec<f32> =
        (0..n).map(|at| ((at as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / 8388608.0 - 1.0).collect();
    for dtype in DType::all().filter(|&dtype| block::supported(dtype)) {
        let mut bytes = vec![0u8; dtype.row_bytes(n as u64).expect("whole blocks") as usize];
        let mut group = c.benchmark_group(dtype.name());
        group.throughput(Throughput::BytesDecimal(4 * n as u64));
        group.bench_with_input(BenchmarkId::from_parameter("encode"), &values, |b, values| {
            b.iter(|| block::encode(dtype, black_box(values), &mut bytes).expect("lengths match"));
        });
        let mut out = vec![0f32; n];
        group.bench_with_input(BenchmarkId::from_parameter("decode"), &bytes, |b, bytes| {
            b.iter(|| block::decode(dtype, black_box(bytes), &mut out).expect("lengths match"));
        });
        group.finish();
    }
}

criterion_group!(benches, open, codecs);
criterion_main!(benches);
