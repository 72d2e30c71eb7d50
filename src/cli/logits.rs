//! `fathom logits`: what a model says about every position of a token sequence, as a safetensors file.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

use super::settings::{self, EngineFlags};
use super::{inside, message, weights};
use crate::config::Config;
use crate::engine::{self, Batch, BatchToken, Engine, Output, Outputs, Settings};
use crate::ids::{Pos, SeqId, TokenId};

/// Tokens of one engine step unless `--chunk` says otherwise.
const DEFAULT_CHUNK: usize = 512;

#[derive(clap::Args)]
pub struct Args {
    /// A .gguf file, or the name of a stored model
    #[arg(long, value_name = "FILE.gguf")]
    model: String,
    /// Token ids with commas between them, or a JSON file with an array of them
    #[arg(long, value_name = "1,2,3|@FILE.json")]
    tokens: String,
    /// Where to write tensor `logits`, f32 [n_tokens, n_vocab]
    #[arg(long, value_name = "FILE.safetensors")]
    out: PathBuf,
    /// Tokens per engine step [default: 512]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    chunk: Option<u32>,
    /// Round nothing: every weight expanded to F32 (in a temporary copy beside the output), an F32 cache, no flash
    /// attention, no repacked weights
    #[arg(long)]
    f32: bool,
    /// Also compare the values inside every layer with those of this golden file, and name the first that differs (`native`, with
    /// `--f32`; all tokens in one step)
    #[arg(long, value_name = "FILE.safetensors", conflicts_with = "chunk", requires = "f32")]
    compare: Option<PathBuf>,
    #[command(flatten)]
    engine: EngineFlags,
}

pub fn run(args: Args, config: &Config) -> anyhow::Result<()> {
    let config = args.engine.applied(config)?;
    let (kind, settings) = settings::engine(&config)?;
    let tokens = tokens(&args.tokens)?;
    let (model, profiles) = weights::open(&args.model, &config)?;
    let asked = if args.compare.is_some() { tokens.len() } else { args.chunk.map_or(DEFAULT_CHUNK, |n| n as usize) };
    let chunk = asked.min(tokens.len());
    let settings = Settings {
        n_ctx: if settings.n_ctx == 0 { tokens.len() } else { settings.n_ctx },
        n_seq_max: 1,
        n_batch: chunk,
        n_ubatch: chunk,
        n_outputs: chunk,
        profiles,
        ..settings
    };
    // Nothing is computed for an output that cannot be written.
    let dir = args.out.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut unfinished = tempfile::Builder::new();
    #[cfg(unix)]
    unfinished.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let file = unfinished
        .prefix(".fathom-logits-")
        .tempfile_in(dir)
        .with_context(|| format!("cannot write into `{}`", dir.display()))?;

    let mut engine = if args.f32 {
        engine::load_f32(&model, dir, kind, &settings, &mut |_| true)?
    } else {
        engine::load_file(&model, kind, &settings, &mut |_| true)?
    };
    ensure!(engine.info().support.logits, "this model gives embeddings, not logits");
    let info = engine.info();
    if tokens.len() > info.n_ctx {
        bail!("{} tokens do not fit into the context of {}", tokens.len(), info.n_ctx);
    }
    if let Some(id) = tokens.iter().find(|id| id.0 as usize >= info.n_vocab) {
        bail!("token `{}` is not in the vocabulary of {}", id.0, info.n_vocab);
    }
    let shape = [tokens.len(), info.n_vocab];
    let chunk = chunk.min(info.n_batch);
    let mut out = BufWriter::new(file);
    write_header(&mut out, shape)?;
    compute(&mut *engine, &tokens, chunk, &mut out)?;
    let file = out.into_inner().map_err(|error| error.into_error())?;
    file.persist(&args.out).with_context(|| format!("cannot write `{}`", args.out.display()))?;
    eprintln!("wrote logits [{}, {}] to {}", shape[0], shape[1], args.out.display());
    if let Some(golden) = &args.compare {
        engine.release(SeqId(0));
        inside::compare(&mut *engine, &tokens, golden)?;
    }
    Ok(())
}

