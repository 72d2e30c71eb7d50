//! A sequence's cache as bytes on disk: a header that says what it belongs to, the numbers layer by layer, a checksum. Nothing is believed
//! before the checksum was right.

use std::io::{Read, Write};

use sha2::{Digest, Sha256};

use super::{Cache, Layout};
use crate::engine::{Error, RoutingId};
use crate::ggml::LayerCache;
use crate::ggml::cache::Compressed;

/// The last character is the version of the format.
const MAGIC: &[u8; 8] = b"fathomN2";

/// Writes the state of a sequence whose next position is `next`.
///
/// # Errors
/// [`Error::Io`]
pub fn write(
    to: &mut dyn Write,
    fingerprint: &[u8; 32],
    routing: RoutingId,
    next: u32,
    cache: &Cache,
) -> Result<(), Error> {
    let mut out = Hashing { inner: to, hash: Sha256::new() };
    out.write_all(MAGIC)?;
    out.write_all(fingerprint)?;
    out.write_all(&routing.0)?;
    out.write_all(&next.to_le_bytes())?;
    if next > 0 {
        for layer in &cache.layers {
            out.write_all(layer.window.bytes())?;
            for side in sides(layer).into_iter().flatten() {
                for part in side.pending.parts() {
                    write_floats(&mut out, part)?;
                }
                for row in 0..side.rows.len() {
                    out.write_all(side.rows.row(row))?;
                }
            }
        }
    }
    let sum: [u8; 32] = out.hash.clone().finalize().into();
    out.inner.write_all(&sum)?;
    Ok(())
}

/// Reads what [`write()`] wrote into a fresh cache; gives the next position with it.
///
/// # Errors
/// [`Error::State`] for bytes of something else, of another model or routing policy, of more than `n_ctx` tokens, or damaged ones.
pub fn read(
    from: &mut dyn Read,
    fingerprint: &[u8; 32],
    routing: RoutingId,
    n_ctx: usize,
    layout: &Layout,
) -> Result<(u32, Cache), Error> {
    let bad = |why: &str| Error::State(why.to_owned());
    let mut input = Hashing { inner: from, hash: Sha256::new() };
    let mut head = [0_u8; 8 + 32 + 32 + 4];
    input.fill(&mut head)?;
    if head[..8] != *MAGIC {
        return Err(bad("it is not a saved state"));
    }
    if head[8..40] != *fingerprint {
        return Err(bad("it was made with another model, cache type or version"));
    }
    if head[40..72] != routing.0 {
        return Err(bad("it was computed under another routing policy"));
    }
    let next = u32::from_le_bytes(head[72..].try_into().expect("4 bytes"));
    if next as usize > n_ctx {
        return Err(bad(&format!("it holds {next} tokens, the context has room for {n_ctx}")));
    }
    let mut cache = Cache::new(layout);
    if next > 0 {
        let ratios: Vec<usize> = layout.layers.iter().map(|layer| layer.kind.ratio()).collect();
        for (layer, ratio) in cache.layers.iter_mut().zip(ratios) {
            input.fill(layer.window.bytes_mut())?;
            for side in [&mut layer.compressed, &mut layer.index].into_iter().flatten() {
                for part in side.pending.parts_mut() {
                    read_floats(&mut input, part)?;
                }
                let rows = next as usize / ratio;
                for index in 0..rows {
                    // Segment by segment, so that a claim of many rows takes memory only as they come.
                    side.rows.reserve(index + 1);
                    input.fill(side.rows.row_mut(index).expect("a fresh cache shares nothing"))?;
                    side.rows.set_len(index + 1);
                }
            }
        }
    }
    let expected: [u8; 32] = input.hash.clone().finalize().into();
    let mut sum = [0_u8; 32];
    read_exact(input.inner, &mut sum)?;
    if sum != expected {
        return Err(bad("it is damaged"));
    }
    Ok((next, cache))
}

fn sides(layer: &LayerCache) -> [Option<&Compressed>; 2] {
    [layer.compressed.as_ref(), layer.index.as_ref()]
}

struct Hashing<T> {
    inner: T,
    hash: Sha256,
}

impl Hashing<&mut dyn Write> {
    fn write_all(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.hash.update(bytes);
        Ok(self.inner.write_all(bytes)?)
    }
}

impl Hashing<&mut dyn Read> {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        read_exact(self.inner, bytes)?;
        self.hash.update(bytes);
        Ok(())
    }
}

fn read_exact(from: &mut dyn Read, bytes: &mut [u8]) -> Result<(), Error> {
    from.read_exact(bytes).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => Error::State("it is damaged: its end is missing".to_owned()),
        _ => Error::Io(error),
    })
}

fn write_floats(out: &mut Hashing<&mut dyn Write>, values: &[f32]) -> Result<(), Error> {
    let mut bytes = [0_u8; 4096];
    for part in values.chunks(bytes.len() / 4) {
        for (to, value) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(part) {
            *to = value.to_le_bytes();
        }
        out.write_all(&bytes[..part.len() * 4])?;
    }
    Ok(())
}

fn read_floats(input: &mut Hashing<&mut dyn Read>, values: &mut [f32]) -> Result<(), Error> {
    let mut bytes = [0_u8; 4096];
    for part in values.chunks_mut(bytes.len() / 4) {
        let bytes = &mut bytes[..part.len() * 4];
        input.fill(bytes)?;
        for (value, from) in part.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *value = f32::from_le_bytes(*from);
        }
    }
    Ok(())
}
