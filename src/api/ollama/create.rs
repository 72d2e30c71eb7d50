//! POST `/api/create`: a model from another one, from uploaded files, or from a path on this machine.
//!
//! The path is a field of its own, `path`, and not another meaning of `from`: a name and a path must not be mistaken for
//! each other where one of them reads the server's disk.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::response::Response;
use futures_util::stream;
use serde_json::Value;
use tokio::sync::mpsc;

use super::inference;
use super::models::first_of;
use super::options::Options;
use super::types::*;
use crate::api::extract::Body;
use crate::api::local::Local;
use crate::api::stream::{last, ndjson};
use crate::api::{AppState, Error, json};
use crate::chat::Family;
use crate::modelfile::{self, Base, Changes, Event, Spec};
use crate::store::{Digest, Message, Name};

/// Progress lines of one kind follow each other at this pace at most.
const PACE: Duration = Duration::from_millis(100);
/// Lines that wait for the connection before the work waits for it.
const LINES_IN_FLIGHT: usize = 16;

/// What `quantize` may say; `Q4_K` is another word for `Q4_K_M`.
const QUANTIZATIONS: &[&str] = &["F32", "F16", "BF16", "Q8_0", "Q4_K_S", "Q4_K_M", "Q4_K"];

/// POST `/api/create`.
pub async fn create(
    State(app): State<AppState>,
    local: Local,
    Body(request): Body<CreateRequest>,
) -> Result<Response, Error> {
    let streamed = request.stream != Some(false);
    let spec = spec(request, local)?;
    let (lines, mut incoming) = mpsc::channel::<Result<ProgressResponse, Error>>(LINES_IN_FLIGHT);
    let span = tracing::Span::current();
    tokio::task::spawn_blocking(move || {
        let _inside = span.entered();
        let mut pacer = Pacer { status: String::new(), sent: Instant::now() };
        let mut tell = |event: Event| {
            let line = progress(event);
            // A client that left is noticed here, also by a line that is not due yet.
            if lines.is_closed() || (pacer.due(&line) && lines.blocking_send(Ok(line)).is_err()) {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        };
        let end = match modelfile::create(&app.store, &spec, &mut tell) {
            Ok(()) => Ok(status("success")),
            Err(error) => Err(error.into()),
        };
        // Nobody may be there to hear it.
        let _ = lines.blocking_send(end);
    });
    let events = stream::poll_fn(move |context| incoming.poll_recv(context));
    if streamed {
        return Ok(ndjson(events).await);
    }
    let end = last(events).await?;
    Ok(json(&end.unwrap_or_else(|| status("success"))))
}

/// What the request asks for, once everything in it makes sense.
fn spec(request: CreateRequest, local: Local) -> Result<Spec, Error> {
    let files = uploads(request.files)?;
    let adapters = uploads(request.adapters)?;
    let drafts = uploads(request.draft_files)?;
    let name = Name::parse(&first_of(request.model, request.name)).map_err(|_| Error::InvalidName)?;
    let base = match (request.from.as_str(), request.path.as_str(), files.is_empty()) {
        ("", "", true) => return Err(Error::NothingToCreateFrom),
        (from, "", true) => Base::Model(Name::parse(from)?),
        ("", path, true) => {
            local.path(path)?.map(Base::Path).ok_or_else(|| Error::BadRequest("'path' must be absolute".into()))?
        }
        ("", "", false) => Base::Files(files),
        _ => return Err(Error::BadRequest("only one of 'from', 'files' and 'path' can be given".into())),
    };
    if !request.remote_host.is_empty() {
        return Err(Error::Cloud { what: "remote model is unavailable" });
    }
    for quantize in [first_of(request.quantize, request.quantization), request.draft_quantize] {
        refuse_quantize(&quantize)?;
    }
    if !request.requires.is_empty() && !modelfile::is_version(&request.requires) {
        return Err(Error::BadRequest(modelfile::Fault::Requires.to_string()));
    }
    // What would fail in every later request fails here.
    if let Err(error) = Family::of_go_template(&request.template) {
        return Err(Error::BadRequest(format!("template error: {error}")));
    }
    inference::check_routing_file(&Options::new(&[&request.parameters])?, local)?;
    let licenses = match request.license {
        Value::Null => Vec::new(),
        Value::String(license) => vec![license],
        Value::Array(licenses) => licenses
            .into_iter()
            .map(|license| match license {
                Value::String(license) => Ok(license),
                _ => Err(Error::BadRequest("'license' must be a string or a list of strings".into())),
            })
            .collect::<Result<_, _>>()?,
        _ => return Err(Error::BadRequest("'license' must be a string or a list of strings".into())),
    };
    let changes = Changes {
        template: request.template,
        system: request.system,
        licenses: licenses.into_iter().filter(|license| !license.is_empty()).collect(),
        parameters: request.parameters,
        messages: request.messages.into_iter().map(|m| Message { role: m.role, content: m.content }).collect(),
        renderer: request.renderer,
        parser: request.parser,
        requires: request.requires,
        info: request.info,
    };
    Ok(Spec { name, base, adapters, drafts, changes })
}

/// File names must be relative and stay below where they are put; what a digest is, is said by its type.
fn uploads(files: BTreeMap<String, String>) -> Result<Vec<(String, Digest)>, Error> {
    if files.keys().any(|name| !is_relative(name)) {
        return Err(Error::FilePath);
    }
    files.into_iter().map(|(name, digest)| Ok((name, digest.parse().map_err(|_| Error::InvalidDigest)?))).collect()
}

/// Go's `fs.ValidPath`, without its root `.`, and with no other separators of other systems.
fn is_relative(name: &str) -> bool {
    let plain = PathBuf::from(name).components().all(|part| matches!(part, std::path::Component::Normal(_)));
    plain && !name.contains(['\\', '\0']) && name.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

fn refuse_quantize(quantize: &str) -> Result<(), Error> {
    if quantize.is_empty() {
        return Ok(());
    }
    if !QUANTIZATIONS.iter().any(|known| known.eq_ignore_ascii_case(quantize)) {
        let known = QUANTIZATIONS.join(", ");
        return Err(Error::BadRequest(format!("unsupported quantization type '{quantize}', expected one of {known}")));
    }
    Err(Error::NotImplemented(format!(
        "quantizing to '{quantize}' while creating is not supported; convert a checkpoint with `fathom convert --dense` \
         or `--experts` and create the model from the result"
    )))
}

fn status(text: impl Into<String>) -> ProgressResponse {
    ProgressResponse { status: text.into(), ..ProgressResponse::default() }
}

fn progress(event: Event) -> ProgressResponse {
    match event {
        Event::ParsingGguf => status("parsing GGUF"),
        Event::Converting { completed, total } => ProgressResponse { completed, total, ..status("converting model") },
        Event::Reading { completed, total } => ProgressResponse { completed, total, ..status("reading model") },
        Event::ExistingLayer(digest) => status(format!("using existing layer {digest}")),
        Event::NewLayer(digest) => status(format!("creating new layer {digest}")),
        Event::Warning(text) => status(format!("warning: {text}")),
        Event::WritingManifest => status("writing manifest"),
    }
}

/// Keeps a stream of progress lines readable.
struct Pacer {
    status: String,
    sent: Instant,
}

impl Pacer {
    /// Whether a line shall be sent: new statuses and ends always, counts now and then.
    fn due(&mut self, line: &ProgressResponse) -> bool {
        let counts = line.total > 0 && line.completed < line.total && line.status == self.status;
        let due = !counts || self.sent.elapsed() >= PACE;
        if due {
            self.status.clone_from(&line.status);
            self.sent = Instant::now();
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_relative_names_become_files() {
        for name in ["model.gguf", "sub/config.json", "a b", "...", "é"] {
            assert!(is_relative(name), "{name:?}");
        }
        for name in ["", ".", "..", "/etc/passwd", "../x", "a/../b", "a//b", "a/", "./a", "a\\b", "..\\x", "a\0"] {
            assert!(!is_relative(name), "{name:?}");
        }
    }

    #[test]
    fn progress_is_sent_at_a_readable_pace() {
        let mut pacer = Pacer { status: String::new(), sent: Instant::now() };
        let line = |completed| ProgressResponse { completed, total: 10, ..status("converting model") };
        assert!(pacer.due(&line(0)), "a new status");
        pacer.sent = Instant::now() + PACE;
        assert!(!pacer.due(&line(1)), "too soon");
        assert!(pacer.due(&line(10)), "the end");
        assert!(pacer.due(&status("parsing GGUF")) && pacer.due(&status("parsing GGUF")), "no counts");
    }
}
