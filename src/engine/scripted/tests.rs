use super::*;

fn model() -> Model {
    Model {
        architecture: "test".into(),
        n_vocab: 50,
        n_embd: 8,
        n_ctx_train: 64,
        end: TokenId(1),
        control: vec![TokenId(0), TokenId(1), TokenId(2)],
    }
}

fn engine(script: Script) -> Scripted {
    Scripted::load(script, &model(), &Settings::default(), &mut |_| true).expect("loads")
}

fn batch(seq: u32, start: u32, tokens: &[u32]) -> Batch {
    let last = tokens.len() - 1;
    let token = |(i, &t): (usize, &u32)| BatchToken {
        token: TokenId(t),
        seq: SeqId(seq),
        pos: Pos(start + i as u32),
        output: (i == last).then_some(Output::Logits),
    };
    Batch { tokens: tokens.iter().enumerate().map(token).collect() }
}

/// Greedy continuation of `prompt`, up to the end token or `n` tokens.
fn play(engine: &mut Scripted, seq: u32, start: u32, prompt: &[u32], n: usize) -> Vec<u32> {
    let mut out = Outputs::default();
    let (mut at, mut input, mut answer) = (start, prompt.to_vec(), Vec::new());
    while answer.len() < n {
        out.clear();
        engine.step(&batch(seq, at, &input), &mut out).expect("a step");
        at += input.len() as u32;
        let row = out.row(0);
        let best = (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).expect("a row") as u32;
        if best == 1 {
            break;
        }
        answer.push(best);
        input = vec![best];
    }
    answer
}

#[test]
fn the_default_echoes_the_prompt_without_control_tokens() {
    let mut engine = engine(Script::default());
    assert_eq!(play(&mut engine, 3, 0, &[0, 7, 8, 2, 7], 99), [7, 8, 7]);
}

#[test]
fn answers_are_played_in_turn_whatever_else_runs() {
    let answers = [vec![10, 11], vec![], vec![12]].map(Answer::Tokens).to_vec();
    let mut engine = engine(Script { play: Play::Answers(answers), ..Script::default() });
    assert_eq!(play(&mut engine, 0, 0, &[5, 6], 99), [10, 11]);
    assert_eq!(play(&mut engine, 1, 0, &[5, 6], 99), [0u32; 0]);
    // A new question in the same sequence is a new answer.
    assert_eq!(play(&mut engine, 0, 4, &[9, 9], 99), [12]);
    assert_eq!(play(&mut engine, 2, 0, &[10], 99), [10, 11]);
}

#[test]
fn hashed_answers_depend_on_every_token_of_the_past() {
    let mut engine = engine(Script { play: Play::Hash, ..Script::default() });
    let expected = play(&mut engine, 0, 0, &[5, 6, 7, 8], 12);
    let mut out = Outputs::default();
    engine.step(&batch(1, 0, &[5, 6]), &mut out).expect("a step");
    assert_eq!(play(&mut engine, 1, 2, &[7, 8], 12), expected, "in two parts");
    for other in [[4, 6, 7, 8], [5, 7, 6, 8]] {
        engine.release(SeqId(2));
        assert_ne!(play(&mut engine, 2, 0, &other, 12), expected);
    }
    out.clear();
    engine.release(SeqId(2));
    engine.step(&batch(2, 0, &[5, 6, 7]), &mut out).expect("a step");
    assert_eq!(out.row(0), hashed_logits(&[5, 6, 7].map(TokenId), 50));
}

#[test]
fn checkpoints_forks_and_saved_states_bring_back_the_same_future() {
    let mut engine = engine(Script { play: Play::Hash, ..Script::default() });
    let expected = play(&mut engine, 0, 0, &[5, 6, 7, 8], 9);
    let mut out = Outputs::default();
    engine.step(&batch(1, 0, &[5, 6]), &mut out).expect("a step");
    let checkpoint = engine.checkpoint(SeqId(1)).expect("a checkpoint");
    assert_eq!(checkpoint.pos, Pos(2));
    engine.fork(SeqId(1), SeqId(2), None).expect("a fork");
    let mut saved = Vec::new();
    engine.save(SeqId(1), &mut saved).expect("saved");

    assert_ne!(play(&mut engine, 1, 2, &[9, 9], 9), expected);
    engine.rewind(SeqId(1), &checkpoint).expect("back");
    assert_eq!(play(&mut engine, 1, 2, &[7, 8], 9), expected, "rewound");
    assert_eq!(play(&mut engine, 2, 2, &[7, 8], 9), expected, "forked");
    engine.fork(SeqId(1), SeqId(3), Some(&checkpoint)).expect("a fork");
    assert_eq!(play(&mut engine, 3, 2, &[7, 8], 9), expected, "forked from a checkpoint");
    assert_eq!(engine.restore(SeqId(4), &mut &saved[..]).expect("restored"), Pos(2));
    assert_eq!(play(&mut engine, 4, 2, &[7, 8], 9), expected, "restored");
    engine.rewind(SeqId(0), &checkpoint).expect("another sequence's checkpoint");
    assert_eq!(play(&mut engine, 0, 2, &[7, 8], 9), expected, "rewound to another sequence's state");
}

