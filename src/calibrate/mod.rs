//! A routing profile from text: which experts of a token can be left out, layer by layer, and what that costs.
//!
//! No weight is trained. The model reads the text once with all experts and tells what every chosen expert gave ([`mod@trace`]); from that the local error of any
//! choice is exact, so every setting of a layer's rule is priced without running the model again ([`curve`]). How much a layer's error matters is measured
//! by cutting that layer alone. Then experts are shared out among the layers so that the whole loses least ([`allocate`]), thresholds are moved until the
//! running model keeps as many as were wanted, and the result is measured on text that took no part, beside policies that need no
//! calibration ([`report`]). A profile that loses more than a fixed number of experts is not given out.
//!
//! Every third window of the text is held out. Sums are in F64. Nothing here knows the command line.

use std::path::PathBuf;
use std::sync::Arc;

use fathom_gguf::File;

use crate::chat::Family;
use crate::engine::routing::{self, Calibration, LayerRule, Policy, Profile, Profiles, Shape};
use crate::engine::{self, Engine, ExpertTrace, Routing, Settings, machine};
use crate::eval::text::Windows;
use crate::eval::{self, Watch, text};
use crate::ids::TokenId;
use crate::tokens::{self, Specials, Tokenizer};

pub mod allocate;
pub mod curve;
mod measure;
pub mod plot;
pub mod rank;
pub mod report;
pub mod trace;

use curve::{Kept, Point, Renorm};
use measure::{Compared, Comparison, Measured, Runner, Window, compare, mean_kept};
use report::{Report, Sensitivity, Tried};
use trace::{LayerNorms, LayerTrace};

/// Names of profiles and the part of a token's experts that they keep.
pub const BUDGETS: [(&str, f64); 3] = [("safe", 5.0 / 6.0), ("balanced", 0.75), ("fast", 0.6)];

/// One window of so many is held out.
const HELD_OUT: usize = 3;

/// Fewest windows: two of them are held out, of which a standard error can be told.
const LEAST_WINDOWS: usize = 2 * HELD_OUT;

/// Tokens of text with which a layer is cut alone.
const SENSITIVITY_TOKENS: usize = 4096;

/// Tokens of text with which thresholds are moved.
const TUNING_TOKENS: usize = 8192;

/// Most times that thresholds are moved, and how near the number of experts must be before they stay.
const MOVES: usize = 4;
const NEAR: f64 = 0.003;

/// Steps of another size for the noise floor, as in `eval`.
const NOISE_STEP: usize = 101;

