//! Models that come and go.

use super::*;

async fn load(scheduler: &Scheduler, spec: &Arc<ModelSpec>, keep_alive: KeepAlive) -> Result<Lease, Error> {
    let options = LoadOptions::default();
    let waiting = scheduler.acquire(spec, &options, keep_alive);
    tokio::time::timeout(SOON, waiting).await.expect("an answer, soon")
}

fn failure(result: Result<Lease, Error>) -> String {
    result.map(drop).expect_err("must fail").to_string()
}

#[tokio::test]
async fn ps_shows_what_is_loaded_and_until_when() {
    let scheduler = scheduler();
    let begun = SystemTime::now();
    drop(load(&scheduler, &spec("a", Script { memory_bytes: 7, ..hash() }), KeepAlive::Unset).await.expect("loads"));
    let held = load(&scheduler, &spec("b", hash()), KeepAlive::Forever).await.expect("loads");
    let loaded = scheduler.ps().await;
    let names: Vec<&str> = loaded.iter().map(|l| l.spec.name.as_str()).collect();
    assert_eq!(names, ["b", "a"]);
    assert_eq!((loaded[0].expires_at, loaded[0].active), (None, 1));
    let expires = loaded[1].expires_at.expect("five minutes");
    assert!(expires >= begun + Duration::from_secs(300) && expires <= SystemTime::now() + Duration::from_secs(300));
    assert_eq!((loaded[1].info.memory.total(), loaded[1].info.n_seq_max), (7, 16));
    drop(held);
}

#[tokio::test]
async fn a_keep_alive_of_zero_answers_first_and_unloads_then() {
    let scheduler = scheduler();
    let spec = spec("a", hash());
    let lease = load(&scheduler, &spec, KeepAlive::For(Duration::ZERO)).await.expect("loads");
    let request = generate(&prompt(1, 10), seeded(1), 10);
    let stream = lease.generate(request.clone()).await.expect("runs");
    assert_eq!(hear(stream).await.tokens, expected(&request));
    unloaded(&scheduler, "a").await;
}

#[tokio::test]
async fn names_of_the_same_weights_share_a_model_and_unloading_goes_by_weights() {
    let scheduler = scheduler();
    let first = spec("a", hash());
    let second = Arc::new(ModelSpec { name: "alias".into(), ..(*first).clone() });
    load(&scheduler, &first, KeepAlive::Unset).await.map(drop).expect("loads");
    load(&scheduler, &second, KeepAlive::Unset).await.map(drop).expect("is loaded");
    let loaded = scheduler.ps().await;
    assert_eq!((loaded.len(), loaded[0].spec.name.as_str()), (1, "a"));
    scheduler.unload(&second);
    unloaded(&scheduler, "a").await;
}

#[tokio::test]
async fn other_options_reload_the_model() {
    let scheduler = scheduler();
    let spec = spec("a", hash());
    let with = |n_ctx| LoadOptions { n_ctx: Some(n_ctx), ..LoadOptions::default() };
    for (options, n_ctx) in [(LoadOptions::default(), 4096), (with(4096), 4096), (with(100), 100), (with(0), 4096)] {
        let lease = scheduler.acquire(&spec, &options, KeepAlive::Unset).await.expect("loads");
        assert_eq!(lease.info().n_ctx, n_ctx);
        assert_eq!(scheduler.ps().await.len(), 1);
    }
}

#[tokio::test]
async fn failed_loads_say_why_and_can_be_tried_again() {
    let scheduler = scheduler();
    let broken = spec("a", Script { load_error: Some("bad luck".into()), ..hash() });
    for _ in 0..2 {
        assert_eq!(failure(load(&scheduler, &broken, KeepAlive::Unset).await), "cannot load `a`: bad luck");
    }
    let panics = spec("b", Script { load_panic: true, ..hash() });
    let text = failure(load(&scheduler, &panics, KeepAlive::Unset).await);
    assert_eq!(text, "the engine of `b` stopped: the script panics while loading");
    let loader = Arc::new(ScriptLoader { script: hash(), tokenizer: Err("no merges") });
    let wordless = Arc::new(ModelSpec { loader, ..(*spec("c", hash())).clone() });
    let text = failure(load(&scheduler, &wordless, KeepAlive::Unset).await);
    assert_eq!(text, "cannot use the tokenizer of `c`: tokenizer: no merges");
    load(&scheduler, &spec("d", hash()), KeepAlive::Unset).await.map(drop).expect("others load");
}

#[tokio::test]
async fn models_make_room_for_each_other() {
    let settings = Settings { memory_bytes: Some(100), max_loaded: 3, ..Settings::default() };
    let scheduler = Scheduler::new(settings, Metrics::new());
    let of = |name, memory_bytes| spec(name, Script { memory_bytes, step_delay_us: 300, ..hash() });
    let names = async || {
        let mut names: Vec<String> = scheduler.ps().await.into_iter().map(|l| l.spec.name.clone()).collect();
        names.sort();
        names
    };
    for (name, bytes, left) in [("a", 40, "a"), ("b", 40, "a b"), ("c", 10, "a b c"), ("d", 70, "c d")] {
        load(&scheduler, &of(name, bytes), KeepAlive::Unset).await.map(drop).expect("loads");
        assert_eq!(names().await.join(" "), left);
    }
    let huge = failure(load(&scheduler, &of("huge", 101), KeepAlive::Unset).await);
    assert!(huge.starts_with("cannot load `huge`: needs "), "{huge}");
    assert_eq!(names().await.join(" "), "c d", "nobody had to go for it");
    // A busy model is waited for.
    let request = generate(&prompt(1, 10), seeded(1), 30);
    let running = submit(&scheduler, &of("d", 70), request.clone()).await;
    let large = of("e", 95);
    let (heard, lease) = tokio::join!(hear(running), load(&scheduler, &large, KeepAlive::Unset));
    assert_eq!(heard.tokens, expected(&request), "not disturbed");
    lease.map(drop).expect("loads at last");
    assert_eq!(names().await.join(" "), "e");
}

#[tokio::test]
async fn too_many_waiting_for_loads_are_refused_and_none_of_a_loaded_model() {
    let settings = Settings { max_queue: 2, ..Settings::default() };
    let scheduler = Scheduler::new(settings, Metrics::new());
    let ready = spec("ready", hash());
    load(&scheduler, &ready, KeepAlive::Unset).await.map(drop).expect("loads");
    let slow = spec("slow", Script { load_delay_ms: 600_000, ..hash() });
    let wait = || {
        let (scheduler, slow) = (scheduler.clone(), slow.clone());
        tokio::spawn(async move { load(&scheduler, &slow, KeepAlive::Unset).await.map(drop) })
    };
    let waiting = [wait(), wait()];
    tokio::task::yield_now().await;
    let refused = load(&scheduler, &slow, KeepAlive::Unset).await.map(drop);
    assert!(matches!(refused, Err(Error::Busy { waiting: 2 })), "{refused:?}");
    for _ in 0..50 {
        load(&scheduler, &ready, KeepAlive::Unset).await.map(drop).expect("loaded is loaded");
    }
    // Those who give up make room in the queue.
    for task in waiting {
        task.abort();
        assert!(task.await.expect_err("aborted").is_cancelled());
    }
    load(&scheduler, &spec("other", hash()), KeepAlive::Unset).await.map(drop).expect("the unwanted load is given up");
}
