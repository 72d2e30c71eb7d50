use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

type Machine = Residency<(), (), &'static str>;

const MINUTE: Duration = Duration::from_secs(60);

fn machine(max_loaded: usize, max_queue: usize) -> Machine {
    Residency::new(Limits { max_loaded, max_queue, keep_alive: KeepAlive::For(5 * MINUTE) })
}

fn want(weights: &str, n_ctx: Option<usize>, keep_alive: KeepAlive) -> Want<(), ()> {
    let options = LoadOptions { n_ctx, ..LoadOptions::default() };
    Want { weights: weights.into(), identity: (), options, keep_alive, spec: () }
}

fn plain(weights: &str) -> Want<(), ()> {
    want(weights, None, KeepAlive::Unset)
}

fn load(model: u64) -> Action<(), &'static str> {
    Action::Load { model: ModelId(model), spec: (), options: LoadOptions::default() }
}

fn grant(request: u64, model: u64) -> Action<(), &'static str> {
    Action::Grant { request: RequestId(request), model: ModelId(model) }
}

fn unload(model: u64) -> Action<(), &'static str> {
    Action::Unload { model: ModelId(model) }
}

fn refuse(request: u64, why: Refusal<&'static str>) -> Action<(), &'static str> {
    Action::Refuse { request: RequestId(request), why }
}

const SIZE: Effective = Effective { n_ctx: 4096, n_batch: 512, bytes: 100 };

/// A machine with model 1 loaded from `weights` and in use by request 1.
fn with_loaded(max_loaded: usize, weights: &str, now: Instant) -> Machine {
    let mut m = machine(max_loaded, 4);
    m.request(now, RequestId(1), plain(weights));
    m.loaded(now, ModelId(1), SIZE);
    assert_eq!(m.actions(), [load(1), grant(1, 1)]);
    m
}

#[test]
fn requests_for_one_load_share_it_and_later_ones_do_not_wait() {
    let now = Instant::now();
    let mut m = machine(3, 2);
    for id in 1..=3 {
        m.request(now, RequestId(id), plain("a"));
    }
    assert_eq!(m.actions(), [load(1), refuse(3, Refusal::Busy { waiting: 2 })]);
    m.loaded(now, ModelId(1), SIZE);
    assert_eq!(m.actions(), [grant(1, 1), grant(2, 1)]);
    for id in 4..100 {
        m.request(now, RequestId(id), plain("a"));
        assert_eq!(m.actions(), [grant(id, 1)], "never refused when loaded");
    }
}

#[test]
fn the_keep_alive_runs_from_the_end_of_the_last_request() {
    let start = Instant::now();
    let mut m = with_loaded(3, "a", start);
    m.request(start, RequestId(2), plain("a"));
    m.actions();
    m.released(start + MINUTE, ModelId(1));
    assert_eq!(m.next_tick(), None, "still in use");
    assert_eq!(m.residents(start + MINUTE)[0].expires, Some(start + 6 * MINUTE));
    m.released(start + 2 * MINUTE, ModelId(1));
    assert_eq!(m.next_tick(), Some(start + 7 * MINUTE));
    m.tick(start + 6 * MINUTE);
    assert_eq!(m.actions(), []);
    // Used again: from the start.
    m.request(start + 6 * MINUTE, RequestId(3), plain("a"));
    m.released(start + 6 * MINUTE, ModelId(1));
    m.tick(start + 7 * MINUTE);
    assert_eq!(m.actions(), [grant(3, 1)]);
    m.tick(start + 11 * MINUTE);
    assert_eq!(m.actions(), [unload(1)]);
    m.gone(start + 11 * MINUTE, ModelId(1));
    assert!(m.is_empty());
}

#[test]
fn a_keep_alive_of_a_request_changes_the_loaded_model() {
    let now = Instant::now();
    let mut m = with_loaded(3, "a", now);
    m.request(now, RequestId(2), want("a", None, KeepAlive::Forever));
    m.released(now, ModelId(1));
    m.released(now, ModelId(1));
    assert_eq!((m.next_tick(), m.residents(now)[0].expires), (None, None));
    m.request(now, RequestId(3), plain("a"));
    m.released(now, ModelId(1));
    assert_eq!(m.next_tick(), None, "unset keeps what it has");
    m.request(now, RequestId(4), want("a", None, KeepAlive::For(Duration::ZERO)));
    m.actions();
    m.released(now, ModelId(1));
    assert_eq!(m.actions(), [unload(1)], "answered first, unloaded right after");
}

#[test]
fn unloading_waits_for_requests_in_flight() {
    let now = Instant::now();
    let mut m = with_loaded(3, "a", now);
    m.unload(now, "a".as_ref());
    m.unload(now, "unknown".as_ref());
    assert_eq!(m.actions(), []);
    m.released(now, ModelId(1));
    assert_eq!(m.actions(), [unload(1)]);
}

#[test]
fn other_load_time_options_reload_and_equal_ones_do_not() {
    let now = Instant::now();
    let mut m = with_loaded(3, "a", now);
    m.request(now, RequestId(2), want("a", Some(4096), KeepAlive::Unset));
    assert_eq!(m.actions(), [grant(2, 1)], "the automatic context was the same");
    m.request(now, RequestId(3), want("a", Some(8192), KeepAlive::Unset));
    m.request(now, RequestId(4), plain("a"));
    assert_eq!(m.actions(), [], "waits for 1 and 2; 4 waits behind 3, or 3 would wait for ever");
    m.released(now, ModelId(1));
    m.released(now, ModelId(1));
    m.gone(now, ModelId(1));
    let options = LoadOptions { n_ctx: Some(8192), ..LoadOptions::default() };
    let reload = Action::Load { model: ModelId(2), spec: (), options };
    assert_eq!(m.actions(), [unload(1), reload]);
}

#[test]
fn the_idle_model_with_the_shortest_keep_alive_makes_room() {
    let now = Instant::now();
    let mut m = machine(3, 4);
    let keeps = [KeepAlive::Forever, KeepAlive::For(MINUTE), KeepAlive::For(2 * MINUTE)];
    for ((id, name), keep) in (1..).zip(["a", "b", "c"]).zip(keeps) {
        m.request(now, RequestId(id), want(name, None, keep));
        m.loaded(now, ModelId(id), SIZE);
    }
    m.released(now, ModelId(1));
    m.released(now, ModelId(3));
    m.actions();
    m.request(now, RequestId(4), plain("d"));
    assert_eq!(m.actions(), [unload(3)], "b has the shortest but is busy");
    m.gone(now, ModelId(3));
    assert_eq!(m.actions(), [load(4)]);
}

#[test]
fn a_busy_model_that_must_leave_takes_no_new_requests_unless_nobody_needs_its_place() {
    let now = Instant::now();
    let mut m = with_loaded(1, "a", now);
    m.request(now, RequestId(2), plain("b"));
    m.request(now, RequestId(3), plain("a"));
    assert_eq!(m.actions(), []);
    m.cancel(now, RequestId(2));
    assert_eq!(m.actions(), [grant(3, 1)]);
    m.request(now, RequestId(4), plain("b"));
    m.cancel(now, RequestId(4));
    m.request(now, RequestId(5), plain("a"));
    assert_eq!(m.actions(), [grant(5, 1)]);
}

#[test]
fn a_load_without_enough_memory_is_tried_again_when_another_model_has_gone() {
    let now = Instant::now();
    let mut m = with_loaded(3, "a", now);
    m.request(now, RequestId(2), plain("b"));
    assert_eq!(m.actions(), [load(2)]);
    let short = |needed| Some(Shortage { needed, available: 50 });
    m.load_failed(now, ModelId(2), "short", short(150));
    assert_eq!(m.actions(), [], "a is busy: no new try before it has gone");
    m.released(now, ModelId(1));
    assert_eq!(m.actions(), [unload(1)]);
    m.gone(now, ModelId(1));
    assert_eq!(m.actions(), [load(3)]);
    m.load_failed(now, ModelId(3), "short", short(150));
    assert_eq!(m.actions(), [refuse(2, Refusal::Load("short"))], "nobody left to make room");
}

#[test]
fn a_model_that_cannot_fit_evicts_nobody() {
    let now = Instant::now();
    let mut m = with_loaded(3, "a", now);
    m.request(now, RequestId(2), plain("b"));
    m.load_failed(now, ModelId(2), "huge", Some(Shortage { needed: 151, available: 50 }));
    assert_eq!(m.actions(), [load(2), refuse(2, Refusal::Load("huge"))]);
}

#[test]
fn a_failed_load_refuses_those_who_waited_for_it_and_no_others() {
    let now = Instant::now();
    let mut m = machine(3, 9);
    for (id, weights) in [(1, "a"), (2, "b"), (3, "a")] {
        m.request(now, RequestId(id), plain(weights));
    }
    m.load_failed(now, ModelId(1), "damaged", None);
    let refused = |id| refuse(id, Refusal::Load("damaged"));
    assert_eq!(m.actions(), [load(1), refused(1), refused(3), load(2)]);
}

#[test]
fn a_load_that_nobody_wants_any_more_goes_on_unless_others_wait() {
    let now = Instant::now();
    let mut m = machine(3, 9);
    m.request(now, RequestId(1), plain("a"));
    m.cancel(now, RequestId(1));
    assert_eq!(m.actions(), [load(1)]);
    m.request(now, RequestId(2), plain("b"));
    assert_eq!(m.actions(), [unload(1)]);
    m.load_failed(now, ModelId(1), "aborted", None);
    assert_eq!(m.actions(), [load(2)]);
}

#[test]
fn shutting_down_refuses_and_lets_requests_end() {
    let now = Instant::now();
    let mut m = with_loaded(3, "a", now);
    m.request(now, RequestId(2), plain("b"));
    m.shut_down();
    m.request(now, RequestId(3), plain("a"));
    let refused = |id| refuse(id, Refusal::ShuttingDown);
    assert_eq!(m.actions(), [load(2), refused(2), unload(2), refused(3)]);
    m.gone(now, ModelId(2));
    m.released(now, ModelId(1));
    assert_eq!(m.actions(), [unload(1)]);
    m.gone(now, ModelId(1));
    assert!(m.is_empty());
}

#[derive(Clone, Debug)]
enum Op {
    Request { weights: u8, n_ctx: Option<usize>, keep_s: Option<u64> },
    Cancel(usize),
    Release(usize),
    LoadEnds(u8),
    Gone(usize),
    Crash(usize),
    Unload(u8),
    Wait(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let n_ctx = prop_oneof![3 => Just(None), 1 => Just(Some(4096usize)), 1 => Just(Some(8192))];
    let keep_s = prop_oneof![3 => Just(None), 1 => Just(Some(0u64)), 1 => (1u64..1000).prop_map(Some)];
    prop_oneof![
        5 => (0u8..5, n_ctx, keep_s).prop_map(|(weights, n_ctx, keep_s)| Op::Request { weights, n_ctx, keep_s }),
        1 => (0usize..20).prop_map(Op::Cancel),
        4 => (0usize..20).prop_map(Op::Release),
        3 => (0u8..6).prop_map(Op::LoadEnds),
        3 => (0usize..20).prop_map(Op::Gone),
        1 => (0usize..40).prop_map(Op::Crash),
        1 => (0u8..5).prop_map(Op::Unload),
        2 => (0u64..400).prop_map(Op::Wait),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Waiting,
    Holds(ModelId),
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Thread {
    Loading,
    Ready,
    ToldToEnd,
}

/// The world around the state machine, which checks every action against what it knows.
struct World {
    machine: Machine,
    now: Instant,
    requests: BTreeMap<u64, Fate>,
    threads: BTreeMap<ModelId, Thread>,
    max_loaded: usize,
}

impl World {
    fn held(&self, model: ModelId) -> usize {
        self.requests.values().filter(|f| **f == Fate::Holds(model)).count()
    }

    fn with_thread(&self, state: Thread) -> Vec<ModelId> {
        self.threads.iter().filter(|(_, t)| **t == state).map(|(id, _)| *id).collect()
    }

    fn act(&mut self) {
        for action in self.machine.actions() {
            match action {
                Action::Load { model, .. } => {
                    assert!(self.with_thread(Thread::Loading).is_empty(), "one load at a time");
                    assert!(self.threads.insert(model, Thread::Loading).is_none());
                    assert!(self.threads.len() <= self.max_loaded, "more models than allowed");
                }
                Action::Grant { request, model } => {
                    assert_eq!(self.threads.get(&model), Some(&Thread::Ready), "granted a model that does not serve");
                    let before = self.requests.insert(request.0, Fate::Holds(model));
                    assert_eq!(before, Some(Fate::Waiting), "answered twice, or after its client left");
                }
                Action::Refuse { request, .. } => {
                    assert_eq!(self.requests.insert(request.0, Fate::Over), Some(Fate::Waiting));
                }
                Action::Unload { model } => {
                    assert_eq!(self.held(model), 0, "unloaded a model in use");
                    let before = self.threads.insert(model, Thread::ToldToEnd);
                    assert!(matches!(before, Some(Thread::Loading | Thread::Ready)), "{before:?}");
                }
            }
        }
        let waiting = self.requests.values().filter(|f| **f == Fate::Waiting).count();
        assert_eq!(waiting, self.machine.waiting());
    }

    fn end_thread(&mut self, model: ModelId) {
        self.threads.remove(&model);
        for fate in self.requests.values_mut().filter(|f| **f == Fate::Holds(model)) {
            *fate = Fate::Over;
        }
        self.machine.gone(self.now, model);
    }

    fn apply(&mut self, op: &Op) {
        let nth = |of: &[ModelId], n: usize| (!of.is_empty()).then(|| of[n % of.len()]);
        match *op {
            Op::Request { weights, n_ctx, keep_s } => {
                let id = self.requests.len() as u64;
                self.requests.insert(id, Fate::Waiting);
                let keep = keep_s.map_or(KeepAlive::Unset, |s| KeepAlive::For(Duration::from_secs(s)));
                self.machine.request(self.now, RequestId(id), want(&weights.to_string(), n_ctx, keep));
            }
            Op::Cancel(n) => {
                let waiting: Vec<u64> = self.requests.iter().filter(|r| *r.1 == Fate::Waiting).map(|r| *r.0).collect();
                if !waiting.is_empty() {
                    let id = waiting[n % waiting.len()];
                    self.requests.insert(id, Fate::Over);
                    self.machine.cancel(self.now, RequestId(id));
                }
            }
            Op::Release(n) => {
                let holds = |f: &Fate| matches!(f, Fate::Holds(_));
                let held: Vec<u64> = self.requests.iter().filter(|r| holds(r.1)).map(|r| *r.0).collect();
                if !held.is_empty() {
                    let id = held[n % held.len()];
                    if let Some(Fate::Holds(model)) = self.requests.insert(id, Fate::Over) {
                        self.machine.released(self.now, model);
                    }
                }
            }
            Op::LoadEnds(how) => {
                let Some(model) = nth(&self.with_thread(Thread::Loading), 0) else { return };
                match how {
                    0 | 1 => {
                        self.threads.remove(&model);
                        let shortage = (how == 1).then_some(Shortage { needed: 150, available: 60 });
                        self.machine.load_failed(self.now, model, "failed", shortage);
                    }
                    _ => {
                        self.threads.insert(model, Thread::Ready);
                        self.machine.loaded(self.now, model, SIZE);
                    }
                }
            }
            Op::Gone(n) => {
                if let Some(model) = nth(&self.with_thread(Thread::ToldToEnd), n) {
                    self.end_thread(model);
                }
            }
            Op::Crash(n) => {
                if let Some(model) = self.with_thread(Thread::Ready).get(n).copied() {
                    self.end_thread(model);
                }
            }
            Op::Unload(weights) => self.machine.unload(self.now, weights.to_string().as_ref()),
            Op::Wait(seconds) => {
                self.now += Duration::from_secs(seconds);
                self.machine.tick(self.now);
            }
        }
        self.act();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Whatever happens in whatever order: no rule is broken, and when the world goes on, everyone gets an answer and, in
    /// time, every model leaves.
    #[test]
    fn every_request_is_answered_and_no_rule_is_broken(
        max_loaded in 1usize..4,
        max_queue in 1usize..8,
        ops in prop::collection::vec(op(), 1..120),
    ) {
        let machine = machine(max_loaded, max_queue);
        let (requests, threads) = (BTreeMap::new(), BTreeMap::new());
        let mut world = World { machine, now: Instant::now(), requests, threads, max_loaded };
        ops.iter().for_each(|op| world.apply(op));
        for _ in 0..200 {
            for op in [Op::LoadEnds(5), Op::Release(0), Op::Gone(0)] {
                world.apply(&op);
            }
        }
        prop_assert!(world.requests.values().all(|f| *f == Fate::Over), "{:?}", world.requests);
        while let Some(next) = world.machine.next_tick() {
            world.now = next;
            world.apply(&Op::Wait(0));
        }
        for _ in 0..4 {
            world.apply(&Op::Gone(0));
        }
        prop_assert!(world.machine.is_empty(), "{:?}", world.threads);
    }
}
