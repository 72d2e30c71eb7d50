//! `fathom run`: ask a model something, once or in a conversation.

use std::io::{self, IsTerminal, Read};

use anyhow::Context;
use serde_json::{Value, json};

use super::answer::Style;
use super::session::{Ended, Session};
use super::settings::{self, EngineFlags};
use super::{Interrupted, connect, create, launch, repl};
use crate::api::ollama::types::CreateRequest;
use crate::client::{Client, Show};
use crate::config::{self, Config};
use crate::modelfile::bundled;
use crate::store::Name;

#[derive(clap::Args)]
pub struct Args {
    /// The model, or a `.gguf` file
    model: String,
    /// What to ask; without it, and on a terminal, a conversation begins
    prompt: Vec<String>,
    /// Let the model think before it answers: true, false, low, medium, high or max
    #[arg(long, value_name = "LEVEL", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = think_level)]
    think: Option<Value>,
    /// Do not show what the model thinks
    #[arg(long)]
    hidethinking: bool,
    /// Print times and token counts after the answer
    #[arg(long)]
    verbose: bool,
    /// How long the model stays loaded: `5m`, `1h30m` or seconds; negative = until the server ends
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, value_parser = keep_alive)]
    keepalive: Option<Value>,
    /// Leave long lines as they are
    #[arg(long)]
    nowordwrap: bool,
    /// Shape of the answer: json, or a JSON schema
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    format: Option<Value>,
    #[command(flatten)]
    engine: EngineFlags,
}

pub(super) fn think_level(text: &str) -> Result<Value, String> {
    match text {
        "true" => Ok(json!(true)),
        "false" => Ok(json!(false)),
        "low" | "medium" | "high" | "max" => Ok(json!(text)),
        _ => Err("must be true, false, low, medium, high or max".into()),
    }
}

/// A plain number is seconds on the wire, anything else is sent as it was typed.
fn keep_alive(text: &str) -> Result<Value, String> {
    config::parse_duration(text).map_err(|e| format!("expected {e}"))?;
    Ok(text.parse::<i64>().map_or_else(|_| json!(text), |seconds| json!(seconds)))
}

fn format(text: &str) -> Result<Value, String> {
    if text.trim_start().starts_with('{') {
        return serde_json::from_str(text).map_err(|e| format!("not a JSON schema: {e}"));
    }
    Ok(json!(text))
}

pub fn run(mut args: Args, config: &Config) -> anyhow::Result<()> {
    // Bad flags are for this command to refuse, not for the log of a server it starts.
    settings::engine(&args.engine.applied(config)?)?;
    // Part of every request and no setting of the server, which may run already.
    let routing = args.engine.take("ROUTING").map(|text| settings::routing(&text)).transpose()?;
    let prompt = prompt(&args.prompt)?;
    let interactive = prompt.is_none() && io::stdout().is_terminal();
    let runtime = connect::runtime()?;
    let mut session = runtime.block_on(open(&args, config))?;
    if let Some(routing) = routing {
        session.options.insert("routing".into(), json!(routing.to_string()));
    }
    if interactive {
        if runtime.block_on(session.preload())? == Ended::Interrupted {
            return Err(Interrupted.into());
        }
        return repl::run(&runtime, session, config);
    }
    if !io::stdin().is_terminal() {
        session.style.columns = None;
    }
    match runtime.block_on(session.generate(&prompt.unwrap_or_default()))? {
        Ended::Done => Ok(()),
        Ended::Interrupted => Err(Interrupted.into()),
    }
}

/// What was piped in, then what stands on the command line. `None` = a conversation is wanted, if there is a terminal.
fn prompt(words: &[String]) -> anyhow::Result<Option<String>> {
    let mut parts = words.to_vec();
    let mut given = !words.is_empty();
    if !io::stdin().is_terminal() {
        given = true;
        let mut bytes = Vec::new();
        io::stdin().lock().read_to_end(&mut bytes).context("cannot read stdin")?;
        let text = String::from_utf8(bytes).map_err(|e| {
            anyhow::anyhow!(
                "stdin is not UTF-8 text: the first bad byte is at position {}",
                e.utf8_error().valid_up_to()
            )
        })?;
        if !text.is_empty() {
            parts.insert(0, text);
        }
    }
    Ok(given.then(|| parts.join(" ")))
}

/// Finds or starts a server and asks it about the model.
async fn open(args: &Args, config: &Config) -> anyhow::Result<Session> {
    let mut client = Client::new(&config.host)?;
    launch::ensure_server(&mut client, config, &args.engine.arguments()).await?;
    let model = connect::model_name(&args.model, &client)?;
    first_use(&client, &model).await?;
    let show = client.show(&model, false).await.map_err(connect::explained)?;
    let think = args.think.clone().or_else(|| default_think(&show));
    let terminal = io::stdout().is_terminal();
    let columns = if terminal && !args.nowordwrap { repl::columns() } else { None };
    Ok(Session {
        client,
        model,
        show,
        messages: Vec::new(),
        system: None,
        options: serde_json::Map::new(),
        think,
        format: args.format.clone(),
        keep_alive: args.keepalive.clone(),
        verbose: args.verbose,
        style: Style { columns, color: terminal, hide_thinking: args.hidethinking },
    })
}

/// The bundled model is made on first use by whatever asks for it; here its making is shown.
async fn first_use(client: &Client, model: &str) -> anyhow::Result<()> {
    let is_bundled = |text: &str| Name::parse(text).is_ok_and(|name| bundled::is_name(&name));
    if !is_bundled(model) {
        return Ok(());
    }
    let listed = client.list().await.map_err(connect::explained)?;
    if listed.iter().any(|listed| is_bundled(&listed.name)) {
        return Ok(());
    }
    let request = CreateRequest { model: model.into(), from: model.into(), ..CreateRequest::default() };
    create::follow(client.create(&request).await.map_err(connect::explained)?).await
}

/// Who is not told otherwise thinks, if he can; other models would refuse the field.
pub(super) fn default_think(show: &Show) -> Option<Value> {
    show.capabilities.iter().any(|c| c == "thinking").then(|| json!(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_become_what_the_server_reads() {
        assert_eq!(think_level("max"), Ok(json!("max")));
        assert_eq!(think_level("false"), Ok(json!(false)));
        assert!(think_level("yes").is_err());
        assert_eq!(keep_alive("-1"), Ok(json!(-1)));
        assert_eq!(keep_alive("1h30m"), Ok(json!("1h30m")));
        assert!(keep_alive("soon").is_err());
        assert_eq!(format("json"), Ok(json!("json")));
        assert_eq!(format(r#"{"type":"object"}"#), Ok(json!({"type": "object"})));
        assert!(format("{").is_err());
    }
}
