//! Files that are wrong: every one is an error with a reason, whatever is wrong with it; none ends the process.

use fathom::engine::{self, Batch, Error, Kind, Outputs, Settings};
use fathom_gguf::{Array, DType, File, Metadata, TensorInfo, Value};

use super::super::{scratch, text, tiny_a, tiny_b, tokens};

/// Changes of one file.
struct Changed {
    metadata: Metadata,
    tensors: Vec<(TensorInfo, Vec<u8>)>,
}

impl Changed {
    fn of(file: &File) -> Changed {
        let copy =
            |t: &TensorInfo| (TensorInfo::new(t.name.clone(), t.dtype, t.ne.clone()).unwrap(), file.data(t).to_vec());
        Changed { metadata: slim(file.metadata()), tensors: file.tensors().iter().map(copy).collect() }
    }

    fn file(self) -> File {
        let mut bytes = Vec::new();
        fathom_gguf::write_to(&mut bytes, self.metadata, &self.tensors).unwrap().unwrap();
        File::from_bytes(bytes).unwrap()
    }
}

/// Without the vocabulary and what `export` needs, which this engine does not read.
fn slim(metadata: &Metadata) -> Metadata {
    let mut kept = Metadata::new();
    for (key, value) in metadata.iter().filter(|(key, _)| !key.starts_with("fathom.") && !key.starts_with("tokenizer."))
    {
        kept.insert(key, value.clone());
    }
    kept
}

