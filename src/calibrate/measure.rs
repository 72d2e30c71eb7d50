//! Windows of text through an engine under policies, against all experts.

use crate::engine::routing::LayerCount;
use crate::engine::{Batch, BatchToken, Engine, ExpertTrace, Inspect, Output, Outputs, Routing};
use crate::eval::Watch;
use crate::eval::divergence::Divergences;
use crate::eval::perplexity::Losses;
use crate::eval::text::loss;
use crate::ids::{Pos, SeqId, TokenId};

use super::Error;

const SEQ: SeqId = SeqId(0);

/// Tokens, of which those from `context` on are scored.
#[derive(Clone, Copy)]
pub(super) struct Window<'a> {
    pub(super) tokens: &'a [TokenId],
    pub(super) context: usize,
}

impl Window<'_> {
    pub(super) fn scored(&self) -> usize {
        self.tokens.len() - self.context
    }
}

/// An engine and the buffers of its steps.
pub(super) struct Runner<'e> {
    pub(super) engine: &'e mut dyn Engine,
    batch: Batch,
    out: Outputs,
}

/// What is looked at beside the logits.
pub(super) type Look<'a> = Option<&'a mut dyn FnMut(&[ExpertTrace])>;

/// Gets each scored row: its number in the window, its position, the logits.
type Visit<'a> = &'a mut dyn FnMut(usize, usize, &[f32]) -> Result<(), Error>;

impl<'e> Runner<'e> {
    pub(super) fn new(engine: &'e mut dyn Engine) -> Runner<'e> {
        Runner { engine, batch: Batch::default(), out: Outputs::default() }
    }

    /// Computes a window from its start in steps of at most `chunk` tokens. Without `visit` no logits are asked for.
    pub(super) fn run(
        &mut self,
        window: Window,
        routing: &Routing,
        chunk: usize,
        mut look: Look,
        mut visit: Option<Visit>,
    ) -> Result<(), Error> {
        self.engine.release(SEQ);
        let id = self.engine.find_routing(routing)?;
        self.engine.set_routing(SEQ, id)?;
        // Row `position` predicts token `position + 1`; the last predicts nothing that is known.
        let wanted = match visit {
            Some(_) => window.context - 1..window.tokens.len() - 1,
            None => 0..0,
        };
        let mut traces = Vec::new();
        let mut start = 0;
        for part in window.tokens.chunks(chunk.max(1)) {
            self.batch.tokens.clear();
            self.batch.tokens.extend((start..).zip(part).map(|(position, &token)| BatchToken {
                token,
                seq: SEQ,
                pos: Pos(position as u32),
                output: wanted.contains(&position).then_some(Output::Logits),
            }));
            match &mut look {
                None => {
                    self.engine.step(&self.batch, &mut self.out)?;
                }
                Some(look) => {
                    self.engine.inspect(&self.batch, &mut self.out, Inspect::Experts(&mut traces))?;
                    look(&traces);
                }
            }
            let positions = (start..start + part.len()).filter(|position| wanted.contains(position));
            for (row, position) in positions.enumerate() {
                if let Some(visit) = &mut visit {
                    visit(position - wanted.start, position, self.out.row(row))?;
                }
            }
            start += part.len();
        }
        Ok(())
    }

    /// Adds what the last window kept, layer by layer.
    pub(super) fn count(&self, counts: &mut Vec<LayerCount>) {
        let Some(found) = self.engine.routing_counts(SEQ) else { return };
        counts.resize(found.layers.len(), LayerCount::default());
        for (sum, layer) in counts.iter_mut().zip(&found.layers) {
            sum.tokens += layer.tokens;
            sum.kept += layer.kept;
        }
    }
}

/// What one policy did to the windows.
#[derive(Clone, Default)]
pub(super) struct Measured {
    pub(super) divergences: Divergences,
    pub(super) losses: Losses,
    /// Of every layer of the model.
    pub(super) counts: Vec<LayerCount>,
}

impl Measured {
    /// Experts of a token in `layers`, and of each of them.
    pub(super) fn means(&self, layers: &[usize]) -> (f64, Vec<f64>) {
        let each: Vec<f64> =
            layers.iter().map(|&layer| self.counts.get(layer).and_then(|count| count.mean()).unwrap_or(0.0)).collect();
        (each.iter().sum::<f64>() / each.len().max(1) as f64, each)
    }
}

/// What [`compare`] finds.
pub(super) struct Compared {
    pub(super) off: Losses,
    /// All experts again, in steps of another size.
    pub(super) noise: Option<Divergences>,
    pub(super) policies: Vec<Measured>,
    /// Negative log-likelihoods with all experts, of every scored position.
    pub(super) off_losses: Vec<f64>,
}

/// What is measured.
pub(super) struct Comparison<'a> {
    pub(super) windows: &'a [Window<'a>],
    pub(super) policies: &'a [Routing],
    /// Steps of this size for the noise floor.
    pub(super) noise: Option<usize>,
}

