//! The scheduler as a whole, on the scripted engine. What `Play::Hash` must answer is known from the specification of its
//! logits alone, so every answer says whether the scheduler computed exactly the right tokens for it.

use std::sync::LazyLock;

use super::*;
use crate::engine::scripted::{self, Answer, Play, Script, Scripted, hashed_logits};
use crate::engine::{self, Batch, Engine, Plan, Progress};
use crate::ids::TokenId;
use crate::sampler::{Params, Rng, Sampler};
use crate::tokens::{self, Tokenizer, Vocabulary};

mod leaving;
mod loading;
mod reuse;
mod running;
mod stalling;

const END: u32 = 1;
/// The first ordinary token; `FIRST + i` is the i-th letter.
const FIRST: u32 = 4;
const N_VOCAB: usize = 64;
/// Far longer than any test waits for what must happen.
const SOON: Duration = Duration::from_secs(60);

/// `<s>`, `</s>`, the two bytes of `é`, then letters.
fn tokenizer() -> Arc<Tokenizer> {
    static TOKENIZER: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| Arc::new(make_tokenizer()));
    TOKENIZER.clone()
}

fn make_tokenizer() -> Tokenizer {
    let mut tokens: Vec<String> = ["<s>", "</s>", "Ã", "©"].map(str::to_owned).to_vec();
    let letters = ('a'..='z').chain('A'..='Z').chain('0'..='9').map(String::from);
    tokens.extend(letters.take(N_VOCAB - tokens.len()));
    let mut kinds = vec![1; N_VOCAB];
    kinds[..2].fill(3);
    let vocabulary = Vocabulary {
        model: "gpt2".into(),
        tokens: tokens.into(),
        kinds,
        bos: Some(0),
        eos: Some(END),
        ..Vocabulary::default()
    };
    Tokenizer::new(&vocabulary).expect("a good vocabulary")
}

fn model() -> scripted::Model {
    scripted::Model {
        architecture: "test".into(),
        n_vocab: N_VOCAB,
        n_embd: 4,
        n_ctx_train: 8192,
        end: TokenId(END),
        control: vec![TokenId(0), TokenId(END)],
    }
}

struct ScriptLoader {
    script: Script,
    tokenizer: Result<(), &'static str>,
}

impl Loader for ScriptLoader {
    fn plan(&self, settings: &engine::Settings, available_bytes: u64) -> Result<Plan, engine::Error> {
        scripted::plan(&self.script, &model(), settings, available_bytes)
    }

    fn engine(&self, settings: &engine::Settings, on_progress: Progress) -> Result<Box<dyn Engine>, engine::Error> {
        Ok(Box::new(Scripted::load(self.script.clone(), &model(), settings, on_progress)?))
    }

    fn tokenizer(&self) -> Result<Arc<Tokenizer>, tokens::Error> {
        match self.tokenizer {
            Ok(()) => Ok(tokenizer()),
            Err(reason) => Err(tokens::Error::Tokenizer(reason.into())),
        }
    }
}

fn spec(name: &str, script: Script) -> Arc<ModelSpec> {
    Arc::new(ModelSpec {
        name: name.into(),
        digest: String::new(),
        weights: format!("/models/{name}").into(),
        kind: engine::Kind::Scripted,
        settings: engine::Settings::default(),
        loader: Arc::new(ScriptLoader { script, tokenizer: Ok(()) }),
    })
}

fn scheduler() -> Scheduler {
    Scheduler::new(Settings::default(), Metrics::new())
}

fn hash() -> Script {
    Script { play: Play::Hash, ..Script::default() }
}

fn answers(texts: &[&str]) -> Script {
    let tokenizer = tokenizer();
    let mut script = Script {
        play: Play::Answers(texts.iter().map(|text| Answer::Text((*text).into())).collect()),
        ..Script::default()
    };
    script.resolve(|text| tokenizer.encode(text, tokens::Specials::AsText)).expect("resolves");
    script
}