/// What is calibrated and with which text.
pub struct Job<'a> {
    /// What the user called it.
    pub model: String,
    /// The files of its weights, in order.
    pub weights: Vec<PathBuf>,
    /// How its prompts begin, and so the windows.
    pub family: &'a Family,
    /// For the report.
    pub source: &'a str,
    pub text: &'a str,
    pub specials: Specials,
    /// Tokens of a window; the second half of those held out is scored.
    pub window: usize,
    /// Most tokens of text; windows of a longer one are taken evenly from it.
    pub max_tokens: usize,
    /// Sizes and policy are chosen here.
    pub settings: Settings,
}

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Eval(#[from] eval::Error),
    #[error(transparent)]
    Engine(#[from] engine::Error),
    #[error(transparent)]
    Tokens(#[from] tokens::Error),
    #[error(transparent)]
    Routing(#[from] routing::Error),
    #[error(transparent)]
    Gguf(#[from] fathom_gguf::Error),
    #[error(
        "{windows} windows of the text's {tokens} tokens are used; calibration needs at least {LEAST_WINDOWS} windows"
    )]
    ShortText { tokens: usize, windows: usize },
    #[error("`{0}` computes one expert for a token, of which none can be left out")]
    OneExpert(String),
    #[error("no layer of `{0}` chooses experts by score, and layers that choose by token keep all theirs")]
    NoLayers(String),
}

/// Finds profiles. Those that lose more than a fixed number of experts are in the report and not among the profiles.
///
/// # Errors
/// [`Error`]; nothing is given out then.
pub fn run(job: &Job<'_>, watch: &mut dyn Watch) -> Result<(Report, Profiles), Error> {
    let file = File::open_shards(&job.weights)?;
    let tokenizer = Tokenizer::from_gguf(file.metadata())?;
    let all = tokenizer.encode(job.text, job.specials)?;
    let windows = cut(job, &tokenizer, &all)?;
    let mut split = Split::new(&windows, job.max_tokens);
    split.heldout.retain(|window| window.scored() > 0);
    let used = split.trace.len() + split.heldout.len();
    if used < LEAST_WINDOWS {
        return Err(Error::ShortText { tokens: all.len(), windows: used });
    }
    let part = |windows: &[Window]| report::Part {
        windows: windows.len(),
        tokens: windows.iter().map(|window| window.tokens.len() as u64).sum(),
        scored: windows.iter().map(|window| window.scored() as u64).sum(),
    };
    let text = report::Text {
        source: job.source.to_owned(),
        sha256: eval::report::sha256(job.text),
        tokens: all.len() as u64,
        window_tokens: job.window,
        calibration: part(&split.trace),
        heldout: part(&split.heldout),
    };

    let mut engine = load(job, &file, windows.longest(), watch)?;
    let model = Model::read(job, &file)?;
    let mut runner = Runner::new(&mut *engine);
    let traces = trace(&mut runner, &model, &split.trace, watch)?;
    let mut calibrator = Calibrator::new(&mut runner, model, traces, &split, watch);
    let sensitivity = calibrator.sensitivity()?;
    let weights: Vec<f64> = sensitivity.iter().map(|layer| layer.weight).collect();
    let mut profiles = Vec::new();
    for (_, part) in BUDGETS {
        profiles.push(calibrator.profile(&weights, part)?);
    }
    let mut rels = Vec::new();
    for (_, part) in BUDGETS {
        rels.push(calibrator.rel(part)?);
    }
    calibrator.measured(text, sensitivity, profiles, rels)
}

/// The windows of the text.
fn cut(job: &Job<'_>, tokenizer: &Tokenizer, all: &[TokenId]) -> Result<Windows, Error> {
    let shape = text::Shape { length: job.window, context: job.window / 2 };
    let leading = eval::leading(job.family, tokenizer)?;
    match Windows::cut(all, leading, shape) {
        Err(eval::Error::ShortText { .. }) => Err(Error::ShortText { tokens: all.len(), windows: 0 }),
        windows => Ok(windows?),
    }
}

/// Which windows are for what.
struct Split<'a> {
    trace: Vec<Window<'a>>,
    heldout: Vec<Window<'a>>,
}

impl<'a> Split<'a> {
    fn new(windows: &'a Windows, max_tokens: usize) -> Split<'a> {
        let all: Vec<Window> = windows.iter().map(|(tokens, context)| Window { tokens, context }).collect();
        let used = evenly(&all, max_tokens);
        let mut split = Split { trace: Vec::new(), heldout: Vec::new() };
        for (index, window) in used.into_iter().enumerate() {
            if index % HELD_OUT == HELD_OUT - 1 { &mut split.heldout } else { &mut split.trace }.push(window);
        }
        split
    }
}

/// Windows from the whole of a text with at most so many tokens, at least one: all, or some at equal distances.
fn evenly<'a>(windows: &[Window<'a>], max_tokens: usize) -> Vec<Window<'a>> {
    let longest = windows.iter().map(|window| window.tokens.len()).max().unwrap_or(1).max(1);
    let n = (max_tokens / longest).clamp(1, windows.len().max(1));
    (0..n.min(windows.len())).map(|i| windows[i * windows.len() / n]).collect()
}

/// What the file says about experts.
struct Model {
    name: String,
    shape: Shape,
    fingerprint: String,
    /// Least experts of a token.
    k_min: usize,
}

impl Model {
    fn read(job: &Job<'_>, file: &File) -> Result<Model, Error> {
        let metadata = file.metadata();
        let architecture = metadata.str("general.architecture")?;
        let number = |key: &str| Ok::<_, Error>(metadata.u32(&format!("{architecture}.{key}"))? as usize);
        let is_draft = |block: usize| file.opt_tensor(&format!("blk.{block}.nextn.eh_proj.weight")).is_some();
        let n_layer = (0..number("block_count")?).filter(|&block| !is_draft(block)).count();
        let shape = Shape { n_layer, n_expert: number("expert_count")?, n_used: number("expert_used_count")? };
        if shape.n_used < 2 {
            return Err(Error::OneExpert(job.model.clone()));
        }
        // The smallest budget must be within reach.
        let smallest = (BUDGETS[BUDGETS.len() - 1].1 * shape.n_used as f64) as usize;
        let k_min = (routing::DEFAULT_K_MIN as usize).min(smallest).max(1);
        Ok(Model { name: job.model.clone(), shape, fingerprint: routing::fingerprint(file)?, k_min })
    }

