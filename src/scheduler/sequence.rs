//! One running request: which of its tokens are computed, what is sampled, and what its client hears.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::sync::mpsc::OwnedPermit;
use tokio::sync::mpsc::error::TrySendError;

use super::batch::Want;
use super::{DoneReason, Error, Event, Logprob, Stats};
use crate::engine::Routing;
use crate::ids::TokenId;
use crate::sampler::{Constraint, Sampler};
use crate::tokens;

/// States worth remembering within one prompt; more cost steps and memory and are rarely found again.
const MOST_CUTS: usize = 8;
/// Cuts nearer to the start or to each other than this are not worth a step of their own.
const CUT_DISTANCE: usize = 16;

/// A request that waits for a sequence.
pub(super) struct Job {
    pub(super) id: u64,
    pub(super) prompt: Vec<TokenId>,
    pub(super) checkpoint_at: Vec<usize>,
    pub(super) routing: Routing,
    pub(super) max_tokens: Option<usize>,
    pub(super) sampler: Sampler,
    pub(super) constraint: Option<Constraint>,
    pub(super) text: tokens::Stream,
    pub(super) client: Client,
    /// Until the model was ready.
    pub(super) load: Duration,
    pub(super) arrived: Instant,
}

/// How ready a client is for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Readiness {
    Ready,
    /// Its channel is full: the sequence pauses until it has read.
    Slow,
    Gone,
}

/// The way to one client: a bounded channel, and what did not fit into it yet. Holds `lease`, which keeps the model loaded, for
/// as long as there is something to say.
pub(super) struct Client {
    sender: mpsc::Sender<Event>,
    unsent: VecDeque<Event>,
    /// Room in the channel for the reason of an early end, however little the client reads.
    last_word: Option<OwnedPermit<Event>>,
    /// Since when it has taken nothing although something waits for it.
    stalled_since: Option<Instant>,
    /// Dropped last.
    _lease: Box<dyn Send>,
}

impl Client {
    /// The channel must have room for one event more than are to be sent ahead: the last word.
    pub(super) fn new(sender: mpsc::Sender<Event>, lease: Box<dyn Send>) -> Self {
        let last_word = sender.clone().try_reserve_owned().ok();
        Client { sender, unsent: VecDeque::new(), last_word, stalled_since: None, _lease: lease }
    }

    /// Sends it, or keeps it until there is room.
    pub(super) fn send(&mut self, event: Event) -> Readiness {
        self.unsent.push_back(event);
        self.send_unsent()
    }

    /// Sends what can be sent now, and notices since when nothing can be.
    pub(super) fn flush(&mut self, now: Instant) -> Readiness {
        let readiness = self.send_unsent();
        if readiness == Readiness::Slow {
            self.stalled_since.get_or_insert(now);
        }
        readiness
    }

    fn send_unsent(&mut self) -> Readiness {
        while let Some(event) = self.unsent.pop_front() {
            match self.sender.try_send(event) {
                Ok(()) => self.stalled_since = None,
                Err(TrySendError::Full(event)) => {
                    self.unsent.push_front(event);
                    return Readiness::Slow;
                }
                Err(TrySendError::Closed(_)) => return Readiness::Gone,
            }
        }
        if self.sender.is_closed() { Readiness::Gone } else { Readiness::Ready }
    }

    /// Since when it has taken nothing of what waits for it; `None` for a client that keeps up.
    pub(super) fn stalled_since(&self) -> Option<Instant> {
        self.stalled_since
    }

    /// Ends with `error`, after what has been sent; what has not been is dropped.
    pub(super) fn cut(mut self, error: Error) {
        if let Some(room) = self.last_word.take() {
            room.send(Event::Failed(error));
        }
    }
}

/// A request that has a sequence of the engine.
pub(super) struct Sequence {
    pub(super) id: u64,
    /// Prompt, then answer.
    tokens: Vec<TokenId>,
    /// The first tokens, which the engine has computed. The newest token never is.
    computed: usize,
    /// What its experts are chosen by.
    pub(super) routing: Routing,
    /// The whole prompt, for whoever remembers states of it.
    prompt: Arc<[TokenId]>,
    /// Where to stop prefill and remember the state; the next one is last.
    cuts: Vec<usize>,
    sampler: Sampler,
    constraint: Option<Constraint>,
    stream: tokens::Stream,
    pub(super) client: Client,
    max_tokens: Option<usize>,
    n_ctx: usize,
    /// Tokens and logprobs whose text is not decided yet.
    undecided: Vec<TokenId>,
    logprobs: Vec<Logprob>,
    cached: usize,
    load: Duration,
    arrived: Instant,
    started: Instant,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
}

impl Sequence {
    /// `reused`: the first tokens of the prompt, which the engine holds already. `remembers`: whether it can make checkpoints.
    pub(super) fn start(job: Job, reused: usize, n_ctx: usize, remembers: bool, now: Instant) -> Self {
        let cuts = if remembers { cuts(&job.checkpoint_at, job.prompt.len(), reused) } else { Vec::new() };
        let mut sampler = job.sampler;
        sampler.accept(&job.prompt);
        Sequence {
            id: job.id,
            prompt: job.prompt.as_slice().into(),
            tokens: job.prompt,
            routing: job.routing,
            computed: reused,
            cuts,
            sampler,
            constraint: job.constraint,
            stream: job.text,
            client: job.client,
            max_tokens: job.max_tokens,
            n_ctx,
            undecided: Vec::new(),
            logprobs: Vec::new(),
            cached: reused,
            load: job.load,
            arrived: job.arrived,
            started: now,
            first_token: None,
            last_token: None,
        }
    }

