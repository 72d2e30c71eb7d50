//! `kv_compress` against its reference.

use fathom::kernels::{KvCompress, Pending, Rope, RowBuffer, RowFormat, RowType, Step, Version, kv_compress};

use super::{Bound, Random, assert_close, assert_same, frequencies};

/// A softmax over up to 128 positions (exp with a relative error of 2^-22), a sum of 512 squares and a rotation.
const F32: Bound = Bound { element: 1e-5, rms: 1e-6 };
const SEGMENT: usize = 4;

/// One compressor's weights and the inputs of one sequence.
struct Compressor {
    ratio: usize,
    overlap: bool,
    hadamard: bool,
    format: RowFormat,
    freq: Vec<f32>,
    ape: Vec<f32>,
    norm: Vec<f32>,
}

/// What a sequence has after some tokens.
#[derive(Clone)]
struct Sequence {
    pos: usize,
    pending: Pending,
    rows: Vec<RowBuffer>,
}

impl Compressor {
    fn random(random: &mut Random, (ratio, overlap): (usize, bool), d: usize, n_rot: usize, row_type: RowType) -> Self {
        let w = d * (1 + usize::from(overlap));
        Compressor {
            ratio,
            overlap,
            hadamard: row_type == RowType::Fp4,
            format: RowFormat { row_type, d, n_rot },
            freq: frequencies(n_rot),
            ape: random.normals(w * ratio),
            norm: random.normals(d),
        }
    }

    fn w(&self) -> usize {
        self.format.d * (1 + usize::from(self.overlap))
    }

    fn fresh(&self, capacity: usize) -> Sequence {
        let open = vec![f32::NAN; self.w() * self.ratio * (1 + usize::from(self.overlap))];
        Sequence {
            pos: 0,
            pending: Pending { u: open.clone(), z: open },
            rows: vec![RowBuffer::new(self.format, SEGMENT); capacity.div_ceil(SEGMENT)],
        }
    }

    /// One step: the next tokens of some sequences; `inputs[i]` are u and z of the whole sequence i.
    fn step(
        &self,
        version: Version,
        sequences: &mut [&mut Sequence],
        inputs: &[&[Vec<f32>; 2]],
        n: &[usize],
        nth: usize,
    ) {
        let runs: Vec<_> = sequences.iter().zip(n).map(|(s, &n)| (s.pos as u64, n)).collect();
        let gather = |at: usize| -> Vec<f32> {
            let part = |((s, input), &n): ((&&mut Sequence, &&[Vec<f32>; 2]), &usize)| {
                input[at][s.pos * self.w()..][..n * self.w()].to_vec()
            };
            sequences.iter().zip(inputs).zip(n).flat_map(part).collect()
        };
        let (u, z) = (gather(0), gather(1));
        let step = Step::new(&runs);
        let input = KvCompress {
            step: &step,
            ratio: self.ratio,
            overlap: self.overlap,
            hadamard: self.hadamard,
            eps: 1e-6,
            rope: Rope { freq: &self.freq },
            u: &u,
            z: &z,
            ape: &self.ape,
            norm: &self.norm,
            format: self.format,
        };
        let mut pending: Vec<_> = sequences.iter().map(|s| s.pending.clone()).collect();
        let mut rows: Vec<_> = sequences.iter().map(|s| s.rows.clone()).collect();
        kv_compress(version, &input, &mut pending, &mut rows, nth);
        for (((sequence, pending), rows), n) in sequences.iter_mut().zip(pending).zip(rows).zip(n) {
            (sequence.pending, sequence.rows, sequence.pos) = (pending, rows, sequence.pos + n);
        }
    }

    /// A whole sequence in chunks.
    fn run(&self, version: Version, input: &[Vec<f32>; 2], chunks: &[usize], nth: usize) -> Sequence {
        let mut sequence = self.fresh(chunks.iter().sum::<usize>() / self.ratio);
        for &n in chunks {
            self.step(version, &mut [&mut sequence], &[input], &[n], nth);
        }
        sequence
    }

    fn input(&self, random: &mut Random, n_tokens: usize) -> [Vec<f32>; 2] {
        [random.normals(self.w() * n_tokens), random.normals(self.w() * n_tokens).iter().map(|z| 3.0 * z).collect()]
    }
}

impl Sequence {
    fn made(&self, ratio: usize) -> Vec<f32> {
        (0..self.pos / ratio).flat_map(|row| self.rows[row / SEGMENT].load(row % SEGMENT)).collect()
    }

    /// Bits, since nothing has been written to some of it.
    fn open(&self) -> Vec<u32> {
        self.pending.u.iter().chain(&self.pending.z).map(|x| x.to_bits()).collect()
    }

    fn bytes(&self) -> Vec<u8> {
        self.rows.iter().flat_map(RowBuffer::bytes).copied().collect()
    }
}