    /// All experts in every layer but those of `rules`.
    fn profile(&self, policy: Policy, rules: impl IntoIterator<Item = (usize, LayerRule)>) -> Profile {
        let all = LayerRule {
            k_min: self.shape.n_used as u32,
            k_max: self.shape.n_used as u32,
            theta: 0.0,
            beta: 0.0,
            rho: 1.0,
            alpha: 1.0,
        };
        let mut layers = vec![all; self.shape.n_layer];
        for (layer, rule) in rules {
            layers[layer] = rule;
        }
        Profile { policy, fingerprint: self.fingerprint.clone(), layers, ..Profile::top_k(1, self.shape) }
    }
}

fn load(job: &Job<'_>, file: &File, n_ctx: usize, watch: &mut dyn Watch) -> Result<Box<dyn Engine>, Error> {
    let settings = Settings {
        n_ctx: if job.settings.n_ctx == 0 { n_ctx } else { job.settings.n_ctx },
        n_seq_max: 1,
        n_batch: n_ctx,
        n_ubatch: n_ctx,
        n_outputs: n_ctx,
        routing: Routing::Off,
        ..job.settings.clone()
    };
    let mut told = 0;
    watch.begin("loading", 100);
    let mut on_progress = |part: f32| {
        let percent = (part * 100.0) as u64;
        watch.advance(percent.saturating_sub(told));
        told = told.max(percent);
        true
    };
    let engine = engine::load_file(file, engine::Kind::Native, &settings, &mut on_progress)?;
    // A window is one step.
    if engine.info().n_ctx < n_ctx || engine.info().n_batch < n_ctx {
        let fits = engine.info().n_ctx.min(engine.info().n_batch);
        return Err(eval::Error::Context { needed: n_ctx, n_ctx: fits }.into());
    }
    Ok(engine)
}

/// Reads the calibration windows with all experts.
fn trace(
    runner: &mut Runner,
    model: &Model,
    windows: &[Window],
    watch: &mut dyn Watch,
) -> Result<Vec<LayerTrace>, Error> {
    let n_used = model.shape.n_used;
    let tokens: usize = windows.iter().map(|window| window.tokens.len()).sum();
    // Traces, twice while a vector grows; and the largest window's logits.
    let n_vocab = runner.engine.info().n_vocab as u64;
    let rows = windows.iter().map(|window| window.scored() as u64).max().unwrap_or(0) * n_vocab * 4;
    let needed = 2 * (tokens * LayerTrace::token_bytes(n_used) * model.shape.n_layer) as u64 + rows;
    let available = machine::available_bytes();
    if needed > available {
        return Err(engine::Error::Memory { needed, available }.into());
    }
    watch.begin("experts of each token", tokens as u64);
    let mut traces: Vec<LayerTrace> = Vec::new();
    for &window in windows {
        let mut look = |step: &[ExpertTrace]| {
            if traces.is_empty() {
                traces.extend(step.iter().map(|layer| LayerTrace::new(layer.layer, n_used)));
            }
            traces.iter_mut().zip(step).for_each(|(trace, layer)| trace.add(layer));
        };
        runner.run(window, &Routing::Off, window.tokens.len(), Some(&mut look), None)?;
        watch.advance(window.tokens.len() as u64);
    }
    if traces.is_empty() {
        return Err(Error::NoLayers(model.name.clone()));
    }
    Ok(traces)
}

/// A profile that was tuned, and what it was tuned to.
struct Tuned {
    profile: Profile,
    target: f64,
}

/// What all parts of a calibration share.
struct Calibrator<'a, 'e, 'w> {
    runner: &'a mut Runner<'e>,
    model: Model,
    traces: Vec<LayerTrace>,
    norms: Vec<LayerNorms>,
    /// Of each layer, with weights restored and with weights fitted.
    points: [(Renorm, Vec<Vec<Point>>); 2],
    /// Layers that follow profiles.
    layers: Vec<usize>,
    split: &'a Split<'w>,
    /// Windows of the calibration part.
    tuning: Vec<Window<'w>>,
    watch: &'a mut dyn Watch,
}

