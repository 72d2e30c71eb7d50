//! Values inside a step, as [`Probe`] names them.

use super::graph::Inner;
use super::hparams::{LayerKind, N_HC};
use super::{Native, runs};
use crate::engine::{Batch, Probe, Probed, Value};
use crate::ggml::{GraphId, RowType};

impl Native {
    /// Reads what the graph that has just run kept.
    pub(super) fn read_values(&self, id: GraphId, batch: &Batch, probe: &mut Probe) {
        probe.values.clear();
        let (h, n_tokens) = (&self.model.hparams, batch.tokens.len());
        let first = runs(&batch.tokens).next().map(|run| run[0].seq.0 as usize);
        for layer in 0..h.layers.len() {
            let mut add = |what: &str, shape: Vec<usize>, value: Value| {
                probe.values.push(Probed { name: format!("layer_{layer}.{what}"), shape, value });
            };
            if let (Some(seq), true) = (first, h.layers[layer].kind != LayerKind::Sliding)
                && let Some(rows) = self.compressed(seq, layer)
            {
                add("compressed", vec![rows.len() / h.n_embd_head, h.n_embd_head], Value::F32(rows));
            }
            for port in self.executor.slots(id).inner.iter().filter(|port| port.layer == layer) {
                let floats = || Value::F32(self.executor.read_f32(id, port.slot).to_vec());
                match port.what {
                    Inner::AttnOut => add("attn_out", vec![n_tokens, h.n_embd], floats()),
                    Inner::FfnOut => add("ffn_out", vec![n_tokens, h.n_embd], floats()),
                    Inner::Streams => add("streams", vec![n_tokens, N_HC, h.n_embd], floats()),
                    Inner::Experts => {
                        let (all, slots) = (self.executor.read_i32(id, port.slot), h.n_used * n_tokens);
                        let weights = all[slots..2 * slots].iter().map(|&bits| f32::from_bits(bits as u32));
                        let shape = vec![n_tokens, h.n_used];
                        add("experts", shape.clone(), Value::I32(all[..slots].to_vec()));
                        add("expert_weights", shape, Value::F32(weights.collect()));
                    }
                    Inner::IndexSelected => {
                        let all = self.executor.read_i32(id, port.slot);
                        let rows = all[..h.index_top_k * n_tokens].to_vec();
                        add("index_selected", vec![n_tokens, h.index_top_k], Value::I32(rows));
                    }
                }
            }
        }
    }

    /// Compressed rows of a layer, when they are kept in f32.
    fn compressed(&self, seq: usize, layer: usize) -> Option<Vec<f32>> {
        let rows = &self.sequences[seq].cache.layers[layer].compressed.as_ref()?.rows;
        (rows.row_type() == RowType::F32).then(|| {
            let rows = (0..rows.len()).flat_map(|index| rows.row(index).as_chunks::<4>().0);
            rows.map(|bytes| f32::from_ne_bytes(*bytes)).collect()
        })
    }
}
