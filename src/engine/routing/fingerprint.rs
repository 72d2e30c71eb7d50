//! Which router a profile's numbers are about.

use fathom_gguf::{File, block};
use sha2::{Digest, Sha256};

use super::Error;

/// Numbers decoded at a time.
const CHUNK: usize = 1 << 14;

/// SHA-256, in hexadecimal, of what the router of every layer computes with (scores, selection bias, hash table), the number of experts and the number that a
/// token uses. Values count, not their types: variants of a model whose other tensors were rounded share it. Reads the whole router, which of
/// DeepSeek-V4-Flash is 180 MB. Draft blocks do not count.
///
/// # Errors
/// The file has no router, or one of a type that no router has.
pub fn fingerprint(file: &File) -> Result<String, Error> {
    let metadata = file.metadata();
    let architecture = metadata.str("general.architecture")?;
    let number = |key: &str| metadata.u32(&format!("{architecture}.{key}"));
    let mut hash = Sha256::new();
    hash.update(format!("{} experts, {} used\n", number("expert_count")?, number("expert_used_count")?));
    let mut layers = 0;
    for block in 0..number("block_count")? {
        if file.opt_tensor(&format!("blk.{block}.nextn.eh_proj.weight")).is_some() {
            continue;
        }
        for part in ["ffn_gate_inp.weight", "exp_probs_b.bias", "ffn_gate_tid2eid.weight"] {
            let name = format!("blk.{block}.{part}");
            let Some(tensor) = file.opt_tensor(&name) else { continue };
            layers += usize::from(part == "ffn_gate_inp.weight");
            hash.update(format!("{name} {:?}\n", tensor.ne));
            if part == "ffn_gate_tid2eid.weight" {
                hash.update(file.data(tensor));
                continue;
            }
            let mut values = vec![0.0; CHUNK];
            // Whole blocks: every codec's block divides the chunk.
            let chunk_bytes = tensor.dtype.row_bytes(CHUNK as u64).unwrap_or(u64::MAX);
            let unreadable = || Error::Router(format!("tensor `{name}` is {}", tensor.dtype.name()));
            let chunk_bytes = usize::try_from(chunk_bytes).map_err(|_| unreadable())?;
            let mut left = usize::try_from(tensor.elements()).map_err(|_| unreadable())?;
            for bytes in file.data(tensor).chunks(chunk_bytes) {
                let values = &mut values[..left.min(CHUNK)];
                block::decode(tensor.dtype, bytes, values).map_err(|_| unreadable())?;
                values.iter().for_each(|value| hash.update(value.to_le_bytes()));
                left -= values.len();
            }
        }
    }
    if layers == 0 {
        return Err(Error::Router("there is no tensor `blk.N.ffn_gate_inp.weight`".to_owned()));
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
