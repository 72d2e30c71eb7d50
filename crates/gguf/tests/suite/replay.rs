//! Runs the fuzzer's entry function over the seeds and over mutants of them, without a fuzzer.

use std::path::{Path, PathBuf};

#[path = "../../../../fuzz/entries/gguf.rs"]
pub mod entry;

/// Of each seed; Miri is some thousand times slower.
const MUTANTS: u64 = if cfg!(miri) { 10 } else { 3000 };

fn seeds() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/gguf");
    let mut seeds: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "gguf"))
        .collect();
    seeds.sort();
    seeds
}

/// A small generator of its own, so that mutants are the same everywhere (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// Damages of the kinds that matter here: bits, interesting numbers in the place of counts and offsets, cuts, repeats.
fn mutate(seed: &[u8], random: &mut Random) -> Vec<u8> {
    const NUMBERS: [u64; 9] = [0, 1, 2, 9, 0xFF, 1 << 20, 1 << 31, i64::MAX as u64, u64::MAX];
    let mut bytes = seed.to_vec();
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len());
        match random.below(5) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            1 if at + 8 <= bytes.len() => {
                bytes[at..at + 8].copy_from_slice(&NUMBERS[random.below(NUMBERS.len())].to_le_bytes());
            }
            2 if at + 4 <= bytes.len() => {
                bytes[at..at + 4].copy_from_slice(&(random.below(50) as u32).to_le_bytes());
            }
            3 => bytes.truncate(at),
            _ => {
                let piece = bytes[at..].iter().copied().take(random.below(64)).collect::<Vec<_>>();
                bytes.splice(at..at, piece);
            }
        }
    }
    bytes
}

#[test]
fn seeds_and_their_mutants() {
    let seeds = seeds();
    assert!(seeds.len() >= 4, "the seeds are in the repository");
    for (number, path) in seeds.iter().enumerate() {
        let seed = std::fs::read(path).unwrap();
        entry::gguf(&seed);
        let mut random = Random(number as u64);
        for mutant in 0..MUTANTS {
            let bytes = mutate(&seed, &mut random);
            let survived = std::panic::catch_unwind(|| entry::gguf(&bytes));
            assert!(survived.is_ok(), "mutant {mutant} of {}", path.display());
        }
    }
}

/// The seeds themselves are made here, so that they can be looked at as code; run with `--ignored` to write them anew.
#[test]
#[ignore = "writes fuzz/seeds/gguf"]
fn make_seeds() {
    use crate::raw::Raw;
    use fathom_gguf::{Array, DType, Metadata, Strings, TensorInfo, Value, write_to};

    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/gguf").join(name), bytes).unwrap();
    };
    let words: Strings = ["a", "", "Ġthe", "｜"].into_iter().collect();
    let metadata: Metadata = [
        ("general.architecture", Value::from("deepseek4")),
        ("u8", 1u8.into()),
        ("i8", (-1i8).into()),
        ("u16", 2u16.into()),
        ("i16", (-2i16).into()),
        ("u32", 3u32.into()),
        ("i32", (-3i32).into()),
        ("u64", 4u64.into()),
        ("i64", (-4i64).into()),
        ("f32", 0.5f32.into()),
        ("f64", 0.25f64.into()),
        ("bool", true.into()),
        ("bools", vec![true, false].into()),
        ("words", words.into()),
        ("scales", vec![127u8, 120, 3].into()),
        ("ratios", vec![0i32, 4, 128].into()),
        ("nested", Array::Array(vec![Array::U16(vec![1, 2]), Array::Array(vec![])]).into()),
    ]
    .into_iter()
    .collect();
    let every_type: Vec<_> = DType::all()
        .map(|dtype| TensorInfo::new(format!("t.{dtype}"), dtype, [dtype.block_elements()]).unwrap())
        .map(|info| (info.clone(), vec![0x3C; info.bytes as usize]))
        .collect();
    for (name, metadata, tensors) in [
        ("keys_of_every_type.gguf", metadata.clone(), &every_type[..0]),
        ("tensors_of_every_type.gguf", Metadata::new(), &every_type[..]),
        ("alignment_1.gguf", [("general.alignment", 1u32)].into_iter().collect(), &every_type[..3]),
    ] {
        let mut bytes = Vec::new();
        write_to(&mut bytes, metadata, tensors).unwrap().unwrap();
        write(name, &bytes);
    }
    let version_2 = Raw::file(2, 2, 1)
        .key("general.alignment", 4)
        .u32(64)
        .tensor("late", &[3, 1], 0, 64)
        .tensor("scalar", &[], 30, 0)
        .pad(64)
        .bytes(&[1; 64 + 12]);
    write("version_2_out_of_order.gguf", &version_2.0);
    write("empty.gguf", &Raw::file(3, 0, 0).0);
}
