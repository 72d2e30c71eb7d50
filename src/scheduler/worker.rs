//! The thread that owns one engine: takes requests, forms batches, steps, samples, sends events.
//!
//! One turn of the loop looks at everything that may have changed (new requests, clients that left, slow readers that caught
//! up), gives free sequences to waiting requests, and computes one step. Without anything to compute the thread sleeps until
//! [`Control::wake`], or until a client has read nothing for so long that its request ends.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::batch::{Planner, Want};
use super::control::{Control, End};
use super::prefix::{self, Remembered, Slot as Past, Source};
use super::sequence::{Client, Job, Readiness, Sequence};
use super::{DoneReason, Error, Event, Routed, Stats};
use crate::engine::{self, Batch, BatchToken, Checkpoint, Engine, Output, Outputs, RoutingId};
use crate::ids::{Pos, SeqId, TokenId};
use crate::telemetry::{EndLabel, EngineLabel, Metrics};

/// What a worker must know besides its engine.
pub(super) struct Setup {
    /// For messages.
    pub(super) model: String,
    pub(super) jobs: mpsc::Receiver<Job>,
    pub(super) control: Arc<Control>,
    pub(super) metrics: Metrics,
    pub(super) prefix_bytes: usize,
    pub(super) prefill_quantum: usize,
    /// See [`super::Settings::stall_limit`].
    pub(super) stall_limit: Option<Duration>,
}

/// While others wait for a sequence, a stalled client has this part of the limit.
const CROWDED: u32 = 10;

/// What one turn of the loop came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Computed,
    /// Nothing to compute until something is heard, or until this time.
    Idle(Option<Instant>),
    /// It was told to end, and has.
    Ended,
}

/// One worker's part of the gauges.
#[derive(Clone, Copy, Default)]
struct Gauged {
    running: usize,
    waiting: usize,
    prefix_bytes: usize,
}

/// One sequence of the engine.
#[derive(Default)]
struct Slot {
    running: Option<Sequence>,
    /// What the engine still holds of a sequence that has ended.
    past: Vec<TokenId>,
    /// What the running or past tokens were computed under.
    routing: RoutingId,
    used: u64,
}

impl Slot {
    fn past(&self) -> Past<'_> {
        Past {
            occupied: self.running.is_some(),
            tokens: self.running.as_ref().map_or(&self.past, Sequence::computed),
            routing: self.routing,
            used: self.used,
        }
    }

    /// What can be computed: nothing for a client that has not read what is there.
    fn want(&mut self, now: Instant) -> Want {
        match &mut self.running {
            Some(sequence) => match sequence.client.flush(now) {
                Readiness::Ready => sequence.want(),
                Readiness::Slow | Readiness::Gone => Want::Nothing,
            },
            None => Want::Nothing,
        }
    }
}

pub(super) struct Worker {
    engine: Box<dyn Engine>,
    setup: Setup,
    waiting: VecDeque<Job>,
    slots: Vec<Slot>,
    /// Clients of ended requests that have not read everything.
    leaving: Vec<Client>,
    remembered: Remembered<Checkpoint>,
    /// States of this many tokens were larger than the whole memory for them.
    too_long: usize,
    planner: Planner,
    clock: u64,
    /// What this worker adds to the gauges now; they are sums over all models.
    gauged: Gauged,
    /// Reused from step to step.
    wants: Vec<Want>,
    shares: Vec<usize>,
    batch: Batch,
    outputs: Outputs,
    /// Sequence of each row of `outputs`.
    rows: Vec<usize>,
}

impl Worker {
    pub(super) fn new(engine: Box<dyn Engine>, setup: Setup) -> Self {
        let info = engine.info();
        let planner = Planner::new(info.n_batch, setup.prefill_quantum);
        let slots = (0..info.n_seq_max).map(|_| Slot::default()).collect();
        Worker {
            remembered: Remembered::new(if info.support.checkpoint { setup.prefix_bytes } else { 0 }),
            too_long: usize::MAX,
            engine,
            setup,
            waiting: VecDeque::new(),
            slots,
            leaving: Vec::new(),
            planner,
            clock: 0,
            gauged: Gauged::default(),
            wants: Vec::new(),
            shares: Vec::new(),
            batch: Batch::default(),
            outputs: Outputs::default(),
            rows: Vec::new(),
        }
    }

