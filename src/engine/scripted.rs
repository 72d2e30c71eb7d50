//! Plays tokens back, with delays and failures: the engine of the tests, and of builds without any other.
//!
//! It is as strict as a real engine can be: positions without gaps, bounds, sequences that must be released after a failed
//! step. And its state is real: what it answers depends on the tokens that it was given for that sequence, so that checkpoints,
//! forks and saved states can be wrong and be caught ([`Play::Hash`]).

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::rules::{self, Place, Rules};
use super::{
    Batch, BatchToken, Checkpoint, Engine, EngineInfo, Error, Kind, Memory, Output, Outputs, Plan, Progress, Settings,
    StepStats, Support,
};
use crate::ids::{Pos, SeqId, TokenId};

mod script;

pub use script::{Answer, Play, Script};

const NAME: &str = "scripted";
/// What a scripted token is ahead of all others: more than any penalty takes away, and safe to compute with.
const CERTAIN: f32 = 100.0;
/// Sequences and context when neither script nor settings nor the model say.
const DEFAULT_SEQUENCES: usize = 16;
const DEFAULT_CONTEXT: usize = 4096;
const DEFAULT_BATCH: usize = 512;
const SAVED_MAGIC: &[u8; 8] = b"fathomS1";

/// What the scripted engine must know about the model that it stands for.
#[derive(Clone, Debug)]
pub struct Model {
    pub architecture: String,
    pub n_vocab: usize,
    pub n_embd: usize,
    pub n_ctx_train: usize,
    /// Played after an answer.
    pub end: TokenId,
    /// Tokens that an echo leaves out, sorted.
    pub control: Vec<TokenId>,
}

/// Decides what [`Scripted::load`] will do.
///
/// # Errors
/// [`Error::Memory`] when the script claims more than there is.
pub fn plan(script: &Script, model: &Model, settings: &Settings, available_bytes: u64) -> Result<Plan, Error> {
    super::routing::only_off(NAME, &settings.routing)?;
    if script.memory_bytes > available_bytes {
        return Err(Error::Memory { needed: script.memory_bytes, available: available_bytes });
    }
    let first = |options: [Option<usize>; 2], otherwise: usize| {
        options.into_iter().flatten().find(|n| *n > 0).unwrap_or(otherwise)
    };
    let n_ctx_train = first([Some(model.n_ctx_train), None], DEFAULT_CONTEXT);
    let n_seq_max = first([script.n_seq_max, Some(settings.n_seq_max)], DEFAULT_SEQUENCES);
    let n_batch = first([script.n_batch, Some(settings.n_batch)], DEFAULT_BATCH).max(n_seq_max);
    Ok(Plan {
        kind: Kind::Scripted,
        architecture: model.architecture.clone(),
        n_ctx: first([script.n_ctx, Some(settings.n_ctx)], n_ctx_train.min(DEFAULT_CONTEXT)),
        n_seq_max,
        n_batch,
        n_ubatch: n_batch,
        n_outputs: n_batch,
        n_threads: 1,
        kv_type: settings.kv_type,
        memory: Memory { weights: script.memory_bytes, ..Memory::default() },
        available_bytes,
        ..Plan::default()
    })
}

/// The engine.
#[derive(Debug)]
pub struct Scripted {
    script: Script,
    rules: Rules,
    answers: Vec<Vec<TokenId>>,
    info: EngineInfo,
    end: TokenId,
    control: Vec<TokenId>,
    abort: Arc<std::sync::atomic::AtomicBool>,
    sequences: Vec<Sequence>,
    steps: u64,
    answers_begun: usize,
}

#[derive(Clone, Debug, Default)]
struct Sequence {
    state: State,
    /// How often it was released: marks of an earlier life are void.
    life: u64,
    /// A step with this sequence failed; only a release helps.
    broken: bool,
}

impl Place for Sequence {
    fn next(&self) -> u32 {
        self.state.tokens.len() as u32
    }

    fn is_broken(&self) -> bool {
        self.broken
    }
}

/// All that a sequence remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct State {
    tokens: Vec<TokenId>,
    /// Hash of `tokens`, in order.
    hash: u64,
    playing: Option<Playing>,
}

/// A checkpoint that only names a place in a sequence.
#[derive(Clone, Copy, Debug)]
struct Mark {
    seq: SeqId,
    life: u64,
    playing: Option<Playing>,
}

/// An answer being played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Playing {
    /// Which answer; for an echo the length of the prompt.
    answer: usize,
    /// Its next token.
    at: usize,
}

