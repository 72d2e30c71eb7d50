//! The unit of work: one released tensor with its scale (of a stacked tensor, one expert), taken through memory a few rows at a time.
//!
//! `encode` goes from released bytes to stored bytes, `decode` back; both see every released byte once and in order, which is when it
//! is hashed. Nothing larger than a chunk is held, whatever the tensor's size.

use sha2::{Digest, Sha256};

use crate::Error;
use crate::recipe::{Join, Part, Planned};
use crate::transcode::quantize::{self, ErrorSums, Quantizer};
use crate::transcode::{self, Encoding, Fault, Rows, Stored};

/// A SHA-256.
pub(crate) type Sha = [u8; 32];

/// A slab of one tensor: its `part`, or all parts when they are joined by columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Slab {
    pub(crate) tensor: usize,
    pub(crate) part: usize,
}

/// Which bytes of a released tensor pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Piece {
    Weight,
    Scale,
}

/// Buffers of one worker, reused from slab to slab.
#[derive(Default)]
pub(crate) struct Scratch {
    released: Vec<u8>,
    scale: Vec<u8>,
    stored: Vec<u8>,
    part: Vec<u8>,
    values: Vec<f32>,
    decoded: Vec<f32>,
}

/// What is known after encoding a slab.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Encoded {
    /// SHA-256 of each released tensor of the slab: weight, scale, weight, ...
    pub(crate) released: Vec<Sha>,
    /// SHA-256 of the stored bytes, for lossy types: those cannot be checked by decoding.
    pub(crate) stored: Option<Sha>,
    /// The error made, for lossy types.
    pub(crate) errors: Option<ErrorSums>,
}

/// Every slab of a list of tensors, in file order.
pub(crate) fn slabs(tensors: &[Planned]) -> impl Iterator<Item = Slab> {
    tensors.iter().enumerate().flat_map(|(tensor, planned)| (0..planned.slabs()).map(move |part| Slab { tensor, part }))
}

impl Planned {
    /// Number of slabs.
    pub(crate) fn slabs(&self) -> usize {
        match self.join {
            Join::Stack => self.parts.len(),
            Join::Columns => 1,
        }
    }

    /// The parts of a slab and where their scales lie in the tensor's recorded FP8 scales.
    pub(crate) fn slab_parts(&self, slab: Slab) -> &[Part] {
        match self.join {
            Join::Stack => &self.parts[slab.part..=slab.part],
            Join::Columns => &self.parts,
        }
    }

    /// First stored byte of a slab within the tensor, and its stored bytes.
    pub(crate) fn slab_range(&self, slab: Slab) -> (u64, u64) {
        let bytes = self.bytes() / self.slabs() as u64;
        (bytes * slab.part as u64, bytes)
    }

    /// Where the FP8 scales of a slab's first part begin in the tensor's.
    fn scale_start(&self, slab: Slab) -> usize {
        let before = &self.parts[..if self.join == Join::Stack { slab.part } else { 0 }];
        before.iter().map(|part| self.encoding.scale_bytes(part.rows, part.columns) as usize).sum()
    }

    /// Stored bytes of a part's row.
    fn part_row_bytes(&self, part: &Part) -> usize {
        self.dtype.row_bytes(part.columns).expect("the recipe allows whole blocks only") as usize
    }

    /// Rows that go through memory at once.
    fn chunk_rows(&self, parts: &[Part], chunk_bytes: usize) -> u64 {
        let per_row: u64 = parts
            .iter()
            .map(|part| {
                let values = if self.lossless() { 0 } else { part.columns * 8 };
                self.encoding.row_bytes(part.columns) + self.part_row_bytes(part) as u64 + values
            })
            .sum();
        (chunk_bytes as u64 / per_row.max(1)).max(1)
    }

    pub(crate) fn error(&self, part: &Part, fault: Fault) -> Error {
        let tensor = part.weight.clone();
        match fault {
            Fault::NanCode { byte, row, column } => Error::NanCode { tensor, byte, row, column },
            Fault::NanScale { row, column } => {
                Error::NanScale { tensor: part.scale.clone().unwrap_or(tensor), row, column }
            }
            Fault::ExpertId { index, value } => {
                let n_expert = match self.encoding {
                    Encoding::ExpertIds { n_expert } => n_expert.into(),
                    _ => 0,
                };
                Error::ExpertId { tensor, index, value, n_expert }
            }
            Fault::NotRepresentable { row, column } => Error::NotRepresentable { tensor, row, column },
        }
    }
}

