//! One model, many ways to the same numbers: chunks, batches, saved states, forks; and everything that a caller can do wrong.

use fathom::engine::{Batch, BatchToken, Engine, Error, Kind, Output, Outputs, Settings};
use fathom::ids::{Pos, SeqId, TokenId};

use super::{TOLERANCE, exact, logits, text, tiny_a_f32, tokens};

/// Every test of this file runs on every engine that computes.
macro_rules! on_every_engine {
    ($($test:ident)*) => {
        mod llama {
            $(#[test] fn $test() { super::$test(fathom::engine::Kind::Llama) })*
        }
        #[cfg(feature = "native")]
        mod native {
            $(#[test] fn $test() { super::$test(fathom::engine::Kind::Native) })*
        }
    };
}

on_every_engine! {
    every_chunk_size_gives_the_same_logits
    sequences_in_one_batch_do_not_touch_each_other
    a_rewound_sequence_continues_as_a_fresh_one
    a_fork_and_a_restored_state_continue_as_the_original
    a_context_can_be_filled_to_its_last_token
    an_aborted_step_ends_early_and_only_costs_its_sequences
    a_step_may_be_smaller_than_the_number_of_sequences
    no_misuse_ends_the_process
}

fn load(kind: Kind, settings: &Settings) -> Box<dyn Engine> {
    super::load_kind(tiny_a_f32(), kind, settings)
}

#[track_caller]
fn assert_close(what: &str, got: &[Vec<f32>], expected: &[Vec<f32>]) {
    super::assert_close(what, got, expected, TOLERANCE);
}

fn every_chunk_size_gives_the_same_logits(kind: Kind) {
    let mut engine = load(kind, &exact());
    let text = text(300, engine.info().n_vocab);
    let whole = logits(&mut *engine, 0, 0, &text, 300);
    for chunk in [1, 7, 64, 128] {
        engine.release(SeqId(0));
        let parts = logits(&mut *engine, 0, 0, &text, chunk);
        assert_close(&format!("chunk {chunk}"), &parts, &whole);
    }
    // The same split made inside a step.
    for n_ubatch in [1, 7, 64, 128] {
        let mut engine = load(kind, &Settings { n_ubatch, ..exact() });
        assert_close(&format!("ubatch {n_ubatch}"), &logits(&mut *engine, 0, 0, &text, 300), &whole);
    }
}

fn sequences_in_one_batch_do_not_touch_each_other(kind: Kind) {
    let mut engine = load(kind, &exact());
    let n_vocab = engine.info().n_vocab;
    let text = text(400, n_vocab);
    let (a, b, c) = (&text[..150], &text[150..260], &text[260..400]);
    let alone: Vec<_> = [a, b, c]
        .into_iter()
        .map(|part| {
            engine.release(SeqId(0));
            logits(&mut *engine, 0, 0, part, 64)
        })
        .collect();
    engine.release(SeqId(0));

    // Prefill of different lengths, decode of one beside prefill of another, in an order that is not that of the numbers.
    let mut rows = [Vec::new(), Vec::new(), Vec::new()];
    let mut done = [0, 0, 0];
    let mut out = Outputs::default();
    let steps: [&[(usize, usize)]; 7] = [
        &[(2, 40), (0, 13)],
        &[(0, 1), (2, 77), (1, 5)],
        &[(1, 1)],
        &[(0, 1), (1, 1), (2, 1)],
        &[(2, 22), (1, 100)],
        &[(1, 3), (0, 135)],
        &[],
    ];
    for step in steps {
        let mut batch = Batch::default();
        for &(seq, n) in step {
            let part = [a, b, c][seq];
            batch.tokens.extend(tokens(seq as u32, done[seq], &part[done[seq]..done[seq] + n]));
            done[seq] += n;
        }
        engine.step(&batch, &mut out).unwrap();
        for (row, token) in batch.tokens.iter().enumerate() {
            rows[token.seq.0 as usize].push(out.row(row).to_vec());
        }
    }
    assert_eq!(done, [a.len(), b.len(), c.len()]);
    for seq in 0..3 {
        assert_close(&format!("sequence {seq}"), &rows[seq], &alone[seq]);
    }
}

fn a_rewound_sequence_continues_as_a_fresh_one(kind: Kind) {
    let mut engine = load(kind, &exact());
    let text = text(400, engine.info().n_vocab);
    let other = text[350..400].to_vec();
    for cut in [1, 5, 127, 128, 130, 200] {
        engine.release(SeqId(1));
        let fresh = {
            engine.release(SeqId(0));
            logits(&mut *engine, 0, 0, &text[..cut], 64);
            logits(&mut *engine, 0, cut, &other, 50)
        };
        engine.release(SeqId(0));
        logits(&mut *engine, 0, 0, &text[..cut], 64);
        let here = engine.checkpoint(SeqId(0)).unwrap();
        assert_eq!(here.pos, Pos(cut as u32));
        logits(&mut *engine, 0, cut, &text[cut..cut + 140], 64);
        engine.rewind(SeqId(0), &here).unwrap();
        assert_close(&format!("rewound to {cut}"), &logits(&mut *engine, 0, cut, &other, 50), &fresh);
        // Twice, and in another sequence.
        engine.rewind(SeqId(0), &here).unwrap();
        assert_close(&format!("again to {cut}"), &logits(&mut *engine, 0, cut, &other, 7), &fresh);
        engine.rewind(SeqId(1), &here).unwrap();
        assert_close(&format!("elsewhere at {cut}"), &logits(&mut *engine, 1, cut, &other, 50), &fresh);
    }
}

fn a_fork_and_a_restored_state_continue_as_the_original(kind: Kind) {
    let mut engine = load(kind, &exact());
    let text = text(340, engine.info().n_vocab);
    let (prompt, rest) = text.split_at(290);
    logits(&mut *engine, 0, 0, &prompt[..130], 130);
    let early = engine.checkpoint(SeqId(0)).unwrap();
    logits(&mut *engine, 0, 130, &prompt[130..], 160);
    engine.fork(SeqId(0), SeqId(1), None).unwrap();
    engine.fork(SeqId(0), SeqId(2), Some(&early)).unwrap();
    let mut saved = Vec::new();
    engine.save(SeqId(0), &mut saved).unwrap();
    println!("state of {} tokens: {} bytes", prompt.len(), saved.len());

    let expected = logits(&mut *engine, 0, prompt.len(), rest, 50);
    assert_close("fork", &logits(&mut *engine, 1, prompt.len(), rest, 50), &expected);
    logits(&mut *engine, 2, 130, &prompt[130..], 31);
    assert_close("fork at a checkpoint", &logits(&mut *engine, 2, prompt.len(), rest, 50), &expected);
    engine.release(SeqId(1));
    assert_eq!(engine.restore(SeqId(1), &mut saved.as_slice()).unwrap(), Pos(290));
    assert_close("restored", &logits(&mut *engine, 1, prompt.len(), rest, 50), &expected);

    // In another process, here another engine with a longer context.
    let mut other = load(kind, &Settings { n_seq_max: 1, ..exact() });
    match (kind, other.restore(SeqId(0), &mut saved.as_slice())) {
        (Kind::Llama, restored) => {
            let error = restored.unwrap_err();
            assert!(error.to_string().contains("number of sequences"), "{error}");
        }
        (_, restored) => assert_eq!(restored.unwrap(), Pos(290)),
    }
    let mut second = load(kind, &Settings { n_ctx: 2048, ..exact() });
    assert_eq!(second.restore(SeqId(0), &mut saved.as_slice()).unwrap(), Pos(290));
    assert_close("restored elsewhere", &logits(&mut *second, 0, prompt.len(), rest, 50), &expected);
}

fn a_context_can_be_filled_to_its_last_token(kind: Kind) {
    // 256 tokens: the compressed caches are exactly as long as their rounding, so the last row is live.
    for n_ctx in [250, 256, 1024] {
        let mut engine = load(kind, &Settings { n_ctx, n_seq_max: 2, ..exact() });
        let text = text(n_ctx + 1, engine.info().n_vocab);
        for seq in 0..2 {
            logits(&mut *engine, seq, 0, &text[..n_ctx - 3], 100);
            logits(&mut *engine, seq, n_ctx - 3, &text[n_ctx - 3..n_ctx], 1);
            let over = Batch { tokens: tokens(seq, n_ctx, &text[n_ctx..]) };
            let error = engine.step(&over, &mut Outputs::default()).unwrap_err();
            assert!(matches!(error, Error::ContextFull { seq: SeqId(s), .. } if s == seq), "{error}");
        }
    }
}

fn an_aborted_step_ends_early_and_only_costs_its_sequences(kind: Kind) {
    let settings = exact();
    let mut engine = load(kind, &settings);
    let text = text(300, engine.info().n_vocab);
    let expected = logits(&mut *engine, 0, 0, &text[..20], 20);
    let bystander = logits(&mut *engine, 1, 0, &text[..20], 20);
    let _ = bystander;
    settings.abort.store(true, std::sync::atomic::Ordering::Relaxed);
    let batch = Batch { tokens: tokens(0, 20, &text[20..300]) };
    assert!(matches!(engine.step(&batch, &mut Outputs::default()), Err(Error::Aborted)));
    // It was raised before the step began, so nothing was computed and the flag is down again.
    logits(&mut *engine, 0, 20, &text[20..30], 10);

    // From another thread, in the middle of a long step.
    let abort = settings.abort.clone();
    let mut aborted = false;
    for attempt in 0..50 {
        engine.release(SeqId(2));
        let abort = abort.clone();
        let delay = std::time::Duration::from_micros(200 + 400 * attempt);
        let raiser = std::thread::spawn(move || {
            std::thread::sleep(delay);
            abort.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        let result = engine.step(&Batch { tokens: tokens(2, 0, &text) }, &mut Outputs::default());
        raiser.join().unwrap();
        abort_down(&settings);
        if matches!(result, Err(Error::Aborted)) {
            let more = Batch { tokens: tokens(2, 0, &text[..1]) };
            // On a busy machine the flag can be up before the step begins; then nothing was computed.
            let Err(error) = engine.step(&more, &mut Outputs::default()) else { continue };
            assert!(error.to_string().contains("release it first"), "{error}");
            aborted = true;
            break;
        }
    }
    assert!(aborted, "no step was hit in 50 attempts");
    engine.release(SeqId(2));
    assert_close("after an abort", &logits(&mut *engine, 2, 0, &text[..20], 20), &expected);
    logits(&mut *engine, 1, 20, &text[20..40], 20);
}

fn abort_down(settings: &Settings) {
    settings.abort.store(false, std::sync::atomic::Ordering::Relaxed);
}

fn a_step_may_be_smaller_than_the_number_of_sequences(kind: Kind) {
    let mut engine = load(kind, &Settings { n_batch: 1, n_outputs: 0, ..exact() });
    let text = text(12, engine.info().n_vocab);
    let expected = logits(&mut *load(kind, &exact()), 0, 0, &text, 12);
    for seq in [0, 2] {
        assert_close(&format!("sequence {seq}"), &logits(&mut *engine, seq, 0, &text, 1), &expected);
    }
}

fn no_misuse_ends_the_process(kind: Kind) {
    let mut engine = load(kind, &Settings { n_batch: 64, n_outputs: 8, ..exact() });
    let n_vocab = engine.info().n_vocab as u32;
    let text = text(100, n_vocab as usize);
    let quiet = |mut tokens: Vec<BatchToken>| {
        tokens.iter_mut().for_each(|token| token.output = None);
        tokens
    };
    let start = quiet(tokens(0, 0, &text[..10]));
    engine.step(&Batch { tokens: start }, &mut Outputs::default()).unwrap();

    let one = |seq: u32, pos: u32, token: u32, output| {
        vec![BatchToken { token: TokenId(token), seq: SeqId(seq), pos: Pos(pos), output }]
    };
    let joined = |parts: [Vec<BatchToken>; 3]| parts.concat();
    let mut bad: Vec<(&str, Vec<BatchToken>, &str)> = vec![
        ("no such sequence", one(3, 0, 1, None), "there is no sequence 3"),
        ("a huge sequence", one(u32::MAX, 0, 1, None), "there is no sequence 4294967295"),
        ("a gap", one(0, 11, 1, None), "expected 10"),
        ("an overlap", one(0, 9, 1, None), "expected 10"),
        ("not from the start", one(1, 5, 1, None), "expected 0"),
        ("a huge position", one(0, u32::MAX, 1, None), "expected 10"),
        ("no such token", one(0, 10, n_vocab, None), "is not in the vocabulary"),
        ("a huge token", one(0, 10, u32::MAX, None), "is not in the vocabulary"),
        ("a torn sequence", joined([one(0, 10, 1, None), one(1, 0, 1, None), one(0, 11, 1, None)]), "not consecutive"),
        ("positions in reverse", joined([one(1, 1, 1, None), one(1, 0, 1, None), vec![]]), "expected 0"),
        ("too many tokens", quiet(tokens(0, 10, &text[..65])), "more than a step takes (64)"),
        ("too many rows", tokens(0, 10, &text[..9]), "more than a step gives (8)"),
        ("an embedding", one(0, 10, 1, Some(Output::Embedding)), "embeddings"),
    ];
    if !engine.info().support.hidden {
        bad.push(("hidden streams", one(0, 10, 1, Some(Output::Hidden)), "hidden"));
    }
    for (what, tokens, expected) in bad {
        let error = engine.step(&Batch { tokens }, &mut Outputs::default()).expect_err(what);
        assert!(error.to_string().contains(expected), "{what}: {error}");
    }
    assert_eq!(engine.step(&Batch::default(), &mut Outputs::default()).unwrap().tokens, 0);

    let here = engine.checkpoint(SeqId(0)).unwrap();
    let empty = engine.checkpoint(SeqId(1)).unwrap();
    assert_eq!((here.pos, empty.pos, empty.bytes), (Pos(10), Pos(0), 0));
    assert!(engine.checkpoint(SeqId(9)).is_err());
    assert!(engine.rewind(SeqId(9), &here).is_err());
    assert!(engine.fork(SeqId(0), SeqId(0), None).is_err(), "onto itself");
    assert!(engine.fork(SeqId(9), SeqId(1), None).is_err());
    assert!(engine.fork(SeqId(0), SeqId(9), None).is_err());
    engine.fork(SeqId(0), SeqId(1), None).unwrap();
    assert!(engine.fork(SeqId(0), SeqId(1), None).is_err(), "onto one that is not empty");
    assert!(engine.fork(SeqId(0), SeqId(1), Some(&here)).is_err());
    engine.fork(SeqId(0), SeqId(2), Some(&empty)).unwrap();
    engine.release(SeqId(9));
    engine.release(SeqId(2));
    engine.release(SeqId(2));

    let mut saved = Vec::new();
    engine.save(SeqId(0), &mut saved).unwrap();
    assert!(engine.restore(SeqId(1), &mut saved.as_slice()).is_err(), "into one that is not empty");
    assert!(engine.restore(SeqId(2), &mut &saved[..saved.len() / 2]).is_err(), "cut off");
    assert!(engine.restore(SeqId(2), &mut b"nonsense".as_slice()).is_err());
    assert_eq!(engine.restore(SeqId(2), &mut saved.as_slice()).unwrap(), Pos(10));

    // After all that it computes as before.
    engine.rewind(SeqId(0), &here).unwrap();
    let rows = logits(&mut *engine, 0, 10, &text[10..18], 8);
    assert_close("after misuse", &logits(&mut *engine, 2, 10, &text[10..18], 8), &rows);
}
