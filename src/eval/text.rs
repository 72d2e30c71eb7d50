//! A text, cut into windows, through one model or two: perplexity and divergence.
//!
//! Windows do not overlap and each begins anew. The first half of a window is context, the second half is scored: so a window is
//! one independent piece of evidence, and the numbers compare with those of llama.cpp's `llama-perplexity`, which scores so.

use crate::engine::{Batch, BatchToken, Engine, Output, Outputs, machine};
use crate::ids::{Pos, SeqId, TokenId};

use super::divergence::Divergences;
use super::perplexity::{Losses, Perplexity, log_sum_exp};
use super::report;
use super::rows::{Reader, Writer};
use super::{Error, Job, Silent, Text, Watch, other_vocabulary};

/// How a text is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Tokens of a window.
    pub length: usize,
    /// Its first tokens, which are read and not scored; at least 1.
    pub context: usize,
}

/// Tokens of which those from `context` on are scored.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Window {
    tokens: Vec<TokenId>,
    context: usize,
}

impl Window {
    fn scored(&self) -> usize {
        self.tokens.len() - self.context
    }
}

/// A text, cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Windows {
    windows: Vec<Window>,
}

impl Windows {
    /// Cuts `tokens`; each window begins with `leading`, if there is one. A rest with anything to score is a shorter window.
    ///
    /// # Errors
    /// [`Error::ShortText`] when nothing is left to score.
    pub fn cut(tokens: &[TokenId], leading: Option<TokenId>, shape: Shape) -> Result<Windows, Error> {
        let context = shape.context.max(1);
        let own = shape.length.saturating_sub(leading.iter().len()).max(1);
        let windows: Vec<Window> = tokens
            .chunks(own)
            .map(|part| Window { tokens: leading.iter().chain(part).copied().collect(), context })
            .filter(|window| window.tokens.len() > context)
            .collect();
        match windows.is_empty() {
            true => Err(Error::ShortText { tokens: tokens.len(), needed: context }),
            false => Ok(Windows { windows }),
        }
    }

    pub fn len(&self) -> usize {
        self.windows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.windows.is_empty()
    }

    /// The tokens of each and how many of its first are context.
    pub fn iter(&self) -> impl Iterator<Item = (&[TokenId], usize)> {
        self.windows.iter().map(|window| (&window.tokens[..], window.context))
    }

    /// Tokens of the longest one.
    pub fn longest(&self) -> usize {
        self.windows.iter().map(|window| window.tokens.len()).max().unwrap_or(0)
    }

    pub fn tokens(&self) -> u64 {
        self.windows.iter().map(|window| window.tokens.len() as u64).sum()
    }

    pub fn scored(&self) -> u64 {
        self.windows.iter().map(|window| window.scored() as u64).sum()
    }
}

/// The perplexity of `engine` alone, in steps of at most `chunk` tokens.
///
/// # Errors
/// Those of the engine, and [`Error::NotFinite`].
pub fn perplexity(engine: &mut dyn Engine, windows: &Windows, chunk: usize) -> Result<Perplexity, Error> {
    losses(engine, windows, chunk, &mut Silent, &mut |_| Ok(()))
}

/// What the reference left behind.
pub(super) struct Reference {
    perplexity: Perplexity,
    rows: Reader,
    n_vocab: usize,
    kv: &'static str,
}

/// Computes the logits of every scored position with the reference's engine and keeps them in a file.
pub(super) fn reference(
    job: &Job<'_>,
    engine: &mut dyn Engine,
    windows: &Windows,
    watch: &mut dyn Watch,
) -> Result<Reference, Error> {
    let n_vocab = engine.info().n_vocab;
    let mut rows = Writer::create(&job.scratch, windows.scored(), n_vocab)?;
    watch.note(&format!(
        "logits of the reference: {} in `{}`",
        machine::human(rows.total_bytes()),
        job.scratch.display()
    ));
    watch.begin("reference", windows.tokens());
    let perplexity = losses(engine, windows, job.split.first, watch, &mut |row| rows.write(row))?;
    Ok(Reference { perplexity, rows: rows.finish()?, n_vocab, kv: engine.info().kv_type.name() })
}

/// Scores every window; `keep` gets each scored row.
fn losses(
    engine: &mut dyn Engine,
    windows: &Windows,
    chunk: usize,
    watch: &mut dyn Watch,
    keep: &mut dyn FnMut(&[f32]) -> Result<(), Error>,
) -> Result<Perplexity, Error> {
    let mut losses = Losses::default();
    let mut steps = Steps::default();
    for window in &windows.windows {
        losses.begin_window();
        steps.run(engine, window, chunk, watch, &mut |_, target, row| {
            losses.add(loss(row, target.token, target.position)?);
            keep(row)
        })?;
    }
    losses.summary().ok_or(Error::ShortText { tokens: 0, needed: 1 })
}