    /// What the engine holds of it.
    pub(super) fn computed(&self) -> &[TokenId] {
        &self.tokens[..self.computed]
    }

    pub(super) fn prompt(&self) -> &Arc<[TokenId]> {
        &self.prompt
    }

    pub(super) fn generated(&self) -> usize {
        self.tokens.len() - self.prompt.len()
    }

    pub(super) fn want(&self) -> Want {
        match self.tokens.len() - self.computed {
            1 if self.generated() > 0 => Want::Decode,
            n => Want::Prefill(self.cuts.last().map_or(n, |cut| cut - self.computed)),
        }
    }

    /// The next `n` tokens to compute, and whether they end with the newest one, whose logits are wanted.
    pub(super) fn next(&self, n: usize) -> (&[TokenId], bool) {
        (&self.tokens[self.computed..self.computed + n], self.computed + n == self.tokens.len())
    }

    /// `n` tokens were computed. `true` where the state is to be remembered.
    pub(super) fn advance(&mut self, n: usize) -> bool {
        self.computed += n;
        self.cuts.pop_if(|cut| *cut == self.computed).is_some()
    }

    /// The engine lost the sequence: everything must be computed again.
    pub(super) fn restart(&mut self) {
        self.computed = 0;
        self.cuts.clear();
    }

    /// Chooses the next token from `logits` (`f32 [n_vocab]`) and tells the client. `Some` when the answer has ended.
    ///
    /// # Errors
    /// [`Error::Sampler`] for broken logits, and when the form of the answer cannot be followed any further.
    pub(super) fn sample(&mut self, logits: &mut [f32], now: Instant) -> Result<Option<DoneReason>, Error> {
        if self.max_tokens == Some(0) {
            return Ok(Some(DoneReason::Length));
        }
        let mask = match &mut self.constraint {
            Some(constraint) => Some(constraint.allowed()?),
            None => None,
        };
        let choice = self.sampler.sample(logits, mask)?;
        let token = choice.token;
        let logprob = choice
            .logprob
            .map(|logprob| Logprob { token: crate::sampler::Scored { token, logprob }, top: choice.top.to_vec() });
        self.sampler.accept(&[token]);
        if let Some(constraint) = &mut self.constraint {
            constraint.accept(token)?;
        }
        self.tokens.push(token);
        self.first_token.get_or_insert(now);
        self.last_token = Some(now);

        let mut text = String::new();
        let ended = self.stream.push(token, &mut text);
        if ended != Some(tokens::Ended::EndToken) {
            self.undecided.push(token);
            self.logprobs.extend(logprob);
        }
        let full = self.tokens.len() > self.n_ctx;
        let reason = match ended {
            Some(_) => Some(DoneReason::Stop),
            None if full || self.max_tokens == Some(self.generated()) => {
                self.stream.finish(&mut text);
                Some(DoneReason::Length)
            }
            None => None,
        };
        if !text.is_empty() || (reason.is_some() && !self.undecided.is_empty()) {
            let (tokens, logprobs) = (std::mem::take(&mut self.undecided), std::mem::take(&mut self.logprobs));
            self.client.send(Event::Text { text, tokens, logprobs });
        }
        Ok(reason)
    }

    /// All but what only the engine knows.
    pub(super) fn stats(&self) -> Stats {
        let first = self.first_token.unwrap_or_else(Instant::now);
        Stats {
            prompt_tokens: self.prompt.len(),
            cached_tokens: self.cached,
            generated_tokens: self.generated(),
            load: self.load,
            queued: self.started - self.arrived,
            prefill: first.saturating_duration_since(self.started),
            decode: self.last_token.map_or(Duration::ZERO, |last| last - first),
            ..Stats::default()
        }
    }

    /// From the request's arrival at the model to its first token.
    pub(super) fn time_to_first_token(&self) -> Option<Duration> {
        self.first_token.map(|first| first - self.arrived)
    }

    /// Its last words are said: the client, for what it has not read, and what the engine holds.
    pub(super) fn end(mut self) -> (Client, Vec<TokenId>) {
        self.tokens.truncate(self.computed);
        (self.client, self.tokens)
    }
}

/// Where to remember states of a prompt: where the request says, and one token before its end (with the last token still to
/// compute, so that the same prompt can be asked again) unless a hint is almost there. Descending: the next one is last.
fn cuts(hints: &[usize], n_prompt: usize, reused: usize) -> Vec<usize> {
    let end = n_prompt - 1;
    let mut at: Vec<usize> = hints.iter().copied().filter(|cut| *cut <= end).collect();
    at.sort_unstable_by(|a, b| b.cmp(a));
    if at.first().is_none_or(|last| end - last >= CUT_DISTANCE) {
        at.insert(0, end);
    }
    at.dedup_by(|next, kept| *kept - *next < CUT_DISTANCE);
    at.retain(|cut| *cut > reused && *cut >= CUT_DISTANCE);
    at.truncate(MOST_CUTS);
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_remembered_at_the_hints_and_near_the_end() {
        assert_eq!(cuts(&[40, 500, 100], 300, 0), [299, 100, 40], "beyond the end is nothing");
        assert_eq!(cuts(&[100, 290], 300, 0), [290, 100], "near enough to the end");
        assert_eq!(cuts(&[90, 100], 300, 0), [299, 100], "too near to each other");
        assert_eq!(cuts(&[40, 100], 300, 100), [299], "known already");
        assert_eq!(cuts(&[2], 10, 0), [0; 0], "too short to matter");
        assert_eq!(cuts(&[], 1, 0), [0; 0]);
        let many: Vec<usize> = (1..100).map(|i| i * 100).collect();
        assert_eq!(cuts(&many, 100_000, 0).len(), MOST_CUTS);
    }
}
