//! What generate and chat have in common: the checks between wire fields and a lease, and the lines between events and an answer.

use std::time::Instant;

use base64::Engine as _;
use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt};
use serde_json::{Map, Value};

use super::answer::{self, Call, Logprob, Metrics};
use super::duration;
use super::models::{blocking, installed};
use super::options::Options;
use crate::api::local::Local;
use crate::api::{AppState, Error};
use crate::chat::{Message, Role, Think};
use crate::completion::{self, Completion, Done, Event, Overflow, Prepared, Target};
use crate::engine::Routing;
use crate::sampler::Form;
use crate::scheduler::{KeepAlive, Lease, Limits, LoadOptions};
use crate::store::{self, Capability, Model, Name};

/// The fields that decide how a request runs, read but not yet checked against a model.
#[derive(Debug)]
pub(super) struct Terms {
    pub think: Think,
    pub keep_alive: KeepAlive,
    pub overflow: Overflow,
    /// Alternatives beside each token; `None` = no logprobs.
    pub logprobs: Option<usize>,
}

impl Terms {
    /// Reads the fields that need no model. A wrong value is refused before the model is looked for.
    ///
    /// # Errors
    /// With Ollama's texts.
    pub(super) fn new(
        think: Option<&Value>,
        keep_alive: Option<&Value>,
        truncate: Option<bool>,
        logprobs: bool,
        top_logprobs: i64,
    ) -> Result<Terms, Error> {
        let think = read_think(think)?;
        let keep_alive = duration::keep_alive(keep_alive)?;
        let top = usize::try_from(top_logprobs).ok().filter(|top| *top <= 20).ok_or(Error::TopLogprobs)?;
        Ok(Terms {
            think,
            keep_alive,
            overflow: if truncate.unwrap_or(true) { Overflow::Truncate } else { Overflow::Refuse },
            logprobs: logprobs.then_some(top),
        })
    }

    /// A request without a prompt and with a keep-alive of zero asks for the model to be unloaded.
    pub(super) fn unloads(&self) -> bool {
        matches!(self.keep_alive, KeepAlive::For(time) if time.is_zero())
    }
}

fn read_think(value: Option<&Value>) -> Result<Think, Error> {
    Ok(match value {
        None | Some(Value::Null) => Think::Default,
        Some(Value::Bool(true)) => Think::On,
        Some(Value::Bool(false)) => Think::Off,
        Some(Value::String(level)) => match level.as_str() {
            "low" => Think::Low,
            "medium" => Think::Medium,
            "high" => Think::High,
            "max" => Think::Max,
            other => return Err(Error::ThinkValue(other.to_owned())),
        },
        Some(_) => return Err(Error::ThinkType),
    })
}

/// The form that an answer is to have.
///
/// # Errors
/// [`Error::Format`] for what is neither `"json"` nor an object.
pub(super) fn form(format: Option<Value>) -> Result<Option<Form>, Error> {
    match format {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) if text == "json" => Ok(Some(Form::Json)),
        Some(schema @ Value::Object(_)) => Ok(Some(Form::Schema(schema))),
        Some(other) => Err(Error::Format(format!("{:?}", other.to_string()))),
    }
}

pub(super) fn not_built(what: &str) -> Error {
    Error::NotImplemented(format!("{what} is not built into this version of fathom yet"))
}

/// Image files out of base64.
///
/// # Errors
/// With the words of Go's decoder.
pub(super) fn images(encoded: &[String]) -> Result<Vec<Bytes>, Error> {
    let decode = |text: &String| {
        let engine = &base64::engine::general_purpose::STANDARD;
        engine.decode(text).map(Bytes::from).map_err(|error| {
            let at = match error {
                base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol { offset: at, .. } => {
                    at
                }
                _ => text.len(),
            };
            Error::Json(format!("illegal base64 data at input byte {at}"))
        })
    };
    encoded.iter().map(decode).collect()
}