#[test]
fn damaged_saved_states_are_refused() {
    let mut engine = engine(Script::default());
    play(&mut engine, 0, 0, &[5, 6], 2);
    let mut saved = Vec::new();
    engine.save(SeqId(0), &mut saved).expect("saved");
    let mut huge = saved.clone();
    huge[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut foreign = saved.clone();
    foreign[0] = b'x';
    let mut impossible = saved.clone();
    impossible[16..24].copy_from_slice(&1000u64.to_le_bytes());
    for bad in [&saved[..saved.len() - 1], &huge, &foreign, &impossible, &[]] {
        assert!(engine.restore(SeqId(1), &mut &bad[..]).is_err());
        engine.release(SeqId(1));
    }
}

#[test]
fn batches_that_break_the_rules_are_refused_and_change_nothing() {
    let mut engine = engine(Script { n_ctx: Some(6), n_batch: Some(16), n_seq_max: Some(2), ..Script::default() });
    let mut out = Outputs::default();
    engine.step(&batch(0, 0, &[5, 6]), &mut out).expect("a step");
    let mut apart = batch(0, 2, &[7]);
    apart.tokens.extend(batch(1, 0, &[7]).tokens);
    apart.tokens.extend(batch(0, 3, &[7]).tokens);
    let cases = [
        (batch(0, 0, &[5; 17]), "bad batch: 17 tokens are more than a step takes (16)"),
        (batch(0, 3, &[5]), "bad batch: position 3 of sequence 0 does not follow: expected 2"),
        (batch(0, 1, &[5]), "bad batch: position 1 of sequence 0 does not follow: expected 2"),
        (batch(0, 2, &[5; 5]), "sequence 0 is full: 6 tokens"),
        (batch(2, 0, &[5]), "bad batch: there is no sequence 2, only 2 of them"),
        (batch(1, 0, &[50]), "bad batch: token 50 is not in the vocabulary of 50"),
        (apart, "bad batch: the tokens of sequence 0 are not consecutive"),
    ];
    for (bad, message) in cases {
        let error = engine.step(&bad, &mut out).expect_err(message);
        assert_eq!(error.to_string(), message);
    }
    assert_eq!(engine.step(&Batch::default(), &mut out).expect("nothing to do").tokens, 0);
    engine.step(&batch(0, 2, &[7]), &mut out).expect("nothing has changed");
}

#[test]
fn a_failed_step_breaks_its_sequences_until_they_are_released() {
    let mut engine = engine(Script { fail_at_step: Some(2), ..Script::default() });
    let mut out = Outputs::default();
    engine.step(&batch(0, 0, &[5]), &mut out).expect("step 1");
    engine.step(&batch(0, 1, &[5]), &mut out).expect_err("step 2");
    assert!(engine.step(&batch(0, 1, &[5]), &mut out).is_err(), "broken");
    assert!(engine.checkpoint(SeqId(0)).is_err(), "broken");
    engine.release(SeqId(0));
    engine.step(&batch(0, 0, &[5]), &mut out).expect("whole again");
}

#[test]
fn an_abort_ends_a_long_step() {
    let settings = Settings::default();
    let script = Script { step_delay_us: 3_600_000_000, ..Script::default() };
    let mut engine = Scripted::load(script, &model(), &settings, &mut |_| true).expect("loads");
    let abort = settings.abort.clone();
    let raiser = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(5));
        abort.store(true, Ordering::Release);
    });
    let error = engine.step(&batch(0, 0, &[5]), &mut Outputs::default()).expect_err("aborted");
    assert!(matches!(error, Error::Aborted));
    raiser.join().expect("raised");
}

#[test]
fn loading_fails_and_stops_as_told() {
    let load = |script: Script, go_on: bool| {
        Scripted::load(script, &model(), &Settings::default(), &mut |_| go_on).map(drop).expect_err("must fail")
    };
    let error = load(Script { load_error: Some("no such luck".into()), ..Script::default() }, true);
    assert_eq!(error.to_string(), "cannot load ``: no such luck");
    let error = load(Script { load_delay_ms: 3_600_000, ..Script::default() }, false);
    assert!(matches!(error, Error::Aborted));
    let text = Play::Answers(vec![Answer::Text("hello".into())]);
    let mut script = Script { play: text, ..Script::default() };
    assert!(matches!(load(script.clone(), true), Error::Load { .. }), "text that nobody resolved");
    script.resolve(|text| Ok::<_, ()>(vec![TokenId(text.len() as u32)])).expect("resolves");
    assert_eq!(script.play, Play::Answers(vec![Answer::Tokens(vec![5])]));
    assert!(matches!(
        plan(&Script { memory_bytes: 10, ..Script::default() }, &model(), &Settings::default(), 9),
        Err(Error::Memory { needed: 10, available: 9 })
    ));
}

#[test]
fn scripts_are_read_from_json_and_mistakes_are_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("script.json");
    let read = |text: &str| {
        std::fs::write(&path, text).expect("written");
        Script::read(&path)
    };
    let script = read(r#"{"schema":1,"play":{"answers":[{"text":"Hi"},{"tokens":[3]}]},"n_ctx":9}"#).expect("a script");
    assert_eq!(script.play, Play::Answers(vec![Answer::Text("Hi".into()), Answer::Tokens(vec![3])]));
    assert_eq!(script.n_ctx, Some(9));
    assert_eq!(read(r#"{"schema":1,"play":"hash"}"#).expect("a script").play, Play::Hash);
    for (text, expected) in [
        (r#"{"schema":2}"#, "script schema 2, this program knows 1"),
        (r#"{"schema":1,"speed":3}"#, "unknown field `speed`"),
        ("{}", "missing field `schema`"),
    ] {
        let error = read(text).expect_err("a mistake").to_string();
        assert!(error.contains(expected), "{error}");
    }
}
