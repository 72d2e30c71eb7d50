//! The real program as users type it, with the scripted engine behind it.

mod bench;
mod calibrate;
mod client;
mod errors;
mod eval;
mod help;
mod models;
mod repl;
mod routing;
mod run;
mod settings;
mod shards;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::model;
use crate::support::program::{self, Program};

/// A home directory with a model file in it, and what is needed to type commands there.
pub struct Home {
    folder: tempfile::TempDir,
}

/// What a command left behind.
#[derive(Debug, PartialEq)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Home {
    pub fn new() -> Home {
        Home { folder: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A model file called `tiny.gguf`.
    pub fn model(&self) -> PathBuf {
        let path = self.path().join("tiny.gguf");
        fathom_gguf::write_file::<Vec<u8>>(&path, model::metadata("deepseek4"), &[]).unwrap();
        path
    }

    /// A script that plays these texts one after the other, `step_delay_us` per token.
    pub fn script(&self, texts: &[&str], step_delay_us: u64) -> PathBuf {
        let answers: Vec<Value> = texts.iter().map(|text| json!({"text": text})).collect();
        let script = json!({"schema": 1, "play": {"answers": answers}, "step_delay_us": step_delay_us});
        let path = self.path().join("script.json");
        std::fs::write(&path, script.to_string()).unwrap();
        path
    }

    /// A server that plays `script`.
    pub fn serve(&self, script: &Path) -> Program {
        Program::serve(self.path(), &[("FATHOM_ENGINE", "scripted"), ("FATHOM_SCRIPT", script.to_str().unwrap())])
    }

    /// `fathom` in this home, talking to nobody.
    pub fn fathom(&self, args: &[&str]) -> Command {
        let mut command = program::fathom(self.path());
        // Port 1 is never open: a command that should not need a server finds none.
        command.env("FATHOM_HOST", "127.0.0.1:1").current_dir(self.path()).args(args).stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        finish(self.fathom(args), None)
    }

    /// Runs a command against `server`.
    pub fn ask(&self, server: &Program, args: &[&str]) -> Ran {
        finish(self.client(server, args), None)
    }

    pub fn client(&self, server: &Program, args: &[&str]) -> Command {
        let mut command = self.fathom(args);
        command.env("FATHOM_HOST", server.address.to_string());
        command
    }
}

/// Runs to the end, with `stdin` as input.
pub fn finish(mut command: Command, stdin: Option<&str>) -> Ran {
    let piped = if stdin.is_some() { Stdio::piped() } else { Stdio::null() };
    let mut child = command.stdin(piped).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    if let Some(text) = stdin {
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    }
    let output = child.wait_with_output().unwrap();
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

impl Ran {
    /// Standard output of a command that must have worked.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self.stdout
    }

    /// The error of a command that must have failed.
    #[track_caller]
    pub fn error(self) -> String {
        assert_eq!((self.code, self.stdout.as_str()), (Some(1), ""), "{self:#?}");
        self.stderr
    }
}
