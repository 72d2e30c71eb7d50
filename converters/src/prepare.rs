//! From options to a fixed layout: everything that is decided before the first byte is written.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use fathom_gguf::{DType, Layout, TensorInfo};

use crate::checkpoint::{Checkpoint, Completeness};
use crate::journal::unfinished;
use crate::options::Options;
use crate::recipe::{self, Family, FilePlan, Plan, Planned, Release};
use crate::transcode::quantize::{built_in, missing_quantizer};
use crate::transcode::{Encoding, Fault, fp4, fp8};
use crate::{Error, metadata, tokenizer};

/// A conversion that is decided but not begun.
pub struct Prepared {
    pub(crate) checkpoint: Checkpoint,
    /// Which release the checkpoint is.
    pub release: Release,
    /// What the user should know before starting.
    pub warnings: Vec<String>,
    /// The output files: the draft, if there is one, then the model.
    pub files: Vec<Output>,
}

/// Which of the two files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The draft blocks.
    Draft,
    /// The model.
    Trunk,
}

/// One output: a file, or its shards.
pub struct Output {
    /// Which it is.
    pub role: Role,
    /// `general.architecture`.
    pub architecture: &'static str,
    /// What it is made of, in file order.
    pub tensors: Vec<Planned>,
    /// Every byte position.
    pub layout: Layout,
    /// The names of the finished files.
    pub paths: Vec<PathBuf>,
    /// FP8 scale bytes by GGUF tensor name.
    pub(crate) scales: HashMap<String, Vec<u8>>,
}

impl Output {
    /// The names while the files are being written.
    pub(crate) fn unfinished(&self) -> Vec<PathBuf> {
        self.paths.iter().map(|path| unfinished(path)).collect()
    }
}

/// `path` with `.suffix` appended.
pub(crate) fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

/// `OUT.gguf` -> `OUT.draft.gguf`.
pub fn draft_path(output: &Path) -> PathBuf {
    output.with_extension("draft.gguf")
}

/// Names under which no two conversions meet: the files of one are all derived from its own, and none of them is a name that
/// another one may be given.
fn check_name(output: &Path) -> Result<(), Error> {
    let name = output.file_name().unwrap_or_default().to_string_lossy();
    let bad = |problem, instead: String| Err(Error::OutputName { path: output.into(), problem, instead });
    let Some(stem) = name.strip_suffix(".gguf").filter(|stem| !stem.is_empty()) else {
        return bad(
            "does not end in `.gguf`",
            format!("call it `{}`", output.with_file_name(format!("{name}.gguf")).display()),
        );
    };
    if let Some(model) = stem.strip_suffix(".draft") {
        let instead = format!("give the model's name, such as `{model}.gguf`: its draft is written beside it");
        return bad("is the name of a draft file", instead);
    }
    if fathom_gguf::is_shard_name(output) {
        return bad(
            "is the name of one of several shards",
            "give a name without number: `--split-max-size` numbers the files".into(),
        );
    }
    Ok(())
}

/// Opens the checkpoint, plans and lays out the output.
///
/// # Errors
/// Anything that is wrong with the checkpoint or the choices; nothing has been written.
pub fn prepare(options: &Options, completeness: Completeness) -> Result<Prepared, Error> {
    check_name(&options.output)?;
    let checkpoint = Checkpoint::open(&options.checkpoint, completeness)?;
    let recipe = recipe::for_config(checkpoint.config())?;
    let mut picker = Picker { options, checkpoint: &checkpoint, scales: HashMap::new(), warnings: Vec::new() };
    let plan =
        (recipe.plan)(checkpoint.config(), checkpoint.catalog(), options.release, &mut |tensor| picker.pick(tensor))?;
    let Picker { mut scales, warnings: picked, .. } = picker;
    let Plan { release, trunk, draft, mut warnings } = plan;
    warnings.extend(picked);
    if !checkpoint.is_whole() {
        warnings.push("the checkpoint is not complete: types assume that every FP8 scale is in BF16's range".into());
    }

    let n_vocab = checkpoint.config().get("vocab_size").and_then(serde_json::Value::as_u64).unwrap_or(0);
    let tokenizer_json = checkpoint.parsed("tokenizer.json")?.unwrap_or_default();
    let tokenizer_config = checkpoint.parsed("tokenizer_config.json")?;
    let tokenizer = tokenizer::keys(&tokenizer_json, tokenizer_config.as_ref(), checkpoint.config(), n_vocab)?;
    let name = options.name.clone().unwrap_or_else(|| directory_name(checkpoint.dir()));

    let draft_path = draft_path(&options.output);
    let mut files = Vec::new();
    let mut draft_file = None;
    for (role, plan, path) in [(Role::Draft, draft, &draft_path), (Role::Trunk, Some(trunk), &options.output)] {
        let Some(plan) = plan else { continue };
        let scales = plan.tensors.iter().filter_map(|tensor| scales.remove_entry(&tensor.name)).collect();
        let sources = metadata::Sources {
            name: &name,
            release,
            json: checkpoint.json(),
            tokenizer: &tokenizer,
            catalog: checkpoint.catalog(),
            scales: &scales,
            draft: draft_file.as_deref(),
        };
        let layout = lay_out(&plan, &sources, options.split_max_bytes)?;
        let paths = layout.paths(path);
        if role == Role::Draft {
            draft_file = paths[0].file_name().map(|name| name.to_string_lossy().into_owned());
        }
        files.push(Output { role, architecture: plan.architecture, tensors: plan.tensors, layout, paths, scales });
    }
    Ok(Prepared { checkpoint, release, warnings, files })
}

