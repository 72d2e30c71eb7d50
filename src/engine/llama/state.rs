//! A sequence's state as bytes on disk: a header that says what it belongs to, llama.cpp's state, a checksum.
//!
//! llama.cpp checks what it reads against its cache, but trusts lengths; so nothing reaches it that we did not write.

use std::io::{Read, Write};

use fathom_gguf::File;
use sha2::{Digest, Sha256};

use super::super::{Error, Settings};
use crate::ids::Pos;

const MAGIC: &[u8; 8] = b"fathomL1";

/// What a state depends on: the tensors of the file (names, shapes, types and the first bytes of each), the type of the
/// cache and the number of sequences, which llama.cpp writes into it. Not the context length: a longer cache takes a shorter
/// one's state.
pub(super) fn fingerprint(file: &File, settings: &Settings) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(format!("{} {} {}\n", super::ggml_version(), settings.kv_type, settings.n_seq_max));
    for tensor in file.tensors() {
        hash.update(format!("{} {} {:?}\n", tensor.name, tensor.dtype.name(), tensor.ne));
        let data = file.data(tensor);
        hash.update(&data[..data.len().min(64)]);
    }
    hash.finalize().into()
}

/// # Errors
/// [`Error::Io`]
pub(super) fn write(to: &mut dyn Write, fingerprint: &[u8; 32], next: Pos, state: &[u8]) -> Result<(), Error> {
    to.write_all(MAGIC)?;
    to.write_all(fingerprint)?;
    to.write_all(&next.0.to_le_bytes())?;
    to.write_all(&(state.len() as u64).to_le_bytes())?;
    to.write_all(state)?;
    to.write_all(&checksum(next, state))?;
    Ok(())
}

/// Reads what [`write()`] wrote. `limit_bytes` is more than a state can have, so that a length from a file allocates nothing absurd.
///
/// # Errors
/// [`Error::State`] for bytes of something else, of another model or damaged ones.
pub(super) fn read(
    from: &mut dyn Read,
    fingerprint: &[u8; 32],
    n_ctx: usize,
    limit_bytes: u64,
) -> Result<(Pos, Vec<u8>), Error> {
    let bad = |why: &str| Err(Error::State(why.to_owned()));
    let mut head = [0_u8; 8 + 32 + 4 + 8];
    from.read_exact(&mut head)?;
    let (magic, rest) = head.split_at(8);
    let (made_with, rest) = rest.split_at(32);
    let (next, len) = rest.split_at(4);
    if magic != MAGIC {
        return bad("it is not a saved state");
    }
    if made_with != fingerprint {
        return bad("it was made with another model, cache type, number of sequences or version");
    }
    let next = u32::from_le_bytes(next.try_into().expect("4 bytes"));
    let len = u64::from_le_bytes(len.try_into().expect("8 bytes"));
    if next as usize > n_ctx {
        return bad(&format!("it holds {next} tokens, the context has room for {n_ctx}"));
    }
    // Cells carry positions beside rows; 1 MiB and a tenth is far above that.
    if len > limit_bytes + limit_bytes / 10 + (1 << 20) || (len == 0) != (next == 0) {
        return bad(&format!("it claims {len} bytes for {next} tokens"));
    }
    let mut state = Vec::new();
    from.take(len).read_to_end(&mut state)?;
    if state.len() as u64 != len {
        return bad("it is damaged: its end is missing");
    }
    let mut sum = [0_u8; 32];
    from.read_exact(&mut sum)?;
    if sum != checksum(Pos(next), &state) {
        return bad("it is damaged");
    }
    Ok((Pos(next), state))
}

fn checksum(next: Pos, state: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(next.0.to_le_bytes()).chain_update(state).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written() -> Vec<u8> {
        let mut bytes = Vec::new();
        write(&mut bytes, &[7; 32], Pos(3), b"state").unwrap();
        bytes
    }

    #[test]
    fn what_was_written_is_read() {
        let (next, state) = read(&mut written().as_slice(), &[7; 32], 3, 5).unwrap();
        assert_eq!((next, state.as_slice()), (Pos(3), b"state".as_slice()));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        for at in 0..written().len() {
            let mut bytes = written();
            bytes[at] ^= 1;
            assert!(read(&mut bytes.as_slice(), &[7; 32], 3, 5).is_err(), "byte {at} changed");
            assert!(read(&mut &written()[..at], &[7; 32], 3, 5).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_huge_length_allocates_nothing() {
        let mut bytes = written();
        bytes[44..52].copy_from_slice(&u64::MAX.to_le_bytes());
        let error = read(&mut bytes.as_slice(), &[7; 32], 3, 5).unwrap_err();
        assert!(error.to_string().contains("claims 18446744073709551615 bytes"), "{error}");
        bytes[44..52].copy_from_slice(&(1_u64 << 20).to_le_bytes());
        assert!(read(&mut bytes.as_slice(), &[7; 32], 3, 5).unwrap_err().to_string().contains("damaged"));
    }

    #[test]
    fn a_state_of_another_model_is_refused() {
        let error = read(&mut written().as_slice(), &[8; 32], 3, 5).unwrap_err();
        assert!(error.to_string().contains("another model"), "{error}");
        assert!(read(&mut written().as_slice(), &[7; 32], 2, 5).unwrap_err().to_string().contains("room for 2"));
    }
}
