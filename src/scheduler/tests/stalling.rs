//! Clients that keep their connection and read nothing.

use super::worker::{Setup, Turn, Worker};
use super::*;

const LIMIT: Duration = Duration::from_secs(100);

/// A worker without a thread: the test makes its turns and says what time it is.
struct Bench {
    worker: Worker,
    jobs: mpsc::Sender<Job>,
    metrics: Metrics,
    now: Instant,
    next_id: u64,
}

impl Bench {
    fn new(n_seq_max: usize, stall_limit: Option<Duration>) -> Bench {
        let script = Script { n_seq_max: Some(n_seq_max), ..hash() };
        let engine = Scripted::load(script, &model(), &engine::Settings::default(), &mut |_| true).expect("loads");
        let (jobs, receiver) = mpsc::channel(64);
        let control = Arc::new(Control::new(Arc::default()));
        let metrics = Metrics::new();
        let setup = Setup {
            model: "a".into(),
            jobs: receiver,
            control,
            metrics: metrics.clone(),
            prefix_bytes: 0,
            prefill_quantum: 128,
            stall_limit,
        };
        Bench { worker: Worker::new(Box::new(engine), setup), jobs, metrics, now: Instant::now(), next_id: 1 }
    }

    /// A request for `max_tokens` tokens, whose client gets at most `ahead` events ahead of what it reads. Sends on the second channel when
    /// nothing holds the model for it any more.
    fn submit(&mut self, ahead: usize, max_tokens: usize) -> (mpsc::Receiver<Event>, oneshot::Receiver<()>) {
        let (sender, events) = mpsc::channel(ahead + 1);
        let (lease, released) = oneshot::channel::<()>();
        let params = Params { logit_bias: vec![(TokenId(END), f32::NEG_INFINITY)], ..seeded(self.next_id) };
        let job = Job {
            id: self.next_id,
            prompt: prompt(self.next_id, 5),
            checkpoint_at: Vec::new(),
            routing: engine::Routing::Off,
            max_tokens: Some(max_tokens),
            sampler: Sampler::new(&params, N_VOCAB).expect("good parameters"),
            constraint: None,
            text: tokens::Stream::new(tokenizer(), Vec::new()),
            client: Client::new(sender, Box::new(lease)),
            load: Duration::ZERO,
            arrived: self.now,
        };
        self.next_id += 1;
        self.jobs.try_send(job).expect("room");
        (events, released)
    }

    /// Until there is nothing to compute; when to look again.
    fn settle(&mut self) -> Option<Instant> {
        loop {
            match self.worker.turn(self.now) {
                Turn::Computed => {}
                Turn::Idle(until) => return until,
                Turn::Ended => panic!("nobody ended it"),
            }
        }
    }

    fn ended(&self, reason: &'static str) -> u64 {
        self.metrics.requests.get_or_create(&crate::telemetry::EndLabel { reason }).get()
    }
}

fn drain(events: &mut mpsc::Receiver<Event>) -> Vec<Event> {
    std::iter::from_fn(|| events.try_recv().ok()).collect()
}

fn is_released(released: &mut oneshot::Receiver<()>) -> bool {
    matches!(released.try_recv(), Err(oneshot::error::TryRecvError::Closed))
}

#[test]
fn a_stalled_request_ends_with_its_reason_and_gives_its_place_away() {
    let mut bench = Bench::new(1, Some(LIMIT));
    let (mut events, mut released) = bench.submit(4, 50);
    let look_again = bench.settle().expect("a client has stalled");
    assert!(look_again > bench.now && look_again <= Instant::now() + LIMIT);

    bench.now = look_again - Duration::from_millis(1);
    assert_eq!(bench.settle(), Some(look_again), "not yet");
    assert_eq!((bench.ended("stalled"), bench.metrics.running.get()), (0, 1));
    bench.now = look_again;
    assert_eq!(bench.settle(), None);
    assert_eq!((bench.ended("stalled"), bench.metrics.running.get()), (1, 0));
    assert!(is_released(&mut released), "the model is not held any more");

    let heard = drain(&mut events);
    assert_eq!(heard.len(), 5, "what was sent before, then the reason");
    assert!(heard[..4].iter().all(|event| matches!(event, Event::Text { .. })));
    let Event::Failed(error) = &heard[4] else { panic!("{:?}", heard[4]) };
    assert_eq!(error.to_string(), "the client read nothing of its answer for 100 s; the request was ended");
}