    /// Serves until it is told to end.
    pub(super) fn run(&mut self) {
        loop {
            let now = Instant::now();
            match self.turn(now) {
                Turn::Computed => {}
                Turn::Idle(None) => std::thread::park(),
                Turn::Idle(Some(until)) => std::thread::park_timeout(until.saturating_duration_since(now)),
                Turn::Ended => return,
            }
        }
    }

    /// Looks around and computes one step.
    pub(super) fn turn(&mut self, now: Instant) -> Turn {
        self.take_jobs();
        self.look_after_clients(now);
        match self.setup.control.ending() {
            End::Now => {
                self.fail_all(&Error::ShuttingDown);
                return Turn::Ended;
            }
            End::Idle if self.is_idle() => return Turn::Ended,
            _ => {}
        }
        self.admit(now);
        self.count();
        if self.step(now) { Turn::Computed } else { Turn::Idle(self.next_stall()) }
    }

    /// Everything that is not finished ends with `error`. Nothing is taken after this.
    pub(super) fn fail_all(&mut self, error: &Error) {
        self.setup.jobs.close();
        self.take_jobs();
        let running = self.slots.iter_mut().filter_map(|slot| slot.running.take()).map(|sequence| sequence.end().0);
        for client in running.chain(self.waiting.drain(..).map(|job| job.client)) {
            client.cut(error.clone());
            self.setup.metrics.requests.get_or_create(&EndLabel { reason: "failed" }).inc();
        }
        self.leaving.clear();
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.leaving.is_empty() && self.slots.iter().all(|s| s.running.is_none())
    }

    fn take_jobs(&mut self) {
        while let Ok(job) = self.setup.jobs.try_recv() {
            self.waiting.push_back(job);
        }
    }

    fn count(&mut self) {
        let running = self.slots.iter().filter(|s| s.running.is_some()).count();
        self.gauge(Gauged { running, waiting: self.waiting.len(), prefix_bytes: self.remembered.bytes() });
    }

    fn gauge(&mut self, now: Gauged) {
        let (before, metrics) = (std::mem::replace(&mut self.gauged, now), &self.setup.metrics);
        let change = |before: usize, now: usize| now as i64 - before as i64;
        metrics.running.inc_by(change(before.running, now.running));
        metrics.waiting_for_slot.inc_by(change(before.waiting, now.waiting));
        metrics.prefix_bytes.inc_by(change(before.prefix_bytes, now.prefix_bytes));
    }

    /// Sends what slow readers have made room for; drops the requests of clients that left or have stalled.
    fn look_after_clients(&mut self, now: Instant) {
        self.leaving.retain_mut(|client| client.flush(now) == Readiness::Slow);
        let before = self.waiting.len();
        self.waiting.retain_mut(|job| job.client.flush(now) != Readiness::Gone);
        let mut cancelled = before - self.waiting.len();
        for (i, slot) in self.slots.iter_mut().enumerate() {
            let gone = |sequence: &mut Sequence| sequence.client.flush(now) == Readiness::Gone;
            if let Some(sequence) = slot.running.take_if(gone) {
                cancelled += 1;
                let routed = routed(&*self.engine, &self.setup.metrics, i, &sequence);
                log_end(&self.setup.model, &sequence, routed.as_deref(), "cancelled");
                // What was computed stays: the client may ask again.
                slot.past = sequence.end().1;
            }
        }
        self.setup.metrics.requests.get_or_create(&EndLabel { reason: "cancelled" }).inc_by(cancelled as u64);
        self.end_stalled(now);
    }

    /// How long a client may take nothing, now.
    fn stall_limit(&self) -> Option<Duration> {
        let free = self.slots.iter().filter(|slot| slot.running.is_none()).count();
        let crowded = self.waiting.len() > free;
        self.setup.stall_limit.map(|limit| if crowded { limit / CROWDED } else { limit })
    }

    /// Ends the requests of clients that have taken nothing for too long. Those whose answer is complete hold no sequence, but they
    /// keep the model loaded.
    fn end_stalled(&mut self, now: Instant) {
        let Some(limit) = self.stall_limit() else { return };
        let overdue =
            |client: &Client| client.stalled_since().is_some_and(|since| now.saturating_duration_since(since) >= limit);
        let error = Error::Stalled { limit };
        for client in self.leaving.extract_if(.., |client| overdue(client)) {
            client.cut(error.clone());
        }
        for (i, slot) in self.slots.iter_mut().enumerate() {
            if let Some(sequence) = slot.running.take_if(|sequence| overdue(&sequence.client)) {
                self.setup.metrics.requests.get_or_create(&EndLabel { reason: "stalled" }).inc();
                let routed = routed(&*self.engine, &self.setup.metrics, i, &sequence);
                log_end(&self.setup.model, &sequence, routed.as_deref(), "stalled");
                let (client, past) = sequence.end();
                slot.past = past;
                client.cut(error.clone());
            }
        }
    }

