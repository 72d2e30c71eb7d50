//! Which models are in memory. Pure: time is an argument, what shall happen comes out as [`Action`]s.
//!
//! - A request for a loaded model is granted at once, however many there are.
//! - All others wait in one bounded queue, in order. One load runs at a time. To make room, an idle model leaves (the one with the
//!   shortest keep-alive, then the one unused for longest); if all are busy, one is chosen in the same way, takes no new
//!   requests and leaves when its last request ends. So nobody waits for ever behind a busy model.
//! - A load that fails for want of memory makes room in the same way and is tried again; it has failed when there is nobody
//!   left to go, or when not even that would be enough.
//! - The keep-alive runs from the end of a model's last request. A request that brings its own changes it for the loaded model.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::{KeepAlive, LoadOptions};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ModelId(pub(super) u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct RequestId(pub(super) u64);

/// What a request needs. `I` is what else must be equal for two requests to share a model; `S` is carried along.
#[derive(Clone, Debug)]
pub(super) struct Want<I, S> {
    pub(super) weights: PathBuf,
    pub(super) identity: I,
    pub(super) options: LoadOptions,
    pub(super) keep_alive: KeepAlive,
    pub(super) spec: S,
}

/// What loading made of the options.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Effective {
    pub(super) n_ctx: usize,
    pub(super) n_batch: usize,
    pub(super) bytes: u64,
}

