//! The commands of the conversation, from text to what they mean.

use serde_json::{Value, json};

use crate::cli::hint;
use crate::modelfile;

/// A line that begins with `/`.
#[derive(Debug, PartialEq)]
pub(super) enum Command {
    Bye,
    Clear,
    List,
    Help(&'static str),
    Show(Shown),
    Set(Set),
    Load(String),
    Save(String),
}

/// What `/show` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    Info,
    License,
    Modelfile,
    Parameters,
    System,
    Template,
}

/// What `/set` changes for this session.
#[derive(Debug, PartialEq)]
pub(super) enum Set {
    Parameter(String, Value),
    System(String),
    History(bool),
    WordWrap(bool),
    Verbose(bool),
    Think(Value),
    Format(Option<String>),
}

/// What Tab offers.
pub(super) const COMPLETIONS: &[&str] = &[
    "/bye",
    "/clear",
    "/exit",
    "/help",
    "/list",
    "/load ",
    "/save ",
    "/set format json",
    "/set history",
    "/set noformat",
    "/set nohistory",
    "/set nothink",
    "/set nowordwrap",
    "/set parameter ",
    "/set quiet",
    "/set system ",
    "/set think",
    "/set verbose",
    "/set wordwrap",
    "/show info",
    "/show license",
    "/show modelfile",
    "/show parameters",
    "/show system",
    "/show template",
];

const HELP: &str = "\
Available Commands:
  /set            Set session variables
  /show           Show model information
  /load <model>   Load a session or model
  /save <model>   Save your current session
  /list           List the models
  /clear          Clear session context
  /bye            Exit
  /?, /help       Help for a command
  /? shortcuts    Help for keyboard shortcuts

Use \"\"\" to begin a multi-line message.

";

const HELP_SET: &str = "\
Available Commands:
  /set parameter ...     Set a parameter
  /set system <string>   Set system message
  /set history           Enable history
  /set nohistory         Disable history
  /set wordwrap          Enable wordwrap
  /set nowordwrap        Disable wordwrap
  /set format json       Enable JSON mode
  /set noformat          Disable formatting
  /set verbose           Show LLM stats
  /set quiet             Disable LLM stats
  /set think [level]     Enable thinking: true, false, low, medium, high or max
  /set nothink           Disable thinking

";

const HELP_SHOW: &str = "\
Available Commands:
  /show info         Show details for this model
  /show license      Show model license
  /show modelfile    Show Modelfile for this model
  /show parameters   Show parameters for this model
  /show system       Show system message
  /show template     Show prompt template

";

const HELP_PARAMETER: &str = "\
Available Parameters:
  /set parameter seed <int>              Random number seed
  /set parameter num_predict <int>       Max number of tokens to predict
  /set parameter top_k <int>             Pick from top k num of tokens
  /set parameter top_p <float>           Pick token based on sum of probabilities
  /set parameter min_p <float>           Pick token based on top token probability * min_p
  /set parameter num_ctx <int>           Set the context size
  /set parameter temperature <float>     Set creativity level
  /set parameter repeat_penalty <float>  How strongly to penalize repetitions
  /set parameter repeat_last_n <int>     Set how far back to look for repetitions
  /set parameter num_gpu <int>           The number of layers to send to the GPU
  /set parameter kv <type>               Set the type of cached rows: f16, f32, fp8 ...
  /set parameter routing <policy>        Compute fewer experts, such as topk:4
  /set parameter stop <string> ...       Set the stop parameters

";

const HELP_SHORTCUTS: &str = "\
Available keyboard shortcuts:
  Ctrl + a            Move to the beginning of the line (Home)
  Ctrl + e            Move to the end of the line (End)
   Alt + b            Move back (left) one word
   Alt + f            Move forward (right) one word
  Ctrl + k            Delete the sentence after the cursor
  Ctrl + u            Delete the sentence before the cursor
  Ctrl + w            Delete the word before the cursor
  Ctrl + r            Search the history
  Tab                 Complete a command

  Ctrl + l            Clear the screen
  Ctrl + c            Stop the model from responding
  Ctrl + d            Exit (/bye)

";

impl Command {
    /// # Errors
    /// Says which command or argument is not known.
    pub(super) fn parse(text: &str) -> anyhow::Result<Command> {
        let (verb, rest) = cut(text);
        match verb {
            "/bye" | "/exit" => Ok(Command::Bye),
            "/clear" => Ok(Command::Clear),
            "/list" => Ok(Command::List),
            "/?" | "/help" => help(rest),
            "/show" => show(rest),
            "/set" => set(rest),
            "/load" => one_name(verb, rest).map(Command::Load),
            "/save" => one_name(verb, rest).map(Command::Save),
            _ => Err(hint(anyhow::anyhow!("unknown command `{verb}`"), "`/?` lists the commands")),
        }
    }
}

fn help(topic: &str) -> anyhow::Result<Command> {
    Ok(Command::Help(match topic.trim_start_matches('/') {
        "" => HELP,
        "set" => HELP_SET,
        "show" => HELP_SHOW,
        "shortcut" | "shortcuts" => HELP_SHORTCUTS,
        other => {
            return Err(hint(
                anyhow::anyhow!("there is no help on `{other}`"),
                "there is on `set`, `show` and `shortcuts`",
            ));
        }
    }))
}