    /// When the first client will have stalled for too long, if none takes anything until then.
    fn next_stall(&self) -> Option<Instant> {
        let running = self.slots.iter().filter_map(|slot| slot.running.as_ref()).map(|sequence| &sequence.client);
        let since = running.chain(&self.leaving).filter_map(Client::stalled_since).min()?;
        since.checked_add(self.stall_limit()?)
    }

    /// Gives free sequences to waiting requests, in their order.
    fn admit(&mut self, now: Instant) {
        while let Some(job) = self.waiting.front() {
            if self.slots.iter().all(|slot| slot.running.is_some()) {
                return;
            }
            let routing = match self.engine.find_routing(&job.routing) {
                Ok(routing) => routing,
                Err(error) => {
                    self.refuse_first(error);
                    continue;
                }
            };
            let pasts: Vec<Past> = self.slots.iter().map(Slot::past).collect();
            let can_fork = self.engine.info().support.fork;
            let start = prefix::choose(&job.prompt, routing, &pasts, &self.remembered, can_fork);
            let Some(start) = start else { return };
            let seq = SeqId(start.slot as u32);
            let reused = match self.begin(start).and_then(|()| self.engine.set_routing(seq, routing)) {
                Ok(()) => start.reused,
                Err(error) => {
                    tracing::warn!(model = self.setup.model, %error, "a cached prefix could not be used");
                    self.setup.metrics.prefix_failures.inc();
                    self.release(start.slot);
                    self.slots[start.slot].past.clear();
                    if let Err(error) = self.engine.set_routing(seq, routing) {
                        self.refuse_first(error);
                        continue;
                    }
                    0
                }
            };
            let Some(job) = self.waiting.pop_front() else { return };
            let info = self.engine.info();
            let remembers = info.support.checkpoint && self.setup.prefix_bytes > 0;
            let sequence = Sequence::start(job, reused, info.n_ctx, remembers, now);
            tracing::debug!(
                model = self.setup.model,
                request = sequence.id,
                sequence = start.slot,
                prompt_tokens = sequence.prompt().len(),
                cached_tokens = reused,
                from = ?start.from,
                "starts"
            );
            let computed_by = EngineLabel { engine: info.engine, kv: info.kv_type.name() };
            self.setup.metrics.computed.get_or_create(&computed_by).inc();
            self.setup.metrics.prompt_tokens.inc_by(sequence.prompt().len() as u64);
            self.setup.metrics.cached_tokens.inc_by(reused as u64);
            if reused > 0 {
                self.setup.metrics.prefix_hits.inc();
            }
            self.clock += 1;
            let slot = &mut self.slots[start.slot];
            slot.used = self.clock;
            slot.past.clear();
            slot.routing = routing;
            slot.running = Some(sequence);
        }
    }

    /// Ends the request that waits first: its routing policy cannot be followed.
    fn refuse_first(&mut self, error: engine::Error) {
        let Some(job) = self.waiting.pop_front() else { return };
        tracing::debug!(model = self.setup.model, request = job.id, %error, "refused");
        self.setup.metrics.requests.get_or_create(&EndLabel { reason: "failed" }).inc();
        job.client.cut(Error::Routing { source: Arc::new(error) });
    }

    /// Makes the engine hold what `start` promises. States that lie in what is overwritten are forgotten.
    fn begin(&mut self, start: prefix::Start) -> Result<(), engine::Error> {
        let seq = SeqId(start.slot as u32);
        match start.from {
            Source::Itself => Ok(()),
            Source::Nothing => {
                self.release(start.slot);
                Ok(())
            }
            Source::Slot(from) => {
                self.release(start.slot);
                self.engine.fork(SeqId(from as u32), seq, None)
            }
            Source::Remembered(place) => {
                let (state, within) = self.remembered.get(place);
                let state = state.clone();
                match within {
                    Some(slot) if slot == start.slot => {
                        self.remembered.forget(slot, start.reused);
                        self.engine.rewind(seq, &state)
                    }
                    Some(slot) => {
                        self.release(start.slot);
                        self.engine.fork(SeqId(slot as u32), seq, Some(&state))
                    }
                    None => {
                        self.release(start.slot);
                        self.engine.rewind(seq, &state)
                    }
                }
            }
        }
    }

