//! Clients that go away, and the end of everything.

use super::*;

/// Minutes: a test that waits for it fails.
const LONG: u64 = 600_000_000;

#[tokio::test]
async fn leaving_ends_even_a_single_long_step() {
    let scheduler = scheduler();
    let (trace, batches) = std::sync::mpsc::channel();
    let spec = spec("a", Script { token_delay_us: LONG, trace: Some(trace), ..hash() });
    let stream = submit(&scheduler, &spec, generate(&prompt(1, 2000), seeded(1), 10)).await;
    let first = tokio::task::spawn_blocking(move || {
        batches.recv_timeout(SOON).expect("a step");
        batches
    });
    let batches = first.await.expect("no panic");
    drop(stream);
    idle(&scheduler).await;
    assert_eq!(batches.try_iter().count(), 0, "no step followed");
}

#[tokio::test]
async fn leaving_within_a_prefill_takes_its_tokens_out_of_the_next_batch() {
    let scheduler = scheduler();
    let (trace, batches) = std::sync::mpsc::channel();
    let script = Script { n_seq_max: Some(2), step_delay_us: 300, trace: Some(trace), ..hash() };
    let spec = spec("a", script);
    let endless = Generate {
        tokens: prompt(1, 5),
        params: seeded(1),
        limits: Limits { ignore_end_token: true, ..Limits::default() },
        ..Generate::default()
    };
    let mut running = submit(&scheduler, &spec, endless).await;
    let Some(Event::Text { .. }) = running.next().await else { panic!("an answer") };
    let stream = submit(&scheduler, &spec, generate(&prompt(2, 4000), seeded(2), 10)).await;
    let prefilled = |batch: &Batch| batch.tokens.iter().any(|t| t.seq.0 == 1);
    while !batches.try_iter().any(|b| prefilled(&b)) {
        running.next().await;
    }
    drop(stream);
    // The step that was running, and perhaps one more that had begun.
    for _ in 0..40 {
        running.next().await;
    }
    batches.try_iter().for_each(drop);
    for _ in 0..20 {
        running.next().await;
    }
    assert!(!batches.try_iter().any(|b| prefilled(&b)), "still computed for a client that left");
    assert_eq!(scheduler.ps().await[0].active, 1);
}

#[tokio::test]
async fn leaving_while_waiting_for_a_sequence_costs_nothing() {
    let scheduler = scheduler();
    let (trace, batches) = std::sync::mpsc::channel();
    let spec = spec("a", Script { n_seq_max: Some(1), trace: Some(trace), step_delay_us: 500, ..hash() });
    let first = submit(&scheduler, &spec, generate(&prompt(1, 10), seeded(1), 30)).await;
    let unique = TokenId(N_VOCAB as u32 - 1);
    let second = submit(&scheduler, &spec, generate(&[unique; 33], seeded(2), 30)).await;
    drop(second);
    hear(first).await.done();
    idle(&scheduler).await;
    let computed = batches.try_iter().any(|b| b.tokens.iter().filter(|t| t.token == unique).count() > 5);
    assert!(!computed, "never computed");
}

#[tokio::test]
async fn a_lease_that_is_dropped_or_never_waited_for_holds_nothing() {
    let scheduler = scheduler();
    let spec = spec("a", Script { load_delay_ms: 30, ..hash() });
    let options = LoadOptions::default();
    let patience = Duration::from_millis(1);
    let gave_up = tokio::time::timeout(patience, scheduler.acquire(&spec, &options, KeepAlive::Unset)).await;
    assert!(gave_up.is_err(), "left while it was loading");
    let lease = scheduler.acquire(&spec, &options, KeepAlive::Unset).await.expect("loads");
    assert_eq!(scheduler.ps().await[0].active, 1);
    drop(lease);
    idle(&scheduler).await;
}

#[tokio::test]
async fn a_shutdown_lets_answers_end_within_its_grace() {
    let scheduler = scheduler();
    let spec = spec("a", Script { step_delay_us: 200, ..hash() });
    let request = generate(&prompt(1, 10), seeded(1), 40);
    let stream = submit(&scheduler, &spec, request.clone()).await;
    let (heard, ()) = tokio::join!(hear(stream), scheduler.shutdown(SOON));
    assert_eq!(heard.tokens, expected(&request));
    let error = scheduler.acquire(&spec, &LoadOptions::default(), KeepAlive::Unset).await.map(drop);
    assert!(matches!(error, Err(Error::ShuttingDown)), "{error:?}");
    assert!(scheduler.ps().await.is_empty());
}

#[tokio::test]
async fn a_shutdown_cuts_what_takes_longer_than_its_grace() {
    let scheduler = scheduler();
    let slow = spec("slow", Script { step_delay_us: LONG, ..hash() });
    let loading = spec("loading", Script { load_delay_ms: LONG, ..hash() });
    let running = submit(&scheduler, &slow, generate(&prompt(1, 10), seeded(1), 10)).await;
    let waiting = scheduler.clone();
    let waiting =
        tokio::spawn(
            async move { waiting.acquire(&loading, &LoadOptions::default(), KeepAlive::Unset).await.map(drop) },
        );
    tokio::task::yield_now().await;
    let shutdown = tokio::time::timeout(SOON, scheduler.shutdown(Duration::from_millis(5)));
    let (heard, shutdown) = tokio::join!(hear(running), shutdown);
    shutdown.expect("ends");
    assert_eq!(heard.error(), "the server is shutting down");
    assert!(matches!(waiting.await.expect("no panic"), Err(Error::ShuttingDown)));
}