impl Scripted {
    /// Loads, which takes as long as the script says, with settings that a [`plan`] went through.
    ///
    /// # Errors
    /// [`Error::Load`] as the script says or when an answer cannot be played, [`Error::Aborted`] by `on_progress`.
    pub fn load(script: Script, model: &Model, settings: &Settings, on_progress: Progress) -> Result<Scripted, Error> {
        let failed = |reason: String| Error::Load { path: settings.script.clone().unwrap_or_default(), reason };
        let delay = Duration::from_millis(script.load_delay_ms);
        let start = Instant::now();
        loop {
            let done = start.elapsed();
            let part = if delay.is_zero() { 1.0 } else { done.as_secs_f32() / delay.as_secs_f32() };
            if !on_progress(part.min(1.0)) {
                return Err(Error::Aborted);
            }
            if done >= delay {
                break;
            }
            std::thread::sleep((delay - done).min(Duration::from_millis(1)));
        }
        assert!(!script.load_panic, "the script panics while loading");
        if let Some(reason) = &script.load_error {
            return Err(failed(reason.clone()));
        }
        let mut answers = Vec::new();
        if let Play::Answers(scripted) = &script.play {
            for answer in scripted {
                let Answer::Tokens(tokens) = answer else {
                    return Err(failed("the script's answers are text, which this use of it cannot tokenise".into()));
                };
                if let Some(bad) = tokens.iter().find(|t| **t as usize >= model.n_vocab) {
                    return Err(failed(format!("token {bad} of the script, the vocabulary has {}", model.n_vocab)));
                }
                answers.push(tokens.iter().map(|t| TokenId(*t)).collect());
            }
            if answers.is_empty() {
                return Err(failed("the script has no answers".into()));
            }
        }
        let plan = plan(&script, model, settings, u64::MAX)?;
        let able = !script.forgetful;
        Ok(Scripted {
            answers,
            info: EngineInfo {
                engine: NAME,
                architecture: model.architecture.clone(),
                n_vocab: model.n_vocab,
                n_embd: model.n_embd,
                n_ctx: plan.n_ctx,
                n_ctx_train: model.n_ctx_train,
                n_seq_max: plan.n_seq_max,
                n_batch: plan.n_batch,
                n_outputs: plan.n_outputs,
                kv_type: plan.kv_type,
                memory: plan.memory,
                support: Support { logits: true, checkpoint: able, fork: able, save: able, ..Support::default() },
            },
            end: model.end,
            control: model.control.clone(),
            abort: settings.abort.clone(),
            rules: Rules::new(false),
            sequences: vec![Sequence::default(); plan.n_seq_max],
            steps: 0,
            answers_begun: 0,
            script,
        })
    }

    fn empty_sequence(&mut self, seq: SeqId) -> Result<&mut Sequence, Error> {
        rules::must_be_empty(&self.sequences, seq)?;
        Ok(&mut self.sequences[seq.0 as usize])
    }

    fn whole_sequence(&mut self, seq: SeqId) -> Result<&mut Sequence, Error> {
        rules::sound(&self.sequences, seq)?;
        Ok(&mut self.sequences[seq.0 as usize])
    }

    /// The front part of a sequence that a mark stands for. Like a real cache it trusts that the sequence was not rewound
    /// to before the mark and grown again.
    fn marked(&mut self, mark: &Mark, pos: Pos) -> Result<State, Error> {
        let sequence = self.whole_sequence(mark.seq)?;
        let n_tokens = pos.0 as usize;
        if sequence.life != mark.life || n_tokens > sequence.state.tokens.len() {
            return Err(Error::State(format!("sequence {} no longer holds what was marked", mark.seq.0)));
        }
        let tokens = sequence.state.tokens[..n_tokens].to_vec();
        let hash = tokens.iter().fold(0, |hash, token| extend(hash, *token));
        Ok(State { tokens, hash, playing: mark.playing })
    }

    fn remembered(&self, checkpoint: &Checkpoint) -> Result<State, Error> {
        let state = checkpoint.state.downcast_ref::<State>();
        state.cloned().ok_or_else(|| Error::State("a checkpoint of another engine".into()))
    }

    fn needs(&self, able: bool, what: &str) -> Result<(), Error> {
        match able {
            true => Ok(()),
            false => Err(Error::Unsupported { engine: NAME, what: what.to_owned() }),
        }
    }

    /// Every rule of [`Batch`], before anything is computed.
    fn check(&mut self, batch: &Batch) -> Result<(), Error> {
        self.rules.check(batch, &self.info, &self.sequences, |output| match output {
            Output::Logits => Ok(()),
            Output::Embedding | Output::Hidden => {
                Err(Error::Unsupported { engine: NAME, what: "compute embeddings or hidden states".into() })
            }
        })
    }