    fn release(&mut self, slot: usize) {
        self.remembered.forget(slot, 0);
        self.engine.release(SeqId(slot as u32));
    }

    /// Computes one step; `false` when there is nothing to compute.
    fn step(&mut self, now: Instant) -> bool {
        self.wants.clear();
        self.wants.extend(self.slots.iter_mut().map(|slot| slot.want(now)));
        self.planner.form(&self.wants, &mut self.shares);
        self.fill_batch();
        if self.batch.tokens.is_empty() {
            return false;
        }

        let mut taking_part = self.slots.iter().zip(&self.shares).filter(|(_, share)| **share > 0);
        let first = taking_part.next().and_then(|(slot, _)| slot.running.as_ref()).map(|s| s.id);
        let alone = first.filter(|_| taking_part.next().is_none());
        self.outputs.clear();
        self.setup.control.begin_step(alone);
        let begun = Instant::now();
        let result = self.engine.step(&self.batch, &mut self.outputs);
        self.setup.control.end_step();
        match result {
            Ok(stats) => {
                let seconds = begun.elapsed().as_secs_f64();
                self.setup.metrics.step_seconds.observe(seconds);
                self.setup.metrics.step_tokens.observe(stats.tokens as f64);
                tracing::trace!(model = self.setup.model, tokens = stats.tokens, seconds, "step");
                self.advance();
                self.sample();
            }
            Err(error) => self.step_failed(error),
        }
        true
    }

    fn fill_batch(&mut self) {
        self.batch.tokens.clear();
        self.rows.clear();
        for (i, (slot, share)) in self.slots.iter().zip(&self.shares).enumerate() {
            let Some(sequence) = slot.running.as_ref().filter(|_| *share > 0) else { continue };
            let start = sequence.computed().len();
            let (tokens, to_the_end) = sequence.next(*share);
            self.batch.tokens.extend(tokens.iter().enumerate().map(|(j, token)| BatchToken {
                token: *token,
                seq: SeqId(i as u32),
                pos: Pos((start + j) as u32),
                output: (to_the_end && j + 1 == *share).then_some(Output::Logits),
            }));
            if to_the_end {
                self.rows.push(i);
            }
        }
    }

    /// Counts what was computed and remembers states where a sequence asks for it.
    fn advance(&mut self) {
        for i in 0..self.slots.len() {
            let share = self.shares[i];
            let Some(sequence) = self.slots[i].running.as_mut().filter(|_| share > 0) else { continue };
            if !sequence.advance(share) {
                continue;
            }
            let (n_tokens, prompt) = (sequence.computed().len(), sequence.prompt().clone());
            let routing = self.slots[i].routing;
            if n_tokens >= self.too_long || self.remembered.touch(&prompt[..n_tokens], routing) {
                continue;
            }
            match self.engine.checkpoint(SeqId(i as u32)) {
                Ok(checkpoint) => {
                    let (bytes, within) = (checkpoint.bytes, checkpoint.within.map(|seq| seq.0 as usize));
                    let state =
                        prefix::State { tokens: prompt, len: n_tokens, routing, bytes, within, state: checkpoint };
                    if !self.remembered.insert(state) {
                        tracing::debug!(model = self.setup.model, n_tokens, bytes, "a state is too large to remember");
                        self.too_long = n_tokens;
                    }
                }
                Err(error) => {
                    tracing::warn!(model = self.setup.model, %error, "the state of a sequence was not remembered")
                }
            }
        }
    }

    /// A token for every sequence that has logits.
    fn sample(&mut self) {
        let now = Instant::now();
        for row in 0..self.rows.len() {
            let i = self.rows[row];
            let Some(sequence) = &mut self.slots[i].running else { continue };
            let first = sequence.generated() == 0;
            let result = sequence.sample(self.outputs.row_mut(row), now);
            if result.is_ok() && sequence.generated() > 0 {
                self.setup.metrics.generated_tokens.inc();
            }
            if first && let Some(time) = sequence.time_to_first_token() {
                self.setup.metrics.first_token_seconds.observe(time.as_secs_f64());
            }
            match result {
                Ok(None) => {}
                Ok(Some(reason)) => {
                    let label = match reason {
                        DoneReason::Stop => "stop",
                        DoneReason::Length => "length",
                    };
                    let stats = Stats { kv_type: self.engine.info().kv_type, ..sequence.stats() };
                    self.end(i, Event::Done { reason, stats }, label);
                }
                Err(error) => self.end(i, Event::Failed(error), "failed"),
            }
        }
    }