impl<'a, 'e, 'w> Calibrator<'a, 'e, 'w> {
    fn new(
        runner: &'a mut Runner<'e>,
        model: Model,
        traces: Vec<LayerTrace>,
        split: &'a Split<'w>,
        watch: &'a mut dyn Watch,
    ) -> Self {
        let norms: Vec<LayerNorms> = traces.iter().map(|trace| trace.norms(model.shape.n_expert)).collect();
        watch.begin("settings of each layer", 2 * traces.len() as u64);
        let mut points = |renorm: Renorm| {
            let each = traces.iter().zip(&norms).map(|(trace, norms)| {
                watch.advance(1);
                curve::points(trace, norms, model.k_min, renorm)
            });
            (renorm, each.collect())
        };
        let points = [points(Renorm::Restored), points(Renorm::Fitted)];
        Calibrator {
            layers: traces.iter().map(|trace| trace.layer).collect(),
            tuning: evenly(&split.trace, TUNING_TOKENS),
            runner,
            model,
            traces,
            norms,
            points,
            split,
            watch,
        }
    }

    /// What each layer loses when it alone keeps two thirds of its experts.
    fn sensitivity(&mut self) -> Result<Vec<Sensitivity>, Error> {
        let Shape { n_used, .. } = self.model.shape;
        let k = ((2 * n_used) as f64 / 3.0).round().clamp(1.0, (n_used - 1) as f64) as u32;
        let windows = evenly(&self.split.trace, SENSITIVITY_TOKENS);
        let alone = |layer: usize| {
            let rule = LayerRule { k_min: k, k_max: k, theta: 0.0, beta: 0.0, rho: 1.0, alpha: 1.0 };
            Routing::Given(Arc::new(self.model.profile(Policy::TopK, [(layer, rule)])))
        };
        let policies: Vec<Routing> = self.layers.iter().map(|&layer| alone(layer)).collect();
        let tokens: u64 = windows.iter().map(|window| window.tokens.len() as u64).sum();
        self.watch.begin("sensitivity of each layer", tokens * (policies.len() as u64 + 1));
        let of = Comparison { windows: &windows, policies: &policies, noise: None };
        let found = compare(self.runner, &of, 0, &mut |_, _, _| {}, self.watch)?;
        let each = found.policies.iter().zip(&self.traces).map(|(measured, trace)| {
            let kl = measured.divergences.summary().map_or(0.0, |divergence| divergence.mean_kl);
            (kl, curve::fixed_error(trace, k as usize))
        });
        let each: Vec<(f64, f64)> = each.collect();
        let raw: Vec<f64> = each.iter().map(|(kl, error)| if *error > 0.0 { kl / error } else { 0.0 }).collect();
        let smooth = allocate::smoothed(&raw);
        // A layer that seems to lose nothing was not measured well enough; without any loss all are alike.
        let most = smooth.iter().copied().fold(0.0, f64::max);
        let weight = |weight: f64| if most > 0.0 { weight.max(most * 1e-3) } else { 1.0 };
        let rows = self.layers.iter().zip(each).zip(smooth);
        Ok(rows
            .map(|((&layer, (kl, error)), smooth)| Sensitivity { layer, kl, error, weight: weight(smooth) })
            .collect())
    }

    /// The profile that keeps this part of a token's experts and loses least. Of restored and fitted weights those are taken that diverge less on
    /// calibration text: local errors do not decide that.
    fn profile(&mut self, weights: &[f64], part: f64) -> Result<Tuned, Error> {
        let target = part * self.model.shape.n_used as f64;
        let mut tried = Vec::new();
        for which in 0..self.points.len() {
            let chosen = allocate::allocate(&self.points[which].1, weights, target);
            tried.push(Routing::Given(Arc::new(self.moved(&chosen, target)?)));
        }
        let tokens: u64 = self.tuning.iter().map(|window| window.tokens.len() as u64).sum();
        self.watch.begin("weights of kept experts", tokens * 3);
        let of = Comparison { windows: &self.tuning, policies: &tried, noise: None };
        let found = compare(self.runner, &of, 0, &mut |_, _, _| {}, self.watch)?;
        let kl = |measured: &Measured| measured.divergences.summary().map_or(f64::INFINITY, |found| found.mean_kl);
        let best = found.policies.iter().zip(tried).min_by(|a, b| kl(a.0).total_cmp(&kl(b.0)));
        let profile = match best {
            Some((_, Routing::Given(profile))) => Arc::unwrap_or_clone(profile),
            _ => self.model.profile(Policy::Margin, []),
        };
        Ok(Tuned { profile, target })
    }

