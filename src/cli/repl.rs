//! The conversation on a terminal: reads lines, knows the commands that begin with `/`.

use std::io::{self, Write};

use anyhow::Context;
use rustyline::completion::{Completer, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::{FileHistory, History};
use rustyline::validate::Validator;
use rustyline::{CompletionType, Editor, Helper};
use tokio::runtime::Runtime;

use super::run::default_think;
use super::session::{Ended, Session};
use super::{message, show};
use crate::config::Config;

mod command;

use command::{Command, Set, Shown};

const PROMPT: &str = ">>> ";
const CONTINUATION: &str = "... ";
const PLACEHOLDER: &str = "Send a message (/? for help)";
const FENCE: &str = "\"\"\"";

/// Lines of history kept on disk.
const HISTORY_LINES: usize = 1000;

/// Width of the terminal, if there is one.
pub(super) fn columns() -> Option<usize> {
    let mut editor = rustyline::DefaultEditor::new().ok()?;
    editor.dimensions().map(|(columns, _)| usize::from(columns))
}

/// Talks until `/bye` or Ctrl-D.
pub(super) fn run(runtime: &Runtime, session: Session, config: &Config) -> anyhow::Result<()> {
    let mut repl = Repl::new(runtime, session, config)?;
    let result = repl.talk();
    repl.save_history();
    result
}

struct Repl<'a> {
    runtime: &'a Runtime,
    session: Session,
    editor: Editor<Assistance, FileHistory>,
    history: std::path::PathBuf,
    keep_history: bool,
    /// Whether the width follows the terminal.
    wrap: bool,
}

/// What the commands do to the loop.
#[derive(PartialEq)]
enum Next {
    Line,
    Leave,
}

