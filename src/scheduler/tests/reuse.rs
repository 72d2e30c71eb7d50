//! Prefixes that need not be computed again. `expected` says what a fresh computation answers.

use super::*;

fn chat(tokens: &[TokenId], hints: &[usize]) -> Generate {
    Generate { checkpoint_at: hints.to_vec(), ..generate(tokens, seeded(9), 20) }
}

/// Asks, checks the answer against a fresh one, and gives the number of tokens that were not computed.
async fn cached(scheduler: &Scheduler, spec: &Arc<ModelSpec>, request: &Generate) -> (usize, Vec<TokenId>) {
    let heard = ask(scheduler, spec, request.clone()).await;
    assert_eq!(heard.tokens, expected(request), "a reused prefix answers as a fresh one");
    (heard.done().1.cached_tokens, heard.tokens)
}

#[tokio::test]
async fn a_conversation_computes_only_its_new_turns() {
    for script in [hash(), Script { marks: true, ..hash() }, Script { forgetful: true, ..hash() }] {
        let (scheduler, forgetful) = (scheduler(), script.forgetful);
        let spec = spec("a", script);
        let mut history = prompt(1, 100);
        let (first, answer) = cached(&scheduler, &spec, &chat(&history, &[])).await;
        assert_eq!(first, 0);
        history.extend(answer);
        let held = history.len() - 1;
        history.extend(prompt(2, 30));
        let (second, _) = cached(&scheduler, &spec, &chat(&history, &[])).await;
        assert!(second >= held, "all but the newest token of the last turn: {second} of {held}");
        // Regenerate: the prompt's state before its last token.
        let again = cached(&scheduler, &spec, &chat(&history, &[])).await.0;
        assert_eq!(again, if forgetful { 0 } else { history.len() - 1 });
    }
}

#[tokio::test]
async fn a_changed_last_message_goes_back_to_the_hint() {
    for script in [hash(), Script { marks: true, ..hash() }] {
        let scheduler = scheduler();
        let spec = spec("a", script);
        let system = prompt(1, 64);
        for (i, expected) in [0, 64, 64, 64].into_iter().enumerate() {
            let mut tokens = system.clone();
            tokens.extend(prompt(100 + i as u64, 30));
            let reused = cached(&scheduler, &spec, &chat(&tokens, &[64])).await.0;
            assert_eq!(reused, expected, "turn {i}");
        }
    }
}

#[tokio::test]
async fn a_state_outlives_its_sequence() {
    let scheduler = scheduler();
    let spec = spec("a", Script { n_seq_max: Some(1), ..hash() });
    let (one, other) = (chat(&prompt(1, 80), &[]), chat(&prompt(2, 80), &[]));
    assert_eq!(cached(&scheduler, &spec, &one).await.0, 0);
    assert_eq!(cached(&scheduler, &spec, &other).await.0, 0, "in the same sequence");
    assert_eq!(cached(&scheduler, &spec, &one).await.0, 79);
    assert_eq!(cached(&scheduler, &spec, &other).await.0, 79);
}

#[tokio::test]
async fn a_running_sequence_shares_its_system_prompt() {
    for marks in [false, true] {
        let scheduler = scheduler();
        let spec = spec("a", Script { n_seq_max: Some(3), marks, ..hash() });
        let system = prompt(1, 64);
        let of = |seed| {
            let mut tokens = system.clone();
            tokens.extend(prompt(seed, 20));
            Generate { checkpoint_at: vec![64], ..generate(&tokens, seeded(seed), 200) }
        };
        let endless = Limits { ignore_end_token: true, ..Limits::default() };
        let mut running = submit(&scheduler, &spec, Generate { limits: endless, ..of(5) }).await;
        let Some(Event::Text { .. }) = running.next().await else { panic!("an answer") };
        assert_eq!(cached(&scheduler, &spec, &of(6)).await.0, 64, "marks: {marks}");
    }
}

#[tokio::test]
async fn memory_for_states_is_bounded_and_zero_turns_them_off() {
    for (prefix_bytes, expected) in [(0, 0), (400, 0), (80 * 4, 79)] {
        let metrics = Metrics::new();
        let scheduler = Scheduler::new(Settings { prefix_bytes, ..Settings::default() }, metrics.clone());
        // 79 tokens of 4 bytes are 316 bytes; with 8 bytes each they do not fit into 400.
        let checkpoint_token_bytes = if prefix_bytes == 400 { 8 } else { 4 };
        let spec = spec("a", Script { n_seq_max: Some(1), checkpoint_token_bytes, ..hash() });
        let (one, other) = (chat(&prompt(1, 80), &[]), chat(&prompt(2, 40), &[]));
        cached(&scheduler, &spec, &one).await;
        let again = cached(&scheduler, &spec, &one).await.0;
        assert_eq!(again, expected);
        assert!(metrics.prefix_bytes.get() <= prefix_bytes as i64);
        cached(&scheduler, &spec, &other).await;
        assert!(metrics.prefix_bytes.get() <= prefix_bytes as i64);
    }
}