fn ids(tokens: &[u32]) -> Vec<TokenId> {
    tokens.iter().map(|t| TokenId(*t)).collect()
}

/// Ordinary tokens that follow from `seed`.
fn prompt(seed: u64, n_tokens: usize) -> Vec<TokenId> {
    let mut rng = Rng::new(seed);
    (0..n_tokens).map(|_| TokenId(FIRST + (rng.next_u64() % (N_VOCAB as u64 - 4)) as u32)).collect()
}

fn generate(prompt: &[TokenId], params: Params, max_tokens: usize) -> Generate {
    Generate {
        tokens: prompt.to_vec(),
        params,
        limits: Limits { max_tokens: Some(max_tokens), ..Limits::default() },
        ..Generate::default()
    }
}

fn seeded(seed: u64) -> Params {
    Params { seed: Some(seed), ..Params::default() }
}

async fn submit(scheduler: &Scheduler, spec: &Arc<ModelSpec>, request: Generate) -> EventStream {
    let lease = scheduler.acquire(spec, &LoadOptions::default(), KeepAlive::Unset).await.expect("loads");
    lease.generate(request).await.expect("runs")
}

/// Everything a client heard.
#[derive(Debug, Default)]
struct Heard {
    text: String,
    tokens: Vec<TokenId>,
    logprobs: Vec<Logprob>,
    end: Option<Result<(DoneReason, Stats), Error>>,
}

impl Heard {
    fn done(&self) -> (DoneReason, Stats) {
        self.end.clone().expect("an end").expect("no error")
    }

    fn error(&self) -> String {
        self.end.clone().expect("an end").expect_err("an error").to_string()
    }
}

async fn hear(mut stream: EventStream) -> Heard {
    let mut heard = Heard::default();
    while let Some(event) = tokio::time::timeout(SOON, stream.next()).await.expect("an event, soon") {
        assert!(heard.end.is_none(), "nothing follows the end");
        match event {
            Event::Text { text, tokens, logprobs } => {
                heard.text += &text;
                heard.tokens.extend(tokens);
                heard.logprobs.extend(logprobs);
            }
            Event::Done { reason, stats } => heard.end = Some(Ok((reason, stats))),
            Event::Failed(error) => heard.end = Some(Err(error)),
        }
    }
    heard
}

async fn ask(scheduler: &Scheduler, spec: &Arc<ModelSpec>, request: Generate) -> Heard {
    hear(submit(scheduler, spec, request).await).await
}

/// What `Play::Hash` answers to a request that is computed alone and whole.
fn expected(request: &Generate) -> Vec<TokenId> {
    let mut sampler = Sampler::new(&request.params, N_VOCAB).expect("good parameters");
    sampler.accept(&request.tokens);
    let mut history = request.tokens.clone();
    let mut answer = Vec::new();
    while answer.len() < request.limits.max_tokens.expect("limited") {
        let token = sampler.sample(&mut hashed_logits(&history, N_VOCAB), None).expect("a token").token;
        if token == TokenId(END) {
            break;
        }
        sampler.accept(&[token]);
        history.push(token);
        answer.push(token);
    }
    answer
}

/// Until just so many requests hold models. A client hears its last event a moment before its lease ends.
async fn held(scheduler: &Scheduler, leases: usize) {
    let held = async {
        while scheduler.ps().await.iter().map(|loaded| loaded.active).sum::<usize>() != leases {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(SOON, held).await.expect("soon");
}

/// Until nobody uses any model.
async fn idle(scheduler: &Scheduler) {
    held(scheduler, 0).await;
}

/// Until this model is not loaded.
async fn unloaded(scheduler: &Scheduler, name: &str) {
    let unloaded = async {
        while scheduler.ps().await.iter().any(|loaded| loaded.spec.name == name) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(SOON, unloaded).await.expect("unloaded, soon");
}
