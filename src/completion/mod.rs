//! One request: messages in, events out. The only place where messages and tokens meet.
//!
//! [`prepare()`] renders the conversation, drops turns that do not fit and tokenises; [`start`] submits the ids; the
//! [`Completion`] that comes out reads the answer with the family's parser and gives out [`Event`]s. It is pulled, not pushed: while a client
//! is slow nobody asks for the next event, the scheduler's channel of this sequence fills, and only this sequence pauses. A
//! client that leaves drops the completion, and that cancels the sequence.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::chat::{self, Family, Parser, Piece, ToolCall};
use crate::engine::Routing;
use crate::ids::TokenId;
use crate::sampler;
use crate::scheduler::{self, EventStream, Generate, Lease, Limits, Logprob};
use crate::tokens::{self, Tokenizer};

mod event;
mod id;
mod prepare;
mod target;
mod truncate;

pub use event::{Done, Event, Likelihood, TokenLogprob};
pub use prepare::{Input, Prepared};
pub use target::{Runtime, Target, facts};
pub use truncate::Truncated;

/// What happens to a conversation that does not fit the context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    /// Whole turns are dropped from the front.
    Truncate,
    Refuse,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Chat(#[from] chat::Error),
    #[error(transparent)]
    Tokens(#[from] tokens::Error),
    #[error(transparent)]
    Scheduler(#[from] scheduler::Error),
    /// System messages and the last message alone are too long.
    #[error("the prompt has {tokens} tokens and cannot be shortened to the context of {n_ctx}")]
    PromptTooLong { tokens: usize, n_ctx: usize },
    /// Too long, and the client does not want it shortened.
    #[error("the prompt has {tokens} tokens, the context holds {n_ctx}")]
    ContextExceeded { tokens: usize, n_ctx: usize },
    #[error("`{model}` has no GGUF weights: it was made for another engine")]
    NoWeights { model: String },
    /// Answering without the adapter would be answering with another model.
    #[error("`{model}` has an adapter, and running models with adapters is not built into this version of fathom yet")]
    Adapter { model: String },
    /// A bug: the thread that prepared the prompt panicked.
    #[error("preparing the prompt failed")]
    Preparation,
}

/// How the answer is made once the prompt is ready.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    pub params: sampler::Params,
    /// Which of the chosen experts are computed; `None` = what the model is loaded with.
    pub routing: Option<Routing>,
    pub limits: Limits,
    /// What the answer must look like, once its reasoning has ended.
    pub form: Option<sampler::Form>,
    /// Collect the ids of prompt and answer for [`Done::tokens`].
    pub keep_tokens: bool,
}

/// Renders, cuts and tokenises off the async threads.
///
/// # Errors
/// What the family, the tokenizer or the context's size refuse.
pub async fn prepare(
    lease: &Lease,
    family: Arc<Family>,
    input: Input,
    overflow: Overflow,
    max_tokens: Option<usize>,
) -> Result<Prepared, Error> {
    let tokenizer = Arc::clone(lease.tokenizer());
    let space = prepare::Space { n_ctx: lease.info().n_ctx, max_tokens, overflow };
    tokio::task::spawn_blocking(move || prepare::prepare(&family, &tokenizer, input, space))
        .await
        .map_err(|_| Error::Preparation)?
}

/// Submits a prepared prompt.
///
/// # Errors
/// What the scheduler refuses.
pub async fn start(lease: Lease, prepared: Prepared, answer: Answer) -> Result<Completion, Error> {
    let tokenizer = Arc::clone(lease.tokenizer());
    let constraint = match answer.form {
        Some(form) => {
            let (constrain, after) = (lease.constrain(), prepared.answer_after);
            let compiled =
                tokio::task::spawn_blocking(move || constrain(&form)).await.map_err(|_| Error::Preparation)?;
            let constraint = compiled.map_err(scheduler::Error::from)?;
            Some(match &after {
                Some(text) => constraint.after(text),
                None => constraint,
            })
        }
        None => None,
    };
    let tokens = if answer.keep_tokens { prepared.tokens.clone() } else { Vec::new() };
    let events = lease
        .generate(Generate {
            tokens: prepared.tokens,
            params: answer.params,
            limits: answer.limits,
            checkpoint_at: prepared.checkpoint_at,
            routing: answer.routing,
            constraint,
        })
        .await?;
    Ok(Completion {
        events,
        reader: Reader {
            tokenizer,
            parser: prepared.parser,
            pieces: Vec::new(),
            tokens,
            keep_tokens: answer.keep_tokens,
            truncated: prepared.truncated,
            ready: VecDeque::new(),
            ended: false,
        },
    })
}

/// A running request. Dropping it cancels the request.
pub struct Completion {
    events: EventStream,
    reader: Reader,
}

impl Completion {
    /// The next event; `None` after [`Event::Done`] or an error. Safe to drop while it waits: nothing is lost.
    pub async fn next(&mut self) -> Option<Result<Event, Error>> {
        loop {
            if let Some(event) = self.reader.ready.pop_front() {
                return Some(Ok(event));
            }
            if self.reader.ended {
                return None;
            }
            match self.events.next().await {
                Some(event) => {
                    if let Err(error) = self.reader.read(event) {
                        return Some(Err(error));
                    }
                }
                None => {
                    self.reader.ended = true;
                    return Some(Err(scheduler::Error::ShuttingDown.into()));
                }
            }
        }
    }
}

/// Turns the scheduler's events into ours.
struct Reader {
    tokenizer: Arc<Tokenizer>,
    parser: Option<Box<dyn Parser>>,
    /// Empty between events; kept for its memory.
    pieces: Vec<Piece>,
    tokens: Vec<TokenId>,
    keep_tokens: bool,
    truncated: Option<Truncated>,
    ready: VecDeque<Event>,
    ended: bool,
}

impl Reader {
    fn read(&mut self, event: scheduler::Event) -> Result<(), Error> {
        match event {
            scheduler::Event::Text { text, tokens, logprobs } => {
                if self.keep_tokens {
                    self.tokens.extend(tokens);
                }
                match &mut self.parser {
                    Some(parser) => parser.push(&text, &mut self.pieces),
                    None if text.is_empty() => {}
                    None => self.pieces.push(Piece::Content(text)),
                }
                let logprobs = logprobs.iter().map(|one| self.spell(one)).collect();
                self.give_out(logprobs);
            }
            scheduler::Event::Done { reason, stats } => {
                self.ended = true;
                if let Some(parser) = &mut self.parser {
                    parser.finish(&mut self.pieces);
                }
                self.give_out(Vec::new());
                self.ready.push_back(Event::Done(Box::new(Done {
                    reason,
                    stats,
                    tokens: std::mem::take(&mut self.tokens),
                    truncated: self.truncated,
                })));
            }
            scheduler::Event::Failed(error) => {
                self.ended = true;
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Moves the pieces found so far to the queue. The logprobs go with the first of them; without one they go out alone.
    fn give_out(&mut self, mut logprobs: Vec<TokenLogprob>) {
        for piece in self.pieces.drain(..) {
            let logprobs = std::mem::take(&mut logprobs);
            self.ready.push_back(match piece {
                Piece::Thinking(text) => Event::Thinking { text, logprobs },
                Piece::Content(text) => Event::Content { text, logprobs },
                Piece::ToolCall(call) => Event::ToolCall {
                    call: ToolCall { id: call.id.or_else(|| Some(id::tool_call())), ..call },
                    logprobs,
                },
            });
        }
        if !logprobs.is_empty() {
            let text = String::new();
            self.ready.push_back(Event::Content { text, logprobs });
        }
    }

    fn spell(&self, logprob: &Logprob) -> TokenLogprob {
        let likelihood = |scored: &sampler::Scored| Likelihood {
            bytes: self.tokenizer.piece(scored.token).to_vec(),
            logprob: scored.logprob,
        };
        TokenLogprob { token: likelihood(&logprob.token), top: logprob.top.iter().map(likelihood).collect() }
    }
}