/// `read(released tensor, at, out)` fills `out` with released bytes.
pub(crate) type Read<'a> = &'a dyn Fn(&str, u64, &mut [u8]) -> Result<(), Error>;
/// `write(at, bytes)` takes stored bytes at their place in the tensor.
pub(crate) type Write<'a> = &'a dyn Fn(u64, &[u8]) -> Result<(), Error>;
/// `sink(part, piece, at, bytes)` takes released bytes of a part of the slab.
pub(crate) type Sink<'a> = &'a mut dyn FnMut(usize, Piece, u64, &[u8]) -> Result<(), Error>;

/// Where a slab's bytes come from and go to.
pub(crate) struct Conversion<'a> {
    pub(crate) tensor: &'a Planned,
    pub(crate) slab: Slab,
    /// Recorded FP8 scales of the whole tensor; empty for other encodings and for lossy types.
    pub(crate) scales: &'a [u8],
    pub(crate) chunk_bytes: usize,
    pub(crate) quantizer: Option<&'a dyn Quantizer>,
}

impl Conversion<'_> {
    /// Released to stored.
    pub(crate) fn encode(&self, scratch: &mut Scratch, read: Read<'_>, write: Write<'_>) -> Result<Encoded, Error> {
        let tensor = self.tensor;
        let parts = tensor.slab_parts(self.slab);
        let lossless = tensor.lossless();
        let fp8_scales = parts.iter().map(|part| self.fp8_scale(part, read)).collect::<Result<Vec<_>, _>>()?;
        let mut hashes: Vec<[Sha256; 2]> = parts.iter().map(|_| Default::default()).collect();
        let mut stored_hash = Sha256::new();
        let mut errors = ErrorSums::default();
        let (rows, stride) = (parts[0].rows, parts.iter().map(|part| tensor.part_row_bytes(part)).sum::<usize>());
        let (start, _) = tensor.slab_range(self.slab);
        let chunk = tensor.chunk_rows(parts, self.chunk_bytes);
        let mut first = 0;
        while first < rows {
            let count = chunk.min(rows - first) as usize;
            scratch.stored.resize(count * stride, 0);
            let mut column = 0;
            for ((part, hashes), fp8_scale) in parts.iter().zip(&mut hashes).zip(&fp8_scales) {
                let (weight_row, row_bytes) = (tensor.encoding.row_bytes(part.columns), tensor.part_row_bytes(part));
                scratch.released.resize(count * weight_row as usize, 0);
                read(&part.weight, first * weight_row, &mut scratch.released)?;
                hashes[0].update(&scratch.released);
                if tensor.encoding == Encoding::Fp4 {
                    let scale_row = tensor.encoding.scale_bytes(1, part.columns);
                    scratch.scale.resize(count * scale_row as usize, 0);
                    read(part.scale.as_deref().expect("FP4 has scales"), first * scale_row, &mut scratch.scale)?;
                    hashes[1].update(&scratch.scale);
                }
                let scale = if tensor.encoding == Encoding::Fp4 { &scratch.scale } else { fp8_scale };
                let released = Rows { weight: &scratch.released, scale, first, columns: part.columns };
                // A single part fills whole rows; parts side by side go through a buffer of their own.
                let out = match parts.len() {
                    1 => &mut scratch.stored,
                    _ => {
                        scratch.part.resize(count * row_bytes, 0);
                        &mut scratch.part
                    }
                };
                if lossless {
                    transcode::encode(tensor.encoding, tensor.dtype, released, out)
                        .map_err(|fault| tensor.error(part, fault))?;
                } else {
                    scratch.values.resize(count * part.columns as usize, 0.0);
                    transcode::to_values(tensor.encoding, released, &mut scratch.values)
                        .map_err(|fault| tensor.error(part, fault))?;
                    let columns = part.columns as usize;
                    let sums = quantize::quantize(
                        self.quantizer,
                        tensor.dtype,
                        &scratch.values,
                        columns,
                        out,
                        &mut scratch.decoded,
                    );
                    errors.merge(&sums.map_err(Error::Choice)?);
                }
                if parts.len() > 1 {
                    for (whole, own) in
                        scratch.stored.chunks_exact_mut(stride).zip(scratch.part.chunks_exact(row_bytes))
                    {
                        whole[column..column + row_bytes].copy_from_slice(own);
                    }
                    column += row_bytes;
                }
            }
            if !lossless {
                stored_hash.update(&scratch.stored);
            }
            write(start + first * stride as u64, &scratch.stored)?;
            first += count as u64;
        }
        let mut encoded = Encoded::default();
        for ((part, [weight, mut scale]), bytes) in parts.iter().zip(hashes).zip(&fp8_scales) {
            encoded.released.push(weight.finalize().into());
            if part.scale.is_some() {
                scale.update(bytes); // empty for FP4, whose scales went by with the rows
                encoded.released.push(scale.finalize().into());
            }
        }
        if !lossless {
            encoded.stored = Some(stored_hash.finalize().into());
            encoded.errors = Some(errors);
        }
        Ok(encoded)
    }

    /// FP8 scales of a part: recorded ones if there are, the released ones for lossy types.
    fn fp8_scale(&self, part: &Part, read: Read<'_>) -> Result<Vec<u8>, Error> {
        let (Encoding::Fp8, Some(name)) = (self.tensor.encoding, &part.scale) else { return Ok(Vec::new()) };
        let mut bytes = vec![0; Encoding::Fp8.scale_bytes(part.rows, part.columns) as usize];
        read(name, 0, &mut bytes)?;
        if let Err(fault) = transcode::fp4::check_scales(&bytes, 0, part.columns.div_ceil(transcode::fp8::BLOCK)) {
            return Err(self.tensor.error(part, fault));
        }
        Ok(bytes)
    }

    /// Stored to released, for lossless types. `stored` is the tensor's data; `sink` receives every released byte in order.
    pub(crate) fn decode(&self, stored: &[u8], scratch: &mut Scratch, sink: Sink<'_>) -> Result<(), Error> {
        let tensor = self.tensor;
        let parts = tensor.slab_parts(self.slab);
        let stride: usize = parts.iter().map(|part| tensor.part_row_bytes(part)).sum();
        let (start, bytes) = tensor.slab_range(self.slab);
        let stored = &stored[start as usize..][..bytes as usize];
        let rows = parts[0].rows;
        let chunk = tensor.chunk_rows(parts, self.chunk_bytes);
        let mut scale_at = tensor.scale_start(self.slab);
        let mut column = 0;
        for (index, part) in parts.iter().enumerate() {
            let (weight_row, row_bytes) = (tensor.encoding.row_bytes(part.columns), tensor.part_row_bytes(part));
            let scale_row =
                if tensor.encoding == Encoding::Fp4 { tensor.encoding.scale_bytes(1, part.columns) } else { 0 };
            let fp8_scale = match tensor.encoding {
                Encoding::Fp8 => {
                    let bytes = tensor.encoding.scale_bytes(part.rows, part.columns) as usize;
                    scale_at += bytes;
                    &self.scales[scale_at - bytes..scale_at]
                }
                _ => &[],
            };
            let mut first = 0;
            while first < rows {
                let count = chunk.min(rows - first) as usize;
                let here = &stored[first as usize * stride..][..count * stride];
                let own = if parts.len() == 1 {
                    here
                } else {
                    scratch.part.clear();
                    here.chunks_exact(stride)
                        .for_each(|row| scratch.part.extend_from_slice(&row[column..column + row_bytes]));
                    &scratch.part
                };
                scratch.released.resize(count * weight_row as usize, 0);
                scratch.scale.resize(count * scale_row as usize, 0);
                let rows = Stored { bytes: own, dtype: tensor.dtype, scale: fp8_scale, first, columns: part.columns };
                transcode::decode(tensor.encoding, rows, &mut scratch.released, &mut scratch.scale)
                    .map_err(|fault| tensor.error(part, fault))?;
                sink(index, Piece::Weight, first * weight_row, &scratch.released)?;
                if scale_row > 0 {
                    sink(index, Piece::Scale, first * scale_row, &scratch.scale)?;
                }
                first += count as u64;
            }
            if !fp8_scale.is_empty() {
                sink(index, Piece::Scale, 0, fp8_scale)?;
            }
            column += row_bytes;
        }
        Ok(())
    }

    /// The SHA-256 of each released tensor, rebuilt from stored bytes; in the order of [`Encoded::released`].
    pub(crate) fn hash(&self, stored: &[u8], scratch: &mut Scratch) -> Result<Vec<Sha>, Error> {
        let parts = self.tensor.slab_parts(self.slab);
        let mut hashes: Vec<[Sha256; 2]> = parts.iter().map(|_| Default::default()).collect();
        self.decode(stored, scratch, &mut |part, piece, _, bytes| {
            hashes[part][usize::from(piece == Piece::Scale)].update(bytes);
            Ok(())
        })?;
        let mut out = Vec::new();
        for (part, [weight, scale]) in parts.iter().zip(hashes) {
            out.push(weight.finalize().into());
            if part.scale.is_some() {
                out.push(scale.finalize().into());
            }
        }
        Ok(out)
    }
}

/// Lower-case hex.
pub(crate) fn hex(sha: &Sha) -> String {
    use std::fmt::Write;
    sha.iter().fold(String::with_capacity(64), |mut out, byte| {
        write!(out, "{byte:02x}").expect("writing to a string");
        out
    })
}

/// The inverse of [`hex`].
pub(crate) fn from_hex(text: &str) -> Option<Sha> {
    let mut sha = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, digits) in sha.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(sha)
}