    /// A profile of these settings, all thresholds moved by the same amount until the running model keeps `target` experts: states differ from those of
    /// the trace when other layers drop experts, too.
    fn moved(&mut self, chosen: &[Point], target: f64) -> Result<Profile, Error> {
        let (k_min, n_used) = (self.model.k_min, self.model.shape.n_used);
        let kept: Vec<Kept> = (self.traces.iter().zip(&self.norms).zip(chosen))
            .map(|((trace, norms), point)| Kept::new(trace, Some(norms), Policy::Margin, point.beta, k_min))
            .collect();
        let offline = |shift: f64| {
            let each = kept.iter().zip(chosen).map(|(kept, point)| kept.mean(point.theta + shift));
            each.sum::<f64>() / kept.len() as f64
        };
        let made = |this: &Self, shift: f64| {
            let rule = |(&layer, point): (&usize, &Point)| {
                (layer, Point { theta: point.theta + shift, ..*point }.rule(k_min, n_used))
            };
            let mut profile = this.model.profile(Policy::Margin, this.layers.iter().zip(chosen).map(rule));
            profile.expert_norm = this.expert_norm();
            profile.protected = this.protected();
            profile
        };
        let most = chosen.iter().map(|point| point.theta.abs()).fold(1.0, f64::max);
        self.tuned(target, (-2.0 * most, 2.0 * most), offline, made)
    }

    /// The rule `rel` that keeps this part of a token's experts.
    fn rel(&mut self, part: f64) -> Result<Tuned, Error> {
        let (k_min, shape) = (self.model.k_min, self.model.shape);
        let target = part * shape.n_used as f64;
        let kept: Vec<Kept> = self.traces.iter().map(|trace| Kept::new(trace, None, Policy::Rel, 0.0, k_min)).collect();
        let offline = |theta: f64| kept.iter().map(|kept| kept.mean(theta)).sum::<f64>() / kept.len() as f64;
        let made = |this: &Self, theta: f64| {
            let rule = LayerRule {
                k_min: k_min as u32,
                k_max: shape.n_used as u32,
                theta: theta as f32,
                beta: 0.0,
                rho: 1.0,
                alpha: 1.0,
            };
            this.model.profile(Policy::Rel, this.layers.iter().map(|&layer| (layer, rule)))
        };
        let profile = self.tuned(target, (0.0, 1.0), offline, made)?;
        Ok(Tuned { profile, target })
    }

    /// Finds the number with which `made` keeps `target` experts of a token of the running model. `offline` says how many it keeps of the trace; its
    /// difference from what was measured is allowed for, again and again.
    fn tuned(
        &mut self,
        target: f64,
        (low, high): (f64, f64),
        offline: impl Fn(f64) -> f64,
        made: impl Fn(&Self, f64) -> Profile,
    ) -> Result<Profile, Error> {
        let tokens: u64 = self.tuning.iter().map(|window| window.tokens.len() as u64).sum();
        let mut goal = target;
        let mut best: Option<(f64, Profile)> = None;
        for _ in 0..MOVES {
            let profile = made(self, allocate::solve(low, high, goal, &offline));
            let routing = Routing::Given(Arc::new(profile.clone()));
            self.watch.begin("thresholds", tokens);
            let live = mean_kept(self.runner, &self.tuning, &routing, &self.layers, self.watch)?;
            let off = (live - target).abs();
            if best.as_ref().is_none_or(|(least, _)| off < *least) {
                best = Some((off, profile));
            }
            if off <= NEAR * target {
                break;
            }
            goal += target - live;
        }
        Ok(best.map_or_else(|| made(self, high), |(_, profile)| profile))
    }

    /// Of all layers, 1 where nothing was traced.
    fn expert_norm(&self) -> Vec<f32> {
        let n_expert = self.model.shape.n_expert;
        let mut all = vec![1.0; self.model.shape.n_layer * n_expert];
        for (&layer, norms) in self.layers.iter().zip(&self.norms) {
            all[layer * n_expert..(layer + 1) * n_expert].copy_from_slice(&norms.mean);
        }
        all
    }

