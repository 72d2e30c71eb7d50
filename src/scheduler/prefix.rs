//! What of a prompt has been computed before. Pure: it decides, the worker does.
//!
//! Three kinds of past can help a prompt: a finished sequence that still lies in the engine and that the prompt continues; a
//! remembered state ([`Remembered`]) of any sequence, running, finished or overwritten; a running sequence that is just at a
//! prefix of the prompt. The longest one wins; what was computed under another routing policy is no past. At least one token is always left to compute, since somebody must give logits.

use std::sync::Arc;

use crate::engine::RoutingId;
use crate::ids::TokenId;

/// Remembered states, found by their tokens, within a budget of memory; the least recently used go first.
#[derive(Debug)]
pub(super) struct Remembered<T> {
    entries: Vec<Entry<T>>,
    budget_bytes: usize,
    bytes: usize,
    clock: u64,
}

#[derive(Debug)]
struct Entry<T> {
    /// A whole prompt, shared by its entries; this one is about its first `len` tokens.
    tokens: Arc<[TokenId]>,
    len: usize,
    routing: RoutingId,
    bytes: usize,
    /// The sequence without which the state is nothing.
    within: Option<usize>,
    used: u64,
    state: T,
}

/// A state to remember: that after `tokens[..len]`.
#[derive(Debug)]
pub(super) struct State<T> {
    pub(super) tokens: Arc<[TokenId]>,
    pub(super) len: usize,
    /// What it was computed under.
    pub(super) routing: RoutingId,
    pub(super) bytes: usize,
    /// The sequence in which it lies, when it is only a mark there.
    pub(super) within: Option<usize>,
    pub(super) state: T,
}

impl<T> Remembered<T> {
    pub(super) fn new(budget_bytes: usize) -> Self {
        Remembered { entries: Vec::new(), budget_bytes, bytes: 0, clock: 0 }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    fn position(&self, tokens: &[TokenId], routing: RoutingId) -> Option<usize> {
        let is_it = |e: &Entry<T>| e.len == tokens.len() && e.routing == routing && e.tokens[..e.len] == *tokens;
        self.entries.iter().position(is_it)
    }

    /// Whether exactly these tokens are remembered, computed under `routing`; if so, they are fresh again.
    pub(super) fn touch(&mut self, tokens: &[TokenId], routing: RoutingId) -> bool {
        self.clock += 1;
        let found = self.position(tokens, routing);
        if let Some(i) = found {
            self.entries[i].used = self.clock;
        }
        found.is_some()
    }

    /// The longest remembered proper prefix of `prompt` among those that `can` be used: its place and itself.
    fn longest(&self, prompt: &[TokenId], can: impl Fn(&Entry<T>) -> bool) -> Option<(usize, &Entry<T>)> {
        let fits = |e: &Entry<T>| e.len < prompt.len() && can(e) && e.tokens[..e.len] == prompt[..e.len];
        self.entries.iter().enumerate().filter(|(_, e)| fits(e)).max_by_key(|(_, e)| e.len)
    }

    /// The state at a place that [`choose`] named, fresh again, and the sequence in which it lies, if it does.
    pub(super) fn get(&mut self, place: usize) -> (&T, Option<usize>) {
        self.clock += 1;
        let entry = &mut self.entries[place];
        entry.used = self.clock;
        (&entry.state, entry.within)
    }

    /// Forgets what lies in sequence `slot` behind its first `len` tokens: it is about to be overwritten.
    pub(super) fn forget(&mut self, slot: usize, len: usize) {
        let bytes = &mut self.bytes;
        self.entries.retain(|entry| {
            let keep = entry.within != Some(slot) || entry.len <= len;
            *bytes -= if keep { 0 } else { entry.bytes };
            keep
        });
    }

    /// Remembers a state, forgetting others as needed. `false`: it is larger than the whole budget.
    pub(super) fn insert(&mut self, State { tokens, len, routing, bytes, within, state }: State<T>) -> bool {
        if bytes > self.budget_bytes {
            return false;
        }
        if let Some(i) = self.position(&tokens[..len], routing) {
            self.bytes -= self.entries.swap_remove(i).bytes;
        }
        while self.bytes + bytes > self.budget_bytes || self.entries.len() >= MOST_STATES {
            let oldest = (0..self.entries.len()).min_by_key(|i| self.entries[*i].used);
            let Some(oldest) = oldest else { break };
            self.bytes -= self.entries.swap_remove(oldest).bytes;
        }
        self.clock += 1;
        self.bytes += bytes;
        self.entries.push(Entry { tokens, len, routing, bytes, within, used: self.clock, state });
        true
    }
}

/// A sequence of the engine, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot<'a> {
    pub(super) occupied: bool,
    /// What the engine has computed for it; empty when it was released.
    pub(super) tokens: &'a [TokenId],
    /// What they were computed under.
    pub(super) routing: RoutingId,
    /// When it was last used, on any growing clock.
    pub(super) used: u64,
}

