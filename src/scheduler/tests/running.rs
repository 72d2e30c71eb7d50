//! One answer, and many at once.

use super::*;

#[tokio::test]
async fn an_answer_comes_as_whole_characters_with_its_tokens_and_numbers() {
    let scheduler = scheduler();
    let spec = spec("a", answers(&["caféb"]));
    let mut stream = submit(&scheduler, &spec, generate(&prompt(1, 7), Params::greedy(), 100)).await;
    let mut pieces = Vec::new();
    let stats = loop {
        match stream.next().await.expect("an event") {
            Event::Text { text, tokens, logprobs } => {
                assert_eq!(logprobs, []);
                pieces.push((text, tokens.len()));
            }
            Event::Done { reason, stats } => {
                assert_eq!(reason, DoneReason::Stop);
                break stats;
            }
            Event::Failed(error) => panic!("{error}"),
        }
    };
    let pieces: Vec<(&str, usize)> = pieces.iter().map(|(t, n)| (t.as_str(), *n)).collect();
    assert_eq!(pieces, [("c", 1), ("a", 1), ("f", 1), ("é", 2), ("b", 1)]);
    assert_eq!((stats.prompt_tokens, stats.cached_tokens, stats.generated_tokens), (7, 0, 7), "with the end token");
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn answers_end_where_the_limits_say() {
    let scheduler = scheduler();
    let spec = spec("a", Script { n_ctx: Some(20), ..answers(&["abcdefghijklmnopqrstuvwxyz"]) });
    let of = |max_tokens, stop: &[&str]| {
        let stop = stop.iter().map(|s| (*s).to_owned()).collect();
        let limits = Limits { max_tokens, stop, ignore_end_token: false };
        Generate { tokens: prompt(1, 5), params: Params::greedy(), limits, ..Generate::default() }
    };
    let cases = [
        (of(Some(3), &[]), "abc", DoneReason::Length, 3),
        (of(Some(0), &[]), "", DoneReason::Length, 0),
        (of(None, &["xyz", "ef"]), "abcd", DoneReason::Stop, 6),
        // Held back as the beginning of a stop string, given out at the end.
        (of(Some(4), &["de"]), "abcd", DoneReason::Length, 4),
        // 20 tokens of context, 5 of prompt; the last token need not be computed.
        (of(None, &[]), "abcdefghijklmnop", DoneReason::Length, 16),
    ];
    for (request, text, reason, generated) in cases {
        let heard = ask(&scheduler, &spec, request).await;
        let (found, stats) = heard.done();
        assert_eq!((heard.text.as_str(), found, stats.generated_tokens), (text, reason, generated));
    }
}

#[tokio::test]
async fn an_ignored_end_token_is_never_chosen() {
    let scheduler = scheduler();
    let spec = spec("a", answers(&["ab"]));
    let limits = Limits { max_tokens: Some(10), ignore_end_token: true, ..Limits::default() };
    let request = Generate { tokens: prompt(1, 5), params: seeded(1), limits, ..Generate::default() };
    let heard = ask(&scheduler, &spec, request).await;
    assert_eq!((heard.tokens.len(), heard.done().0), (10, DoneReason::Length));
    assert!(heard.text.starts_with("ab"));
}

#[tokio::test]
async fn logprobs_come_with_every_token() {
    let scheduler = scheduler();
    let params = Params { logprobs: Some(2), ..Params::greedy() };
    let heard = ask(&scheduler, &spec("a", answers(&["caf\u{e9}"])), generate(&prompt(1, 5), params, 9)).await;
    assert_eq!(heard.logprobs.iter().map(|l| l.token.token).collect::<Vec<_>>(), heard.tokens);
    for logprob in &heard.logprobs {
        assert_eq!((logprob.top.len(), logprob.top[0]), (2, logprob.token), "greedy takes the most likely");
        assert!(logprob.token.logprob > -1e-6 && logprob.top[1].logprob < -90.0);
    }
}

#[tokio::test]
async fn requests_that_cannot_run_are_refused_with_the_reason() {
    let scheduler = scheduler();
    let spec = spec("a", Script { n_ctx: Some(8), ..Script::default() });
    let bias = Params { logit_bias: vec![(TokenId(64), 1.0)], ..Params::default() };
    let cases = [
        (generate(&[], Params::default(), 1), "the prompt is empty"),
        (generate(&prompt(1, 9), Params::default(), 1), "the prompt has 9 tokens, the context holds 8"),
        (generate(&ids(&[64]), Params::default(), 1), "token 64 of the prompt is outside of the vocabulary of 64"),
        (generate(&ids(&[5]), bias, 1), "`logit_bias` names token `64`, the vocabulary has 64"),
    ];
    for (request, message) in cases {
        let lease = scheduler.acquire(&spec, &LoadOptions::default(), KeepAlive::Unset).await.expect("loads");
        let error = lease.generate(request).await.map(drop).expect_err(message);
        assert_eq!(error.to_string(), message);
    }
    idle(&scheduler).await;
    assert_eq!(ask(&scheduler, &spec, generate(&prompt(1, 8), Params::greedy(), 9)).await.done().1.generated_tokens, 1);
}

/// More requests than sequences, prompts of all lengths, several engines' abilities: each answer is the one that the request
/// gets when it is computed alone. Batched equals unbatched.
#[tokio::test]
async fn many_requests_at_once_get_the_answers_they_get_alone() {
    let limits = [(4, 16), (3, 7), (16, 64)];
    for (n_seq_max, n_batch) in limits {
        let scheduler = scheduler();
        let spec = spec("a", Script { n_seq_max: Some(n_seq_max), n_batch: Some(n_batch), ..hash() });
        let requests: Vec<Generate> = (0..24u64)
            .map(|i| generate(&prompt(i, 1 + (i as usize * 37) % 150), seeded(i), 1 + (i as usize * 11) % 40))
            .collect();
        let streams = requests.iter().map(|r| ask(&scheduler, &spec, r.clone()));
        let heard = futures_util::future::join_all(streams).await;
        for (request, heard) in requests.iter().zip(heard) {
            heard.done();
            assert_eq!(heard.tokens, expected(request), "{n_seq_max} sequences, batches of {n_batch}");
        }
        scheduler.shutdown(SOON).await;
    }
}

/// While somebody decodes, every step holds that one token and at most a quantum of a long prompt.
#[tokio::test]
async fn a_long_prompt_does_not_stall_a_running_answer() {
    let (trace, batches) = std::sync::mpsc::channel();
    let settings = Settings { prefill_quantum: 32, ..Settings::default() };
    let scheduler = Scheduler::new(settings, Metrics::new());
    let spec = spec("a", Script { n_seq_max: Some(2), step_delay_us: 500, trace: Some(trace), ..hash() });
    let forever = Limits { ignore_end_token: true, ..Limits::default() };
    let running = Generate { tokens: prompt(1, 10), limits: forever, params: seeded(1), ..Generate::default() };
    let mut running = submit(&scheduler, &spec, running).await;
    let Some(Event::Text { .. }) = running.next().await else { panic!("an answer") };
    let reader = tokio::spawn(async move { while running.next().await.is_some() {} });
    let heard = ask(&scheduler, &spec, generate(&prompt(2, 2000), seeded(2), 1)).await;
    assert_eq!(heard.done().1.prompt_tokens, 2000);
    reader.abort();
    let _ = reader.await;
    scheduler.shutdown(SOON).await;

    let prefills: Vec<Batch> = batches.try_iter().filter(|b| b.tokens.iter().any(|t| t.seq.0 == 1)).collect();
    assert!(prefills.len() >= 2000 / 32);
    for batch in prefills {
        let of = |seq| batch.tokens.iter().filter(|t| t.seq.0 == seq).count();
        assert!(of(0) == 1 && of(1) <= 32, "{} decoded, {} prefilled", of(0), of(1));
    }
}

#[tokio::test]
async fn a_slow_reader_pauses_only_itself() {
    let scheduler = scheduler();
    let spec = spec("a", Script { n_seq_max: Some(2), ..hash() });
    let endless = |seed| Generate {
        tokens: prompt(seed, 10),
        params: seeded(seed),
        limits: Limits { max_tokens: Some(500), ignore_end_token: true, ..Limits::default() },
        ..Generate::default()
    };
    let slow = submit(&scheduler, &spec, endless(1)).await;
    let quick = ask(&scheduler, &spec, endless(2)).await;
    assert_eq!(quick.tokens.len(), 500);
    // A third one gets the sequence of the quick one while the slow one still pauses.
    assert_eq!(ask(&scheduler, &spec, endless(3)).await.tokens.len(), 500);
    held(&scheduler, 1).await;
    let slow = hear(slow).await;
    assert_eq!((slow.tokens.len(), slow.done().0), (500, DoneReason::Length), "nothing was lost");
    let mut alone = endless(1);
    alone.params.logit_bias.push((TokenId(END), f32::NEG_INFINITY));
    assert_eq!(slow.tokens, expected(&alone));
}

#[tokio::test]
async fn a_failed_step_fails_those_who_took_part_and_nobody_after_them() {
    let scheduler = scheduler();
    let spec = spec("a", Script { fail_at_step: Some(3), ..hash() });
    let heard = ask(&scheduler, &spec, generate(&prompt(1, 10), seeded(1), 50)).await;
    assert_eq!(heard.error(), "running `a` failed: the step failed: the script fails at step 3");
    let request = generate(&prompt(1, 10), seeded(1), 50);
    assert_eq!(ask(&scheduler, &spec, request.clone()).await.tokens, expected(&request), "not from a broken state");
}

#[tokio::test]
async fn a_panic_ends_the_model_and_not_the_program() {
    let scheduler = scheduler();
    let spec = spec("a", Script { panic_at_step: Some(99), step_delay_us: 1000, ..hash() });
    let (options, keep) = (LoadOptions::default(), KeepAlive::Unset);
    let leases = [
        scheduler.acquire(&spec, &options, keep).await.expect("loads"),
        scheduler.acquire(&spec, &options, keep).await.expect("is loaded"),
    ];
    let run = async |seed, lease: Lease| {
        let limits = Limits { ignore_end_token: true, ..Limits::default() };
        let request = Generate { limits, ..generate(&prompt(seed, 10), seeded(seed), 0) };
        match lease.generate(request).await {
            Ok(stream) => hear(stream).await.error(),
            Err(error) => error.to_string(),
        }
    };
    let [first, second] = leases;
    let (first, second) = tokio::join!(run(1, first), run(2, second));
    assert_eq!(first, "the engine of `a` stopped: the script panics at step 99");
    assert!(second.starts_with("the engine of `a` stopped: "), "{second}");
    unloaded(&scheduler, "a").await;
    let heard = ask(&scheduler, &spec, generate(&prompt(1, 10), seeded(1), 1)).await;
    assert_eq!(heard.tokens.len(), 1, "loaded again");
}
