//! The conversation on a terminal, which `script` (bsdutils, essential on every Debian) plays.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use super::Home;
use crate::support::program::Program;

/// No test measures time; this only turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(60);

/// A program on a terminal of its own.
struct Terminal {
    child: Child,
    keyboard: ChildStdin,
    screen: Receiver<Vec<u8>>,
    raw: Vec<u8>,
    /// What came, without control sequences.
    seen: String,
    /// Up to where `seen` was looked at.
    at: usize,
}

impl Terminal {
    /// `fathom run tiny.gguf` on a terminal; `None` where `script` is not installed or gets no terminal, as in a root file system
    /// without `/dev/pts`.
    fn open(home: &Home, server: &Program, flags: &str) -> Option<Terminal> {
        match Command::new("script").args(["-q", "-e", "-c", "true", "/dev/null"]).stdin(Stdio::null()).output() {
            Ok(probe) if probe.status.success() => {}
            Ok(probe) => {
                eprintln!(
                    "skipped: `script` cannot play a terminal: {}",
                    String::from_utf8_lossy(&probe.stderr).trim()
                );
                return None;
            }
            Err(error) => {
                eprintln!("skipped: the program `script` does not start: {error}");
                return None;
            }
        }
        // `exec`: the shell would take Ctrl-C as its own end.
        let line = format!("exec {} run tiny.gguf {flags}", env!("CARGO_BIN_EXE_fathom"));
        let fathom = home.client(server, &[]);
        let mut command = Command::new("script");
        for (name, value) in fathom.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.args(["-q", "-f", "-e", "-c", &line, "/dev/null"]).env("TERM", "xterm").env("SHELL", "/bin/sh");
        command.current_dir(home.path()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let keyboard = child.stdin.take().unwrap();
        let mut output = child.stdout.take().unwrap();
        let (sender, screen) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = output.read(&mut buffer) {
                if sender.send(buffer[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        Some(Terminal { child, keyboard, screen, raw: Vec::new(), seen: String::new(), at: 0 })
    }

    /// Waits until `text` appears after what was waited for before; gives what stood in between.
    #[track_caller]
    fn expect(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = self.seen[self.at..].find(text) {
                let between = self.seen[self.at..self.at + found].to_string();
                self.at += found + text.len();
                return between;
            }
            match self.screen.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(bytes) => {
                    self.raw.extend(bytes);
                    self.seen = plain(&String::from_utf8_lossy(&self.raw));
                }
                Err(_) => panic!(
                    "`{text}` does not appear; the terminal shows after what was found before:\n{}",
                    &self.seen[self.at..]
                ),
            }
        }
    }

    fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
        self.keyboard.flush().unwrap();
    }

    /// Waits for the prompt and answers it with a line.
    #[track_caller]
    fn say(&mut self, line: &str) {
        self.expect(">>> ");
        self.press(&format!("{line}\r"));
    }

    #[track_caller]
    fn ends_with(mut self, code: i32) {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert_eq!(status.code(), Some(code), "{}", self.seen);
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        panic!("the program does not end");
    }
}

/// Text without colours and cursor movements. Only ever grows when `text` does.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("\x1b[") {
        plain.push_str(before);
        let Some(end) = after.find(|c: char| c.is_ascii_alphabetic()) else {
            return plain;
        };
        rest = &after[end + 1..];
    }
    // A sequence that has only begun.
    plain.push_str(rest.strip_suffix('\x1b').unwrap_or(rest));
    plain
}

impl Home {
    /// A server that plays the prompt back, so that one sees what a model is told.
    fn echo(&self) -> Program {
        let script = self.path().join("echo.json");
        std::fs::write(&script, r#"{"schema": 1, "play": "echo"}"#).unwrap();
        self.model();
        self.serve(&script)
    }
}

#[test]
fn a_conversation_remembers_until_it_is_cleared() {
    let home = Home::new();
    let server = home.echo();
    let Some(mut terminal) = Terminal::open(&home, &server, "--think=false") else { return };
    terminal.say("/set system ANSWER-AS-A-BIRD");
    terminal.expect("Set system message.");
    terminal.say("ALPHA");
    terminal.expect("ANSWER-AS-A-BIRDALPHA");
    terminal.say("BETA");
    // The second turn holds the first one and its answer.
    terminal.expect("ANSWER-AS-A-BIRDALPHAANSWER-AS-A-BIRDALPHABETA");
    terminal.say("/clear");
    terminal.expect("Cleared session context");
    terminal.say("GAMMA");
    terminal.expect("ANSWER-AS-A-BIRDGAMMA");
    terminal.say("\"\"\"first");
    terminal.expect("... ");
    terminal.press("second\"\"\"\r");
    terminal.expect("first\r\nsecond\r\n");
    terminal.say("/bye");
    terminal.ends_with(0);
    let history = std::fs::read_to_string(home.path().join(".fathom/history")).unwrap();
    assert!(history.contains("ALPHA\nBETA\n"), "{history}");
}

#[test]
fn ctrl_c_ends_an_answer_and_not_the_conversation() {
    let home = Home::new();
    home.model();
    // An answer of several minutes, then a short one.
    let server = home.serve(&home.script(&[&"word ".repeat(2000), "Short."], 20_000));
    let Some(mut terminal) = Terminal::open(&home, &server, "--think=false") else { return };
    terminal.say("go");
    terminal.expect("word word");
    terminal.press("\x03");
    terminal.say("again");
    terminal.expect("Short.");
    terminal.expect(">>> ");
    terminal.press("\x03");
    terminal.expect("Use Ctrl + d or /bye to exit.");
    terminal.expect(">>> ");
    terminal.press("\x04");
    terminal.ends_with(0);
}

#[test]
fn commands_act_and_mistakes_are_explained() {
    let home = Home::new();
    let server = home.echo();
    let Some(mut terminal) = Terminal::open(&home, &server, "--think=false") else { return };
    for (line, shown) in [
        ("/sett", "hint: `/?` lists the commands"),
        ("/?", "Use \"\"\" to begin a multi-line message."),
        ("/set parameter temperature 0.25", "Set parameter 'temperature' to '0.25'"),
        ("/set parameter tempo 1", "unknown parameter 'tempo'"),
        ("/show parameters", "temperature                    0.25"),
        ("/set verbose", "Set 'verbose' mode."),
        ("hello", "prompt eval count:"),
        ("/set format json", "Set format to 'json' mode."),
        ("/set noformat", "Disabled format."),
        ("/save mine", "Created new model 'mine'"),
        ("/list", "mine:latest"),
        ("/load none", "model 'none:latest' not found"),
        // What was said is part of the saved session, and is shown when it is loaded.
        ("/load mine", ">>> hello\r\nhello\r\n"),
        ("/show info", "architecture        deepseek4"),
        ("/show system", "No system message was specified for this model."),
    ] {
        terminal.say(line);
        terminal.expect(shown);
    }
    terminal.say("/exit");
    terminal.ends_with(0);
    // What was set before `/save` is part of the new model.
    assert!(home.ask(&server, &["show", "mine", "--parameters"]).ok().contains("temperature                    0.25"));
}

#[test]
fn nohistory_leaves_no_file() {
    let home = Home::new();
    let server = home.echo();
    let Some(mut terminal) = Terminal::open(&home, &server, "--think=false") else { return };
    terminal.say("/set nohistory");
    terminal.say("secret");
    terminal.expect("secret\r\n");
    terminal.say("/bye");
    terminal.ends_with(0);
    let history = std::fs::read_to_string(home.path().join(".fathom/history")).unwrap_or_default();
    assert!(!history.contains("secret"), "{history}");
}
