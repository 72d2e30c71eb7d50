//! Walks the tables against a checkpoint's catalog: finds each released tensor, checks dtype and shape, and remembers what was used.

use std::collections::HashSet;

use fathom_gguf::DType;

use super::config::Config;
use super::tensors::{self, Form, Layer, Rule};
use crate::Error;
use crate::recipe::{Catalog, Dtype, Family, Join, Part, Picker, Planned};
use crate::transcode::{Encoding, fp4, fp8};

pub(super) struct Builder<'a> {
    config: &'a Config,
    catalog: &'a Catalog,
    experts: Encoding,
    used: HashSet<&'a str>,
    missing: Vec<String>,
    asked: HashSet<String>,
    /// The first wrong dtype, shape or missing scale: more specific than a missing tensor, so it is reported first.
    first: Option<Error>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(config: &'a Config, catalog: &'a Catalog, experts: Encoding) -> Builder<'a> {
        Builder {
            config,
            catalog,
            experts,
            used: HashSet::new(),
            missing: Vec::new(),
            asked: HashSet::new(),
            first: None,
        }
    }

    /// The tensors of a whole block. `name(released, gguf)` gives the GGUF name from the names within the block.
    pub(super) fn block(&mut self, layer: Layer, prefix: &str, name: &dyn Fn(&str, &str) -> String) -> Vec<Planned> {
        let mut out = Vec::new();
        for rule in tensors::LAYER.iter().filter(|rule| layer.has(rule.when)) {
            let released = format!("{prefix}{}", rule.released);
            out.extend(self.rule(rule, layer, &released, name(rule.released, rule.gguf)));
        }
        for rule in tensors::EXPERTS {
            let shape = (rule.shape)(self.config);
            let parts: Option<Vec<Part>> = (0..self.config.n_routed_experts)
                .map(|expert| {
                    let released = format!("{prefix}ffn.experts.{expert}.{}", rule.released);
                    self.quantised(&released, self.experts, shape)
                })
                .collect();
            let Some(parts) = parts else { continue };
            let stacked = format!("ffn.experts.{}", rule.released);
            out.push(Planned {
                name: name(&stacked, rule.gguf),
                dtype: proposal(self.experts),
                ne: vec![shape[1], shape[0], parts.len() as u64],
                encoding: self.experts,
                family: Family::RoutedExperts,
                parts,
                join: Join::Stack,
            });
        }
        out
    }

    /// One tensor by its rule. `released` is its full released name (for FP8 without `.weight`).
    pub(super) fn rule(&mut self, rule: &Rule, layer: Layer, released: &str, name: String) -> Option<Planned> {
        let shape = (rule.shape)(self.config, layer);
        let (encoding, dtype) = match rule.form {
            Form::Norm | Form::Router => (Encoding::Bf16, DType::F32),
            Form::Matrix => (Encoding::Bf16, DType::BF16),
            Form::Plain => (Encoding::F32, DType::F32),
            Form::ExpertIds => (Encoding::ExpertIds { n_expert: self.config.n_routed_experts }, DType::I32),
            Form::Fp8 => (Encoding::Fp8, DType::BF16),
        };
        let part = match encoding {
            Encoding::Fp8 => self.quantised(released, Encoding::Fp8, [shape[0], shape[1]])?,
            _ => {
                self.check(released, dtype_of(encoding), &shape)?;
                let columns = *shape.last().expect("no tensor is a scalar");
                let rows = shape.iter().rev().skip(1).product();
                Part { weight: released.into(), scale: None, rows, columns, shape: shape.clone() }
            }
        };
        let ne = shape.iter().rev().copied().collect();
        Some(Planned { name, dtype, ne, encoding, family: rule.family, parts: vec![part], join: Join::Stack })
    }

    /// `NAME.weight` and `NAME.scale`; `shape` counts values.
    pub(super) fn quantised(&mut self, name: &str, encoding: Encoding, shape: [u64; 2]) -> Option<Part> {
        let [rows, columns] = shape;
        let (weight, scale) = (format!("{name}.weight"), format!("{name}.scale"));
        let (stored, scales) = match encoding {
            Encoding::Fp4 => (vec![rows, columns / 2], vec![rows, columns / fp4::GROUP]),
            _ => (vec![rows, columns], vec![rows.div_ceil(fp8::BLOCK), columns.div_ceil(fp8::BLOCK)]),
        };
        if encoding == Encoding::Fp4 && columns % fp4::GROUP != 0 {
            let problem = format!("gives rows of {columns} FP4 values, not a multiple of {}", fp4::GROUP);
            self.fail(Error::config("hidden_size or moe_intermediate_size", problem));
            return None;
        }
        self.check(&weight, dtype_of(encoding), &stored)?;
        if self.catalog.get(&scale).is_none() {
            self.fail(Error::MissingScale { tensor: weight, scale });
            return None;
        }
        self.check(&scale, Dtype::F8_E8M0, &scales)?;
        Some(Part { weight, scale: Some(scale), rows, columns, shape: stored })
    }

    /// Which of several spellings the checkpoint has; the first one if none.
    pub(super) fn spelling(&self, names: impl IntoIterator<Item = String>) -> String {
        let mut names = names.into_iter();
        let first = names.next().expect("at least one spelling");
        if self.catalog.get(&first).is_some() {
            return first;
        }
        names.find(|name| self.catalog.get(name).is_some()).unwrap_or(first)
    }

    fn check(&mut self, name: &str, dtype: Dtype, shape: &[u64]) -> Option<()> {
        let catalog = self.catalog;
        let Some((name, released)) = catalog.entry(name) else {
            // An MTP draft asks for the trunk's embedding a second time.
            if self.asked.insert(name.into()) {
                self.missing.push(name.into());
            }
            return None;
        };
        self.used.insert(name);
        if released.dtype != dtype {
            self.fail(Error::WrongDtype {
                tensor: name.into(),
                found: released.dtype.to_string(),
                expected: dtype.to_string(),
            });
            return None;
        }
        match &released.shape {
            Some(found) if found != shape => {
                self.fail(Error::WrongShape { tensor: name.into(), found: found.clone(), expected: shape.to_vec() });
                None
            }
            _ => Some(()),
        }
    }

    fn fail(&mut self, error: Error) {
        self.first.get_or_insert(error);
    }

    /// Everything the tables want is there, and nothing else.
    pub(super) fn finish(self) -> Result<(), Error> {
        let unknown: Vec<&String> =
            self.catalog.names().iter().filter(|name| !self.used.contains(name.as_str())).collect();
        // Names of another layout explain the missing ones, so they come first.
        let foreign = unknown.iter().find(|name| !hint(name).is_empty());
        if let Some(name) = foreign {
            return Err(Error::UnknownTensor { tensor: (*name).clone(), others: unknown.len() - 1, hint: hint(name) });
        }
        if let Some(error) = self.first {
            return Err(error);
        }
        if let Some(first) = self.missing.first() {
            return Err(Error::MissingTensor { tensor: first.clone(), others: self.missing.len() - 1 });
        }
        match unknown.first() {
            None => Ok(()),
            Some(name) => Err(Error::UnknownTensor { tensor: (*name).clone(), others: unknown.len() - 1, hint: "" }),
        }
    }
}