fn lay_out(plan: &FilePlan, sources: &metadata::Sources<'_>, split_max_bytes: Option<u64>) -> Result<Layout, Error> {
    let info = |tensor: &Planned| TensorInfo::new(tensor.name.clone(), tensor.dtype, tensor.ne.clone());
    let tensors = plan.tensors.iter().map(info).collect::<Result<Vec<_>, _>>()?;
    Ok(Layout::new(metadata::file(plan, sources), tensors, split_max_bytes)?)
}

fn directory_name(dir: &Path) -> String {
    let absolute = std::path::absolute(dir).unwrap_or_else(|_| dir.into());
    absolute.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned())
}

/// Decides types from the user's choices and from the scale bytes.
struct Picker<'a> {
    options: &'a Options,
    checkpoint: &'a Checkpoint,
    scales: HashMap<String, Vec<u8>>,
    warnings: Vec<String>,
}

impl Picker<'_> {
    fn pick(&mut self, tensor: &Planned) -> Result<DType, Error> {
        let lossy = match (tensor.encoding, tensor.family) {
            (Encoding::Fp8 | Encoding::Fp4, Family::RoutedExperts) => self.options.experts.map(|choice| choice.dtype()),
            (Encoding::Fp8, _) => self.options.dense.and_then(|choice| choice.lossy()),
            _ => None,
        };
        match lossy {
            Some(dtype) if !tensor.encoding.lossless_as(dtype) => self.lossy(tensor, dtype),
            _ if tensor.encoding == Encoding::Fp8 => self.exact(tensor),
            _ => Ok(tensor.dtype),
        }
    }

    fn lossy(&mut self, tensor: &Planned, chosen: DType) -> Result<DType, Error> {
        let fits = |dtype: DType| tensor.parts.iter().all(|part| part.columns.is_multiple_of(dtype.block_elements()));
        let dtype = match for_short_rows(chosen) {
            Some(smaller) if tensor.family == Family::RoutedExperts && !fits(chosen) => smaller,
            _ => chosen,
        };
        if dtype != chosen {
            self.warn_once(format!(
                "routed experts with rows of {} values are stored as {}: {} needs a multiple of {}",
                tensor.ne[0],
                dtype.name(),
                chosen.name(),
                chosen.block_elements()
            ));
        }
        if !built_in(dtype) && self.options.quantizer.is_none() {
            return Err(Error::Choice(missing_quantizer(dtype)));
        }
        if fits(dtype) || tensor.family == Family::RoutedExperts {
            return Ok(dtype); // a partial block of experts is refused by the recipe: the user chose it for all of them
        }
        let (name, n) = (&tensor.name, tensor.ne[0]);
        self.warnings
            .push(format!("`{name}` stays lossless: its rows of {n} are no whole number of {} blocks", dtype.name()));
        self.exact(tensor)
    }

    fn warn_once(&mut self, warning: String) {
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    /// BF16, or F32 for a tensor with a scale below BF16's range. Remembers the scale bytes for the file's keys.
    fn exact(&mut self, tensor: &Planned) -> Result<DType, Error> {
        if !self.checkpoint.is_whole() {
            return Ok(DType::BF16);
        }
        let mut all = Vec::new();
        for part in &tensor.parts {
            let Some(scale) = &part.scale else { continue };
            let bytes = self.checkpoint.read_all(scale)?;
            if let Err(Fault::NanScale { row, column }) =
                fp4::check_scales(&bytes, 0, part.columns.div_ceil(fp8::BLOCK))
            {
                return Err(Error::NanScale { tensor: scale.clone(), row, column });
            }
            if let Some(byte) = bytes.iter().copied().max().filter(|byte| *byte > fp8::F32_EXACT_MAX) {
                return Err(Error::ScaleRange { tensor: scale.clone(), byte });
            }
            all.extend(bytes);
        }
        let dtype = match all.iter().all(|byte| fp8::BF16_EXACT.contains(byte)) {
            true => DType::BF16,
            false => DType::F32,
        };
        self.scales.insert(tensor.name.clone(), all);
        Ok(dtype)
    }
}

/// What takes the place of a type with blocks of 256 where rows are shorter or no multiple of it; llama.cpp's choice.
fn for_short_rows(dtype: DType) -> Option<DType> {
    match dtype {
        DType::Q4_K => Some(DType::Q5_0),
        DType::Q2_K => Some(DType::Q4_0),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drafts_are_named_after_their_model() {
        for (output, draft) in [("m/flash.gguf", "m/flash.draft.gguf"), ("v4.1.gguf", "v4.1.draft.gguf")] {
            assert_eq!(draft_path(Path::new(output)), Path::new(draft));
        }
    }

    #[test]
    fn names_that_would_meet_those_of_another_conversion_are_refused() {
        for good in ["m.gguf", "a/v4.1.gguf", "draft.gguf", "m-00001.gguf", "m-1-of-2.gguf"] {
            check_name(Path::new(good)).unwrap();
        }
        for (bad, hint) in [
            ("a/m", "call it `a/m.gguf`"),
            ("m.bin", "call it `m.bin.gguf`"),
            ("m.GGUF", "call it `m.GGUF.gguf`"),
            ("m.draft.gguf", "such as `m.gguf`"),
            ("m-00001-of-00002.gguf", "a name without number"),
        ] {
            let error = check_name(Path::new(bad)).unwrap_err();
            assert!(error.to_string().contains(&format!("`{bad}`")), "{error}");
            assert!(error.hint().unwrap().contains(hint), "{:?}", error.hint());
        }
        for nothing in [".gguf", "..", "/"] {
            assert!(check_name(Path::new(nothing)).is_err(), "{nothing}");
        }
    }
}
