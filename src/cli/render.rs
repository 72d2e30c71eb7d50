//! `fathom render`: the prompt that a chat request becomes, and its token ids.
//!
//! The request is that of `/api/chat` (or `/api/generate`: `prompt`, `suffix`), as far as it shapes the prompt; the rest is
//! ignored, as the server ignores it. Beyond that interface `think` may be a number 1..=100, a message may have a `task` and
//! `tools` of its own, and `keep_thinking` shows the reasoning of earlier turns.

use std::fmt;
use std::io::{self, Read, Write};

use anyhow::Context;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, Visitor};
use serde_json::json;

use super::{hint, weights};
use crate::chat::family::{Facts, for_model};
use crate::chat::{self, Arguments, Family, Prompt, RawJson, Request, Role, Think, Tool};
use crate::completion::facts;
use crate::config::Config;
use crate::ids::TokenId;
use crate::store::Model;
use crate::tokens::Tokenizer;

/// The format when neither a model nor `--generation` says one.
const DEFAULT_GENERATION: &str = "v4_0731";

#[derive(clap::Args)]
#[command(
    after_help = "Reads the request from standard input, e.g. `echo '{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}' | fathom render`."
)]
pub struct Args {
    /// The model whose format and tokenizer are used: a name or a `.gguf` file. Without it the request's `model` counts, and
    /// without that the prompt is printed alone
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// The prompt generation, whatever the model's release [default without a model: v4_0731]
    #[arg(long, value_parser = ["v4_april", "v4_0731", "v41", "template", "plain"])]
    generation: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Prints what the request on standard input becomes.
pub fn run(args: Args, config: &Config) -> anyhow::Result<()> {
    let mut bytes = Vec::new();
    io::stdin().lock().read_to_end(&mut bytes).context("cannot read standard input")?;
    let wire: WireRequest = serde_json::from_slice(&bytes).map_err(|error| {
        hint(anyhow::anyhow!("the request is not readable: {error}"), "it is JSON as for `/api/chat`")
    })?;

    let named = wire.model.as_deref().filter(|name| !name.is_empty() && args.generation.is_none());
    let model = args.model.as_deref().or(named).map(|name| weights::model(name, config)).transpose()?;
    let chosen = args.generation.as_deref();
    let family = match &model {
        Some(model) => for_model(&Facts { chosen: chosen.or(facts(model).chosen), ..facts(model) }),
        None => for_model(&Facts { chosen: chosen.or(Some(DEFAULT_GENERATION)), ..Facts::default() }),
    }?;
    let prompt = wire.render(&family, model.as_ref())?;
    let tokens = model.as_ref().map(|model| tokenize(model, &prompt)).transpose()?;
    print(&args, &family, &prompt, tokens.as_deref())
}

fn tokenize(model: &Model, prompt: &Prompt) -> anyhow::Result<Vec<TokenId>> {
    let file = weights::of(model)?;
    let tokenizer = Tokenizer::from_gguf(file.metadata())
        .with_context(|| format!("cannot use the tokenizer of `{}`", model.source))?;
    Ok(tokenizer.encode_prompt(&prompt.text)?)
}

fn print(args: &Args, family: &Family, prompt: &Prompt, tokens: Option<&[TokenId]>) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    let ids = tokens.map(|tokens| tokens.iter().map(|token| token.0).collect::<Vec<_>>());
    if args.json {
        let object = json!({
            "schema": 1,
            "format": family.name(),
            "prompt": prompt.text,
            "starts_in_thinking": prompt.starts_in_thinking,
            "stable_bytes": prompt.stable_bytes,
            "tokens": ids,
        });
        writeln!(out, "{object:#}")?;
        return Ok(());
    }
    writeln!(out, "{}", prompt.text)?;
    if let Some(ids) = ids {
        let list: Vec<String> = ids.iter().map(u32::to_string).collect();
        writeln!(out, "\n{} tokens: {}", ids.len(), list.join(","))?;
    }
    Ok(())
}

/// What of a request shapes the prompt.
#[derive(Deserialize)]
struct WireRequest {
    model: Option<String>,
    messages: Option<Vec<WireMessage>>,
    prompt: Option<String>,
    suffix: Option<String>,
    system: Option<String>,
    tools: Option<Vec<WireTool>>,
    #[serde(default)]
    think: WireThink,
    format: Option<RawJson>,
    keep_thinking: Option<bool>,
}

#[derive(Deserialize)]
struct WireMessage {
    #[serde(deserialize_with = "role")]
    role: Role,
    content: Option<String>,
    #[serde(alias = "reasoning_content", alias = "reasoning")]
    thinking: Option<String>,
    tool_calls: Option<Vec<WireCall>>,
    #[serde(alias = "name")]
    tool_name: Option<String>,
    tool_call_id: Option<String>,
    images: Option<Vec<String>>,
    tools: Option<Vec<WireTool>>,
    task: Option<String>,
}

