//! Draft blocks: MTP in upstream's layout, DSpark as `fathom-dspark`. Both go to a file of their own, because llama.cpp refuses
//! a trunk with tensors it does not know.
//!
//! - **MTP** (April, Base). Architecture `deepseek4`, the block as `blk.<num_hidden_layers>`, its own `hc_head_*` in the root
//!   `output_hc_*` slots, e_proj | h_proj joined along the input axis, and copies of embedding, output norm and output, which
//!   llama.cpp requires in such a file.
//! - **DSpark** (0731, 0813). Three blocks with the released names under `mtp.N.`; only the routed experts are stacked
//!   (`mtp.N.ffn.experts.w1.weight`).

use fathom_gguf::{DType, Metadata};

use super::builder::Builder;
use super::config::Config;
use super::tensors::{self, Layer, Rule};
use super::{ARCHITECTURE, DSPARK_ARCHITECTURE, Draft, keys};
use crate::Error;
use crate::recipe::{Catalog, Family, Join, Planned};
use crate::transcode::Encoding;

/// Draft blocks slide, score by bias, and never look experts up.
const BLOCK: Layer = Layer { ratio: 0, hashed: false };

pub(super) fn find(catalog: &Catalog) -> Result<Option<Draft>, Error> {
    let stage = |name: &String| name.strip_prefix("mtp.")?.split('.').next()?.parse::<u32>().ok();
    let Some(last) = catalog.names().iter().filter_map(stage).max() else { return Ok(None) };
    let dspark = catalog.get("mtp.0.main_proj.weight").is_some();
    match (dspark, last) {
        (true, last) if last < 64 => Ok(Some(Draft::Dspark(last + 1))),
        (false, 0) => Ok(Some(Draft::Mtp)),
        _ => Err(Error::Choice(format!(
            "the checkpoint has draft blocks mtp.0 to mtp.{last} {} `mtp.0.main_proj`: neither one MTP block nor DSpark stages",
            if dspark { "with" } else { "without" }
        ))),
    }
}

pub(super) fn architecture(draft: Draft) -> &'static str {
    match draft {
        Draft::Mtp => ARCHITECTURE,
        Draft::Dspark(_) => DSPARK_ARCHITECTURE,
    }
}

pub(super) fn tensors(c: &Config, builder: &mut Builder<'_>, draft: Draft) -> Result<Vec<Planned>, Error> {
    match draft {
        Draft::Mtp => Ok(mtp(c, builder)),
        Draft::Dspark(stages) if c.dspark.is_some() => Ok(dspark(builder, stages)),
        Draft::Dspark(_) => {
            Err(Error::config("dspark_block_size", "is missing, but the checkpoint holds `mtp.0.main_proj`"))
        }
    }
}

fn mtp(c: &Config, builder: &mut Builder<'_>) -> Vec<Planned> {
    let block = c.num_hidden_layers;
    let mut out = Vec::new();
    for rule in tensors::ROOT {
        out.extend(builder.rule(rule, BLOCK, rule.released, rule.gguf.into()));
    }
    for rule in tensors::HC_HEAD {
        out.extend(builder.rule(rule, BLOCK, &format!("mtp.0.{}", rule.released), rule.gguf.into()));
    }
    out.extend(builder.block(BLOCK, "mtp.0.", &|_, gguf| format!("blk.{block}.{gguf}")));
    let halves: Option<Vec<_>> = tensors::MTP_JOINED
        .iter()
        .map(|half| builder.quantised(&format!("mtp.0.{half}"), Encoding::Fp8, [c.hidden_size, c.hidden_size]))
        .collect();
    out.extend(halves.map(|parts| Planned {
        name: format!("blk.{block}.nextn.eh_proj.weight"),
        dtype: DType::BF16,
        ne: vec![parts.iter().map(|part| part.columns).sum(), c.hidden_size],
        encoding: Encoding::Fp8,
        family: Family::Draft,
        parts,
        join: Join::Columns,
    }));
    for rule in tensors::MTP {
        out.extend(builder.rule(
            rule,
            BLOCK,
            &format!("mtp.0.{}", rule.released),
            format!("blk.{block}.{}", rule.gguf),
        ));
    }
    out
}

fn dspark(builder: &mut Builder<'_>, stages: u32) -> Vec<Planned> {
    let mut out = Vec::new();
    for stage in 0..stages {
        let prefix = format!("mtp.{stage}.");
        if stage == 0 {
            out.extend(tensors::DSPARK_FIRST.iter().filter_map(|rule| extra(builder, rule, &prefix)));
        }
        // Within a block the released name of an FP8 matrix or of stacked experts lacks its `.weight`.
        out.extend(builder.block(BLOCK, &prefix, &|released, gguf| {
            let bare = gguf.ends_with(".weight") && !released.ends_with(".weight") && !is_plain(released);
            format!("{prefix}{released}{}", if bare { ".weight" } else { "" })
        }));
        if stage + 1 == stages {
            out.extend(tensors::DSPARK_LAST.iter().filter_map(|rule| extra(builder, rule, &prefix)));
            for rule in tensors::HC_HEAD {
                let released = format!("{prefix}{}", rule.released);
                out.extend(builder.rule(rule, BLOCK, &released, released.clone()));
            }
        }
    }
    out
}

/// Tensors that are released without `.weight`.
fn is_plain(released: &str) -> bool {
    tensors::LAYER.iter().any(|rule| rule.released == released && rule.form != tensors::Form::Fp8)
}

fn extra(builder: &mut Builder<'_>, rule: &Rule, prefix: &str) -> Option<Planned> {
    let others =
        tensors::DSPARK_ALIASES.iter().find(|(name, _)| *name == rule.released).map_or(&[][..], |(_, others)| others);
    let spellings = std::iter::once(rule.released).chain(others.iter().copied());
    let released = builder.spelling(spellings.map(|name| format!("{prefix}{name}")));
    let name = match rule.form {
        tensors::Form::Fp8 => format!("{released}.weight"),
        _ => released.clone(),
    };
    builder.rule(rule, BLOCK, &released, name)
}

pub(super) fn keys(c: &Config, draft: Draft) -> Result<Metadata, Error> {
    match draft {
        Draft::Mtp => Ok(keys::deepseek4(c, Some(1))),
        Draft::Dspark(stages) => Ok(keys::dspark(c, stages)),
    }
}