/// Runs every window with all experts and under each policy. `look` sees the experts of the first `looked` policies, window by window.
pub(super) fn compare(
    runner: &mut Runner,
    of: &Comparison,
    looked: usize,
    look: &mut dyn FnMut(usize, Window, &[ExpertTrace]),
    watch: &mut dyn Watch,
) -> Result<Compared, Error> {
    let n_vocab = runner.engine.info().n_vocab;
    let mut found = Compared {
        off: Losses::default(),
        noise: of.noise.map(|_| Divergences::default()),
        policies: vec![Measured::default(); of.policies.len()],
        off_losses: Vec::new(),
    };
    let mut rows: Vec<f32> = Vec::new();
    for &window in of.windows {
        let n_tokens = window.tokens.len();
        let score = |position: usize, row: &[f32]| -> Result<f64, Error> {
            Ok(loss(row, window.tokens[position + 1], position)?)
        };
        rows.clear();
        found.off.begin_window();
        runner.run(
            window,
            &Routing::Off,
            n_tokens,
            None,
            Some(&mut |_, position, row| {
                let loss = score(position, row)?;
                found.off.add(loss);
                found.off_losses.push(loss);
                rows.extend_from_slice(row);
                Ok(())
            }),
        )?;
        watch.advance(n_tokens as u64);
        if let (Some(chunk), Some(noise)) = (of.noise, &mut found.noise) {
            noise.begin_window();
            runner.run(
                window,
                &Routing::Off,
                chunk,
                None,
                Some(&mut |index, _, row| {
                    noise.add(&rows[index * n_vocab..][..n_vocab], row);
                    Ok(())
                }),
            )?;
            watch.advance(n_tokens as u64);
        }
        for (policy, (routing, measured)) in of.policies.iter().zip(&mut found.policies).enumerate() {
            measured.divergences.begin_window();
            measured.losses.begin_window();
            let mut seen = |traces: &[ExpertTrace]| look(policy, window, traces);
            let look: Look = if policy < looked { Some(&mut seen) } else { None };
            runner.run(
                window,
                routing,
                n_tokens,
                look,
                Some(&mut |index, position, row| {
                    measured.losses.add(score(position, row)?);
                    measured.divergences.add(&rows[index * n_vocab..][..n_vocab], row);
                    Ok(())
                }),
            )?;
            runner.count(&mut measured.counts);
            watch.advance(n_tokens as u64);
        }
    }
    Ok(found)
}

/// Experts of a token in `layers` when windows are computed under a policy.
pub(super) fn mean_kept(
    runner: &mut Runner,
    windows: &[Window],
    routing: &Routing,
    layers: &[usize],
    watch: &mut dyn Watch,
) -> Result<f64, Error> {
    let mut measured = Measured::default();
    for &window in windows {
        // The last layer computes only what is asked for, so something must be.
        runner.run(window, routing, window.tokens.len(), None, Some(&mut |_, _, _| Ok(())))?;
        runner.count(&mut measured.counts);
        watch.advance(window.tokens.len() as u64);
    }
    Ok(measured.means(layers).0)
}
