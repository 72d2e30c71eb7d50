//! The tokens of one engine step, the caches of their sequences and the routing policies that these follow, as kernels see them.

use std::marker::PhantomData;
use std::ptr::{NonNull, null};

use super::LayerRouting;
use super::cache::{Compressed, LayerCache};
use crate::kernels::sys;

/// Arrays that kernels read, reused from step to step. Empty but between [`Step::bind`] and the end of what it gave.
#[derive(Default)]
pub struct Step {
    runs: Vec<sys::fathom_run>,
    run_of_token: Vec<i32>,
    /// Tokens that a graph goes on with after its last attention.
    rows: Vec<i32>,
    layers: Vec<Layer>,
}

/// One entry per run in each.
#[derive(Default)]
struct Layer {
    windows: Vec<sys::fathom_window>,
    compressed: Side,
    index: Side,
    /// The least that any run reserved.
    reserved: Vec<usize>,
    index_reserved: Vec<usize>,
    routing: Routing,
}

/// How a layer's experts are chosen. Everything is empty while no sequence of the step follows a policy.
#[derive(Default)]
struct Routing {
    /// One entry per run, up to the last that follows a policy; without meaning for one that does not.
    of_run: Vec<sys::fathom_routing>,
    followed: Vec<bool>,
    /// Length of the lists that they point to; 0 = there are none, `usize::MAX` = they differ.
    n_expert: usize,
    /// Null = all experts.
    of_token: Vec<*const sys::fathom_routing>,
    of_row: Vec<*const sys::fathom_routing>,
    /// Experts that each token kept, in the order of `of_token` or `of_row`; negative = not computed.
    kept: Vec<i32>,
    kept_at: Option<NonNull<i32>>,
}

#[derive(Default)]
pub(super) struct Side {
    pub(super) rows: Vec<sys::fathom_rows>,
    pub(super) pending: Vec<sys::fathom_pending>,
    pub(super) pending_len: Vec<usize>,
}

/// Consecutive tokens of one sequence.
pub struct Run<'s> {
    pub n_tokens: usize,
    /// Position of the first token.
    pub pos: u64,
    /// The sequence's cache, one entry per layer, with room for every row that the step completes.
    pub layers: &'s mut [LayerCache],
    /// Which of the chosen experts are computed, one entry per layer; `None` = all.
    pub routing: Option<&'s [LayerRouting]>,
}

/// A step bound to caches: what a graph may run on.
pub struct Bound<'s> {
    pub(super) step: sys::fathom_step,
    layers: &'s [Layer],
    runs: &'s [sys::fathom_run],
    _caches: PhantomData<&'s mut LayerCache>,
}

/// What is bound of one layer.
#[derive(Clone, Copy)]
pub(super) struct BoundLayer<'s>(&'s Layer);

impl Step {
    /// Takes the caches of all runs for one run of a graph that goes on with the tokens `rows` after its last attention.
    ///
    /// # Panics
    /// When the runs do not have the same layers, or a row is no token of them.
    pub fn bind<'s>(&'s mut self, n_layer: usize, rows: &[i32], runs: impl Iterator<Item = Run<'s>>) -> Bound<'s> {
        self.runs.clear();
        self.run_of_token.clear();
        self.rows.clear();
        self.rows.extend(rows);
        let mut routed = false;
        self.layers.resize_with(n_layer, Layer::default);
        self.layers.iter_mut().for_each(Layer::clear);
        for run in runs {
            assert_eq!(run.layers.len(), n_layer, "every sequence has every layer");
            let number = self.runs.len() as i32;
            self.runs.push(sys::fathom_run {
                first: self.run_of_token.len() as i32,
                n_tokens: run.n_tokens as i32,
                pos: run.pos as i64,
            });
            self.run_of_token.extend(std::iter::repeat_n(number, run.n_tokens));
            for (to, cache) in self.layers.iter_mut().zip(run.layers) {
                to.push(cache);
            }
            if let Some(routing) = run.routing {
                assert_eq!(routing.len(), n_layer, "every policy has every layer");
                routed = true;
                for (to, routing) in self.layers.iter_mut().zip(routing) {
                    to.routing.set(number as usize, routing);
                }
            }
        }
        if routed {
            let rows = self.rows.iter().map(|&row| usize::try_from(row).expect("a row is a token"));
            self.layers.iter_mut().for_each(|layer| layer.routing.spread(&self.run_of_token, rows.clone()));
        }
        let step = sys::fathom_step {
            n_tokens: self.run_of_token.len() as i32,
            n_runs: self.runs.len() as i32,
            runs: self.runs.as_ptr(),
            run_of_token: self.run_of_token.as_ptr(),
        };
        Bound { step, layers: &self.layers, runs: &self.runs, _caches: PhantomData }
    }

    /// After a run: the number of the run, and the experts that were kept, for each token that `layer` computed. Nothing when no run followed
    /// a policy.
    pub fn kept(&self, layer: usize) -> impl Iterator<Item = (usize, u32)> {
        let kept = self.layers.get(layer).map_or(&[][..], |layer| &layer.routing.kept);
        let computed = kept.iter().take_while(|&&n| n >= 0).count();
        let all = computed == self.run_of_token.len();
        let token = move |at: usize| if all { at } else { self.rows[at] as usize };
        let counted = kept[..computed].iter().enumerate();
        counted.map(move |(at, &n)| (self.run_of_token[token(at)] as usize, n as u32))
    }
}

