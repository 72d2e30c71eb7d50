//! POST `/api/show`: everything about one model, for people (Modelfile, parameters) and for programs (metadata, tensors).

use std::fmt::Write;
use std::path::Path;

use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::Response;
use fathom_gguf::{Array, File, Metadata};
use serde_json::value::to_raw_value;
use serde_json::{Map, Number, Value};

use super::models::{self, blocking, capabilities, details, first_of, local_time};
use super::types::*;
use crate::api::extract::Body;
use crate::api::local::Local;
use crate::api::{AppState, Error, json};
use crate::modelfile::{self, Instruction, Modelfile, Role};
use crate::store::{self, Model, Name, Store};

/// Template of a model that brings none, as Ollama shows it.
const DEFAULT_TEMPLATE: &str = "{{ .Prompt }}";
/// Width of the names in `parameters`.
const PARAMETER_COLUMN: usize = 30;
/// Keys that answers have no use for: they are fields of their own, or (the rest) files and checksums inside the metadata.
const LEFT_OUT: &[&str] = &["general.name", "tokenizer.chat_template"];
const BIG_KEYS: &[&str] = &["fathom.source.", "fathom.tensor.", "fathom.fp8_scale.", "tokenizer.huggingface.json"];
/// The big prefix has small and useful exceptions.
const SMALL_KEYS: &[&str] = &["fathom.source.release"];

/// POST `/api/show`.
pub async fn show(
    State(app): State<AppState>,
    local: Local,
    headers: HeaderMap,
    Body(request): Body<ShowRequest>,
) -> Result<Response, Error> {
    let typed = first_of(request.model.clone(), request.name.clone());
    if typed.is_empty() {
        return Err(Error::ModelRequired);
    }
    let path = local.path(&typed)?;
    let agent = headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or("");
    // Copilot shows this key instead of the name.
    let basename = agent.starts_with("GitHubCopilotChat/").then(|| typed.clone());
    let answer = blocking(move || {
        let model = match path {
            Some(path) => Model::from_gguf(&path)?,
            None => installed(&app.store, &typed)?,
        };
        // Written out here: with `verbose`, a vocabulary and more is part of it.
        to_raw_value(&describe(model, &request, basename)?).map_err(|e| Error::Internal(e.to_string()))
    })
    .await??;
    Ok(json(&answer))
}

/// What `/api/show` answers about a file, for programs that have it before them and no server.
///
/// # Errors
/// The file is not there, or no model.
pub fn of_file(path: &Path, verbose: bool) -> Result<ShowResponse, Error> {
    describe(Model::from_gguf(path)?, &ShowRequest { verbose, ..ShowRequest::default() }, None)
}

fn installed(store: &Store, typed: &str) -> Result<Model, Error> {
    let name = Name::parse(typed)?;
    match models::installed(store, &name) {
        Err(Error::Store(store::Error::NotFound(_))) if name.is_cloud() => {
            Err(Error::Cloud { what: "remote model details are unavailable" })
        }
        // The one endpoint that names the normalised name.
        Err(Error::Store(store::Error::NotFound(_))) => Err(Error::NotFound(name.to_string())),
        found => found,
    }
}

fn describe(mut model: Model, request: &ShowRequest, basename: Option<String>) -> Result<ShowResponse, Error> {
    if !request.system.is_empty() {
        model.system = Some(request.system.clone());
    }
    let mut answer = ShowResponse {
        license: model.license.join("\n"),
        parameters: parameters(&model.params),
        template: model.header.chat_template.clone().or(model.template.clone()).unwrap_or_default(),
        system: model.system.clone().unwrap_or_default(),
        details: details(model.details()),
        messages: model.messages.iter().map(StoredMessage::from).collect(),
        capabilities: capabilities(&model),
        modified_at: local_time(model.modified),
        requires: model.config.requires.clone(),
        ..ShowResponse::default()
    };
    if !model.weights.is_empty() {
        let file = open(&model.weights)?;
        answer.model_info = metadata(file.metadata(), request.verbose);
        answer.model_info.insert("general.parameter_count".into(), model.header.parameter_count.into());
        answer.tensors = file
            .tensors()
            .iter()
            .map(|t| Tensor { name: t.name.clone(), kind: t.dtype.name().to_uppercase(), shape: t.ne.clone() })
            .collect();
    }
    if let Some(projector) = model.projectors.first() {
        answer.projector_info = metadata(open(&[projector])?.metadata(), request.verbose);
    }
    if let Some(basename) = basename {
        answer.model_info.insert("general.basename".into(), basename.into());
    }
    model.params.extend(request.options.clone());
    answer.modelfile = modelfile_text(&model);
    Ok(answer)
}

fn open<P: AsRef<Path>>(paths: &[P]) -> Result<File, Error> {
    let path = paths.first().map(|p| p.as_ref().to_path_buf()).unwrap_or_default();
    File::open_shards(paths).map_err(|source| store::Error::Gguf { path, source }.into())
}

/// One line per value: the name, padded, and the value as Go prints it.
fn parameters(params: &Map<String, Value>) -> String {
    let mut lines = Vec::new();
    for (name, value) in params {
        let values = match value {
            Value::Array(values) => values.as_slice(),
            value => std::slice::from_ref(value),
        };
        for value in values {
            let value = match value {
                Value::Number(number) => modelfile::number(number),
                value => value.to_string(),
            };
            lines.push(format!("{name:<PARAMETER_COLUMN$} {value}"));
        }
    }
    lines.join("\n")
}