/// The model that a request is about.
pub(super) struct Subject {
    pub target: Target,
    /// As the client wrote it, for error texts.
    named: String,
}

impl Subject {
    /// # Errors
    /// When nothing is called so, or it cannot be used.
    pub(super) async fn find(app: &AppState, named: &str, local: Local) -> Result<Subject, Error> {
        let path = local.path(named)?;
        let name = if path.is_none() { Some(Name::parse(named)?) } else { None };
        let (app, named) = (app.clone(), named.to_owned());
        blocking(move || {
            let model = match (path, name) {
                (Some(path), _) => Model::from_gguf(&path)?,
                (None, Some(name)) => installed(&app.store, &name).map_err(|error| match error {
                    Error::Store(store::Error::NotFound(_)) if name.is_cloud() => {
                        Error::Cloud { what: "remote model is unavailable" }
                    }
                    // In the client's spelling.
                    Error::Store(store::Error::NotFound(_)) => Error::NotFound(named.clone()),
                    other => other,
                })?,
                (None, None) => unreachable!("a path or a name"),
            };
            let target = Target::new(model, &app.runtime)?;
            Ok(Subject { target, named })
        })
        .await?
    }

    /// Thinking asked for on a model that cannot; not thinking is always fine.
    pub(super) fn check_thinking(&self, think: Think) -> Result<(), Error> {
        if matches!(think, Think::Default | Think::Off) || self.target.can(Capability::Thinking) {
            Ok(())
        } else {
            Err(Error::NoThinking(self.named.clone()))
        }
    }

    /// Whether the model completes text at all; `what` is the endpoint's word.
    pub(super) fn check_completion(&self, what: &'static str) -> Result<(), Error> {
        if self.target.can(Capability::Completion) {
            Ok(())
        } else {
            Err(Error::NoCompletion { name: self.named.clone(), what })
        }
    }

    /// What else the request needs. The answer names all that is missing.
    pub(super) fn check(&self, needs: &[Capability]) -> Result<(), Error> {
        let missing: Vec<&'static str> =
            needs.iter().filter(|need| !self.target.can(**need)).map(|need| need.word()).collect();
        if !missing.is_empty() {
            return Err(Error::Missing { name: self.target.model.source.full(), missing });
        }
        if needs.contains(&Capability::Vision) {
            return Err(not_built("image input"));
        }
        Ok(())
    }

    /// The request's options over the model's parameters.
    ///
    /// # Errors
    /// The first value of a wrong type, a file that the request may not name.
    pub(super) fn options(&self, request: &Map<String, Value>, local: Local) -> Result<Options, Error> {
        let advised = self.target.family.sampling();
        let options = Options::advised(advised, &[&self.target.model.params, request])?;
        // A file that the model's parameters name was allowed when it was made.
        if request.get("routing").is_some_and(|value| !value.is_null()) {
            check_routing_file(&options, local)?;
        }
        Ok(options)
    }

    /// Waits for the model to be loaded under these options.
    ///
    /// # Errors
    /// When the queue is full or loading fails.
    pub(super) async fn acquire(&self, app: &AppState, options: &Options, terms: &Terms) -> Result<Lease, Error> {
        let load = LoadOptions {
            n_ctx: options.num_ctx,
            n_batch: options.num_batch,
            n_gpu_layers: options.num_gpu,
            main_gpu: options.main_gpu,
            use_mmap: options.use_mmap,
            n_threads: options.num_thread,
            kv_type: options.kv,
        };
        Ok(app.scheduler.acquire(&self.target.spec, &load, terms.keep_alive).await?)
    }

    /// The model's own SYSTEM.
    pub(super) fn system(&self) -> Option<&str> {
        self.target.model.system.as_deref().filter(|text| !text.is_empty())
    }

    /// The model's own MESSAGEs.
    pub(super) fn stored_messages(&self) -> impl Iterator<Item = Message> {
        self.target.model.messages.iter().map(|stored| Message::new(Role::parse(&stored.role), stored.content.as_str()))
    }
}