    fn protected(&self) -> Vec<u32> {
        let n_expert = self.model.shape.n_expert;
        let of = |(&layer, norms): (&usize, &LayerNorms)| {
            let experts = norms.protected.iter().enumerate().filter(|(_, protected)| **protected);
            experts.map(|(expert, _)| (layer * n_expert + expert) as u32).collect::<Vec<_>>()
        };
        self.layers.iter().zip(&self.norms).flat_map(of).collect()
    }

    /// Measures everything on the held-out windows.
    fn measured(
        self,
        text: report::Text,
        sensitivity: Vec<Sensitivity>,
        profiles: Vec<Tuned>,
        rels: Vec<Tuned>,
    ) -> Result<(Report, Profiles), Error> {
        let (k_min, n_used) = (self.model.k_min, self.model.shape.n_used);
        let given = |tuned: &Tuned| Routing::Given(Arc::new(tuned.profile.clone()));
        let mut policies: Vec<Routing> = profiles.iter().chain(&rels).map(given).collect();
        policies.extend((k_min..n_used).map(|k| Routing::TopK(k as u32)));
        self.watch.begin("held-out text", text.heldout.tokens * (policies.len() as u64 + 2));
        let mut experts: Vec<Experts> = profiles.iter().map(|_| Experts::new(n_used)).collect();
        let mut look = |policy: usize, window: Window, step: &[ExpertTrace]| experts[policy].add(window, step);
        let of = Comparison { windows: &self.split.heldout, policies: &policies, noise: Some(NOISE_STEP) };
        let found = compare(self.runner, &of, profiles.len(), &mut look, self.watch)?;

        let (own, rest) = found.policies.split_at(profiles.len());
        let (rel, fixed) = rest.split_at(rels.len());
        let nothing = || eval::Error::ShortText { tokens: 0, needed: 1 };
        let off = found.off.summary().ok_or_else(nothing)?;
        let ratio = |measured: &Measured| {
            let perplexity = measured.losses.summary()?;
            Some((measured.divergences.summary()?, perplexity, (perplexity.loss - off.loss).exp()))
        };
        let mut others = Vec::new();
        let fixed_names = (k_min..n_used).map(|k| format!("topk:{k}"));
        let rel_names = rels.iter().map(|tuned| format!("rel:{:.4}", tuned.profile.layers[self.layers[0]].theta));
        let named: Vec<(String, &Measured)> = fixed_names.zip(fixed).chain(rel_names.clone().zip(rel)).collect();
        for (routing, measured) in named {
            let (divergence, perplexity, perplexity_ratio) = ratio(measured).ok_or_else(nothing)?;
            let mean_experts = measured.means(&self.layers).0;
            others.push(report::Other { routing, mean_experts, divergence, perplexity, perplexity_ratio });
        }

        let mut report = Report {
            schema: 1,
            model: self.model.name.clone(),
            architecture: self.runner.engine.info().architecture.clone(),
            engine: self.runner.engine.info().engine.to_owned(),
            kv: self.runner.engine.info().kv_type.name(),
            model_fingerprint: self.model.fingerprint.clone(),
            experts: self.model.shape.n_expert,
            experts_used: n_used,
            experts_fewest: k_min,
            layers: self.layers.clone(),
            text,
            sensitivity,
            off,
            noise: found.noise.as_ref().and_then(|noise| noise.summary()),
            profiles: Vec::new(),
            others,
        };
        let mut accepted = Profiles::default();
        for (index, (tuned, measured)) in profiles.into_iter().zip(own).enumerate() {
            let (mean_experts, each) = measured.means(&self.layers);
            let (divergence, perplexity, perplexity_ratio) = ratio(measured).ok_or_else(nothing)?;
            let topk = report::fixed(mean_experts, n_used, k_min, fixed);
            let against_topk = topk.against(measured, &found).ok_or_else(nothing)?;
            let rel = report::Mix {
                routing: rel_names.clone().nth(index).unwrap_or_default(),
                mean_experts: rel[index].means(&self.layers).0,
                parts: vec![(1.0, Some(&rel[index]))],
            };
            let against_rel = rel.against(measured, &found).ok_or_else(nothing)?;
            let name = BUDGETS[index].0.to_owned();
            let is_accepted = against_topk.difference < 0.0;
            let Tuned { mut profile, target } = tuned;
            report.profiles.push(Tried {
                target,
                accepted: is_accepted,
                mean_experts,
                layers: self.rows(&profile, &each),
                share_fewest: experts[index].share(k_min),
                share_all: experts[index].share(n_used),
                divergence,
                perplexity,
                perplexity_ratio,
                spearman_loss: experts[index].spearman(&found),
                against_topk,
                against_rel,
                name: name.clone(),
            });
            profile.calibration = Some(Calibration {
                tokens: report.text.calibration.tokens,
                mean_k: mean_experts,
                kl: divergence.mean_kl,
                kl_p99: divergence.p99_kl,
                top1: divergence.same_top,
                ppl_ratio: perplexity_ratio,
                text_hash: report.text.sha256.clone(),
            });
            if is_accepted {
                accepted.profiles.insert(name, profile);
            }
        }
        Ok((report, accepted))
    }

