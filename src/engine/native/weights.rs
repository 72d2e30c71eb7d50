//! Tensor names to typed slots. Every tensor's shape and type is checked against the dimensions before anything uses it.
//!
//! Weights are used where they lie in the mapped file. With [`Expand::F32`] matrices that are multiplied are expanded in memory, so that ggml
//! rounds no activation; experts stay as they are, since our own kernel has an exact way with them.

use std::path::Path;
use std::rc::Rc;

use fathom_gguf::{DType, File, TensorInfo};

use super::hparams::{Hparams, Layer, LayerKind, N_HC};
use crate::engine::Error;
use crate::ggml::ops::Expert;
use crate::ggml::{self, WeightId, Weights, types};

/// What becomes of weights that are not f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expand {
    No,
    /// Matrices become f32, experts excepted.
    F32,
}

/// All weights of a model by their place in the graph.
pub struct Slots {
    pub token_embd: WeightId,
    pub output: WeightId,
    pub output_norm: WeightId,
    pub output_hc: Hyper,
    pub layers: Vec<LayerSlots>,
}

/// A hyper-connection: fn `[4 * n_embd, 24 or 4]`, base, scale.
#[derive(Clone, Copy)]
pub struct Hyper {
    pub fn_: WeightId,
    pub base: WeightId,
    pub scale: WeightId,
}

pub struct LayerSlots {
    pub attn_norm: WeightId,
    pub hc_attn: Hyper,
    pub q_a: WeightId,
    pub q_a_norm: WeightId,
    pub q_b: WeightId,
    pub kv: WeightId,
    pub kv_norm: WeightId,
    pub sinks: WeightId,
    /// `[n_head * n_embd_head / o_groups, o_rank, o_groups]`
    pub output_a: WeightId,
    pub output_b: WeightId,
    pub compressor: Option<CompressorSlots>,
    pub indexer: Option<IndexerSlots>,
    pub ffn_norm: WeightId,
    pub hc_ffn: Hyper,
    pub router: WeightId,
    pub routing: Routing,
    pub gate: Expert,
    pub up: Expert,
    pub down: Expert,
    pub shared_gate: WeightId,
    pub shared_up: WeightId,
    pub shared_down: WeightId,
}

#[derive(Clone, Copy)]
pub struct CompressorSlots {
    pub kv: WeightId,
    pub gate: WeightId,
    pub ape: WeightId,
    pub norm: WeightId,
}

pub struct IndexerSlots {
    pub q_b: WeightId,
    pub weights: WeightId,
    pub compressor: CompressorSlots,
}

/// How a layer chooses experts.
#[derive(Clone, Copy)]
pub enum Routing {
    Bias(WeightId),
    /// i32 `[n_used, n_vocab]`
    Table(WeightId),
}

/// Binds the tensors of `file`.
///
/// With `keep`, which is `file` again, tensors have their data; without, only their shapes: for planning.
///
/// # Errors
/// [`Error::Load`] naming the tensor and what was expected of it, [`Error::Gguf`] for a missing one, [`Error::Memory`].
pub fn bind(file: &File, keep: Option<Rc<File>>, hparams: &Hparams, expand: Expand) -> Result<(Weights, Slots), Error> {
    let weights = Weights::new(keep, file.tensors().len() + 8);
    let weights = weights.map_err(|error| load_error(file.path(), error))?;
    let mut binder = Binder { file, hparams, expand, weights };
    let slots = binder.slots()?;
    binder.check_blocks()?;
    Ok((binder.weights, slots))
}

/// Bytes that expansion takes beside the mapped file.
pub fn expanded_bytes(file: &File, expand: Expand) -> u64 {
    if expand == Expand::No {
        return 0;
    }
    let is_expanded = |tensor: &&TensorInfo| {
        types::can_multiply(tensor.dtype) && tensor.dtype != DType::F32 && !tensor.name.contains("_exps.")
    };
    file.tensors().iter().filter(is_expanded).map(|tensor| tensor.elements().saturating_mul(4)).sum()
}

fn load_error(path: &Path, error: ggml::Error) -> Error {
    Error::Load { path: path.to_owned(), reason: error.to_string() }
}

/// What a tensor must be.
#[derive(Clone, Copy)]
enum Form {
    /// Multiplied by activations: any type that ggml can multiply; expanded when asked for.
    Matrix,
    /// Looked up row by row.
    Embedding,
    /// A stack of experts: any type that ggml can multiply.
    Experts,
    /// Read by kernels number by number: f32.
    Vector,
    /// i32
    Table,
}

struct Binder<'a> {
    file: &'a File,
    hparams: &'a Hparams,
    expand: Expand,
    weights: Weights,
}