/// How a prompt begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Start {
    /// The sequence it gets.
    pub(super) slot: usize,
    /// Tokens that need not be computed.
    pub(super) reused: usize,
    pub(super) from: Source,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Nothing: the sequence is released first.
    Nothing,
    /// What lies in the sequence already.
    Itself,
    /// A remembered state, by its place.
    Remembered(usize),
    /// A copy of another sequence as it is now.
    Slot(usize),
}

/// Marks cost no memory of their own, but looking through them costs time.
const MOST_STATES: usize = 256;

/// The shortest prefix that is worth a copied state: computing fewer tokens costs less than one ordinary step.
const WORTH_COPYING: usize = 16;

/// Chooses a free sequence and the longest past for `prompt`, which is to be computed under `routing`. `None` when no sequence is free.
pub(super) fn choose<T>(
    prompt: &[TokenId],
    routing: RoutingId,
    slots: &[Slot],
    remembered: &Remembered<T>,
    can_fork: bool,
) -> Option<Start> {
    let begins =
        |slot: &Slot| slot.routing == routing && slot.tokens.len() < prompt.len() && prompt.starts_with(slot.tokens);
    let free = || slots.iter().enumerate().filter(|(_, s)| !s.occupied);
    // An empty sequence before one whose past could still be of use, and of those the one unused for longest.
    let (spare, _) = free().min_by_key(|(_, s)| (!s.tokens.is_empty(), s.used))?;

    let itself = free().filter(|(_, s)| !s.tokens.is_empty() && begins(s)).max_by_key(|(_, s)| s.tokens.len());
    let itself = itself.map(|(slot, s)| Start { slot, reused: s.tokens.len(), from: Source::Itself });
    let copied = |reused: usize, from| (reused >= WORTH_COPYING).then_some(Start { slot: spare, reused, from });
    // A mark in a free sequence is used there; one in a running sequence, or overwritten by its own copy, is not.
    let idle = |slot: usize| slots.get(slot).is_some_and(|s| !s.occupied);
    let usable = |within: Option<usize>| within.is_none_or(|slot| idle(slot) || can_fork);
    let same = |entry: &Entry<T>| entry.routing == routing && usable(entry.within);
    let state = remembered.longest(prompt, same).and_then(|(place, entry)| {
        let source = Source::Remembered(place);
        match entry.within.filter(|slot| idle(*slot)) {
            Some(slot) => Some(Start { slot, reused: entry.len, from: source }),
            None => copied(entry.len, source),
        }
    });
    let running = slots.iter().enumerate().filter(|(_, s)| can_fork && s.occupied && begins(s));
    let running = running.max_by_key(|(_, s)| s.tokens.len());
    let running = running.and_then(|(i, s)| copied(s.tokens.len(), Source::Slot(i)));

    // Among equals the cheapest: nothing to do, one state to load, one to make and load.
    let nothing = Start { slot: spare, reused: 0, from: Source::Nothing };
    let pasts = [Some(nothing), running, state, itself];
    // `max_by_key` takes the last of equals.
    pasts.into_iter().flatten().max_by_key(|start| start.reused)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OFF: RoutingId = RoutingId::OFF;

    fn tokens(range: std::ops::Range<u32>) -> Vec<TokenId> {
        range.map(TokenId).collect()
    }

    fn state<T>(tokens: &Arc<[TokenId]>, len: usize, bytes: usize, state: T) -> State<T> {
        State { tokens: tokens.clone(), len, routing: RoutingId::OFF, bytes, within: None, state }
    }

    fn free<'a>(tokens: &'a [TokenId], used: u64) -> Slot<'a> {
        Slot { occupied: false, tokens, routing: RoutingId::OFF, used }
    }

    #[test]
    fn a_finished_conversation_goes_on_where_it_lies() {
        let past = tokens(0..50);
        let slots = [free(&[], 0), free(&past, 3)];
        let start = choose(&tokens(0..60), OFF, &slots, &Remembered::<()>::new(0), true).expect("a slot");
        assert_eq!(start, Start { slot: 1, reused: 50, from: Source::Itself });
        // The same prompt again: its last token must be computed, so the whole past is too long.
        let start = choose(&past, OFF, &slots, &Remembered::<()>::new(0), true).expect("a slot");
        assert_eq!(start, Start { slot: 0, reused: 0, from: Source::Nothing });
    }

    #[test]
    fn a_changed_last_message_falls_back_a_little() {
        let mut remembered = Remembered::new(1000);
        let past: Arc<[TokenId]> = tokens(0..50).into();
        for len in [20, 40] {
            assert!(remembered.insert(state(&past, len, 100, len)));
        }
        let mut prompt = tokens(0..45);
        prompt.extend(tokens(90..99));
        let start = choose(&prompt, OFF, &[free(&past, 1), free(&[], 0)], &remembered, true).expect("a slot");
        let Source::Remembered(place) = start.from else { panic!("{start:?}") };
        assert_eq!((start.slot, start.reused, *remembered.get(place).0), (1, 40, 40));
    }

    #[test]
    fn a_running_sequence_is_copied_only_where_it_stands() {
        let running = tokens(0..30);
        let slots = [Slot { occupied: true, ..free(&running, 1) }, free(&[], 0)];
        let none = Remembered::<()>::new(0);
        let of = |prompt: &[TokenId], can_fork| choose(prompt, OFF, &slots, &none, can_fork).map(|s| s.from);
        assert_eq!(of(&tokens(0..40), true), Some(Source::Slot(0)));
        assert_eq!(of(&tokens(0..40), false), Some(Source::Nothing));
        assert_eq!(of(&tokens(0..29), true), Some(Source::Nothing));
        assert_eq!(choose(&tokens(0..40), OFF, &slots[..1], &none, true), None, "no sequence is free");
    }

    #[test]
    fn what_was_computed_under_another_routing_policy_is_no_past() {
        let other = RoutingId([1; 32]);
        let past: Arc<[TokenId]> = tokens(0..50).into();
        let mut remembered = Remembered::new(1000);
        assert!(remembered.insert(state(&past, 20, 100, 'a')));
        assert!(remembered.insert(State { routing: other, ..state(&past, 30, 100, 'b') }));
        assert!(remembered.touch(&past[..20], OFF) && !remembered.touch(&past[..20], other));
        let slots = [free(&past, 1), Slot { occupied: true, routing: other, ..free(&past[..40], 2) }, free(&[], 0)];
        let reused =
            |routing, slots: &[Slot]| choose(&tokens(0..60), routing, slots, &remembered, true).map(|s| s.reused);
        assert_eq!(reused(OFF, &slots), Some(50));
        assert_eq!(reused(other, &slots), Some(40));
        assert_eq!(reused(OFF, &slots[1..]), Some(20));
        assert_eq!(reused(other, &slots[2..]), Some(30));
        assert_eq!(reused(RoutingId([2; 32]), &slots), Some(0));
    }

    #[test]
    fn the_least_recently_used_go_when_memory_is_short() {
        let mut remembered = Remembered::new(250);
        let all: Arc<[TokenId]> = tokens(0..100).into();
        assert!(remembered.insert(state(&all, 20, 100, 'a')));
        assert!(remembered.insert(state(&all, 30, 100, 'b')));
        assert!(remembered.touch(&all[..20], OFF));
        assert!(remembered.insert(state(&all, 40, 100, 'c')));
        assert!(!remembered.touch(&all[..30], OFF), "b was the oldest");
        assert!(remembered.touch(&all[..20], OFF));
        assert!(!remembered.insert(state(&all, 50, 251, 'd')), "larger than everything");
        assert_eq!(remembered.bytes(), 200);
    }

    #[test]
    fn a_mark_is_used_in_its_own_sequence_or_copied_out_of_it_and_goes_with_it() {
        let past: Arc<[TokenId]> = tokens(0..50).into();
        let mut remembered = Remembered::new(0);
        for len in [20, 40] {
            assert!(remembered.insert(State { within: Some(1), ..state(&past, len, 0, len) }));
        }
        let mut prompt = tokens(0..45);
        prompt.extend(tokens(90..99));
        let busy = Slot { occupied: true, ..free(&past, 1) };
        let of = |slot, can_fork, remembered: &Remembered<usize>| {
            choose(&prompt, OFF, &[free(&[], 0), slot], remembered, can_fork).map(|s| (s.slot, s.reused))
        };
        assert_eq!(of(free(&past, 1), false, &remembered), Some((1, 40)), "in place");
        assert_eq!(of(busy, true, &remembered), Some((0, 40)), "copied");
        assert_eq!(of(busy, false, &remembered), Some((0, 0)));
        remembered.forget(1, 20);
        assert_eq!(of(free(&past, 1), false, &remembered), Some((1, 20)));
        remembered.forget(1, 0);
        assert_eq!(of(free(&past, 1), false, &remembered), Some((0, 0)));
    }

    proptest! {
        /// Whatever the past looks like: what is reused is truly a proper prefix of the prompt and no other past is longer.
        #[test]
        fn the_longest_true_prefix_is_found(
            prompt in prop::collection::vec(0u32..3, 1..60),
            pasts in prop::collection::vec((prop::collection::vec(0u32..3, 0..60), 0usize..60, any::<bool>()), 1..6),
            states in prop::collection::vec((0usize..60, 0usize..60, prop::option::of(0usize..6)), 0..6),
            can_fork in any::<bool>(),
        ) {
            let ids = |v: &[u32]| v.iter().map(|t| TokenId(*t)).collect::<Vec<_>>();
            let prompt = ids(&prompt);
            // Pasts that share a front part with the prompt and then go their own way.
            let mixed = |own: &[TokenId], shared: usize| {
                let shared = shared.min(prompt.len());
                let mut v = prompt[..shared].to_vec();
                v.extend(own.iter().skip(shared));
                v
            };
            let pasts: Vec<(Vec<TokenId>, bool)> = pasts.iter().map(|(own, n, o)| (mixed(&ids(own), *n), *o)).collect();
            let slots: Vec<Slot> = pasts.iter().map(|(t, o)| Slot { occupied: *o, ..free(t, t.len() as u64) }).collect();
            let mut remembered = Remembered::new(1 << 20);
            for (shared, len, within) in states {
                let within = within.filter(|slot| *slot < slots.len());
                let own = mixed(&tokens(100..160), shared);
                let len = len.min(own.len());
                let known = own[..len].to_vec();
                remembered.insert(State { within, ..state(&own.into(), len, 1, known) });
            }
            let start = choose(&prompt, OFF, &slots, &remembered, can_fork);
            prop_assert_eq!(start.is_none(), slots.iter().all(|s| s.occupied));
            let Some(start) = start else { return Ok(()) };
            prop_assert!(!slots[start.slot].occupied);
            prop_assert!(start.reused < prompt.len());
            let reused = match start.from {
                Source::Nothing => vec![],
                Source::Itself => slots[start.slot].tokens.to_vec(),
                Source::Remembered(place) => {
                    let (known, within) = remembered.get(place);
                    prop_assert!(within.is_none_or(|w| w == start.slot || (can_fork && slots[w].occupied)));
                    known.clone()
                }
                Source::Slot(i) => slots[i].tokens.to_vec(),
            };
            prop_assert_eq!(&reused[..], &prompt[..start.reused]);
            // Whatever anybody could have used is not longer.
            let whole = slots.iter().filter(|s| !s.occupied || can_fork).map(|s| s.tokens.to_vec());
            let usable = |e: &&Entry<Vec<TokenId>>| e.within.is_none_or(|w| !slots[w].occupied || can_fork);
            let states = remembered.entries.iter().filter(usable).map(|e| e.state.clone());
            let long = |p: &Vec<TokenId>| p.len() >= WORTH_COPYING && p.len() < prompt.len();
            for past in whole.chain(states).filter(long) {
                prop_assert!(!prompt.starts_with(&past) || past.len() <= start.reused);
            }
        }
    }
}
