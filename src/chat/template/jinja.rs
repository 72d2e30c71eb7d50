//! Jinja templates as published with models (`tokenizer.chat_template`), evaluated as transformers does.
//!
//! A template is a program by a stranger: it gets fuel in proportion to the conversation, a bounded recursion, no files and
//! no includes. What it may use: the Python methods of strings, lists and dicts, `tojson` as Python's `json.dumps`,
//! `raise_exception`, `strftime_now`, `bos_token`, `eos_token`, `messages`, `tools`, `add_generation_prompt`,
//! `enable_thinking` (and DeepSeek's `thinking`), `reasoning_effort`.
//!
//! The answer is read by what [`super::answer`] makes of the template's text.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, ErrorKind};
use serde_json::json;

use super::answer::Tags;
use crate::chat::json::RawJson;
use crate::chat::message::{Arguments, Message, Request, Role, Think};
use crate::chat::{Error, Parser, Prompt};

const NAME: &str = "chat_template";
/// Steps every template may take; a step is an instruction or 64 bytes of data.
const BASE_FUEL: u64 = 1_000_000;
/// More steps for each message, and for each byte of the conversation: a template may copy it some 60 times over.
const FUEL_PER_MESSAGE: u64 = 500;
const FUEL_PER_BYTE: u64 = 1;
/// Templates nest a few levels. Bounds the stack in a thread of 2 MiB, also in a debug build.
const MAX_RECURSION: usize = 100;

/// A compiled template.
pub struct Template {
    environment: Environment<'static>,
    bos: String,
    eos: String,
    tags: Tags,
}

impl std::fmt::Debug for Template {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Template").field("tags", &self.tags).finish_non_exhaustive()
    }
}

impl Template {
    /// Compiles `source`.
    ///
    /// # Errors
    /// [`Error::Template`] with the line.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Template, Error> {
        let mut environment = Environment::new();
        // As transformers sets up Jinja.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| Error::Template(e.to_string()))?);
        environment.set_recursion_limit(MAX_RECURSION);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_template_owned(NAME, source.to_owned()).map_err(|e| explain(&e))?;
        Ok(Template { environment, bos: bos.to_owned(), eos: eos.to_owned(), tags: Tags::of_template(source) })
    }

    pub fn knows_thinking(&self) -> bool {
        self.tags.thinking.is_some()
    }

    pub fn knows_tools(&self) -> bool {
        self.tags.tool.is_some()
    }

    /// Writes the conversation. A last message from the assistant is put behind the opening of the assistant's turn.
    ///
    /// # Errors
    /// [`Error::NoMessages`]; [`Error::Raised`] with the template's own words; [`Error::Template`] for everything else,
    /// also when it needs too many steps.
    pub fn render(&self, request: &Request) -> Result<Prompt, Error> {
        let last = request.messages.last().ok_or(Error::NoMessages)?;
        let prefill = Some(last).filter(|m| m.role == Role::Assistant && m.tool_calls.is_empty());
        let history = &request.messages[..request.messages.len() - usize::from(prefill.is_some())];
        let mut text = self.evaluate(history, request, true)?;
        // What the opening adds is written differently once the answer is history.
        let closed = self.evaluate(history, request, false)?;
        let stable_bytes = super::common_prefix(&text, &closed);
        let mut starts_in_thinking = self.tags.open_at_end(&text);
        if let Some(prefill) = prefill {
            if let Some(tags) = self.tags.thinking.as_ref().filter(|_| starts_in_thinking) {
                text.push_str(prefill.thinking.as_deref().unwrap_or(""));
                if !prefill.content.is_empty() {
                    text.push_str(&tags.close);
                    text.push_str("\n\n");
                    starts_in_thinking = false;
                }
            }
            text.push_str(&prefill.content);
        }
        Ok(Prompt { text, starts_in_thinking, stable_bytes })
    }

    fn evaluate(&self, messages: &[Message], request: &Request, open: bool) -> Result<String, Error> {
        let tools: Vec<_> =
            request.tools.iter().map(|tool| json!({ "type": "function", "function": tool.function.value() })).collect();
        let mut context = json!({
            "messages": messages.iter().map(describe).collect::<Vec<_>>(),
            "tools": if tools.is_empty() { json!(null) } else { json!(tools) },
            "add_generation_prompt": open,
            "bos_token": self.bos,
            "eos_token": self.eos,
        });
        if self.tags.thinking.is_some() {
            let thinks = request.think != Think::Off;
            context["enable_thinking"] = json!(thinks);
            context["thinking"] = json!(thinks);
        }
        if let Some(effort) = effort(request.think) {
            context["reasoning_effort"] = json!(effort);
        }
        let bytes: usize = messages.iter().map(|m| m.content.len() + m.thinking.as_ref().map_or(0, String::len)).sum();
        let of_tools: usize = request.tools.iter().map(|t| t.function.text().len()).sum();
        let mut environment = self.environment.clone();
        let fuel = FUEL_PER_MESSAGE * messages.len() as u64 + FUEL_PER_BYTE * (bytes + of_tools) as u64;
        environment.set_fuel(Some(BASE_FUEL + fuel));
        let template = environment.get_template(NAME).map_err(|e| explain(&e))?;
        template.render(Value::from(Serde(context))).map_err(|e| explain(&e))
    }

    /// What ends the reasoning of an answer.
    pub fn thinking_end(&self) -> Option<&str> {
        self.tags.thinking.as_ref().map(|tags| &*tags.close)
    }

    /// Makes the reader of the answer to `prompt`.
    pub fn parser(&self, request: &Request, prompt: &Prompt) -> Box<dyn Parser> {
        self.tags.parser(request, prompt)
    }
}

