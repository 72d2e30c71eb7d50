//! `POST /api/chat`: a conversation, answered with the next message.

use std::time::Instant;

use axum::extract::State;
use axum::response::Response;
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::answer::{self, Named, Now};
use super::inference::{self, Line, Subject, Terms};
use crate::api::extract::Body;
use crate::api::local::Local;
use crate::api::{AppState, Error, json, stream};
use crate::chat::{self, Arguments, RawJson, Request, Role, Tool};
use crate::completion::{self, Input};
use crate::store::Capability;

/// What is asked; see [`super::generate::GenerateRequest`] about fields that are missing here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct ChatRequest {
    model: String,
    messages: Vec<Message>,
    stream: Option<bool>,
    format: Option<Value>,
    keep_alive: Option<Value>,
    tools: Vec<ToolEntry>,
    options: Map<String, Value>,
    think: Option<Value>,
    truncate: Option<bool>,
    logprobs: bool,
    top_logprobs: i64,
    #[serde(rename = "_debug_render_only")]
    debug_render_only: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Message {
    role: String,
    content: String,
    thinking: String,
    images: Vec<String>,
    tool_calls: Vec<ToolCall>,
    tool_name: String,
    tool_call_id: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename = "Tool")]
struct ToolEntry {
    function: Option<RawJson>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ToolCall {
    id: String,
    function: ToolCallFunction,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ToolCallFunction {
    name: String,
    arguments: Option<RawJson>,
}

/// Answers a request; the order of the checks is part of the contract.
///
/// # Errors
/// With Ollama's texts and statuses.
pub async fn chat(
    State(app): State<AppState>,
    local: Local,
    Body(request): Body<ChatRequest>,
) -> Result<Response, Error> {
    let started = Instant::now();
    let terms = Terms::new(
        request.think.as_ref(),
        request.keep_alive.as_ref(),
        request.truncate,
        request.logprobs,
        request.top_logprobs,
    )?;
    let messages = request.messages.into_iter().map(Message::read).collect::<Result<Vec<_>, Error>>()?;
    let tools = tools(request.tools)?;
    if request.model.is_empty() {
        return Err(Error::ModelRequired);
    }
    let subject = Subject::find(&app, &request.model, local).await?;
    let model = Named::from(request.model);
    if messages.is_empty() && terms.unloads() {
        app.scheduler.unload(&subject.target.spec);
        return Ok(special(model, Some("unload"), None));
    }
    subject.check_thinking(terms.think)?;
    subject.check_completion("chat")?;
    let mut needs = Vec::new();
    if !tools.is_empty() {
        needs.push(Capability::Tools);
    }
    if messages.iter().any(|message| !message.images.is_empty()) {
        needs.push(Capability::Vision);
    }
    subject.check(&needs)?;
    let options = subject.options(&request.options, local)?;
    let lease = subject.acquire(&app, &options, &terms).await?;
    if messages.is_empty() {
        return Ok(special(model, Some("load"), None));
    }
    let form = inference::form(request.format)?;

    // The model's own system text gives way to one of the client's, its stored messages come before the conversation.
    let system = subject
        .system()
        .filter(|_| messages[0].role != Role::System)
        .map(|text| chat::Message::new(Role::System, text));
    let messages = system.into_iter().chain(subject.stored_messages()).chain(messages).collect();
    let input = Input::Chat {
        request: Request { messages, tools, think: terms.think, ..Request::default() },
        context: Vec::new(),
    };
    let family = subject.target.family.clone();
    let prepared = completion::prepare(&lease, family, input, terms.overflow, options.max_tokens()).await?;
    if request.debug_render_only {
        let debug = answer::Debug { rendered_template: prepared.text, image_count: 0 };
        return Ok(special(model, None, Some(debug)));
    }
    let completion = inference::start(lease, prepared, options, &terms, form, false).await?;
    let lines = inference::lines(completion);
    if request.stream.unwrap_or(true) {
        let lines = lines.map(move |line| Ok(wire(model.clone(), line?, started)));
        Ok(stream::ndjson(lines).await)
    } else {
        let line = inference::whole(lines).await?;
        Ok(json(&wire(model, line, started)))
    }
}

impl Message {
    fn read(self) -> Result<chat::Message, Error> {
        let filled = |text: String| (!text.is_empty()).then_some(text);
        Ok(chat::Message {
            images: inference::images(&self.images)?,
            thinking: filled(self.thinking),
            tool_calls: self.tool_calls.into_iter().map(ToolCall::read).collect(),
            tool_call_id: filled(self.tool_call_id),
            tool_name: filled(self.tool_name),
            ..chat::Message::new(Role::parse(&self.role), self.content)
        })
    }
}

impl ToolCall {
    fn read(self) -> chat::ToolCall {
        chat::ToolCall {
            id: (!self.id.is_empty()).then_some(self.id),
            name: self.function.name,
            arguments: self.function.arguments.map_or_else(|| Arguments::parse(""), Arguments::from),
        }
    }
}

fn tools(entries: Vec<ToolEntry>) -> Result<Vec<Tool>, Error> {
    let read = |(i, entry): (usize, ToolEntry)| {
        let tool = entry.function.and_then(Tool::from_function);
        tool.ok_or_else(|| Error::BadRequest(format!("tool {i} has no `function` with a `name`")))
    };
    entries.into_iter().enumerate().map(read).collect()
}

/// The answers that are always a single object: loaded, unloaded, rendered.
fn special(model: Named, reason: Option<&'static str>, debug: Option<answer::Debug>) -> Response {
    json(&answer::Chat { model, done: reason.is_some(), done_reason: reason, debug, ..answer::Chat::default() })
}

fn wire(model: Named, line: Line, started: Instant) -> answer::Chat {
    let ending = line.ending(started);
    answer::Chat {
        model,
        created_at: Now,
        message: answer::Message {
            content: line.content,
            thinking: line.thinking,
            tool_calls: line.calls,
            ..answer::Message::default()
        },
        done: line.done.is_some(),
        done_reason: ending.reason,
        debug: None,
        logprobs: line.logprobs,
        metrics: ending.metrics,
        truncated: ending.truncated,
        routing: ending.routing,
    }
}