impl Routing {
    fn clear(&mut self) {
        self.of_run.clear();
        self.followed.clear();
        self.n_expert = 0;
        self.of_token.clear();
        self.of_row.clear();
        self.kept.clear();
        self.kept_at = None;
    }

    fn set(&mut self, run: usize, routing: &LayerRouting) {
        // Runs before it that follow none: nothing points to their entry.
        self.of_run.resize(run, routing.raw());
        self.of_run.push(routing.raw());
        for len in routing.lengths() {
            self.n_expert = if [0, len].contains(&self.n_expert) { len } else { usize::MAX };
        }
        self.followed.resize(run, false);
        self.followed.push(true);
    }

    /// Points from tokens and rows to the policies of their runs, which do not move any more.
    fn spread(&mut self, run_of_token: &[i32], rows: impl Iterator<Item = usize>) {
        let policy = |run: i32| match self.followed.get(run as usize) {
            Some(true) => &raw const self.of_run[run as usize],
            _ => null(),
        };
        self.of_token.extend(run_of_token.iter().map(|&run| policy(run)));
        self.of_row.extend(rows.map(|row| policy(run_of_token[row])));
        self.kept.resize(run_of_token.len(), -1);
        self.kept_at = NonNull::new(self.kept.as_mut_ptr());
    }
}

impl Layer {
    fn clear(&mut self) {
        self.windows.clear();
        self.compressed.clear();
        self.index.clear();
        self.reserved.clear();
        self.index_reserved.clear();
        self.routing.clear();
    }

    fn push(&mut self, cache: &mut LayerCache) {
        self.windows.push(cache.window.raw());
        if let Some(compressed) = &mut cache.compressed {
            self.reserved.push(compressed.rows.reserved());
            self.compressed.push(compressed);
        }
        if let Some(index) = &mut cache.index {
            self.index_reserved.push(index.rows.reserved());
            self.index.push(index);
        }
    }
}

impl Side {
    fn clear(&mut self) {
        self.rows.clear();
        self.pending.clear();
        self.pending_len.clear();
    }

    fn push(&mut self, compressed: &mut Compressed) {
        self.rows.push(compressed.rows.raw());
        self.pending.push(compressed.pending.raw());
        self.pending_len.push(compressed.pending.len());
    }
}

/// What `moe_route` reads and writes, as long as the step is bound.
#[derive(Clone, Copy)]
pub(super) struct BoundRouting {
    pub(super) of_token: *const *const sys::fathom_routing,
    /// Room for one number of each token.
    pub(super) kept: *mut i32,
}

impl<'s> Bound<'s> {
    pub(super) fn layer(&self, index: usize) -> Option<BoundLayer<'s>> {
        self.layers.get(index).map(BoundLayer)
    }

    pub(super) fn n_runs(&self) -> usize {
        self.runs.len()
    }

    pub(super) fn n_tokens(&self) -> usize {
        self.step.n_tokens as usize
    }

    /// Whether rows up to the end of every run have room, for groups of `ratio` tokens.
    pub(super) fn has_room(&self, reserved: &[usize], ratio: usize) -> bool {
        reserved.len() == self.runs.len()
            && self.runs.iter().zip(reserved).all(|(run, &rows)| {
                let end = run.pos as u64 + run.n_tokens as u64;
                end / ratio as u64 <= rows as u64
            })
    }
}

impl<'s> BoundLayer<'s> {
    pub(super) fn windows(self) -> &'s [sys::fathom_window] {
        &self.0.windows
    }

    pub(super) fn compressed(self) -> &'s Side {
        &self.0.compressed
    }

    pub(super) fn index(self) -> &'s Side {
        &self.0.index
    }

    pub(super) fn reserved(self) -> &'s [usize] {
        &self.0.reserved
    }

    /// The policies of `n_tokens` tokens: all of the step, or those that it goes on with. `None` = nobody follows one.
    ///
    /// # Errors
    /// There are neither so many tokens nor so many rows, or the policies are about another number of experts.
    pub(super) fn routing(self, n_tokens: usize, n_expert: usize) -> Result<Option<BoundRouting>, String> {
        let routing = &self.0.routing;
        let Some(kept) = routing.kept_at else { return Ok(None) };
        if ![0, n_expert].contains(&routing.n_expert) {
            return Err(format!("policies for {} experts, there are {n_expert}", routing.n_expert));
        }
        let of_token = [&routing.of_token, &routing.of_row].into_iter().find(|of| of.len() == n_tokens);
        let of_token = of_token.ok_or_else(|| format!("policies for other tokens than these {n_tokens}"))?;
        Ok(Some(BoundRouting { of_token: of_token.as_ptr(), kept: kept.as_ptr() }))
    }

    pub(super) fn index_reserved(self) -> &'s [usize] {
        &self.0.index_reserved
    }
}