impl<'a> Repl<'a> {
    fn new(runtime: &'a Runtime, session: Session, config: &Config) -> anyhow::Result<Repl<'a>> {
        let settings = rustyline::Config::builder()
            .max_history_size(HISTORY_LINES)?
            .history_ignore_dups(true)?
            .auto_add_history(false)
            .bracketed_paste(true)
            .completion_type(CompletionType::List)
            .build();
        let mut editor = Editor::with_config(settings).context("cannot use this terminal for a conversation")?;
        editor.set_helper(Some(Assistance));
        let history = config.home.join("history");
        if config.history {
            // Nobody has typed anything yet when the file is not there.
            let _ = editor.load_history(&history);
        }
        let wrap = session.style.columns.is_some();
        Ok(Repl { runtime, session, editor, history, keep_history: config.history, wrap })
    }

    fn talk(&mut self) -> anyhow::Result<()> {
        self.recall();
        while let Some(text) = self.read()? {
            let text = text.trim();
            if text.is_empty() {
                continue;
            }
            let done =
                if is_command(text) { self.command(text) } else { self.say(text.to_string()).map(|()| Next::Line) };
            match done {
                Ok(Next::Line) => {}
                Ok(Next::Leave) => break,
                // Nobody reads any more.
                Err(error) if message::is_broken_pipe(&error) => return Err(error),
                // One question that failed does not end the conversation.
                Err(error) => message::print_error(&error),
            }
        }
        Ok(())
    }

    /// One message: a line, or everything between `"""` and `"""`. `None` = the user leaves.
    fn read(&mut self) -> anyhow::Result<Option<String>> {
        let mut text = String::new();
        let mut open = false;
        loop {
            let prompt = if open { CONTINUATION } else { PROMPT };
            let line = match self.editor.readline(prompt) {
                Ok(line) => line,
                Err(ReadlineError::Interrupted) => {
                    if !open {
                        println!("\nUse Ctrl + d or /bye to exit.");
                    }
                    (text, open) = (String::new(), false);
                    continue;
                }
                Err(ReadlineError::Eof) => return Ok(None),
                Err(error) => return Err(error).context("cannot read from the terminal"),
            };
            if self.keep_history && !line.trim().is_empty() {
                self.editor.add_history_entry(&line)?;
            }
            match fenced(&line, open) {
                (part, false) => {
                    text.push_str(part);
                    return Ok(Some(text));
                }
                (part, true) => {
                    text.push_str(part);
                    text.push('\n');
                    open = true;
                }
            }
        }
    }

    fn say(&mut self, text: String) -> anyhow::Result<()> {
        if self.wrap {
            // The window may have changed since the last answer.
            self.session.style.columns = self.editor.dimensions().map(|(columns, _)| usize::from(columns));
        }
        // Its end, natural or not, can be seen on the terminal.
        let _: Ended = self.runtime.block_on(self.session.turn(text))?;
        Ok(())
    }

    fn command(&mut self, text: &str) -> anyhow::Result<Next> {
        match Command::parse(text)? {
            Command::Bye => return Ok(Next::Leave),
            Command::Help(text) => print!("{text}"),
            Command::Clear => {
                self.session.messages.clear();
                println!("Cleared session context");
            }
            Command::List => {
                let models = self.runtime.block_on(self.session.client.list()).map_err(super::connect::explained)?;
                super::list::write(&models, None)?;
            }
            Command::Show(what) => self.show(what)?,
            Command::Set(set) => self.set(set),
            Command::Load(model) => self.load(&model)?,
            Command::Save(name) => self.save(&name)?,
        }
        Ok(Next::Line)
    }

    fn set(&mut self, set: Set) {
        let session = &mut self.session;
        match set {
            Set::Parameter(name, value) => {
                println!("Set parameter '{name}' to '{}'", command::parameter_text(&value));
                session.options.insert(name, value);
            }
            Set::System(text) => {
                session.system = Some(text);
                println!("Set system message.");
            }
            Set::History(keep) => self.keep_history = keep,
            Set::WordWrap(wrap) => {
                self.wrap = wrap;
                session.style.columns = None;
                println!("Set '{}' mode.", if wrap { "wordwrap" } else { "nowordwrap" });
            }
            Set::Verbose(verbose) => {
                session.verbose = verbose;
                println!("Set '{}' mode.", if verbose { "verbose" } else { "quiet" });
            }
            Set::Think(think) => {
                println!("Set '{}' mode.", if think == false { "nothink" } else { "think" });
                session.think = Some(think);
            }
            Set::Format(format) => {
                match &format {
                    Some(format) => println!("Set format to '{format}' mode."),
                    None => println!("Disabled format."),
                }
                session.format = format.map(serde_json::Value::String);
            }
        }
    }

    fn show(&self, what: Shown) -> anyhow::Result<()> {
        let known = &self.session.show;
        let text = |text: &str, missing: &str| {
            println!("{}", if text.trim().is_empty() { missing } else { text.trim_end() });
        };
        match what {
            Shown::Info => show::overview(known, false, &mut io::stdout().lock())?,
            Shown::License => text(&known.license, "No license was specified for this model."),
            Shown::Modelfile => text(&known.modelfile, "No Modelfile was specified for this model."),
            Shown::Template => text(&known.template, "No prompt template was specified for this model."),
            Shown::System => match &self.session.system {
                Some(system) => println!("{system}"),
                None => text(&known.system, "No system message was specified for this model."),
            },
            Shown::Parameters => {
                println!("Model defined parameters:");
                text(&known.parameters, "  No additional parameters were specified for this model.");
                if !self.session.options.is_empty() {
                    println!("\nUser defined parameters:");
                    for (name, value) in &self.session.options {
                        println!("  {name:<30} {}", command::parameter_text(value));
                    }
                }
            }
        }
        io::stdout().flush()?;
        Ok(())
    }

    /// Another model, with an empty conversation. The present one stays when that fails.
    fn load(&mut self, text: &str) -> anyhow::Result<()> {
        let old = &self.session;
        let model = super::connect::model_name(text, &old.client)?;
        let show = self.runtime.block_on(old.client.show(&model, false)).map_err(super::connect::explained)?;
        println!("Loading model '{text}'");
        let mut new = Session { model, show, messages: Vec::new(), options: serde_json::Map::new(), ..old.clone() };
        // A choice is kept where it still has a meaning.
        let chosen = old.think != default_think(&old.show);
        new.think = default_think(&new.show).map(|default| old.think.clone().filter(|_| chosen).unwrap_or(default));
        self.runtime.block_on(new.preload())?;
        self.session = new;
        self.recall();
        Ok(())
    }

    /// Shows the conversation that a saved session brings along; the server puts it in front of what is said now.
    fn recall(&self) {
        for message in &self.session.show.messages {
            match message.role.as_str() {
                "user" => println!("{PROMPT}{}", message.content),
                "assistant" => println!("{}\n", message.content),
                _ => {}
            }
        }
    }

    /// The session as a model of its own: parameters, system prompt and what was said so far.
    fn save(&self, name: &str) -> anyhow::Result<()> {
        let body = self.session.as_model(name);
        self.runtime
            .block_on(async {
                let mut lines = self.session.client.create(&body).await?;
                while lines.next().await?.is_some() {}
                Ok(())
            })
            .map_err(super::connect::explained)?;
        println!("Created new model '{name}'");
        Ok(())
    }

    fn save_history(&mut self) {
        if !self.keep_history || self.editor.history().is_empty() {
            return;
        }
        let folder = self.history.parent().map(std::fs::create_dir_all);
        if let Err(error) =
            folder.unwrap_or(Ok(())).map_err(ReadlineError::from).and_then(|()| self.editor.save_history(&self.history))
        {
            tracing::warn!("the history is not saved in `{}`: {error}", self.history.display());
        }
    }
}

/// Pasted text of several lines is a message, whatever it begins with.
fn is_command(text: &str) -> bool {
    text.starts_with('/') && (!text.contains('\n') || text.starts_with("/set system"))
}

/// Cuts the `"""` off a line: what is left, and whether the message goes on.
fn fenced(line: &str, open: bool) -> (&str, bool) {
    if open {
        return match line.trim_end().strip_suffix(FENCE) {
            Some(text) => (text, false),
            None => (line, true),
        };
    }
    if line.starts_with("/set system") {
        // The command itself takes its quotes off.
        return (line, line.matches(FENCE).count() == 1);
    }
    match line.strip_prefix(FENCE) {
        Some(rest) => match rest.trim_end().strip_suffix(FENCE) {
            Some(text) => (text, false),
            None => (rest, true),
        },
        None => (line, false),
    }
}

/// The grey hint on an empty line, and completion of commands.
struct Assistance;

impl Helper for Assistance {}
impl Validator for Assistance {}

impl Hinter for Assistance {
    type Hint = String;