/// Predicts every window in steps of both sizes.
pub(super) fn measure(
    job: &Job<'_>,
    text: &Text<'_>,
    windows: &Windows,
    engine: &mut dyn Engine,
    mut reference: Option<Reference>,
    watch: &mut dyn Watch,
) -> Result<report::Text, Error> {
    let n_vocab = engine.info().n_vocab;
    if let (Some(found), Some(model)) = (&reference, &job.reference)
        && found.n_vocab != n_vocab
    {
        return Err(other_vocabulary(job, model, format!("{n_vocab} and {} logits", found.n_vocab)));
    }
    // The rows of one window are kept to be compared with those of the other split.
    let most = windows.windows.iter().map(Window::scored).max().unwrap_or(0);
    let needed = (most as u64).saturating_mul(n_vocab as u64).saturating_mul(4);
    let available = machine::available_bytes();
    if needed > available {
        return Err(crate::engine::Error::Memory { needed, available }.into());
    }
    let mut kept: Vec<f32> = Vec::with_capacity(most * n_vocab);

    watch.begin("text", windows.tokens() * 2);
    let (mut first, mut second) = (Losses::default(), Losses::default());
    let (mut noise, mut difference) = (Divergences::default(), Divergences::default());
    let mut steps = Steps::default();
    let mut expected = Vec::new();
    for window in &windows.windows {
        first.begin_window();
        second.begin_window();
        noise.begin_window();
        difference.begin_window();
        kept.clear();
        steps.run(engine, window, job.split.first, watch, &mut |_, target, row| {
            first.add(loss(row, target.token, target.position)?);
            if let Some(reference) = &mut reference {
                reference.rows.read(&mut expected)?;
                difference.add(&expected, row);
            }
            kept.extend_from_slice(row);
            Ok(())
        })?;
        steps.run(engine, window, job.split.second, watch, &mut |index, target, row| {
            second.add(loss(row, target.token, target.position)?);
            noise.add(&kept[index * n_vocab..][..n_vocab], row);
            Ok(())
        })?;
    }
    let nothing = || Error::ShortText { tokens: 0, needed: 1 };
    Ok(report::Text {
        source: text.source.to_owned(),
        sha256: report::sha256(text.text),
        tokens: windows.tokens(),
        windows: windows.len(),
        window_tokens: text.shape.length,
        scored_tokens: windows.scored(),
        perplexity: first.summary().ok_or_else(nothing)?,
        perplexity_second_split: second.summary().ok_or_else(nothing)?,
        noise: noise.summary().ok_or_else(nothing)?,
        against: match (reference, &job.reference) {
            (Some(reference), Some(model)) => Some(report::Against {
                model: model.name.clone(),
                engine: model.kind.to_string(),
                exact: model.exact,
                kv: reference.kv,
                routing: model.routing.to_string(),
                perplexity: reference.perplexity,
                divergence: difference.summary().ok_or_else(nothing)?,
            }),
            _ => None,
        },
    })
}

/// The negative log-likelihood of `token` by the logits at `position`.
///
/// # Errors
/// [`Error::NotFinite`]
pub fn loss(row: &[f32], token: TokenId, position: usize) -> Result<f64, Error> {
    let loss = row.get(token.0 as usize).map(|&logit| log_sum_exp(row) - f64::from(logit));
    loss.filter(|loss| loss.is_finite()).ok_or(Error::NotFinite { what: "logits", position })
}

/// The token that a row of logits is about.
#[derive(Clone, Copy)]
struct Target {
    token: TokenId,
    /// Of the row, in the window.
    position: usize,
}

/// Gets each scored row: its number in the window, what came, the logits.
type Visit<'a> = &'a mut dyn FnMut(usize, Target, &[f32]) -> Result<(), Error>;

/// Buffers of the steps of an engine.
#[derive(Default)]
struct Steps {
    batch: Batch,
    out: Outputs,
}