fn compute(engine: &mut dyn Engine, tokens: &[TokenId], chunk: usize, out: &mut impl Write) -> anyhow::Result<()> {
    let mut batch = Batch::default();
    let mut rows = Outputs::default();
    let mut bytes = Vec::new();
    for (step, part) in tokens.chunks(chunk).enumerate() {
        batch.tokens.clear();
        batch.tokens.extend((step * chunk..).zip(part).map(|(pos, &token)| BatchToken {
            token,
            seq: SeqId(0),
            pos: Pos(pos as u32),
            output: Some(Output::Logits),
        }));
        engine.step(&batch, &mut rows)?;
        for row in 0..rows.rows() {
            bytes.clear();
            bytes.extend(rows.row(row).iter().flat_map(|value| value.to_le_bytes()));
            out.write_all(&bytes)?;
        }
    }
    Ok(())
}

/// A safetensors header for the one tensor that follows it: rows are written as they are computed, since all of them
/// together may be larger than memory.
fn write_header(out: &mut impl Write, [n_tokens, n_vocab]: [usize; 2]) -> anyhow::Result<()> {
    let bytes = n_tokens as u64 * n_vocab as u64 * 4;
    let header = serde_json::json!({
        "logits": {"dtype": "F32", "shape": [n_tokens, n_vocab], "data_offsets": [0, bytes]}
    });
    let mut header = header.to_string();
    // The format wants data at a multiple of 8.
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    Ok(())
}

/// `1,2,3` or `@FILE.json`.
fn tokens(text: &str) -> anyhow::Result<Vec<TokenId>> {
    let ids: Vec<u32> = match text.strip_prefix('@') {
        Some(path) => {
            let json = std::fs::read(path).with_context(|| format!("cannot read `{path}`"))?;
            serde_json::from_slice(&json).with_context(|| format!("`{path}` is not a JSON array of token ids"))?
        }
        None => text
            .split(',')
            .map(|id| id.trim().parse().map_err(|_| anyhow::anyhow!("`{}` is not a token id", id.trim())))
            .collect::<Result<_, _>>()
            .map_err(|error| message::hint(error, "--tokens takes ids such as `0,17,4`, or `@FILE.json`"))?,
    };
    ensure!(!ids.is_empty(), "there are no tokens in `{text}`");
    Ok(ids.into_iter().map(TokenId).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_from_the_command_line_or_a_file() {
        let ids = |text: &str| tokens(text).map(|ids| ids.iter().map(|id| id.0).collect::<Vec<_>>());
        assert_eq!(ids("1,2, 3").unwrap(), [1, 2, 3]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.json");
        std::fs::write(&path, "[7, 8]").unwrap();
        assert_eq!(ids(&format!("@{}", path.display())).unwrap(), [7, 8]);
        for bad in ["", "1,,2", "-1", "1.5", "4294967296", "@/nowhere.json"] {
            assert!(ids(bad).is_err(), "{bad}");
        }
        std::fs::write(&path, "{}").unwrap();
        let error = ids(&format!("@{}", path.display())).unwrap_err();
        assert!(error.to_string().contains("not a JSON array of token ids"), "{error}");
        std::fs::write(&path, "[]").unwrap();
        assert!(ids(&format!("@{}", path.display())).is_err());
    }

    #[test]
    fn the_header_is_what_the_safetensors_crate_reads() {
        let mut bytes = Vec::new();
        write_header(&mut bytes, [2, 3]).unwrap();
        let values = [1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.5];
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let logits = read.tensor("logits").unwrap();
        assert_eq!((logits.dtype(), logits.shape()), (safetensors::Dtype::F32, [2, 3].as_slice()));
        assert_eq!(logits.data()[20..], 6.5_f32.to_le_bytes());
    }
}