fn show(what: &str) -> anyhow::Result<Command> {
    Ok(Command::Show(match what {
        "" => return Ok(Command::Help(HELP_SHOW)),
        "info" => Shown::Info,
        "license" => Shown::License,
        "modelfile" => Shown::Modelfile,
        "parameters" => Shown::Parameters,
        "system" => Shown::System,
        "template" => Shown::Template,
        other => return Err(hint(anyhow::anyhow!("cannot show `{other}`"), "`/? show` lists what can be shown")),
    }))
}

fn set(text: &str) -> anyhow::Result<Command> {
    let (name, rest) = cut(text);
    Ok(Command::Set(match name {
        "" => return Ok(Command::Help(HELP_SET)),
        "parameter" if rest.is_empty() => return Ok(Command::Help(HELP_PARAMETER)),
        "parameter" => parameter(rest)?,
        "system" if rest.is_empty() => anyhow::bail!("`/set system` needs a text"),
        "system" => Set::System(unquoted(rest).to_string()),
        "history" => Set::History(true),
        "nohistory" => Set::History(false),
        "wordwrap" => Set::WordWrap(true),
        "nowordwrap" => Set::WordWrap(false),
        "verbose" => Set::Verbose(true),
        "quiet" => Set::Verbose(false),
        "nothink" => Set::Think(json!(false)),
        "think" => Set::Think(match rest {
            "" => json!(true),
            level => crate::cli::run::think_level(level)
                .map_err(|e| anyhow::anyhow!("`{level}` is no thinking level: it {e}"))?,
        }),
        "noformat" => Set::Format(None),
        "format" if rest == "json" => Set::Format(Some("json".into())),
        "format" => anyhow::bail!("the only format is `json`, not `{rest}`"),
        other => return Err(hint(anyhow::anyhow!("cannot set `{other}`"), "`/? set` lists what can be set")),
    }))
}

fn parameter(text: &str) -> anyhow::Result<Set> {
    let (name, rest) = cut(text);
    let name = name.to_ascii_lowercase();
    let value = match rest {
        "" => anyhow::bail!("`/set parameter {name}` needs a value"),
        // The only one that takes several.
        words if name == "stop" => json!(words.split_whitespace().map(unquoted).collect::<Vec<_>>()),
        word => modelfile::parameter(&name, unquoted(word))
            .map_err(|fault| hint(fault, "`/set parameter` lists what can be set"))?,
    };
    Ok(Set::Parameter(name, value))
}

/// A parameter's value as it was typed.
pub(super) fn parameter_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(parameter_text).collect::<Vec<_>>().join(", "),
        Value::Number(number) => modelfile::number(number),
        other => other.to_string(),
    }
}

fn one_name(verb: &str, rest: &str) -> anyhow::Result<String> {
    if rest.is_empty() || rest.contains(char::is_whitespace) {
        anyhow::bail!("`{verb}` needs the name of one model");
    }
    Ok(rest.to_string())
}

/// The first word and what follows it.
fn cut(text: &str) -> (&str, &str) {
    let text = text.trim();
    text.split_once(char::is_whitespace).map_or((text, ""), |(first, rest)| (first, rest.trim()))
}

/// Without the quotes around it.
fn unquoted(text: &str) -> &str {
    for quote in ["\"\"\"", "\""] {
        if let Some(inner) = text.strip_prefix(quote).and_then(|t| t.strip_suffix(quote)) {
            return inner.trim_matches('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_completion_is_a_command() {
        for text in COMPLETIONS {
            let text = match text.trim_end() {
                "/load" | "/save" => format!("{text}name"),
                "/set parameter" => format!("{text}seed 7"),
                "/set system" => format!("{text}be brief"),
                _ => text.to_string(),
            };
            assert!(Command::parse(&text).is_ok(), "{text}");
        }
    }

    #[test]
    fn commands_take_their_arguments() {
        assert_eq!(Command::parse("/load a:b").unwrap(), Command::Load("a:b".into()));
        assert_eq!(
            Command::parse("/set system \"\"\"\nbe\nbrief\n\"\"\"").unwrap(),
            Command::Set(Set::System("be\nbrief".into()))
        );
        assert_eq!(Command::parse("/set think high").unwrap(), Command::Set(Set::Think(json!("high"))));
        for (text, value) in
            [("temperature 0.5", json!(0.5)), ("seed 7", json!(7)), ("stop a \"b\"", json!(["a", "b"]))]
        {
            let name = text.split(' ').next().unwrap().to_string();
            let expected = Command::Set(Set::Parameter(name, value));
            assert_eq!(Command::parse(&format!("/set parameter {text}")).unwrap(), expected);
        }
        assert_eq!(Command::parse("/?  set").unwrap(), Command::Help(HELP_SET));
        assert_eq!(Command::parse("/set").unwrap(), Command::Help(HELP_SET));
    }

    #[test]
    fn what_is_not_known_is_named() {
        for (text, error) in [
            ("/sett", "unknown command `/sett`"),
            ("/set x", "cannot set `x`"),
            ("/set think hard", "`hard` is no thinking level: it must be true, false, low, medium, high or max"),
            ("/set format xml", "the only format is `json`, not `xml`"),
            ("/set parameter tempo 1", "unknown parameter 'tempo'"),
            ("/set parameter seed x", "invalid int value [x]"),
            ("/load", "`/load` needs the name of one model"),
            ("/show x", "cannot show `x`"),
        ] {
            assert_eq!(Command::parse(text).unwrap_err().to_string(), error, "{text}");
        }
    }
}
