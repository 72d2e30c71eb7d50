//! DeepSeek-V4: Flash, Pro, their Base forms, 0731 and 0813 -> GGUF architecture `deepseek4`, drafts in a second file.
//!
//! Shapes, names and types are those of deepseek-v4.md; `tensors.rs` holds them as tables and this file walks the tables. A tensor
//! that no table mentions is an error, so nothing of a checkpoint is dropped silently. Not converted: the vision tower of
//! Flash-Vision-Exp (a `deepseek4` file has no place for it; llama.cpp wants it in an mmproj file) and V4.1 (another architecture).

mod builder;
mod config;
mod draft;
mod keys;
mod tensors;

use builder::Builder;
pub use config::{Config, Dspark};
use tensors::Layer;

use super::{Catalog, FilePlan, Picker, Plan, Release};
use crate::Error;
use crate::transcode::Encoding;

/// GGUF architecture of the model and of an MTP draft.
pub const ARCHITECTURE: &str = "deepseek4";
/// GGUF architecture of a DSpark draft: ours, with the released tensor names.
pub const DSPARK_ARCHITECTURE: &str = "fathom-dspark";

/// Which draft blocks a checkpoint carries; told by its tensors, because `num_nextn_predict_layers` says 1 for DSpark too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Draft {
    /// One multi-token-prediction block.
    Mtp,
    /// So many DSpark stages.
    Dspark(u32),
}

/// Plans the conversion of a DeepSeek-V4 checkpoint.
///
/// # Errors
/// A config, dtype, shape or name that is not this architecture's.
pub fn plan(
    config: &serde_json::Value,
    catalog: &Catalog,
    release: Option<Release>,
    pick: Picker<'_>,
) -> Result<Plan, Error> {
    let c = Config::parse(config)?;
    let experts = expert_encoding(catalog);
    let draft = draft::find(catalog)?;
    let mut builder = Builder::new(&c, catalog, experts);
    let trunk = trunk(&c, &mut builder);
    let draft_tensors = draft.map(|draft| draft::tensors(&c, &mut builder, draft)).transpose()?;
    builder.finish()?;

    let trunk = FilePlan {
        architecture: ARCHITECTURE,
        tokenizer: true,
        tensors: builder::assign(trunk, pick)?,
        keys: keys::deepseek4(&c, None),
    };
    let draft = match (draft, draft_tensors) {
        (Some(draft), Some(tensors)) => Some(FilePlan {
            architecture: draft::architecture(draft),
            // llama.cpp compares a draft's vocabulary with the model's; a DSpark draft is read by us, beside its model.
            tokenizer: draft == Draft::Mtp,
            tensors: builder::assign(tensors, pick)?,
            keys: draft::keys(&c, draft)?,
        }),
        _ => None,
    };
    let release = release.unwrap_or_else(|| detect_release(&c, experts, draft.is_some(), catalog));
    Ok(Plan { release, warnings: warnings(&c, &trunk, experts), trunk, draft })
}

fn trunk(c: &Config, builder: &mut Builder<'_>) -> Vec<super::Planned> {
    let mut out = Vec::new();
    let none = Layer { ratio: 0, hashed: false };
    for rule in tensors::ROOT.iter().chain(tensors::HC_HEAD) {
        out.extend(builder.rule(rule, none, rule.released, rule.gguf.into()));
    }
    for index in 0..c.num_hidden_layers {
        let layer = Layer { ratio: c.ratio(index), hashed: index < c.num_hash_layers };
        out.extend(builder.block(layer, &format!("layers.{index}."), &|_, gguf| format!("blk.{index}.{gguf}")));
    }
    out
}

/// I8 experts are packed FP4, F8_E4M3 ones are FP8 (Base); `expert_dtype` of the config is missing too often to be asked.
fn expert_encoding(catalog: &Catalog) -> Encoding {
    match catalog.get("layers.0.ffn.experts.0.w1.weight") {
        Some(released) if released.dtype == super::Dtype::F8_E4M3 => Encoding::Fp8,
        _ => Encoding::Fp4,
    }
}

fn detect_release(c: &Config, experts: Encoding, has_draft: bool, catalog: &Catalog) -> Release {
    let dspark =
        has_draft && c.dspark.is_some() && catalog.names().iter().any(|name| name.starts_with("mtp.0.main_proj"));
    match (experts, dspark) {
        (Encoding::Fp8, _) => Release::Base,
        // The August update is Pro's, the July one Flash's; the models are told apart by Flash's 256 experts.
        (_, true) if c.n_routed_experts > 256 => Release::August,
        (_, true) => Release::July,
        (_, false) => Release::April,
    }
}

fn warnings(c: &Config, trunk: &FilePlan, experts: Encoding) -> Vec<String> {
    let mut warnings = Vec::new();
    if experts == Encoding::Fp8
        && trunk.tensors.iter().any(|tensor| tensor.name.ends_with("_exps.weight") && tensor.lossless())
    {
        warnings.push(
            "the routed experts are FP8: stored losslessly as BF16 they take twice the bytes of the checkpoint \
             (`--experts q8_0` or `mxfp4` are smaller and lossy)"
                .into(),
        );
    }
    if !c.index_head_dim.is_multiple_of(64) {
        warnings.push(format!(
            "index_head_dim is {}, no multiple of 64: llama.cpp silently runs compressed layers of such a file as sliding windows",
            c.index_head_dim
        ));
    }
    if c.index_head_dim == c.head_dim {
        warnings
            .push(format!("index_head_dim equals head_dim ({}): llama.cpp divides by zero on such a file", c.head_dim));
    }
    warnings
}