    /// Says the last word to the client of a sequence and makes room for the next one. What was computed stays until then.
    fn end(&mut self, slot: usize, mut last: Event, label: &'static str) {
        let Some(sequence) = self.slots[slot].running.take() else { return };
        self.setup.metrics.requests.get_or_create(&EndLabel { reason: label }).inc();
        let routed = routed(&*self.engine, &self.setup.metrics, slot, &sequence);
        log_end(&self.setup.model, &sequence, routed.as_deref(), label);
        if let Event::Done { stats, .. } = &mut last {
            stats.routing = routed;
        }
        self.clock += 1;
        let (mut client, past) = sequence.end();
        self.slots[slot].used = self.clock;
        self.slots[slot].past = past;
        if client.send(last) == Readiness::Slow {
            self.leaving.push(client);
        }
    }

    /// The state of everyone who took part is lost.
    fn step_failed(&mut self, error: engine::Error) {
        let aborted = matches!(error, engine::Error::Aborted);
        let error = Error::Step { model: self.setup.model.clone(), source: Arc::new(error) };
        if aborted {
            tracing::debug!(model = self.setup.model, "a step was given up");
        } else {
            tracing::error!(model = self.setup.model, %error, "a step failed");
        }
        for i in (0..self.slots.len()).filter(|i| self.shares[*i] > 0).collect::<Vec<_>>() {
            self.release(i);
            if let Some(sequence) = &mut self.slots[i].running {
                sequence.restart();
            }
            if !aborted {
                self.end(i, Event::Failed(error.clone()), "failed");
            } else if let Err(error) = self.route_again(i) {
                self.end(i, Event::Failed(Error::Routing { source: Arc::new(error) }), "failed");
            }
            // Aborted: its client left, or everything ends, and the loop sees to it. If neither, it is computed again.
        }
    }
}

impl Worker {
    /// A running sequence that begins anew follows its policy again, or what has become of it.
    fn route_again(&mut self, slot: usize) -> Result<(), engine::Error> {
        let Some(sequence) = &self.slots[slot].running else { return Ok(()) };
        let routing = self.engine.find_routing(&sequence.routing)?;
        self.slots[slot].routing = routing;
        self.engine.set_routing(SeqId(slot as u32), routing)
    }
}

/// What the policy of a sequence that ends has done, counted into the totals.
fn routed(engine: &dyn Engine, metrics: &Metrics, slot: usize, sequence: &Sequence) -> Option<Arc<Routed>> {
    let counts = engine.routing_counts(SeqId(slot as u32))?;
    metrics.experts_chosen.inc_by(counts.chosen());
    metrics.experts_computed.inc_by(counts.computed());
    metrics.expert_bytes_saved.inc_by(counts.bytes_saved);
    metrics.expert_flops_saved.inc_by(counts.flops_saved);
    Some(Arc::new(Routed { routing: sequence.routing.clone(), counts }))
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.gauge(Gauged::default());
    }
}

/// One line per request that a person can read.
fn log_end(model: &str, sequence: &Sequence, routed: Option<&Routed>, end: &str) {
    let stats = sequence.stats();
    let rate = |tokens: usize, seconds: f64| if seconds > 0.0 { (tokens as f64 / seconds).round() } else { 0.0 };
    let computed = stats.prompt_tokens - stats.cached_tokens;
    tracing::info!(
        model,
        request = sequence.id,
        prompt_tokens = stats.prompt_tokens,
        cached_tokens = stats.cached_tokens,
        generated_tokens = stats.generated_tokens,
        queued_ms = stats.queued.as_millis() as u64,
        first_token_ms = sequence.time_to_first_token().map_or(0, |t| t.as_millis() as u64),
        prefill_tok_s = rate(computed, stats.prefill.as_secs_f64()),
        decode_tok_s = rate(stats.generated_tokens.saturating_sub(1), stats.decode.as_secs_f64()),
        mean_experts = routed.and_then(|routed| routed.counts.mean()),
        "{end}"
    );
}