/// Bytes that were missing at a failed load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shortage {
    pub(super) needed: u64,
    pub(super) available: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Action<S, E> {
    /// Begin to load; answered by `loaded` or `load_failed`.
    Load {
        model: ModelId,
        spec: S,
        options: LoadOptions,
    },
    /// The request has the model, until `released`.
    Grant {
        request: RequestId,
        model: ModelId,
    },
    Refuse {
        request: RequestId,
        why: Refusal<E>,
    },
    /// End the model's thread, also when it is still loading; answered by `gone`. Nobody uses it.
    Unload {
        model: ModelId,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Refusal<E> {
    Busy { waiting: usize },
    ShuttingDown,
    Load(E),
}

#[derive(Clone, Debug)]
pub(super) struct Limits {
    pub(super) max_loaded: usize,
    pub(super) max_queue: usize,
    pub(super) keep_alive: KeepAlive,
}

/// The state machine.
#[derive(Debug)]
pub(super) struct Residency<I, S, E> {
    limits: Limits,
    models: Vec<Model<I>>,
    queue: VecDeque<(RequestId, Want<I, S>)>,
    actions: Vec<Action<S, E>>,
    next_model: u64,
    /// The request whose load had too little memory: no new try before somebody has gone.
    short: Option<RequestId>,
    shutting_down: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Loading,
    Ready,
    /// Ready, but leaves when its last request ends and takes no new ones.
    Retiring,
    /// Was told to end.
    Leaving,
}

#[derive(Debug)]
struct Model<I> {
    id: ModelId,
    weights: PathBuf,
    identity: I,
    options: LoadOptions,
    effective: Effective,
    /// `None` = for ever.
    keep_alive: Option<Duration>,
    phase: Phase,
    active: usize,
    last_used: Instant,
}

/// A model as `ps` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Resident {
    pub(super) model: ModelId,
    pub(super) active: usize,
    /// When it leaves if nobody asks again; `None` = never. Counted from now while it is in use.
    pub(super) expires: Option<Instant>,
    pub(super) last_used: Instant,
}

impl<I> Model<I> {
    /// When an idle model leaves.
    fn deadline(&self) -> Option<Instant> {
        // A keep-alive beyond what the clock can count is for ever.
        self.keep_alive.and_then(|keep| self.last_used.checked_add(keep))
    }

    fn keep(&mut self, keep_alive: KeepAlive) {
        match keep_alive {
            KeepAlive::Unset => {}
            KeepAlive::For(duration) => self.keep_alive = Some(duration),
            KeepAlive::Forever => self.keep_alive = None,
        }
    }
}

impl<I: PartialEq + Clone, S: Clone, E: Clone> Residency<I, S, E> {
    pub(super) fn new(limits: Limits) -> Self {
        let (max_loaded, max_queue) = (limits.max_loaded.max(1), limits.max_queue.max(1));
        Residency {
            limits: Limits { max_loaded, max_queue, ..limits },
            models: Vec::new(),
            queue: VecDeque::new(),
            actions: Vec::new(),
            next_model: 1,
            short: None,
            shutting_down: false,
        }
    }

    /// What has to be done now, in this order.
    pub(super) fn actions(&mut self) -> Vec<Action<S, E>> {
        std::mem::take(&mut self.actions)
    }

    pub(super) fn waiting(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn request(&mut self, now: Instant, request: RequestId, want: Want<I, S>) {
        if self.shutting_down {
            self.refuse(request, Refusal::ShuttingDown);
        } else if let Some(i) = self.serving(&want) {
            self.grant(now, i, request, want.keep_alive);
        } else if self.queue.len() >= self.limits.max_queue {
            self.refuse(request, Refusal::Busy { waiting: self.queue.len() });
        } else {
            self.queue.push_back((request, want));
            self.advance(now);
        }
    }

    /// The client of a waiting request went away.
    pub(super) fn cancel(&mut self, now: Instant, request: RequestId) {
        self.queue.retain(|(id, _)| *id != request);
        self.advance(now);
    }

    pub(super) fn loaded(&mut self, now: Instant, model: ModelId, effective: Effective) {
        let Some(m) = self.model(model) else { return };
        m.effective = effective;
        m.last_used = now;
        if m.phase == Phase::Loading {
            m.phase = Phase::Ready;
        }
        self.advance(now);
        self.tick(now);
    }

    /// The model's thread has ended without serving.
    pub(super) fn load_failed(&mut self, now: Instant, model: ModelId, error: E, shortage: Option<Shortage>) {
        let Some(i) = self.models.iter().position(|m| m.id == model) else { return };
        let failed = self.models.remove(i);
        let others: u64 = self.models.iter().map(|m| m.effective.bytes).sum();
        let hopeful = |s: Shortage| !self.models.is_empty() && s.needed <= s.available.saturating_add(others);
        if failed.phase == Phase::Loading {
            if shortage.is_some_and(hopeful) {
                self.short = self.queue.front().map(|(request, _)| *request);
                self.make_room();
            } else {
                let concerned = |want: &Want<I, S>| failed.weights == want.weights && suits(&failed, want);
                let (refused, kept) = self.queue.drain(..).partition(|(_, want)| concerned(want));
                self.queue = kept;
                let refused: VecDeque<(RequestId, Want<I, S>)> = refused;
                refused.into_iter().for_each(|(request, _)| self.refuse(request, Refusal::Load(error.clone())));
            }
        }
        self.advance(now);
    }

    /// A granted request has ended.
    pub(super) fn released(&mut self, now: Instant, model: ModelId) {
        // A model that crashed is gone before its requests are.
        let Some(m) = self.model(model) else { return };
        m.active = m.active.saturating_sub(1);
        m.last_used = now;
        if m.active == 0 && m.phase == Phase::Retiring {
            self.leave(model);
        }
        self.tick(now);
    }

    /// The thread of a model that was ready has ended, because it was told to or by a crash.
    pub(super) fn gone(&mut self, now: Instant, model: ModelId) {
        self.models.retain(|m| m.id != model);
        self.short = None;
        self.advance(now);
    }

    /// Unloads the model of these weights when its requests have ended.
    pub(super) fn unload(&mut self, now: Instant, weights: &std::path::Path) {
        for m in self.models.iter_mut().filter(|m| m.weights == weights) {
            m.keep_alive = Some(Duration::ZERO);
        }
        self.tick(now);
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, now: Instant) {
        let expired =
            |m: &&Model<I>| m.phase == Phase::Ready && m.active == 0 && m.deadline().is_some_and(|d| d <= now);
        let expired: Vec<ModelId> = self.models.iter().filter(expired).map(|m| m.id).collect();
        expired.into_iter().for_each(|model| self.leave(model));
    }

    /// When to call [`Residency::tick`] next.
    pub(super) fn next_tick(&self) -> Option<Instant> {
        let idle = self.models.iter().filter(|m| m.phase == Phase::Ready && m.active == 0);
        idle.filter_map(|m| m.deadline()).min()
    }

    /// Refuses everything from now on; models leave when their requests have ended.
    pub(super) fn shut_down(&mut self) {
        self.shutting_down = true;
        let waiting = std::mem::take(&mut self.queue);
        waiting.into_iter().for_each(|(request, _)| self.refuse(request, Refusal::ShuttingDown));
        let ids: Vec<ModelId> = self.models.iter().map(|m| m.id).collect();
        ids.into_iter().for_each(|id| self.retire(id));
    }

    /// Models that are ready.
    pub(super) fn residents(&self, now: Instant) -> Vec<Resident> {
        let ready = self.models.iter().filter(|m| matches!(m.phase, Phase::Ready | Phase::Retiring));
        let resident = |m: &Model<I>| Resident {
            model: m.id,
            active: m.active,
            expires: if m.active > 0 { m.keep_alive.and_then(|keep| now.checked_add(keep)) } else { m.deadline() },
            last_used: m.last_used,
        };
        ready.map(resident).collect()
    }

    /// Whether any model's thread is still running.
    pub(super) fn is_empty(&self) -> bool {
        self.models.is_empty()
    }

    fn model(&mut self, id: ModelId) -> Option<&mut Model<I>> {
        self.models.iter_mut().find(|m| m.id == id)
    }

    /// The model that can take this request now.
    fn serving(&self, want: &Want<I, S>) -> Option<usize> {
        let can = |m: &Model<I>| m.phase == Phase::Ready && m.weights == want.weights && suits(m, want);
        self.models.iter().position(can)
    }

    fn grant(&mut self, now: Instant, i: usize, request: RequestId, keep_alive: KeepAlive) {
        let m = &mut self.models[i];
        m.active += 1;
        m.last_used = now;
        m.keep(keep_alive);
        self.actions.push(Action::Grant { request, model: m.id });
    }

    fn refuse(&mut self, request: RequestId, why: Refusal<E>) {
        self.actions.push(Action::Refuse { request, why });
    }

    fn leave(&mut self, model: ModelId) {
        if let Some(m) = self.model(model)
            && m.phase != Phase::Leaving
        {
            m.phase = Phase::Leaving;
            self.actions.push(Action::Unload { model });
        }
    }

    fn retire(&mut self, model: ModelId) {
        match self.model(model) {
            Some(m) if m.active > 0 && m.phase == Phase::Ready => m.phase = Phase::Retiring,
            Some(m) if m.active == 0 => self.leave(model),
            _ => {}
        }
    }

    /// Sends one model away, unless one is on its way out already.
    fn make_room(&mut self) {
        if self.models.iter().any(|m| matches!(m.phase, Phase::Leaving | Phase::Retiring)) {
            return;
        }
        let ready = self.models.iter().filter(|m| m.phase == Phase::Ready);
        let order = |m: &&Model<I>| (m.active > 0, m.keep_alive.unwrap_or(Duration::MAX), m.last_used, m.id);
        if let Some(id) = ready.min_by_key(order).map(|m| m.id) {
            self.retire(id);
        }
    }

    /// Grants what can be granted, then does what the head of the queue waits for.
    fn advance(&mut self, now: Instant) {
        let mut waiting = std::mem::take(&mut self.queue);
        waiting.retain(|(request, want)| match self.serving(want) {
            Some(i) => {
                self.grant(now, i, *request, want.keep_alive);
                false
            }
            None => true,
        });
        self.queue = waiting;
        let Some((request, head)) = self.queue.front() else {
            // Nobody needs the room any more.
            if !self.shutting_down {
                let retiring = self.models.iter_mut().filter(|m| m.phase == Phase::Retiring);
                retiring.for_each(|m| m.phase = Phase::Ready);
            }
            return;
        };

        if let Some(loading) = self.models.iter().find(|m| m.phase == Phase::Loading) {
            let wanted = self.queue.iter().any(|(_, want)| loading.weights == want.weights && suits(loading, want));
            if !wanted {
                // Everyone who waited for it has left, and others wait behind it.
                self.leave(loading.id);
            }
            return;
        }
        let pardoned = |m: &Model<I>| m.phase == Phase::Retiring && m.weights == head.weights && suits(m, head);
        if let Some(i) = self.models.iter().position(pardoned) {
            // It was to make room for somebody who has left meanwhile.
            self.models[i].phase = Phase::Ready;
            return self.advance(now);
        }
        // The same weights with other options: reload.
        if let Some(m) = self.models.iter().find(|m| m.weights == head.weights) {
            let id = m.id;
            return self.retire(id);
        }
        if self.models.len() >= self.limits.max_loaded {
            return self.make_room();
        }
        let leaving = self.models.iter().any(|m| m.phase == Phase::Leaving);
        if leaving || self.short == Some(*request) {
            // Memory is still to be freed.
            return;
        }
        let model = ModelId(self.next_model);
        self.next_model += 1;
        let mut loading = Model {
            id: model,
            weights: head.weights.clone(),
            identity: head.identity.clone(),
            options: head.options.clone(),
            effective: Effective::default(),
            keep_alive: None,
            phase: Phase::Loading,
            active: 0,
            last_used: now,
        };
        loading.keep(self.limits.keep_alive);
        loading.keep(head.keep_alive);
        self.actions.push(Action::Load { model, spec: head.spec.clone(), options: head.options.clone() });
        self.models.push(loading);
    }
}

/// Whether a model loaded for one request, from the same weights, can serve another. Context, batch size and GPU layers that a
/// request leaves open are satisfied by whatever was chosen automatically; a number is also satisfied by the same automatic one.
fn suits<I: PartialEq, S>(model: &Model<I>, want: &Want<I, S>) -> bool {
    let (has, wants, chosen) = (&model.options, &want.options, &model.effective);
    let number = |has: Option<usize>, wants: Option<usize>, chosen: usize| has == wants || wants == Some(chosen);
    model.identity == want.identity
        && number(has.n_ctx, wants.n_ctx, chosen.n_ctx)
        && number(has.n_batch, wants.n_batch, chosen.n_batch)
        && has.n_gpu_layers == wants.n_gpu_layers
        && has.main_gpu == wants.main_gpu
        && has.use_mmap == wants.use_mmap
        && has.n_threads == wants.n_threads
        && has.kv_type == wants.kv_type
}

#[cfg(test)]
mod tests;
