//! Values inside a step, as [`Probe`] names them.

use super::graph::Inner;
use super::hparams::{LayerKind, N_HC};
use super::{Native, runs};
use crate::engine::{Batch, ExpertTrace, Probe, Probed, Value};
use crate::ggml::{GraphId, RowType, Slot};

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
                        let (ids, weights) = self.experts(id, port.slot, n_tokens);
                        let shape = vec![n_tokens, h.n_used];
                        add("experts", shape.clone(), Value::I32(ids));
                        add("expert_weights", shape, Value::F32(weights));
                    }
                    Inner::RouterLogits | Inner::ExpertGram => {}
                    Inner::IndexSelected => {
                        let all = self.executor.read_i32(id, port.slot);
                        let rows = all[..h.index_top_k * n_tokens].to_vec();
                        add("index_selected", vec![n_tokens, h.index_top_k], Value::I32(rows));
                    }
                }
            }
        }
    }

    /// Reads the routers and experts that the graph that has just run kept.
    pub(super) fn read_experts(&self, id: GraphId, n_tokens: usize, traces: &mut Vec<ExpertTrace>) {
        traces.clear();
        let h = &self.model.hparams;
        for port in &self.executor.slots(id).inner {
            let floats = || self.executor.read_f32(id, port.slot).to_vec();
            match (port.what, traces.last_mut()) {
                // The ports of a layer come in this order.
                (Inner::Experts, _) => {
                    let (ids, weights) = self.experts(id, port.slot, n_tokens);
                    traces.push(ExpertTrace { layer: port.layer, ids, weights, ..ExpertTrace::default() });
                }
                (Inner::RouterLogits, Some(trace)) => {
                    let bias = self.policies.selection_bias(port.layer);
                    let logits = self.executor.read_f32(id, port.slot);
                    trace.margins = margins(logits, &bias, &trace.ids, h.n_used);
                }
                (Inner::ExpertGram, Some(trace)) => trace.gram = floats(),
                _ => {}
            }
        }
    }

    /// Ids and weights of the experts of every token.
    fn experts(&self, id: GraphId, slot: Slot, n_tokens: usize) -> (Vec<i32>, Vec<f32>) {
        let (all, slots) = (self.executor.read_i32(id, slot), self.model.hparams.n_used * n_tokens);
        let weights = all[slots..2 * slots].iter().map(|&bits| f32::from_bits(bits as u32));
        (all[..slots].to_vec(), weights.collect())
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

/// Of each chosen expert's score (formula: `csrc/ops/moe_route/args.h`) above the best of the others.
fn margins(logits: &[f32], bias: &[f32], ids: &[i32], n_used: usize) -> Vec<f32> {
    let mut margins = Vec::with_capacity(ids.len());
    for (logits, ids) in logits.chunks(bias.len()).zip(ids.chunks(n_used)) {
        let score = |expert: usize| {
            let logit = f64::from(logits[expert]);
            let softplus = if logit > 20.0 { logit } else { logit.exp().ln_1p() };
            softplus.sqrt() + f64::from(bias[expert])
        };
        let others = (0..bias.len()).filter(|&expert| !ids.contains(&(expert as i32)));
        let best = others.map(score).fold(f64::NEG_INFINITY, f64::max);
        margins.extend(ids.iter().map(|&id| usize::try_from(id).map_or(0.0, |id| (score(id) - best) as f32)));
    }
    margins
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn margins_are_counted_from_the_best_that_was_not_chosen() {
        // sqrt(softplus(0)) = sqrt(ln 2); of 25 it is 5.
        let base = 1_f64.ln_1p().sqrt();
        let logits = [0.0, 25.0, 0.0, 0.0];
        let bias = [0.5, 0.0, 0.25, 0.0];
        assert_eq!(margins(&logits, &bias, &[1, 0], 2), [(5.0 - base - 0.25) as f32, 0.25]);
        // The second was dropped: it counts as one of the others.
        assert_eq!(margins(&logits, &bias, &[1, -1], 2), [(5.0 - base - 0.5) as f32, 0.0]);
        assert_eq!(margins(&logits, &bias, &[0, 1, 2, 3], 4), [f32::INFINITY; 4]);
    }
}
