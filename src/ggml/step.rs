//! The tokens of one engine step, and the caches of their sequences, as kernels see them.

use std::marker::PhantomData;

use super::cache::{Compressed, LayerCache};
use crate::kernels::sys;

/// Arrays that kernels read, reused from step to step. Empty but between [`Step::bind`] and the end of what it gave.
#[derive(Default)]
pub struct Step {
    runs: Vec<sys::fathom_run>,
    run_of_token: Vec<i32>,
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
    /// Takes the caches of all runs for one run of a graph.
    ///
    /// # Panics
    /// When the runs do not have the same layers.
    pub fn bind<'s>(&'s mut self, n_layer: usize, runs: impl Iterator<Item = Run<'s>>) -> Bound<'s> {
        self.runs.clear();
        self.run_of_token.clear();
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
        }
        let step = sys::fathom_step {
            n_tokens: self.run_of_token.len() as i32,
            n_runs: self.runs.len() as i32,
            runs: self.runs.as_ptr(),
            run_of_token: self.run_of_token.as_ptr(),
        };
        Bound { step, layers: &self.layers, runs: &self.runs, _caches: PhantomData }
    }
}

impl Layer {
    fn clear(&mut self) {
        self.windows.clear();
        self.compressed.clear();
        self.index.clear();
        self.reserved.clear();
        self.index_reserved.clear();
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

    pub(super) fn index_reserved(self) -> &'s [usize] {
        &self.0.index_reserved
    }
}
