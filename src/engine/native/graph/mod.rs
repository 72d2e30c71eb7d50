//! The forward pass as a graph: one file per block of the model. Formulas: deepseek-v4.md section 6 and docs/model.md.
//!
//! A graph is built for a number of tokens and of output rows; positions, sequences and caches are bound for each run. So one decode
//! graph serves every position of every sequence.

mod attention;
mod compressor;
mod hyper;
mod indexer;
mod moe;

use std::rc::Rc;

use fathom_gguf::DType;

use super::hparams::{Hparams, LayerKind, N_HC};
use super::kv::Layout;
use super::weights::{LayerSlots, Slots};
use crate::ggml::ops::Rope;
use crate::ggml::{Builder, Error, Graph, Slot, Tensor, Weights};

/// Everything that graphs are built from.
pub struct Model {
    pub hparams: Hparams,
    pub weights: Rc<Weights>,
    pub slots: Slots,
    pub layout: Layout,
    /// Frequencies of sliding layers, and of the others.
    pub ropes: [Rope; 2],
    pub n_threads: usize,
    /// Round nothing below f32.
    pub exact: bool,
}

/// What a graph is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub n_tokens: usize,
    /// Tokens whose streams after the last layer are asked for.
    pub n_outputs: usize,
    /// Whether logits are, too.
    pub logits: bool,
    pub show: Show,
}

/// Values inside each layer that are kept, for every token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    Nothing,
    /// What [`crate::engine::Probe`] has.
    Values,
    /// What [`crate::engine::ExpertTrace`] has.
    Experts,
}

/// Tensors of a graph that are written or read.
pub struct Ports {
    pub tokens: Slot,
    /// i32 `[n_outputs]`
    pub output_rows: Option<Slot>,
    /// f32 `[n_embd * n_hc, n_outputs]`
    pub hidden: Option<Slot>,
    /// f32 `[n_vocab, n_outputs]`
    pub logits: Option<Slot>,
    pub inner: Vec<Port>,
}

/// A value inside a layer.
pub struct Port {
    pub layer: usize,
    pub what: Inner,
    pub slot: Slot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inner {
    /// f32 `[n_embd, n_tokens]`
    AttnOut,
    /// f32 `[n_embd, n_tokens]`
    FfnOut,
    /// f32 `[n_embd, n_hc, n_tokens]`, after the layer.
    Streams,
    /// i32: ids `[n_used, n_tokens]`, weights (f32), numbers `[n_tokens]`.
    Experts,
    /// f32 `[n_expert, n_tokens]`
    RouterLogits,
    /// f32 `[n_used, n_used, n_tokens]`: products of the experts' weighted outputs with each other.
    ExpertGram,
    /// i32: rows `[top_k, n_tokens]`, numbers `[n_tokens]`.
    IndexSelected,
}

impl Model {
    pub fn rope(&self, kind: LayerKind) -> &Rope {
        &self.ropes[usize::from(kind != LayerKind::Sliding)]
    }

    /// Builds the graph for `shape`.
    ///
    /// # Errors
    /// [`Error`], for shapes that no memory can hold.
    pub fn build(&self, shape: Shape) -> Result<(Graph, Ports), Error> {
        // A CSA layer takes about 130 headers.
        let capacity = 192 * self.hparams.layers.len() + 64;
        Graph::build(&self.weights, capacity, |b| self.nodes(b, shape))
    }

