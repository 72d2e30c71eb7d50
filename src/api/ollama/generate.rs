//! `POST /api/generate`: one prompt, one answer.

use std::sync::Arc;
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
use crate::chat::{Family, Message, Request, Role};
use crate::completion::{self, Input};
use crate::ids::TokenId;
use crate::store::Capability;

/// What is asked. Fields that Ollama has and that cannot change anything here (`shift`: these caches do not slide) are ignored
/// like unknown ones.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct GenerateRequest {
    model: String,
    prompt: String,
    suffix: String,
    system: String,
    template: String,
    context: Vec<u32>,
    stream: Option<bool>,
    raw: bool,
    format: Option<Value>,
    keep_alive: Option<Value>,
    images: Vec<String>,
    options: Map<String, Value>,
    think: Option<Value>,
    truncate: Option<bool>,
    logprobs: bool,
    top_logprobs: i64,
    #[serde(rename = "_debug_render_only")]
    debug_render_only: bool,
}

/// Answers a request; the order of the checks is part of the contract.
///
/// # Errors
/// With Ollama's texts and statuses.
pub async fn generate(
    State(app): State<AppState>,
    local: Local,
    Body(mut request): Body<GenerateRequest>,
) -> Result<Response, Error> {
    let started = Instant::now();
    let terms = Terms::new(
        request.think.as_ref(),
        request.keep_alive.as_ref(),
        request.truncate,
        request.logprobs,
        request.top_logprobs,
    )?;
    let images = inference::images(&request.images)?;
    if request.model.is_empty() {
        return Err(Error::NotFound(String::new()));
    }
    let subject = Subject::find(&app, &request.model, local).await?;
    if request.prompt.is_empty() && terms.unloads() {
        app.scheduler.unload(&subject.target.spec);
        return Ok(special(request.model.into(), Some("unload"), None));
    }
    let templated = !request.template.is_empty() || !request.system.is_empty() || !request.context.is_empty();
    if request.raw && templated {
        return Err(Error::Raw);
    }
    subject.check_thinking(terms.think)?;
    subject.check_completion("generate")?;
    let mut needs = Vec::new();
    if !request.suffix.is_empty() {
        needs.push(Capability::Insert);
    }
    if !images.is_empty() {
        needs.push(Capability::Vision);
    }
    subject.check(&needs)?;
    let options = subject.options(&request.options, local)?;
    let lease = subject.acquire(&app, &options, &terms).await?;
    if request.prompt.is_empty() {
        return Ok(special(request.model.into(), Some("load"), None));
    }
    let form = inference::form(request.format.take())?;
    let family = match request.template.as_str() {
        "" => subject.target.family.clone(),
        template => {
            let family = Family::of_go_template(template).map_err(|error| Error::Internal(error.to_string()))?;
            Arc::new(family)
        }
    };

    let GenerateRequest { raw, stream, .. } = request;
    let model = Named::from(request.model);
    let input = if raw {
        Input::Raw(request.prompt)
    } else if !request.suffix.is_empty() {
        Input::Insert { prefix: request.prompt, suffix: request.suffix }
    } else {
        let mut messages = Vec::new();
        let system = if request.system.is_empty() { subject.system() } else { Some(request.system.as_str()) };
        messages.extend(system.map(|text| Message::new(Role::System, text)));
        if request.context.is_empty() {
            messages.extend(subject.stored_messages());
        }
        messages.push(Message { images, ..Message::new(Role::User, request.prompt) });
        Input::Chat {
            request: Request { messages, think: terms.think, ..Request::default() },
            context: request.context.into_iter().map(TokenId).collect(),
        }
    };
    let prepared = completion::prepare(&lease, family, input, terms.overflow, options.max_tokens()).await?;
    if request.debug_render_only {
        let debug = answer::Debug { rendered_template: prepared.text, image_count: 0 };
        return Ok(special(model, None, Some(debug)));
    }
    let completion = inference::start(lease, prepared, options, &terms, form, !raw).await?;
    let lines = inference::lines(completion);
    if stream.unwrap_or(true) {
        let mut calls = Vec::new();
        let lines = lines.map(move |line| {
            let mut line = line?;
            // Calls are told in the last line only.
            calls.append(&mut line.calls);
            if line.done.is_some() {
                line.calls = std::mem::take(&mut calls);
            }
            Ok(wire(model.clone(), line, started))
        });
        Ok(stream::ndjson(lines).await)
    } else {
        let line = inference::whole(lines).await?;
        Ok(json(&wire(model, line, started)))
    }
}

/// The answers that are always a single object: loaded, unloaded, rendered.
fn special(model: Named, reason: Option<&'static str>, debug: Option<answer::Debug>) -> Response {
    json(&answer::Generate { model, done: reason.is_some(), done_reason: reason, debug, ..answer::Generate::default() })
}

fn wire(model: Named, mut line: Line, started: Instant) -> answer::Generate {
    let ending = line.ending(started);
    let tokens = line.done.as_mut().map(|done| std::mem::take(&mut done.tokens));
    answer::Generate {
        model,
        created_at: Now,
        response: line.content,
        thinking: line.thinking,
        done: line.done.is_some(),
        done_reason: ending.reason,
        context: tokens.unwrap_or_default().into_iter().map(|token| token.0).collect(),
        metrics: ending.metrics,
        tool_calls: line.calls,
        debug: None,
        logprobs: line.logprobs,
        truncated: ending.truncated,
        routing: ending.routing,
    }
}