#[derive(Deserialize)]
struct WireCall {
    id: Option<String>,
    function: WireFunction,
}

#[derive(Deserialize)]
struct WireFunction {
    name: String,
    arguments: Option<RawJson>,
}

#[derive(Deserialize)]
struct WireTool {
    #[serde(deserialize_with = "tool")]
    function: Tool,
}

/// `true`, `false`, a level or a number.
#[derive(Default)]
struct WireThink(Think);

impl<'de> Deserialize<'de> for WireThink {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Level;
        impl Visitor<'_> for Level {
            type Value = Think;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`think` as true, false, \"low\", \"medium\", \"high\", \"max\" or a number 1..=100")
            }

            fn visit_unit<E>(self) -> Result<Think, E> {
                Ok(Think::Default)
            }

            fn visit_bool<E>(self, on: bool) -> Result<Think, E> {
                Ok(if on { Think::On } else { Think::Off })
            }

            fn visit_u64<E: serde::de::Error>(self, percent: u64) -> Result<Think, E> {
                match u8::try_from(percent) {
                    Ok(percent @ 1..=100) => Ok(Think::Percent(percent)),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Unsigned(percent), &self)),
                }
            }

            fn visit_str<E: serde::de::Error>(self, level: &str) -> Result<Think, E> {
                Ok(match level {
                    "low" => Think::Low,
                    "medium" => Think::Medium,
                    "high" => Think::High,
                    "max" => Think::Max,
                    _ => return Err(E::invalid_value(serde::de::Unexpected::Str(level), &self)),
                })
            }
        }
        deserializer.deserialize_any(Level).map(WireThink)
    }
}

fn role<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Role, D::Error> {
    String::deserialize(deserializer).map(|word| Role::parse(&word))
}

fn tool<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Tool, D::Error> {
    let function = RawJson::deserialize(deserializer)?;
    Tool::from_function(function).ok_or_else(|| D::Error::custom("a tool's `function` has no `name`"))
}

impl WireRequest {
    fn render(self, family: &Family, model: Option<&Model>) -> anyhow::Result<Prompt> {
        let mut messages = Vec::new();
        for message in self.messages.unwrap_or_default() {
            messages.push(message.read()?);
        }
        if let Some(prompt) = self.prompt {
            if let Some(suffix) = self.suffix.filter(|suffix| !suffix.is_empty()) {
                return Ok(family.render_insert(&prompt, &suffix)?);
            }
            messages.push(chat::Message::new(Role::User, prompt));
        }
        // As the server does it: the model's own system text gives way to one of the client's.
        let starts_with_system = messages.first().is_some_and(|m| m.role == Role::System);
        if let Some(model) = model {
            let stored = model.messages.iter().map(|m| chat::Message::new(Role::parse(&m.role), m.content.clone()));
            messages.splice(0..0, stored);
        }
        let system = self.system.or_else(|| model.and_then(|m| m.system.clone())).filter(|text| !text.is_empty());
        if let Some(system) = system.filter(|_| !starts_with_system) {
            messages.insert(0, chat::Message::new(Role::System, system));
        }
        let request = Request {
            messages,
            tools: self.tools.unwrap_or_default().into_iter().map(|tool| tool.function).collect(),
            think: self.think.0,
            response_format: self.format.filter(|format| format.text() != "null" && format.text() != "\"\""),
            keep_thinking: self.keep_thinking.unwrap_or_default(),
        };
        Ok(family.render(&request)?)
    }
}

impl WireMessage {
    fn read(self) -> anyhow::Result<chat::Message> {
        anyhow::ensure!(self.images.is_none_or(|images| images.is_empty()), "images have no form in a prompt's text");
        let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
        Ok(chat::Message {
            thinking: filled(self.thinking),
            tool_calls: self.tool_calls.unwrap_or_default().into_iter().map(WireCall::read).collect(),
            tool_call_id: filled(self.tool_call_id),
            tool_name: filled(self.tool_name),
            tools: self.tools.unwrap_or_default().into_iter().map(|tool| tool.function).collect(),
            task: filled(self.task),
            ..chat::Message::new(self.role, self.content.unwrap_or_default())
        })
    }
}

impl WireCall {
    fn read(self) -> chat::ToolCall {
        chat::ToolCall {
            id: self.id.filter(|id| !id.is_empty()),
            name: self.function.name,
            arguments: self.function.arguments.map_or_else(|| Arguments::parse(""), Arguments::from),
        }
    }
}