    fn nodes<'b>(&self, b: &Builder<'b>, shape: Shape) -> Result<Ports, Error> {
        let h = &self.hparams;
        let Shape { n_tokens, n_outputs, .. } = shape;
        let values = shape.show == Show::Values;
        let tokens = b.input(DType::I32, &[n_tokens], "tokens")?;
        let output_rows = if n_outputs > 0 { Some(b.input(DType::I32, &[n_outputs], "output_rows")?) } else { None };
        let mut ports = Ports {
            tokens: b.slot(tokens),
            output_rows: output_rows.map(|rows| b.slot(rows)),
            hidden: None,
            logits: None,
            inner: Vec::new(),
        };
        let mut probe = |layer: usize, what: Inner, slot: Slot| ports.inner.push(Port { layer, what, slot });

        let embedded = b.get_rows(b.weight(self.slots.token_embd), tokens)?;
        let embedded = b.reshape(embedded, [h.n_embd, 1, n_tokens, 1])?;
        // Every stream begins as the embedding.
        let mut streams = b.repeat(embedded, [h.n_embd, N_HC, n_tokens, 1])?;
        for (index, (layer, slots)) in h.layers.iter().zip(&self.slots.layers).enumerate() {
            let is_last = index + 1 == h.layers.len();
            let at = At { model: self, index, kind: layer.kind, slots };

            let opened = hyper::open(b, h, streams, slots.hc_attn, slots.attn_norm)?;
            let attended = attention::attention(b, &at, opened.x)?;
            if values {
                if let Some(top) = attended.top {
                    probe(index, Inner::IndexSelected, b.output(top));
                }
                probe(index, Inner::AttnOut, b.output(attended.out));
            }
            if is_last && n_outputs == 0 && shape.show == Show::Nothing {
                break; // the caches are complete
            }
            streams = b.hyper_close(&opened, attended.out)?;
            // After the last attention nobody looks at other tokens: go on with those that were asked for.
            let narrowed = is_last && !layer.hashed && shape.show == Show::Nothing && n_outputs < n_tokens;
            if let (true, Some(rows)) = (narrowed, output_rows) {
                streams = select(b, streams, rows)?;
            }

            let opened = hyper::open(b, h, streams, slots.hc_ffn, slots.ffn_norm)?;
            let fed = moe::moe(b, &at, layer, opened.x, tokens)?;
            if values {
                probe(index, Inner::Experts, fed.routed.output(b));
                probe(index, Inner::FfnOut, b.output(fed.out));
            }
            if shape.show == Show::Experts && !layer.hashed {
                probe(index, Inner::Experts, fed.routed.output(b));
                probe(index, Inner::RouterLogits, b.output(fed.logits));
                probe(index, Inner::ExpertGram, b.output(moe::gram(b, &at, layer, opened.x, fed.routed)?));
            }
            streams = b.hyper_close(&opened, fed.out)?;
            if values {
                probe(index, Inner::Streams, b.output(streams));
            } else if shape.show == Show::Experts {
                // Nobody may ask for what follows; a node that was made must be computed all the same.
                b.expand(streams);
            }
            if let (true, false, Some(rows)) = (is_last, narrowed, output_rows) {
                streams = select(b, streams, rows)?;
            }
        }
        if n_outputs > 0 {
            ports.hidden = Some(b.output(streams));
            if shape.logits {
                let opened = hyper::open(b, h, streams, self.slots.output_hc, self.slots.output_norm)?;
                ports.logits = Some(b.output(b.product(b.weight(self.slots.output), &b.operand(opened.x))?));
            }
        }
        Ok(ports)
    }
}

/// Where a block stands.
#[derive(Clone, Copy)]
struct At<'a> {
    model: &'a Model,
    index: usize,
    kind: LayerKind,
    slots: &'a LayerSlots,
}

/// `x / sqrt(mean(x^2) + eps) * weight`
fn norm<'b>(b: &Builder<'b>, x: Tensor<'b>, weight: crate::ggml::WeightId, eps: f32) -> Result<Tensor<'b>, Error> {
    b.mul(b.rms_norm(x, eps)?, b.weight(weight))
}

/// The streams of some tokens.
fn select<'b>(b: &Builder<'b>, streams: Tensor<'b>, rows: Tensor<'b>) -> Result<Tensor<'b>, Error> {
    let [n_embd, n_hc, n_tokens, _] = streams.ne();
    let flat = b.reshape(streams, [n_embd * n_hc, n_tokens, 1, 1])?;
    let chosen = b.get_rows(flat, rows)?;
    b.reshape(chosen, [n_embd, n_hc, rows.ne()[0], 1])
}