#[test]
fn whoever_reads_a_little_has_not_stalled() {
    let mut bench = Bench::new(1, Some(LIMIT));
    let (mut events, _released) = bench.submit(4, 50);
    for _ in 0..20 {
        assert!(bench.settle().is_some());
        bench.now += LIMIT * 9 / 10;
        events.try_recv().expect("an event");
    }
    assert_eq!((bench.ended("stalled"), bench.metrics.running.get()), (0, 1));
}

#[test]
fn stalled_clients_have_less_time_while_others_wait_for_their_place() {
    let mut bench = Bench::new(2, Some(LIMIT));
    let (_stalled, mut first) = bench.submit(4, 50);
    let (_also_stalled, mut second) = bench.submit(4, 50);
    let alone = bench.settle().expect("stalled");
    let (mut events, _released) = bench.submit(100, 50);
    let crowded = bench.settle().expect("stalled");
    assert_eq!(alone - crowded, LIMIT * 9 / 10);
    bench.now = crowded + Duration::from_secs(1);
    assert_eq!(bench.settle(), None);
    assert!(is_released(&mut first) && is_released(&mut second));
    assert_eq!((bench.ended("stalled"), bench.ended("length")), (2, 1));
    assert!(matches!(drain(&mut events).last(), Some(Event::Done { .. })), "who waited was served");
}

#[test]
fn a_free_place_makes_nobody_hurry() {
    let mut bench = Bench::new(2, Some(LIMIT));
    let (_stalled, mut released) = bench.submit(4, 50);
    bench.settle();
    bench.now += LIMIT / 2;
    let (mut events, _other) = bench.submit(100, 50);
    bench.settle();
    assert!(!is_released(&mut released));
    assert!(matches!(drain(&mut events).last(), Some(Event::Done { .. })));
}

#[test]
fn an_answer_that_is_complete_but_never_read_does_not_keep_the_model_loaded() {
    let mut bench = Bench::new(1, Some(LIMIT));
    // The last event, `Done`, finds no room.
    let (mut events, mut released) = bench.submit(4, 4);
    let until = bench.settle().expect("something is unsent");
    assert_eq!((bench.ended("length"), bench.metrics.running.get()), (1, 0), "its place is free at once");
    assert!(!is_released(&mut released));
    bench.now = until;
    assert_eq!(bench.settle(), None);
    assert!(is_released(&mut released));
    assert_eq!((bench.ended("length"), bench.ended("stalled")), (1, 0), "counted once");
    assert!(matches!(drain(&mut events).last(), Some(Event::Failed(Error::Stalled { .. }))));
}

#[test]
fn without_a_limit_a_request_waits_for_its_client() {
    let mut bench = Bench::new(1, None);
    let (mut events, _released) = bench.submit(4, 10);
    assert_eq!(bench.settle(), None);
    bench.now += LIMIT * 1000;
    assert_eq!(bench.settle(), None);
    let mut heard = Vec::new();
    while !matches!(heard.last(), Some(Event::Done { .. })) {
        heard.extend(drain(&mut events));
        bench.settle();
    }
    assert_eq!(heard.iter().filter(|event| matches!(event, Event::Text { .. })).count(), 10);
}

/// The same with a thread and a real clock: somebody else gets the only sequence.
#[tokio::test]
async fn the_next_request_is_served_although_a_client_reads_nothing() {
    let limit = Duration::from_millis(200);
    let settings = Settings { stall_limit: Some(limit), ..Settings::default() };
    let scheduler = Scheduler::new(settings, Metrics::new());
    let spec = spec("a", Script { n_seq_max: Some(1), ..hash() });
    let endless = Generate {
        tokens: prompt(1, 5),
        params: seeded(1),
        limits: Limits { ignore_end_token: true, ..Limits::default() },
        ..Generate::default()
    };
    let stalled = submit(&scheduler, &spec, endless).await;
    let request = generate(&prompt(2, 5), seeded(2), 10);
    assert_eq!(ask(&scheduler, &spec, request.clone()).await.tokens, expected(&request));
    let error = hear(stalled).await.error();
    assert!(error.starts_with("the client read nothing of its answer for "), "{error}");
    idle(&scheduler).await;
}