/// Metadata as JSON. Arrays (vocabularies, mostly) and big texts only when asked for.
fn metadata(metadata: &Metadata, verbose: bool) -> Map<String, Value> {
    metadata
        .iter()
        .filter(|(key, _)| !LEFT_OUT.contains(key))
        .filter(|(key, _)| verbose || SMALL_KEYS.contains(key) || !BIG_KEYS.iter().any(|big| key.starts_with(big)))
        .map(|(key, value)| (key.to_string(), metadata_value(value, verbose)))
        .collect()
}

fn metadata_value(value: &fathom_gguf::Value, verbose: bool) -> Value {
    use fathom_gguf::Value as Gguf;
    match value {
        Gguf::U8(n) => (*n).into(),
        Gguf::I8(n) => (*n).into(),
        Gguf::U16(n) => (*n).into(),
        Gguf::I16(n) => (*n).into(),
        Gguf::U32(n) => (*n).into(),
        Gguf::I32(n) => (*n).into(),
        Gguf::U64(n) => (*n).into(),
        Gguf::I64(n) => (*n).into(),
        Gguf::F32(n) => float(*n),
        // NaN and infinities have no JSON form.
        Gguf::F64(n) => Number::from_f64(*n).map_or(Value::Null, Value::Number),
        Gguf::Bool(b) => (*b).into(),
        Gguf::String(s) => s.as_str().into(),
        Gguf::Array(array) if verbose => elements(array),
        Gguf::Array(_) => Value::Null,
    }
}

/// The shortest decimal that reads back as the same f32, not the long one of its f64 neighbour.
fn float(number: f32) -> Value {
    let shortest = number.to_string().parse::<f64>().ok();
    shortest.and_then(Number::from_f64).map_or(Value::Null, Value::Number)
}

fn elements(array: &Array) -> Value {
    match array {
        Array::U8(n) => n.as_slice().into(),
        Array::I8(n) => n.as_slice().into(),
        Array::U16(n) => n.as_slice().into(),
        Array::I16(n) => n.as_slice().into(),
        Array::U32(n) => n.as_slice().into(),
        Array::I32(n) => n.as_slice().into(),
        Array::U64(n) => n.as_slice().into(),
        Array::I64(n) => n.as_slice().into(),
        Array::F32(n) => n.iter().copied().map(float).collect(),
        Array::F64(n) => n.iter().map(|n| Number::from_f64(*n).map_or(Value::Null, Value::Number)).collect(),
        Array::Bool(b) => b.as_slice().into(),
        Array::String(strings) => strings.iter().collect(),
        Array::Array(arrays) => arrays.iter().map(elements).collect(),
    }
}

/// The Modelfile that makes this model again.
fn modelfile_text(model: &Model) -> String {
    let name = model.name();
    let mut text = format!(
        "# Modelfile generated by \"ollama show\"\n# To build a new Modelfile based on this, replace FROM with:\n# FROM {name}\n\n"
    );
    let shown = |path: &Path| path.display().to_string();
    // The other shards of a file are found by their names, which those in a store do not have.
    let named = if matches!(model.source, store::Source::File(_)) { 1 } else { model.weights.len() };
    let mut instructions: Vec<Instruction> =
        model.weights.iter().take(named).map(|path| Instruction::From(shown(path))).collect();
    instructions.extend(model.adapters.iter().map(|path| Instruction::Adapter(shown(path))));
    instructions.extend(model.draft.iter().map(|path| Instruction::Draft(shown(path))));
    instructions.extend(model.projectors.iter().map(|path| Instruction::From(shown(path))));
    instructions.push(Instruction::Template(model.template.clone().unwrap_or(DEFAULT_TEMPLATE.into())));
    instructions.extend(model.system.clone().map(Instruction::System));
    let config = &model.config;
    instructions.extend((!config.renderer.is_empty()).then(|| Instruction::Renderer(config.renderer.clone())));
    instructions.extend((!config.parser.is_empty()).then(|| Instruction::Parser(config.parser.clone())));
    instructions.extend((!config.requires.is_empty()).then(|| Instruction::Requires(config.requires.clone())));
    for (name, value) in &model.params {
        let values = match value {
            Value::Array(values) => values.clone(),
            Value::Null | Value::Object(_) => Vec::new(),
            value => vec![value.clone()],
        };
        instructions.extend(values.into_iter().map(|value| Instruction::Parameter { name: name.clone(), value }));
    }
    instructions.extend(model.license.iter().cloned().map(Instruction::License));
    for message in &model.messages {
        if let Some(role) = Role::from_word(&message.role) {
            instructions.push(Instruction::Message { role, content: message.content.clone() });
        }
    }
    // One instruction at a time: what cannot be written leaves a comment in its place and does not take the rest with it.
    for instruction in instructions {
        match modelfile::write(&Modelfile { instructions: vec![instruction] }) {
            Ok(line) => text.push_str(&line),
            Err(error) => writeln!(text, "# {error}").expect("writing to a string does not fail"),
        }
    }
    text
}

impl From<&store::Message> for StoredMessage {
    fn from(message: &store::Message) -> Self {
        StoredMessage { role: message.role.clone(), content: message.content.clone() }
    }
}
