//! What is decided before loading, and that loading then takes just that.

use fathom::engine::{self, Error, FlashAttention, Kind, KvType, Plan, Settings};
use fathom_gguf::File;

use super::{load, tiny_a, tiny_b};

const GIB: u64 = 1 << 30;

fn plan(settings: &Settings, available_bytes: u64) -> Result<Plan, Error> {
    engine::plan(&File::open(tiny_a()).unwrap(), Kind::Auto, settings, available_bytes)
}

/// Cache of one sequence by the model's definition, as llama.cpp rounds it: windows hold a step on top, every kind of row
/// is rounded up to 256, and the compressors' open state is F32.
fn cache_bytes(file: &File, n_ctx: u64, n_ubatch: u64, value_bytes: u64) -> u64 {
    let key = |name: &str| file.metadata().u64(&format!("deepseek4.{name}")).unwrap();
    let (width, index) = (key("attention.key_length"), key("attention.indexer.key_length"));
    let up = |rows: u64| rows.next_multiple_of(256);
    let raw = up((key("attention.sliding_window") + n_ubatch).min(n_ctx)) * width * value_bytes;
    let csa = up(n_ctx.div_ceil(4)) * (width + index) * value_bytes + 2 * 8 * 2 * (width + index) * 4;
    let hca = up(n_ctx.div_ceil(128)) * width * value_bytes + 2 * 128 * width * 4;
    let ratios = file.metadata().integers("deepseek4.attention.compress_ratios").unwrap();
    let layers = ratios.iter().take(key("block_count") as usize);
    layers
        .map(|ratio| raw + [(4, csa), (128, hca)].iter().find(|(r, _)| r == ratio).map_or(0, |(_, bytes)| *bytes))
        .sum()
}

#[test]
fn a_small_model_gets_its_trained_context_and_sixteen_sequences() {
    let settings = Settings { n_threads: 1, ..Settings::default() };
    let plan = plan(&settings, 16 * GIB).unwrap();
    assert_eq!((plan.kind, plan.architecture.as_str()), (Kind::Llama, "deepseek4"));
    assert_eq!((plan.n_ctx, plan.n_seq_max, plan.n_batch, plan.n_outputs), (4096, 16, 512, 16));
    assert!(plan.n_threads == 1 && plan.repack && plan.notes.is_empty(), "{plan}");
    let text = plan.to_string();
    assert!(text.starts_with("plan: deepseek4 on llama, 16 sequences of 4096 tokens, 512 tokens a step"), "{text}");
}

#[test]
fn the_predicted_cache_is_what_the_model_needs_and_what_is_allocated() {
    for (path, n_ctx, n_seq_max, kv_type, value_bytes) in [
        (tiny_a(), 4096, 1, KvType::F16, 2),
        (tiny_a(), 1000, 5, KvType::F32, 4),
        (tiny_b(), 70_000, 2, KvType::F16, 2),
    ] {
        let settings = Settings { n_ctx, n_seq_max, kv_type, n_threads: 1, ..Settings::default() };
        let file = File::open(path).unwrap();
        let plan = engine::plan(&file, Kind::Llama, &settings, 16 * GIB).unwrap();
        let rounded = (n_ctx as u64).next_multiple_of(256);
        let expected = cache_bytes(&file, rounded, plan.n_ubatch as u64, value_bytes) * n_seq_max as u64;
        assert_eq!(plan.memory.kv, expected, "{n_seq_max} x {n_ctx}");
        let loaded = load(path, &settings).info().memory;
        assert_eq!((plan.memory.weights, plan.memory.kv), (loaded.weights, loaded.kv));
        let off = loaded.compute.abs_diff(plan.memory.compute) as f64 / loaded.compute as f64;
        assert!(off <= 0.03, "compute: {} predicted, {} taken", plan.memory.compute, loaded.compute);
    }
}

#[test]
fn short_memory_means_fewer_sequences_then_a_shorter_context_then_an_error() {
    let file = File::open(tiny_b()).unwrap();
    let with = |available: u64| engine::plan(&file, Kind::Llama, &Settings::default(), available);
    let plenty = with(64 * GIB).unwrap();
    assert_eq!((plenty.n_ctx, plenty.n_seq_max), (1 << 20, 16));
    let some = with(6 * GIB).unwrap();
    assert_eq!(some.n_ctx, 1 << 20);
    assert!((1..16).contains(&some.n_seq_max), "{some}");
    let little = with(GIB).unwrap();
    assert!(little.n_ctx < 1 << 20 && little.n_ctx >= 256 && little.n_seq_max == 1, "{little}");
    assert!(little.notes.iter().any(|note| note.contains("the context is shorter")), "{little}");
    for plan in [&plenty, &some, &little] {
        assert!(plan.memory.total() <= plan.available_bytes, "{plan}");
    }
    let error = with(1 << 20).unwrap_err();
    assert!(matches!(error, Error::Memory { available: 0x10_0000, .. }), "{error}");
}

#[test]
fn what_is_asked_for_is_planned_or_refused() {
    let asked = Settings { n_ctx: 300, n_seq_max: 2, n_batch: 100, n_ubatch: 50, n_threads: 1, ..Settings::default() };
    let plan = plan(&asked, 16 * GIB).unwrap();
    assert_eq!((plan.n_ctx, plan.n_seq_max, plan.n_batch, plan.n_ubatch, plan.n_threads), (300, 2, 100, 50, 1));
    let applied = plan.apply(&asked);
    let again = self::plan(&applied, 16 * GIB).unwrap();
    assert_eq!(Plan { available_bytes: 0, ..again }, Plan { available_bytes: 0, ..plan });

    let long = self::plan(&Settings { n_ctx: 5000, ..Settings::default() }, 16 * GIB).unwrap();
    assert_eq!(long.n_ctx, 4096);
    assert!(long.notes[0].contains("5000 tokens of context were asked for"), "{long}");
    let wide = self::plan(&Settings { n_batch: usize::MAX, ..Settings::default() }, 16 * GIB).unwrap();
    assert_eq!((wide.n_batch, wide.n_ubatch), (8192, 8192));
    assert!(wide.notes[0].contains("tokens a step were asked for"), "{wide}");
    let unrepacked = self::plan(&Settings { repack: false, ..Settings::default() }, 16 * GIB).unwrap();
    assert!(!unrepacked.repack && unrepacked.to_string().contains("(mapped)"));

    for (settings, expected) in [
        (Settings { n_seq_max: 257, ..Settings::default() }, "hold 257 sequences, at most 256"),
        (Settings { n_threads: 513, ..Settings::default() }, "use 513 threads, at most 512"),
        (
            Settings { kv_type: KvType::Q8_0, flash_attention: FlashAttention::Off, ..Settings::default() },
            "a q8_0 cache without flash attention",
        ),
    ] {
        let error = self::plan(&settings, 16 * GIB).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }) && error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn a_load_can_be_given_up_and_reports_progress() {
    let mut fractions = Vec::new();
    let settings = Settings { n_ctx: 256, n_seq_max: 1, n_threads: 1, ..Settings::default() };
    engine::load(tiny_a(), Kind::Llama, &settings, &mut |part| {
        fractions.push(part);
        true
    })
    .unwrap();
    assert!(fractions.is_sorted() && fractions.last() == Some(&1.0), "{fractions:?}");
    let error = engine::load(tiny_a(), Kind::Llama, &settings, &mut |_| false).err().unwrap();
    assert!(matches!(error, Error::Aborted), "{error}");
}