impl Steps {
    /// Computes a window from its start, at most `chunk` tokens a step. The last token predicts nothing that is known and asks
    /// for no row, but is computed: its row of a compressed cache may hold earlier ones.
    fn run(
        &mut self,
        engine: &mut dyn Engine,
        window: &Window,
        chunk: usize,
        watch: &mut dyn Watch,
        visit: Visit<'_>,
    ) -> Result<(), Error> {
        let seq = SeqId(0);
        engine.release(seq);
        let chunk = chunk.clamp(1, engine.info().n_batch);
        let n_tokens = window.tokens.len();
        // Row `position` predicts token `position + 1`.
        let wanted = window.context - 1..n_tokens - 1;
        let mut start = 0;
        for part in window.tokens.chunks(chunk) {
            self.batch.tokens.clear();
            self.batch.tokens.extend((start..).zip(part).map(|(position, &token)| BatchToken {
                token,
                seq,
                pos: Pos(position as u32),
                output: wanted.contains(&position).then_some(Output::Logits),
            }));
            engine.step(&self.batch, &mut self.out)?;
            let positions = (start..start + part.len()).filter(|position| wanted.contains(position));
            for (row, position) in positions.enumerate() {
                let target = Target { token: window.tokens[position + 1], position };
                visit(position - wanted.start, target, self.out.row(row))?;
            }
            start += part.len();
            watch.advance(part.len() as u64);
        }
        engine.release(seq);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::Family;
    use crate::chat::family::{Facts, for_model};
    use crate::engine::scripted::{Model as Played, Play, Script, Scripted};
    use crate::engine::{Kind, KvType, Routing, Settings};
    use crate::eval::{Model, Split};
    use crate::tokens::Specials;

    fn ids(range: std::ops::Range<u32>) -> Vec<TokenId> {
        range.map(TokenId).collect()
    }

    #[test]
    fn windows_begin_with_the_leading_token_and_a_rest_is_kept_if_it_can_be_scored() {
        let shape = Shape { length: 5, context: 2 };
        let windows = Windows::cut(&ids(0..10), Some(TokenId(99)), shape).unwrap();
        let texts: Vec<Vec<u32>> =
            windows.windows.iter().map(|w| w.tokens.iter().map(|token| token.0).collect()).collect();
        assert_eq!(texts, [vec![99, 0, 1, 2, 3], vec![99, 4, 5, 6, 7], vec![99, 8, 9]]);
        assert_eq!((windows.tokens(), windows.scored(), windows.longest()), (13, 7, 5));
        // One token is no more than context.
        assert_eq!(Windows::cut(&ids(0..9), Some(TokenId(99)), shape).unwrap().len(), 2);
        assert_eq!(Windows::cut(&ids(0..7), None, shape).unwrap().len(), 1);
        assert!(matches!(Windows::cut(&ids(0..2), None, shape), Err(Error::ShortText { tokens: 2, needed: 2 })));
        assert!(Windows::cut(&[], Some(TokenId(1)), shape).is_err());
    }

    /// An engine whose logits depend on every token before them.
    fn engine(n_ctx: usize) -> Scripted {
        let model = Played {
            architecture: "deepseek4".into(),
            n_vocab: 50,
            n_embd: 8,
            n_ctx_train: n_ctx,
            end: TokenId(0),
            control: Vec::new(),
        };
        let script = Script { play: Play::Hash, ..Script::default() };
        Scripted::load(script, &model, &Settings::default(), &mut |_| true).unwrap()
    }

    /// Losses of a whole text at once, by the definition.
    fn expected(tokens: &[TokenId], context: usize) -> Vec<f64> {
        let mut engine = engine(1000);
        let batch = Batch {
            tokens: (0..)
                .zip(tokens)
                .map(|(pos, &token)| BatchToken { token, seq: SeqId(0), pos: Pos(pos), output: Some(Output::Logits) })
                .collect(),
        };
        let mut out = Outputs::default();
        engine.step(&batch, &mut out).unwrap();
        let softmax = |row: &[f32], token: TokenId| {
            let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
            f64::from(row[token.0 as usize]).exp() / sum
        };
        (context..tokens.len()).map(|at| -softmax(out.row(at - 1), tokens[at]).ln()).collect()
    }

    fn job(split: Split, family: &Family) -> Job<'_> {
        Job {
            model: Model {
                name: "m".into(),
                weights: vec!["m".into()],
                kind: Kind::Scripted,
                exact: false,
                kv_type: KvType::F16,
                routing: Routing::Off,
                profiles: None,
            },
            reference: None,
            text: None,
            needles: None,
            family,
            split,
            settings: Settings::default(),
            scratch: std::env::temp_dir(),
        }
    }

    #[test]
    fn each_token_is_scored_by_the_row_before_it_whatever_the_split() {
        let family = for_model(&Facts::default()).unwrap();
        let tokens: Vec<TokenId> = (0..23).map(|i| TokenId(i * 7 % 50)).collect();
        let shape = Shape { length: 10, context: 4 };
        let windows = Windows::cut(&tokens, None, shape).unwrap();
        let mut losses: Vec<f64> = Vec::new();
        for part in tokens.chunks(10).filter(|part| part.len() > 4) {
            losses.extend(expected(part, 4));
        }
        let mean = losses.iter().sum::<f64>() / losses.len() as f64;
        for (first, second) in [(10, 3), (1, 64), (4, 5)] {
            let text = Text { source: "t", text: "t", specials: Specials::AsText, shape, max_tokens: None };
            let job = job(Split { first, second }, &family);
            let report = measure(&job, &text, &windows, &mut engine(64), None, &mut Silent).unwrap();
            assert_eq!(report.scored_tokens, losses.len() as u64);
            assert!((report.perplexity.loss - mean).abs() < 1e-9, "{} and {mean}", report.perplexity.loss);
            assert_eq!(report.perplexity, report.perplexity_second_split);
            assert_eq!((report.noise.mean_kl, report.noise.same_top), (0.0, 1.0), "a hash has no noise");
            assert!(report.against.is_none());
        }
    }
}