    /// Sleeps as the script says, unless it is aborted.
    fn wait(&self, n_tokens: usize) -> Result<(), Error> {
        let until = Instant::now() + self.script.delay(n_tokens);
        loop {
            if self.abort.load(Ordering::Acquire) {
                return Err(Error::Aborted);
            }
            let now = Instant::now();
            if now >= until {
                return Ok(());
            }
            std::thread::sleep((until - now).min(Duration::from_millis(1)));
        }
    }

    fn trouble(&mut self, n_tokens: usize) -> Result<(), Error> {
        self.steps += 1;
        self.wait(n_tokens)?;
        assert!(self.script.panic_at_step != Some(self.steps), "the script panics at step {}", self.steps);
        match self.script.fail_at_step == Some(self.steps) {
            true => Err(Error::Step(format!("the script fails at step {}", self.steps))),
            false => Ok(()),
        }
    }

    fn push(&mut self, token: &BatchToken, out: &mut Outputs) {
        let state = &mut self.sequences[token.seq.0 as usize].state;
        state.tokens.push(token.token);
        state.hash = extend(state.hash, token.token);
        if token.output.is_none() {
            // An answer is read token by token: whatever comes without a question is a new prompt.
            state.playing = None;
            return;
        }
        let row = out.push_row(self.info.n_vocab);
        if self.script.play == Play::Hash {
            hash_row(state.hash, row);
            return;
        }
        let answer_len = |answers: &[Vec<TokenId>], playing: Playing| answers[playing.answer].len();
        let next = match state.playing {
            // Goes on while it is fed with what it said.
            Some(playing) if self.script.play == Play::Echo => {
                let said = echoed(&state.tokens[..playing.answer], &self.control, playing.at - 1);
                (said == Some(token.token)).then_some(playing)
            }
            Some(playing) => {
                let said = self.answers[playing.answer].get(playing.at - 1).copied();
                (said == Some(token.token) && playing.at <= answer_len(&self.answers, playing)).then_some(playing)
            }
            None => None,
        };
        let playing = next.unwrap_or_else(|| match self.script.play {
            Play::Echo | Play::Hash => Playing { answer: state.tokens.len(), at: 0 },
            Play::Answers(_) => {
                self.answers_begun += 1;
                Playing { answer: (self.answers_begun - 1) % self.answers.len(), at: 0 }
            }
        });
        let say = match self.script.play {
            Play::Echo | Play::Hash => echoed(&state.tokens[..playing.answer], &self.control, playing.at),
            Play::Answers(_) => self.answers[playing.answer].get(playing.at).copied(),
        };
        row[say.unwrap_or(self.end).0 as usize] = CERTAIN;
        state.playing = say.map(|_| Playing { at: playing.at + 1, ..playing });
    }
}

/// Token `at` of a prompt's echo.
fn echoed(prompt: &[TokenId], control: &[TokenId], at: usize) -> Option<TokenId> {
    prompt.iter().filter(|t| control.binary_search(t).is_err()).nth(at).copied()
}