#[tokio::test]
async fn dropping_the_last_handle_ends_everything() {
    let (trace, batches) = std::sync::mpsc::channel();
    let scheduler = scheduler();
    let spec = spec("a", Script { trace: Some(trace), step_delay_us: LONG, ..hash() });
    let stream = submit(&scheduler, &spec, generate(&prompt(1, 10), seeded(1), 10)).await;
    drop((scheduler, spec));
    assert_eq!(hear(stream).await.error(), "the server is shutting down");
    // The engine, which holds the other end, is gone.
    let closed = tokio::task::spawn_blocking(move || {
        loop {
            match batches.recv_timeout(SOON) {
                Ok(_) => {}
                Err(end) => return end,
            }
        }
    });
    assert_eq!(closed.await.expect("no panic"), std::sync::mpsc::RecvTimeoutError::Disconnected);
}

#[tokio::test]
async fn hundreds_of_starts_and_stops_in_one_process() {
    for i in 0..300u64 {
        let scheduler = scheduler();
        let spec = spec("a", hash());
        let request = generate(&prompt(i, 4), seeded(i), 3);
        let stream = submit(&scheduler, &spec, request.clone()).await;
        match i % 3 {
            0 => assert_eq!(hear(stream).await.tokens, expected(&request)),
            1 => drop(stream),
            _ => {}
        }
        scheduler.shutdown(Duration::ZERO).await;
    }
}

/// Clients come and go at random moments; whoever stays gets the right answer and at the end nothing is held.
async fn soak(seconds: f64, script: Script) {
    let metrics = Metrics::new();
    let settings = Settings { prefix_bytes: 40_000, ..Settings::default() };
    let scheduler = Scheduler::new(settings, metrics.clone());
    let spec = spec("a", Script { n_seq_max: Some(6), n_batch: Some(96), n_ctx: Some(1000), ..script.clone() });
    let until = Instant::now() + Duration::from_secs_f64(seconds);
    let client = |id: u64| {
        let (scheduler, spec) = (scheduler.clone(), spec.clone());
        async move {
            let mut rng = Rng::new(id);
            let (mut finished, mut left) = (0u32, 0u32);
            // Conversations that share their beginnings, so that prefixes are reused all the time.
            let mut history = prompt(id % 3, 40);
            while Instant::now() < until {
                history.extend(prompt(rng.next_u64() % 4, 1 + (rng.next_u64() % 60) as usize));
                let hint = history.len();
                history.extend(prompt(rng.next_u64(), 2));
                let max_tokens = 1 + (rng.next_u64() % 30) as usize;
                let mut request = generate(&history, seeded(rng.next_u64()), max_tokens);
                request.checkpoint_at = vec![40, hint];
                let mut stream = submit(&scheduler, &spec, request.clone()).await;
                if rng.unit() < 0.4 {
                    for _ in 0..rng.next_u64() % 10 {
                        if stream.next().await.is_none() {
                            break;
                        }
                    }
                    drop(stream);
                    left += 1;
                } else {
                    let heard = hear(stream).await;
                    heard.done();
                    assert_eq!(heard.tokens, expected(&request), "client {id}");
                    history.extend(heard.tokens);
                    finished += 1;
                }
                if history.len() > 600 || rng.unit() < 0.1 {
                    history = prompt(id % 3, 40);
                }
            }
            (finished, left)
        }
    };
    let clients: Vec<_> = (0..16).map(|id| tokio::spawn(client(id))).collect();
    let (mut finished, mut left) = (0, 0);
    for client in clients {
        let (one_finished, one_left) = client.await.expect("no panic");
        finished += one_finished;
        left += one_left;
    }
    assert!(finished > 0 && left > 0, "{finished} finished, {left} left");
    idle(&scheduler).await;
    assert!(metrics.prefix_bytes.get() <= 40_000);
    assert_eq!(metrics.prefix_failures.get(), 0, "everything remembered was there");
    let forgetful = script.forgetful;
    assert!(forgetful || metrics.prefix_hits.get() > 0);
    scheduler.shutdown(SOON).await;
    let gauges = [&metrics.running, &metrics.waiting_for_slot, &metrics.prefix_bytes, &metrics.models_loaded];
    assert_eq!(gauges.map(|gauge| gauge.get()), [0; 4]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_clients_that_come_and_go_with_remembered_states() {
    soak(0.6, Script { checkpoint_token_bytes: 20, ..hash() }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_clients_that_come_and_go_with_marks() {
    soak(0.6, Script { marks: true, ..hash() }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_clients_that_come_and_go_without_a_way_back() {
    soak(0.6, Script { forgetful: true, step_delay_us: 50, ..hash() }).await;
}