/// A message as templates expect it: OpenAI's form, with arguments as objects.
fn describe(message: &Message) -> serde_json::Value {
    let mut map = json!({ "role": message.role.as_str(), "content": message.content });
    if let Some(thinking) = &message.thinking {
        map["reasoning_content"] = json!(thinking);
    }
    if !message.tool_calls.is_empty() {
        let calls = message.tool_calls.iter().map(|call| {
            let arguments = match &call.arguments {
                Arguments::Object(object) => object.value(),
                Arguments::Text(text) => json!(text),
            };
            json!({ "type": "function", "id": call.id, "function": { "name": call.name, "arguments": arguments } })
        });
        map["tool_calls"] = calls.collect();
    }
    if let Some(id) = &message.tool_call_id {
        map["tool_call_id"] = json!(id);
    }
    if let Some(name) = &message.tool_name {
        map["name"] = json!(name);
    }
    map
}

fn effort(think: Think) -> Option<&'static str> {
    match think {
        Think::Default | Think::Off | Think::On => None,
        Think::Low | Think::Percent(0..=62) => Some("low"),
        Think::Medium => Some("medium"),
        Think::High | Think::Percent(63..=87) => Some("high"),
        Think::Max | Think::Percent(_) => Some("max"),
    }
}

/// Python's `json.dumps(value, ensure_ascii=False)`, with `indent`.
fn to_json(value: &Value, indent: Option<Value>, options: Kwargs) -> Result<String, minijinja::Error> {
    let failed = |e: serde_json::Error| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string());
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get::<Option<Value>>("indent")?,
    };
    // Accepted as transformers accepts them; the default of both is what is done here.
    let _: Option<Value> = options.get("ensure_ascii")?;
    let _: Option<Value> = options.get("sort_keys")?;
    options.assert_all_used()?;
    match indent.filter(|indent| !indent.is_none()) {
        None => {
            let text = serde_json::to_string(value).map_err(failed)?;
            Ok(RawJson::parse(&text).map_err(failed)?.python())
        }
        Some(indent) => {
            let spaces = " ".repeat(usize::try_from(indent)?.min(16));
            let formatter = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            let mut out = Vec::new();
            let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
            serde::Serialize::serialize(value, &mut serializer).map_err(failed)?;
            Ok(String::from_utf8_lossy(&out).into_owned())
        }
    }
}

/// Marks an error as one that the template itself raised.
const RAISED: &str = "\u{1}raised\u{1}";

fn raise_exception(message: &str) -> Result<String, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
}

fn strftime_now(format: &str) -> Result<String, minijinja::Error> {
    let now = jiff::ZonedDateTime::now();
    jiff::fmt::strtime::format(format, &now)
        .map_err(|e| minijinja::Error::new(ErrorKind::InvalidOperation, e.to_string()))
}

/// The template's error in one line: what, and where.
fn explain(error: &minijinja::Error) -> Error {
    if let Some(message) = error.detail().and_then(|detail| detail.strip_prefix(RAISED)) {
        return Error::Raised(message.to_owned());
    }
    let kind = match error.kind() {
        ErrorKind::OutOfFuel => "takes too many steps".to_owned(),
        kind => kind.to_string(),
    };
    let detail = error.detail().map(|detail| format!(": {detail}")).unwrap_or_default();
    let line = error.line().map(|line| format!(" (line {line})")).unwrap_or_default();
    Error::Template(format!("{kind}{detail}{line}"))
}

#[cfg(test)]
#[path = "jinja_tests.rs"]
mod tests;