const KINDS: [(usize, bool); 3] = [(4, true), (128, false), (8, true)];

#[test]
fn kernels_equal_the_reference() {
    let random = &mut Random::new(1);
    for kind in KINDS {
        for (d, n_rot) in [(512, 64), (128, 32), (128, 64), (64, 64)] {
            let compressor = Compressor::random(random, kind, d, n_rot, RowType::F32);
            let n_tokens = 2 * kind.0 + kind.0 / 2 + 1;
            let input = compressor.input(random, n_tokens);
            let expected = compressor.run(Version::Reference, &input, &[n_tokens], 1);
            for version in Version::kernels() {
                let found = compressor.run(version, &input, &[n_tokens], 2);
                let what = format!("{version:?}, {kind:?}, {d} channels");
                assert_close(&what, &found.made(kind.0), &expected.made(kind.0), F32);
                assert_same(&what, &found.pending.z, &expected.pending.z);
                assert_same(&what, &found.pending.u, &expected.pending.u);
            }
        }
    }
}

/// Groups that begin and end in different steps, at every residue.
#[test]
fn rows_do_not_depend_on_the_chunks_of_a_prompt() {
    let random = &mut Random::new(2);
    for kind in KINDS {
        let compressor = Compressor::random(random, kind, 64, 32, RowType::F16);
        let n_tokens = 3 * kind.0 + 5;
        let input = compressor.input(random, n_tokens);
        for version in Version::kernels().chain([Version::Reference]) {
            let whole = compressor.run(version, &input, &[n_tokens], 1);
            for first in 1..n_tokens.min(2 * kind.0 + 2) {
                let found = compressor.run(version, &input, &[first, n_tokens - first], 2);
                assert_eq!(found.bytes(), whole.bytes(), "{version:?}, {kind:?}, cut after {first}");
                assert!(
                    found.open() == whole.open(),
                    "{version:?}, {kind:?}, cut after {first}: what is kept for later groups"
                );
            }
            let found = compressor.run(version, &input, &vec![1; n_tokens], 3);
            assert_eq!(found.bytes(), whole.bytes(), "{version:?}, {kind:?}, one token at a time");
            assert!(
                found.open() == whole.open(),
                "{version:?}, {kind:?}, one token at a time: what is kept for later groups"
            );
        }
    }
}

#[test]
fn sequences_of_a_step_do_not_meet() {
    let random = &mut Random::new(3);
    let compressor = Compressor::random(random, (4, true), 64, 32, RowType::F16);
    let inputs: Vec<_> = (0..3).map(|_| compressor.input(random, 40)).collect();
    for version in Version::kernels() {
        let mut together: Vec<_> = (0..3).map(|_| compressor.fresh(10)).collect();
        for n in [[1, 5, 2], [4, 1, 1], [3, 8, 1]] {
            let [a, b, c] = &mut together[..] else { unreachable!("three sequences") };
            compressor.step(version, &mut [a, b, c], &inputs.iter().collect::<Vec<_>>(), &n, 2);
        }
        for (sequence, input) in together.iter().zip(&inputs) {
            let alone = compressor.run(version, input, &[sequence.pos], 1);
            assert_eq!(sequence.made(4), alone.made(4), "{version:?}");
            assert!(sequence.open() == alone.open(), "{version:?}: what is kept for later groups");
        }
    }
}

/// Index keys: rotated, then rounded. The rotation keeps lengths and is its own inverse.
#[test]
fn index_keys_are_rotated_before_they_are_rounded() {
    let random = &mut Random::new(4);
    let mut fp4 = Compressor::random(random, (4, true), 128, 64, RowType::Fp4);
    let input = fp4.input(random, 16);
    for version in Version::kernels() {
        let rounded = fp4.run(version, &input, &[16], 1);
        fp4.format.row_type = RowType::F32;
        let rotated = fp4.run(version, &input, &[16], 1).made(4);
        fp4.hadamard = false;
        let plain = fp4.run(version, &input, &[16], 1).made(4);
        (fp4.hadamard, fp4.format.row_type) = (true, RowType::Fp4);
        for row in 0..4 {
            let mut expected = RowBuffer::new(fp4.format, 1);
            expected.store(0, &rotated[row * 128..][..128]);
            assert_eq!(rounded.rows[0].row(row), expected.row(0), "{version:?}");
            let back: Vec<f32> = (0..128)
                .map(|i: usize| {
                    let sign = |j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
                    let sum: f64 = (0..128).map(|j| sign(j) * f64::from(rotated[row * 128 + j])).sum();
                    (sum / 128f64.sqrt()) as f32
                })
                .collect();
            assert_close(&format!("{version:?}"), &back, &plain[row * 128..][..128], F32);
        }
    }
}