/// A file of routing profiles is named by its absolute path, and by programs of this machine only.
///
/// # Errors
/// [`Error::PathNotAllowed`], [`Error::BadRequest`] for a relative path.
pub(super) fn check_routing_file(options: &Options, local: Local) -> Result<(), Error> {
    let Some(file) = options.routing.as_ref().and_then(Routing::file) else { return Ok(()) };
    if local == Local::No {
        return Err(Error::PathNotAllowed);
    }
    if !file.is_absolute() {
        return Err(Error::BadRequest(format!("option \"routing\": `{}` must be an absolute path", file.display())));
    }
    Ok(())
}

/// A part of an answer, before an endpoint gives it its form.
#[derive(Debug, Default)]
pub(super) struct Line {
    pub thinking: String,
    pub content: String,
    pub calls: Vec<Call>,
    pub logprobs: Vec<Logprob>,
    /// In the last line only.
    pub done: Option<Box<Done>>,
}

impl Line {
    /// What the last line says about how the answer ended.
    pub(super) fn ending(&self, started: Instant) -> Ending {
        match &self.done {
            None => Ending::default(),
            Some(done) => Ending {
                reason: Some(answer::done_reason(done.reason)),
                metrics: Metrics::new(started.elapsed(), &done.stats),
                truncated: done.truncated.map(answer::Left::from),
                routing: done.stats.routing.as_deref().map(answer::Routing::from),
            },
        }
    }

    fn append(&mut self, next: Line) {
        self.thinking.push_str(&next.thinking);
        self.content.push_str(&next.content);
        self.calls.extend(next.calls);
        self.logprobs.extend(next.logprobs);
        self.done = next.done;
    }
}

#[derive(Debug, Default)]
pub(super) struct Ending {
    pub reason: Option<&'static str>,
    pub metrics: Metrics,
    pub truncated: Option<answer::Left>,
    pub routing: Option<answer::Routing>,
}

/// The events of a completion as lines. Dropping the stream cancels the request.
pub(super) fn lines(completion: Completion) -> impl Stream<Item = Result<Line, Error>> + Send {
    stream::unfold((completion, 0), |(mut completion, mut calls)| async move {
        let event = match completion.next().await? {
            Ok(event) => event,
            Err(error) => return Some((Err(error.into()), (completion, calls))),
        };
        let mut line = Line::default();
        let logprobs = match event {
            Event::Thinking { text, logprobs } => {
                line.thinking = text;
                logprobs
            }
            Event::Content { text, logprobs } => {
                line.content = text;
                logprobs
            }
            Event::ToolCall { call, logprobs } => {
                line.calls.push(Call::new(calls, call));
                calls += 1;
                logprobs
            }
            Event::Done(done) => {
                line.done = Some(done);
                Vec::new()
            }
        };
        line.logprobs = logprobs.into_iter().map(Logprob::from).collect();
        Some((Ok(line), (completion, calls)))
    })
}

/// All lines as one.
///
/// # Errors
/// The first error among them.
pub(super) async fn whole(lines: impl Stream<Item = Result<Line, Error>>) -> Result<Line, Error> {
    let mut lines = std::pin::pin!(lines);
    let mut whole = Line::default();
    while let Some(line) = lines.next().await {
        whole.append(line?);
    }
    Ok(whole)
}

/// Submits a prepared prompt under the options of its request.
///
/// # Errors
/// What the scheduler refuses.
pub(super) async fn start(
    lease: Lease,
    prepared: Prepared,
    options: Options,
    terms: &Terms,
    form: Option<Form>,
    keep_tokens: bool,
) -> Result<Completion, Error> {
    let max_tokens = options.max_tokens();
    let mut params = options.sampler;
    params.logprobs = terms.logprobs;
    let answer = completion::Answer {
        params,
        routing: options.routing,
        limits: Limits { max_tokens, stop: options.stop, ignore_end_token: false },
        form,
        keep_tokens,
    };
    Ok(completion::start(lease, prepared, answer).await?)
}