impl Binder<'_> {
    fn slots(&mut self) -> Result<Slots, Error> {
        let h = self.hparams;
        let layers = (0..h.layers.len()).map(|index| self.layer(index, &h.layers[index])).collect::<Result<_, _>>()?;
        Ok(Slots {
            token_embd: self.tensor("token_embd.weight", &[h.n_embd, h.n_vocab], Form::Embedding)?,
            output: self.tensor("output.weight", &[h.n_embd, h.n_vocab], Form::Matrix)?,
            output_norm: self.tensor("output_norm.weight", &[h.n_embd], Form::Vector)?,
            output_hc: self.hyper("output_hc", N_HC, 1)?,
            layers,
        })
    }

    fn hyper(&mut self, name: &str, rows: usize, scales: usize) -> Result<Hyper, Error> {
        Ok(Hyper {
            fn_: self.tensor(&format!("{name}_fn.weight"), &[N_HC * self.hparams.n_embd, rows], Form::Matrix)?,
            base: self.tensor(&format!("{name}_base.weight"), &[rows], Form::Vector)?,
            scale: self.tensor(&format!("{name}_scale.weight"), &[scales], Form::Vector)?,
        })
    }

    fn layer(&mut self, index: usize, layer: &Layer) -> Result<LayerSlots, Error> {
        use Form::{Matrix, Vector};
        let h = self.hparams;
        let (d, heads, mixes) = (h.n_embd_head, h.n_head, (2 + N_HC) * N_HC);
        let group = heads * d / h.o_groups;
        let name = |tensor: &str| format!("blk.{index}.{tensor}");
        let compressor = match layer.kind {
            LayerKind::Sliding => None,
            kind => Some(self.compressor(&name("attn_compressor"), d, kind)?),
        };
        let indexer = match layer.kind {
            LayerKind::Csa => Some(IndexerSlots {
                q_b: self.tensor(
                    &name("indexer.attn_q_b.weight"),
                    &[h.q_rank, h.index_heads * h.index_width],
                    Matrix,
                )?,
                weights: self.tensor(&name("indexer.proj.weight"), &[h.n_embd, h.index_heads], Matrix)?,
                compressor: self.compressor(&name("indexer_compressor"), h.index_width, LayerKind::Csa)?,
            }),
            _ => None,
        };
        let routing = if layer.hashed {
            let name = name("ffn_gate_tid2eid.weight");
            let table = self.tensor(&name, &[h.n_used, h.n_vocab], Form::Table)?;
            self.check_table(&name)?;
            Routing::Table(table)
        } else {
            Routing::Bias(self.tensor(&name("exp_probs_b.bias"), &[h.n_expert], Vector)?)
        };
        Ok(LayerSlots {
            attn_norm: self.tensor(&name("attn_norm.weight"), &[h.n_embd], Vector)?,
            hc_attn: self.hyper(&name("hc_attn"), mixes, 3)?,
            q_a: self.tensor(&name("attn_q_a.weight"), &[h.n_embd, h.q_rank], Matrix)?,
            q_a_norm: self.tensor(&name("attn_q_a_norm.weight"), &[h.q_rank], Vector)?,
            q_b: self.tensor(&name("attn_q_b.weight"), &[h.q_rank, heads * d], Matrix)?,
            kv: self.tensor(&name("attn_kv.weight"), &[h.n_embd, d], Matrix)?,
            kv_norm: self.tensor(&name("attn_kv_a_norm.weight"), &[d], Vector)?,
            sinks: self.tensor(&name("attn_sinks.weight"), &[heads], Vector)?,
            output_a: self.output_a(&name("attn_output_a.weight"), group)?,
            output_b: self.tensor(&name("attn_output_b.weight"), &[h.o_groups * h.o_rank, h.n_embd], Matrix)?,
            compressor,
            indexer,
            ffn_norm: self.tensor(&name("ffn_norm.weight"), &[h.n_embd], Vector)?,
            hc_ffn: self.hyper(&name("hc_ffn"), mixes, 3)?,
            router: self.tensor(&name("ffn_gate_inp.weight"), &[h.n_embd, h.n_expert], Matrix)?,
            routing,
            gate: self.experts(&name("ffn_gate_exps"), [h.n_embd, h.n_ff])?,
            up: self.experts(&name("ffn_up_exps"), [h.n_embd, h.n_ff])?,
            down: self.experts(&name("ffn_down_exps"), [h.n_ff, h.n_embd])?,
            shared_gate: self.tensor(&name("ffn_gate_shexp.weight"), &[h.n_embd, h.n_ff_shared], Matrix)?,
            shared_up: self.tensor(&name("ffn_up_shexp.weight"), &[h.n_embd, h.n_ff_shared], Matrix)?,
            shared_down: self.tensor(&name("ffn_down_shexp.weight"), &[h.n_ff_shared, h.n_embd], Matrix)?,
        })
    }

    fn compressor(&mut self, name: &str, d: usize, kind: LayerKind) -> Result<CompressorSlots, Error> {
        let width = if kind == LayerKind::Csa { 2 * d } else { d };
        let n_embd = self.hparams.n_embd;
        Ok(CompressorSlots {
            kv: self.tensor(&format!("{name}_kv.weight"), &[n_embd, width], Form::Matrix)?,
            gate: self.tensor(&format!("{name}_gate.weight"), &[n_embd, width], Form::Matrix)?,
            ape: self.tensor(&format!("{name}_ape.weight"), &[width, kind.ratio()], Form::Vector)?,
            norm: self.tensor(&format!("{name}_norm.weight"), &[d], Form::Vector)?,
        })
    }

    fn experts(&mut self, name: &str, [n_in, n_out]: [usize; 2]) -> Result<Expert, Error> {
        let n_expert = self.hparams.n_expert;
        let weight = self.tensor(&format!("{name}.weight"), &[n_in, n_out, n_expert], Form::Experts)?;
        let scale = format!("{name}.scale");
        let scales = match self.file.opt_tensor(&scale) {
            None => None,
            Some(_) => Some(self.tensor(&scale, &[n_expert], Form::Vector)?),
        };
        Ok(Expert { weight, scales })
    }

    /// The file has the groups one after the other along the rows.
    fn output_a(&mut self, name: &str, group: usize) -> Result<WeightId, Error> {
        let (rank, groups) = (self.hparams.o_rank, self.hparams.o_groups);
        self.checked(name, &[group, rank * groups], &[group, rank, groups], Form::Matrix)
    }

    fn tensor(&mut self, name: &str, ne: &[usize], form: Form) -> Result<WeightId, Error> {
        self.checked(name, ne, ne, form)
    }

    /// A tensor of shape `ne` in the file, used as `shape`.
    fn checked(&mut self, name: &str, ne: &[usize], shape: &[usize], form: Form) -> Result<WeightId, Error> {
        let tensor = self.file.tensor(name)?;
        let error = |reason: String| Error::Load { path: self.file.path().to_owned(), reason };
        let trimmed = |ne: &mut dyn Iterator<Item = u64>| {
            let mut ne: Vec<u64> = ne.collect();
            while ne.len() > 1 && ne.last() == Some(&1) {
                ne.pop();
            }
            ne
        };
        let (found, expected) = (trimmed(&mut tensor.ne.iter().copied()), trimmed(&mut ne.iter().map(|&n| n as u64)));
        if found != expected {
            return Err(error(format!("tensor `{name}` has shape {found:?}, expected {expected:?}")));
        }
        let (fits, expected) = match form {
            Form::Matrix | Form::Embedding | Form::Experts => {
                (types::can_multiply(tensor.dtype), "a type that ggml can multiply")
            }
            Form::Vector => (tensor.dtype == DType::F32, "f32"),
            Form::Table => (tensor.dtype == DType::I32, "i32"),
        };
        if !fits {
            return Err(error(format!("tensor `{name}` is {}, expected {expected}", tensor.dtype.name())));
        }
        let id = match (form, self.expand) {
            (Form::Matrix | Form::Embedding, Expand::F32) => self.weights.expand(tensor, shape),
            _ => self.weights.map(tensor, shape),
        };
        id.map_err(|error| load_error(self.file.path(), error))
    }

    /// Blocks beyond the last are a sign that the file and its keys do not belong together.
    fn check_blocks(&self) -> Result<(), Error> {
        let n_block = self.hparams.n_block;
        let block = |name: &str| name.strip_prefix("blk.")?.split_once('.')?.0.parse::<usize>().ok();
        match self.file.tensors().iter().find(|tensor| block(&tensor.name).is_some_and(|block| block >= n_block)) {
            None => Ok(()),
            Some(tensor) => {
                let reason = format!("tensor `{}` belongs to a block beyond block_count ({n_block})", tensor.name);
                Err(Error::Load { path: self.file.path().to_owned(), reason })
            }
        }
    }

    /// An expert that does not exist would be read from somewhere else in memory.
    fn check_table(&self, name: &str) -> Result<(), Error> {
        let tensor = self.file.tensor(name)?;
        let (n_used, n_expert) = (self.hparams.n_used, self.hparams.n_expert);
        let ids = self.file.data(tensor).as_chunks::<4>().0.iter().map(|bytes| i32::from_le_bytes(*bytes));
        match ids.enumerate().find(|(_, id)| !usize::try_from(*id).is_ok_and(|id| id < n_expert)) {
            None => Ok(()),
            Some((index, id)) => {
                let token = index / n_used;
                let reason =
                    format!("tensor `{name}` sends token {token} to expert {id}, of which there are {n_expert}");
                Err(Error::Load { path: self.file.path().to_owned(), reason })
            }
        }
    }
}