    fn hint(&self, line: &str, _pos: usize, _ctx: &rustyline::Context<'_>) -> Option<String> {
        line.is_empty().then(|| PLACEHOLDER.to_string())
    }
}

impl Highlighter for Assistance {
    fn highlight_hint<'h>(&self, hint: &'h str) -> std::borrow::Cow<'h, str> {
        format!("\x1b[38;5;245m{hint}\x1b[0m").into()
    }
}

impl Completer for Assistance {
    type Candidate = Pair;

    fn complete(&self, line: &str, pos: usize, _ctx: &rustyline::Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        let typed = &line[..pos];
        let found = command::COMPLETIONS.iter().filter(|text| !typed.is_empty() && text.starts_with(typed));
        Ok((0, found.map(|text| Pair { display: text.to_string(), replacement: text.to_string() }).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fences_open_and_close_messages() {
        assert_eq!(fenced("hello", false), ("hello", false));
        assert_eq!(fenced("\"\"\"hello", false), ("hello", true));
        assert_eq!(fenced("\"\"\"hello\"\"\"", false), ("hello", false));
        assert_eq!(fenced("more", true), ("more", true));
        assert_eq!(fenced("end\"\"\" ", true), ("end", false));
        assert_eq!(fenced("say \"\"\" to me", false), ("say \"\"\" to me", false));
    }
}