    fn rows(&self, profile: &Profile, means: &[f64]) -> Vec<report::Layer> {
        let rows = self.layers.iter().zip(means).zip(&self.norms);
        rows.map(|((&layer, &mean_experts), norms)| {
            let LayerRule { theta, beta, rho, alpha, .. } = profile.layers[layer];
            let protected = norms.protected.iter().filter(|protected| **protected).count();
            report::Layer { layer, mean_experts, theta, beta, rho, alpha, protected }
        })
        .collect()
    }
}

/// How many experts each held-out token kept under a profile.
struct Experts {
    /// Tokens and layers with so many.
    numbers: Vec<u64>,
    /// Sum over layers, of every token that is followed by a scored one.
    of_token: Vec<f64>,
    n_used: usize,
}

impl Experts {
    fn new(n_used: usize) -> Experts {
        Experts { numbers: vec![0; n_used + 1], of_token: Vec::new(), n_used }
    }

    /// One window, computed in one step.
    fn add(&mut self, window: Window, step: &[ExpertTrace]) {
        let first = self.of_token.len();
        self.of_token.resize(first + window.scored(), 0.0);
        for layer in step {
            for (token, ids) in layer.ids.chunks(self.n_used).enumerate() {
                let kept = ids.iter().filter(|id| **id >= 0).count();
                self.numbers[kept] += 1;
                let row = (token + 1).checked_sub(window.context).filter(|row| *row < window.scored());
                if let Some(row) = row {
                    self.of_token[first + row] += kept as f64;
                }
            }
        }
    }

    fn share(&self, kept: usize) -> f64 {
        self.numbers[kept] as f64 / self.numbers.iter().sum::<u64>().max(1) as f64
    }

    fn spearman(&self, found: &Compared) -> Option<f64> {
        rank::spearman(&self.of_token, &found.off_losses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_third_window_is_held_out_of_windows_from_the_whole_text() {
        let tokens: Vec<TokenId> = (0..100).map(TokenId).collect();
        let windows = Windows::cut(&tokens, None, text::Shape { length: 10, context: 5 }).unwrap();
        let first = |windows: &[Window]| windows.iter().map(|window| window.tokens[0].0).collect::<Vec<_>>();
        let split = Split::new(&windows, 1000);
        assert_eq!((first(&split.trace), first(&split.heldout)), (vec![0, 10, 30, 40, 60, 70, 90], vec![20, 50, 80]));
        let split = Split::new(&windows, 60);
        assert_eq!((first(&split.trace), first(&split.heldout)), (vec![0, 10, 50, 60], vec![30, 80]));
        assert_eq!(first(&evenly(&split.trace, 20)), [0, 50]);
        assert_eq!(first(&evenly(&split.trace, 1)), [0]);
    }

    #[test]
    fn experts_of_a_token_belong_to_the_row_that_predicts_its_successor() {
        let tokens: Vec<TokenId> = (0..4).map(TokenId).collect();
        let window = Window { tokens: &tokens, context: 2 };
        let mut experts = Experts::new(2);
        let step = ExpertTrace { ids: vec![1, 2, 3, -1, 5, 6, -1, 8], ..ExpertTrace::default() };
        experts.add(window, &[step.clone(), step]);
        // Rows are those of positions 1 and 2, which predict tokens 2 and 3.
        assert_eq!(experts.of_token, [2.0, 4.0]);
        assert_eq!((experts.share(1), experts.share(2)), (0.5, 0.5));
    }
}