/// splitmix64's finaliser: every bit of the input moves every bit of the output.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The hash of a history, one token longer.
fn extend(hash: u64, token: TokenId) -> u64 {
    mix(hash.rotate_left(7) ^ (u64::from(token.0) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// Logits in -4 to 4 that follow from `hash` alone.
fn hash_row(hash: u64, row: &mut [f32]) {
    for (i, logit) in row.iter_mut().enumerate() {
        let bits = mix(hash.wrapping_add((i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        *logit = (bits >> 40) as f32 / (1u64 << 24) as f32 * 8.0 - 4.0;
    }
}

/// The logits that [`Play::Hash`] gives after `history`.
pub fn hashed_logits(history: &[TokenId], n_vocab: usize) -> Vec<f32> {
    let mut row = vec![0.0; n_vocab];
    hash_row(history.iter().fold(0, |hash, t| extend(hash, *t)), &mut row);
    row
}

impl Engine for Scripted {
    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn step(&mut self, batch: &Batch, out: &mut Outputs) -> Result<StepStats, Error> {
        out.clear();
        self.check(batch)?;
        if batch.tokens.is_empty() {
            return Ok(StepStats::default());
        }
        let start = Instant::now();
        if let Some(trace) = &self.script.trace {
            // Nobody listens any more: fine.
            let _ = trace.send(batch.clone());
        }
        if let Err(error) = self.trouble(batch.tokens.len()) {
            for token in &batch.tokens {
                self.sequences[token.seq.0 as usize].broken = true;
            }
            return Err(error);
        }
        for token in &batch.tokens {
            self.push(token, out);
        }
        Ok(StepStats { tokens: batch.tokens.len(), seconds: start.elapsed().as_secs_f64() })
    }

    fn checkpoint(&mut self, seq: SeqId) -> Result<Checkpoint, Error> {
        self.needs(self.info.support.checkpoint, "remember the state of a sequence")?;
        let (marks, token_bytes) = (self.script.marks, self.script.checkpoint_token_bytes.max(size_of::<TokenId>()));
        let Sequence { state, life, .. } = self.whole_sequence(seq)?;
        let pos = Pos(state.tokens.len() as u32);
        if marks {
            let mark = Mark { seq, life: *life, playing: state.playing };
            return Ok(Checkpoint { pos, bytes: 0, within: Some(seq), state: Arc::new(mark) });
        }
        let bytes = state.tokens.len() * token_bytes;
        Ok(Checkpoint { pos, bytes, within: None, state: Arc::new(state.clone()) })
    }

    fn rewind(&mut self, seq: SeqId, to: &Checkpoint) -> Result<(), Error> {
        self.needs(self.info.support.checkpoint, "go back to a remembered state")?;
        let state = match to.state.downcast_ref::<Mark>() {
            Some(mark) if mark.seq != seq => return Err(Error::State("a mark in another sequence".into())),
            Some(mark) => self.marked(mark, to.pos)?,
            None => self.remembered(to)?,
        };
        self.whole_sequence(seq)?.state = state;
        Ok(())
    }

    fn fork(&mut self, from: SeqId, to: SeqId, at: Option<&Checkpoint>) -> Result<(), Error> {
        self.needs(self.info.support.fork, "copy a sequence")?;
        self.empty_sequence(to)?;
        let state = match at {
            None => self.whole_sequence(from)?.state.clone(),
            Some(at) => match at.state.downcast_ref::<Mark>() {
                Some(mark) if mark.seq != from => return Err(Error::State("a mark in another sequence".into())),
                Some(mark) => self.marked(mark, at.pos)?,
                None => self.remembered(at)?,
            },
        };
        self.empty_sequence(to)?.state = state;
        Ok(())
    }

    fn release(&mut self, seq: SeqId) {
        if let Some(sequence) = self.sequences.get_mut(seq.0 as usize) {
            *sequence = Sequence { life: sequence.life + 1, ..Sequence::default() };
        }
    }

    fn save(&mut self, seq: SeqId, to: &mut dyn Write) -> Result<(), Error> {
        self.needs(self.info.support.save, "save a sequence")?;
        let state = &self.whole_sequence(seq)?.state;
        to.write_all(SAVED_MAGIC)?;
        let playing = state.playing.map_or([0, 0, 0], |p| [1, p.answer as u64, p.at as u64]);
        for number in playing.into_iter().chain([state.tokens.len() as u64]) {
            to.write_all(&number.to_le_bytes())?;
        }
        for token in &state.tokens {
            to.write_all(&token.0.to_le_bytes())?;
        }
        Ok(())
    }

    fn restore(&mut self, seq: SeqId, from: &mut dyn Read) -> Result<Pos, Error> {
        self.needs(self.info.support.save, "restore a sequence")?;
        self.empty_sequence(seq)?;
        let mut magic = [0; 8];
        from.read_exact(&mut magic)?;
        if &magic != SAVED_MAGIC {
            return Err(Error::State("not a state of the scripted engine".into()));
        }
        let mut number = || -> Result<u64, Error> {
            let mut bytes = [0; 8];
            from.read_exact(&mut bytes)?;
            Ok(u64::from_le_bytes(bytes))
        };
        let (playing, answer, at, n_tokens) = (number()?, number()? as usize, number()? as usize, number()?);
        if n_tokens > self.info.n_ctx as u64 {
            return Err(Error::State(format!("{n_tokens} tokens, the context holds {}", self.info.n_ctx)));
        }
        let mut state = State::default();
        for _ in 0..n_tokens {
            let mut bytes = [0; 4];
            from.read_exact(&mut bytes)?;
            let token = TokenId(u32::from_le_bytes(bytes));
            state.hash = extend(state.hash, token);
            state.tokens.push(token);
        }
        let playable = match self.script.play {
            Play::Echo => at > 0 && answer <= state.tokens.len(),
            Play::Answers(_) => at > 0 && answer < self.answers.len(),
            Play::Hash => false,
        };
        match playing {
            0 => {}
            1 if playable => state.playing = Some(Playing { answer, at }),
            _ => return Err(Error::State("an answer that this script does not have".into())),
        }
        self.empty_sequence(seq)?.state = state;
        Ok(Pos(n_tokens as u32))
    }
}

#[cfg(test)]
mod tests;
