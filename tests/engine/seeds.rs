//! Same seed, same batch composition, same tokens: in default arithmetic, where other compositions may round otherwise.

use std::path::Path;

use fathom::engine::{Batch, BatchToken, Engine, Output, Outputs, Settings};
use fathom::ids::{Pos, SeqId, TokenId};
use fathom::sampler::{Params, Sampler};
use serde_json::{Value, json};

use super::{load, text, tiny_a, tiny_b};
use crate::support::{http, program::Program};

const N_ANSWER: usize = 40;

/// One request of a batch: its prompt's length and its seed.
#[derive(Clone, Copy)]
struct Request {
    n_prompt: usize,
    seed: u64,
}

fn hot(seed: u64) -> Params {
    Params { temperature: 1.3, top_k: 0, top_p: 1.0, seed: Some(seed), ..Params::default() }
}

/// All requests at once: every prompt in one step each beside the answers of those before it, then one token of each per step. The
/// answers in order.
fn answers(engine: &mut dyn Engine, requests: &[Request]) -> Vec<Vec<TokenId>> {
    let n_vocab = engine.info().n_vocab;
    let mut samplers: Vec<Sampler> =
        requests.iter().map(|request| Sampler::new(&hot(request.seed), n_vocab).unwrap()).collect();
    let mut tokens: Vec<Vec<TokenId>> = requests.iter().map(|request| text(request.n_prompt, n_vocab)).collect();
    let mut computed = vec![0; requests.len()];
    let mut out = Outputs::default();
    for step in 0..requests.len() + N_ANSWER {
        let mut batch = Batch::default();
        let taking_part: Vec<usize> = (0..requests.len())
            .filter(|&seq| seq <= step && tokens[seq].len() < requests[seq].n_prompt + N_ANSWER)
            .collect();
        for &seq in &taking_part {
            let part = &tokens[seq][computed[seq]..];
            batch.tokens.extend((computed[seq]..).zip(part).map(|(pos, &token)| BatchToken {
                token,
                seq: SeqId(seq as u32),
                pos: Pos(pos as u32),
                output: (pos + 1 == tokens[seq].len()).then_some(Output::Logits),
            }));
        }
        if batch.tokens.is_empty() {
            break;
        }
        engine.step(&batch, &mut out).unwrap();
        for (row, &seq) in taking_part.iter().enumerate() {
            let token = samplers[seq].sample(out.row_mut(row), None).unwrap().token;
            samplers[seq].accept(&[token]);
            computed[seq] = tokens[seq].len();
            tokens[seq].push(token);
        }
    }
    tokens.iter().zip(requests).map(|(tokens, request)| tokens[request.n_prompt..].to_vec()).collect()
}

fn settings(n_threads: usize) -> Settings {
    // Micro-batches that make the ring of the window small enough to wrap.
    Settings { n_ctx: 1024, n_seq_max: 3, n_batch: 1024, n_ubatch: 128, n_threads, ..Settings::default() }
}

/// Loads anew, so that nothing but seed and composition is the same.
fn fresh(path: &Path, requests: &[Request]) -> Vec<Vec<TokenId>> {
    answers(&mut *load(path, &settings(1)), requests)
}

#[test]
fn a_seed_gives_the_same_answer_again_alone_and_among_the_same_neighbours() {
    for path in [tiny_a(), tiny_b()] {
        // Long enough for windows that wrap, compressed rows, and the attention kernel of long caches.
        let (mine, other, third) =
            (Request { n_prompt: 530, seed: 7 }, Request { n_prompt: 90, seed: 8 }, Request { n_prompt: 5, seed: 9 });
        for requests in [&[mine][..], &[mine, other, third]] {
            let once = fresh(path, requests);
            assert!(once.iter().all(|answer| answer.len() == N_ANSWER));
            assert_eq!(once, fresh(path, requests), "{} requests", requests.len());
        }
        let reseeded = fresh(path, &[Request { seed: 70, ..mine }, other, third]);
        assert_ne!(reseeded[0], fresh(path, &[mine, other, third])[0], "the seed decides");
    }
}

#[test]
fn a_sequence_that_was_used_before_answers_as_a_new_one() {
    let requests = [Request { n_prompt: 300, seed: 1 }, Request { n_prompt: 40, seed: 2 }];
    let mut engine = load(tiny_a(), &settings(1));
    let once = answers(&mut *engine, &requests);
    for seq in 0..2 {
        engine.release(SeqId(seq));
    }
    assert_eq!(answers(&mut *engine, &requests), once);
}

/// The whole way: HTTP, tokenizer, scheduler, engine, sampler; twice from the start.
#[test]
fn a_request_with_a_seed_gets_the_same_answer_from_the_next_server() {
    let home = tempfile::tempdir().unwrap();
    let ask = |program: &Program, seed: u64| -> Value {
        let request = json!({
            "model": tiny_a(), "prompt": "Why is the sky blue? ".repeat(20), "raw": true, "stream": false,
            "options": {"num_predict": 60, "seed": seed, "temperature": 1.1, "top_k": 0, "top_p": 1.0}
        });
        let local = [("Sec-Fathom-Local", "1")];
        let body = request.to_string();
        let reply = http::open(program.address, "POST", "/api/generate", &local, body.as_bytes()).finish();
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.json()["response"].clone()
    };
    let settings = [("FATHOM_ENGINE", "llama"), ("FATHOM_LOG", "warn"), ("FATHOM_THREADS", "1")];
    let [first, second] = [(); 2].map(|()| {
        let program = Program::serve(home.path(), &settings);
        [42, 43].map(|seed| ask(&program, seed))
    });
    assert_eq!(first, second);
    assert_ne!(first[0], first[1]);
    assert!(first[0].as_str().is_some_and(|text| !text.is_empty()));
}