/// Plans, loads and computes a few tokens. Gives the error of the first that refuses.
fn try_run(file: File) -> Result<(), Error> {
    let settings = Settings { n_ctx: 64, n_seq_max: 1, n_batch: 8, n_threads: 1, ..Settings::default() };
    let plan = engine::plan(&file, Kind::Native, &settings, 8 << 30)?;
    let mut engine = engine::native::Native::load(file, &plan.apply(&settings), &mut |_| true)?;
    let engine: &mut dyn engine::Engine = &mut engine;
    let ids = text(5, engine.info().n_vocab);
    let mut batch = Batch { tokens: tokens(0, 0, &ids) };
    batch.tokens.iter_mut().take(4).for_each(|token| token.output = None);
    engine.step(&batch, &mut Outputs::default())?;
    Ok(())
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

/// Numbers that break arithmetic somewhere.
const NUMBERS: [u32; 14] = [0, 1, 2, 3, 4, 5, 31, 33, 127, 128, 65_537, 0x7fff_ffff, 0x8000_0000, u32::MAX];

fn value(random: &mut Random) -> Value {
    let number = NUMBERS[random.below(NUMBERS.len())];
    match random.below(9) {
        0..=2 => number.into(),
        3 => u64::MAX.into(),
        4 => (-1_i32).into(),
        5 => [f32::NAN, f32::INFINITY, -1.0, 0.0, 1e30, 1e-30][random.below(6)].into(),
        6 => "text".into(),
        7 => Value::Array(Array::U32(vec![number; random.below(8)])),
        _ => Value::Array(Array::F32(vec![f32::from_bits(number); random.below(8)])),
    }
}

const TYPES: [DType; 12] = [
    DType::F32,
    DType::F16,
    DType::BF16,
    DType::Q8_0,
    DType::MXFP4,
    DType::NVFP4,
    DType::Q4_K,
    DType::Q8_1,
    DType::I32,
    DType::I8,
    DType::F64,
    DType::IQ1_S,
];

/// One change of a key or a tensor. What it did, for the message of a failure.
fn change(changed: &mut Changed, random: &mut Random) -> String {
    let keys: Vec<String> = changed.metadata.iter().map(|(key, _)| key.to_owned()).collect();
    let key = keys[random.below(keys.len())].clone();
    let at = random.below(changed.tensors.len());
    let name = changed.tensors[at].0.name.clone();
    match random.below(7) {
        0 | 1 => {
            let value = value(random);
            let what = format!("{key} = {value:?}");
            changed.metadata.insert(key, value);
            what
        }
        2 => {
            changed.metadata.remove(&key);
            format!("without {key}")
        }
        3 => {
            changed.tensors.remove(at);
            format!("without {name}")
        }
        4 => {
            // Another shape: an axis longer, shorter, swapped, added.
            let (tensor, _) = &changed.tensors[at];
            let mut ne = tensor.ne.clone();
            let axis = random.below(ne.len());
            match random.below(4) {
                0 => ne[axis] += 32,
                1 => ne[axis] = (ne[axis] / 2).max(1),
                2 => ne.reverse(),
                _ if ne.len() < 4 => ne.push(2),
                _ => ne[axis] += 1,
            }
            let Ok(tensor) = TensorInfo::new(name.clone(), tensor.dtype, ne.clone()) else {
                return "nothing".to_owned();
            };
            let data = vec![0; tensor.bytes as usize];
            changed.tensors[at] = (tensor, data);
            format!("{name} of shape {ne:?}")
        }
        5 => {
            let dtype = TYPES[random.below(TYPES.len())];
            let ne = changed.tensors[at].0.ne.clone();
            let Ok(tensor) = TensorInfo::new(name.clone(), dtype, ne) else { return "nothing".to_owned() };
            let data = (0..tensor.bytes).map(|_| random.below(256) as u8).collect();
            changed.tensors[at] = (tensor, data);
            format!("{name} of type {}", dtype.name())
        }
        _ => {
            // Weights of any bytes are weights; a routing table of any bytes is not.
            let data = &mut changed.tensors[at].1;
            for _ in 0..16.min(data.len()) {
                let at = random.below(data.len());
                data[at] = random.below(256) as u8;
            }
            format!("other bytes in {name}")
        }
    }
}

#[test]
fn two_thousand_wrong_files_are_refused_or_run() {
    for (path, mutants) in [(tiny_a(), 1300), (tiny_b(), 1000)] {
        let source = File::open(path).unwrap();
        let (mut refused, mut ran) = (0, 0);
        for number in 0..mutants {
            let mut random = Random(number);
            let mut changed = Changed::of(&source);
            let what: Vec<String> = (0..=random.below(2)).map(|_| change(&mut changed, &mut random)).collect();
            // A mutant that ends the process leaves this as the last word.
            std::fs::write(scratch("mutant.txt"), format!("{number}: {what:?}")).unwrap();
            match try_run(changed.file()) {
                Ok(()) => ran += 1,
                Err(error) => {
                    refused += 1;
                    let message = error.to_string();
                    assert!(message.len() > 10 && !message.contains("Error {"), "{number} {what:?}: {message}");
                }
            }
        }
        println!("{}: {refused} of {mutants} wrong files refused, {ran} ran", path.display());
        assert!(refused > mutants / 2 && ran > 0);
    }
}

#[test]
fn cut_and_damaged_files_are_errors() {
    let bytes = std::fs::read(tiny_b()).unwrap();
    let mut random = Random(7);
    for _ in 0..60 {
        let cut = random.below(bytes.len());
        if let Ok(file) = File::from_bytes(bytes[..cut].to_vec()) {
            panic!("cut at {cut}: {} tensors", file.tensors().len());
        }
    }
    let mut ran = 0;
    let header = File::open(tiny_b()).unwrap().data_offset(0) as usize;
    for _ in 0..120 {
        let mut damaged = bytes.clone();
        let at = random.below(header);
        damaged[at] ^= 1 << random.below(8);
        if let Ok(file) = File::from_bytes(damaged) {
            ran += usize::from(try_run(file).is_ok());
        }
    }
    println!("{ran} of 120 files with a damaged header still run");
}

#[test]
fn what_is_wrong_is_named() {
    let cases: &[(&str, Value, &str)] = &[
        ("general.architecture", "llama".into(), "the native engine runs `deepseek4`, this is `llama`"),
        ("deepseek4.block_count", 0_u32.into(), "key `deepseek4.block_count` is 0, expected 1 to 512"),
        ("deepseek4.block_count", 4_u32.into(), "tensor `blk.4."),
        ("deepseek4.attention.head_count_kv", 2_u32.into(), "expected 1"),
        ("deepseek4.attention.output_group_count", 3_u32.into(), "a divisor of 4 heads"),
        ("deepseek4.attention.compress_ratios", Value::Array(Array::U32(vec![0, 4, 128, 7, 4])), "ratio 7 for layer 3"),
        ("deepseek4.expert_gating_func", 2_u32.into(), "sqrt-softplus"),
        ("deepseek4.expert_weights_norm", false.into(), "is false, expected true"),
        ("deepseek4.expert_used_count", 9_u32.into(), "expected 1 to 8"),
        ("deepseek4.rope.dimension_count", 33_u32.into(), "expected even"),
        ("deepseek4.rope.freq_base", f32::NAN.into(), "is NaN"),
        ("deepseek4.rope.scaling.type", "linear".into(), "expected none or yarn"),
        (
            "deepseek4.attention.q_lora_rank",
            96_u32.into(),
            "tensor `blk.0.attn_q_a.weight` has shape [128, 64], expected [128, 96]",
        ),
        ("deepseek4.attention.key_length", "wide".into(), "expected an integer"),
    ];
    let source = File::open(tiny_a()).unwrap();
    for (key, value, expected) in cases {
        let mut changed = Changed::of(&source);
        changed.metadata.insert(*key, value.clone());
        let error = try_run(changed.file()).expect_err(key);
        assert!(error.to_string().contains(expected), "{key} = {value:?}: {error}");
    }
}