fn dtype_of(encoding: Encoding) -> Dtype {
    match encoding {
        Encoding::Bf16 => Dtype::BF16,
        Encoding::F32 => Dtype::F32,
        Encoding::ExpertIds { .. } => Dtype::I64,
        Encoding::Fp8 => Dtype::F8_E4M3,
        Encoding::Fp4 => Dtype::I8,
    }
}

fn proposal(experts: Encoding) -> DType {
    if experts == Encoding::Fp4 { DType::MXFP4 } else { DType::BF16 }
}

/// What an unknown name looks like.
fn hint(name: &str) -> &'static str {
    if name.ends_with("_scale_inv") {
        "scales named `weight_scale_inv` come from a re-export of the checkpoint; fathom reads the layout that deepseek-ai publishes (`.scale`)"
    } else if name.starts_with("model.") || name.starts_with("lm_head") {
        "these are transformers' module names; fathom reads the layout that deepseek-ai publishes (`layers.0.attn.wq_a.weight`)"
    } else if name.starts_with("vision.")
        || name.starts_with("aligner.")
        || name.starts_with("image_")
        || name.ends_with(".bias_vl")
    {
        "this is a vision release; fathom converts the text models of DeepSeek-V4 only"
    } else {
        ""
    }
}

/// Asks for the type of each tensor and checks that it fits.
pub(super) fn assign(tensors: Vec<Planned>, pick: Picker<'_>) -> Result<Vec<Planned>, Error> {
    tensors
        .into_iter()
        .map(|mut tensor| {
            tensor.dtype = pick(&tensor)?;
            if tensor.dtype.tensor_bytes(&tensor.ne).is_none() {
                let (name, dtype) = (&tensor.name, tensor.dtype.name());
                return Err(Error::Choice(format!(
                    "tensor `{name}` cannot be stored as {dtype}: rows of {} values are no whole number of blocks",
                    tensor.ne[0]
                )));
            }
            Ok(tensor)
        })
        .collect()
}
