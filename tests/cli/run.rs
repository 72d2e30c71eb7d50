//! `fathom run` without a terminal: one question, one answer.

use std::io::Read;
use std::process::Stdio;

use super::{Home, finish};
use crate::support::program::Program;

const THOUGHT: &str = "Let me see.</think>It is 4.";

#[test]
fn the_prompt_comes_from_arguments_stdin_or_both() {
    let home = Home::new();
    // An echo shows what the model was asked.
    let script = home.path().join("echo.json");
    std::fs::write(&script, r#"{"schema": 1, "play": "echo"}"#).unwrap();
    let server = home.serve(&script);
    home.model();
    let args = ["run", "tiny.gguf", "--think=false", "two", "words"];
    for (args, stdin, asked) in [
        (&args[..], None, "two words"),
        (&args[..3], Some("piped\n"), "piped\n"),
        (&args[..], Some("piped"), "piped two words"),
        (&args[..], Some(""), "two words"),
    ] {
        let answer = finish(home.client(&server, args), stdin).ok();
        assert!(answer.contains(asked) && answer.ends_with("\n\n"), "{args:?} {stdin:?}: {answer:?}");
    }
}

#[test]
fn thinking_is_shown_set_apart_or_hidden() {
    let home = Home::new();
    let server = home.serve(&home.script(&[THOUGHT], 0));
    home.model();
    assert_eq!(
        home.ask(&server, &["run", "tiny.gguf", "2+2?"]).ok(),
        "Thinking...\nLet me see.\n...done thinking.\n\nIt is 4.\n\n"
    );
    assert_eq!(home.ask(&server, &["run", "tiny.gguf", "--hidethinking", "2+2?"]).ok(), "It is 4.\n\n");
}

#[test]
fn verbose_adds_times_and_counts_on_stderr() {
    let home = Home::new();
    let server = home.serve(&home.script(&["Four."], 1000));
    home.model();
    let ran = home.ask(&server, &["run", "tiny.gguf", "--think=false", "--verbose", "2+2?"]);
    assert_eq!(ran.stdout, "Four.\n\n");
    let names: Vec<&str> = ran.stderr.lines().filter_map(|line| Some(line.split_once(':')?.0)).collect();
    let expected = [
        "total duration",
        "load duration",
        "prompt eval count",
        "prompt eval duration",
        "prompt eval rate",
        "eval count",
        "eval duration",
        "eval rate",
    ];
    assert_eq!(names, expected, "{}", ran.stderr);
}

#[test]
fn an_answer_can_be_held_to_a_form() {
    let home = Home::new();
    let server = home.serve(&home.script(&["{\"sum\": 4} is what I say."], 0));
    home.model();
    let schema = r#"{"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}"#;
    let ran = home.ask(&server, &["run", "tiny.gguf", "--think=false", "--format", schema, "2+2?"]);
    assert_eq!(ran.ok(), "{\"sum\": 4}\n\n");
    let text = home.ask(&server, &["run", "tiny.gguf", "--format", r#"{"type": "nonsense"}"#, "2+2?"]).error();
    assert!(text.contains("the form of the answer: Invalid type: nonsense"), "{text}");
}

#[test]
fn stdin_that_is_no_text_is_refused() {
    let home = Home::new();
    let mut child = home.fathom(&["run", "m"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"abc\xff").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "error: stdin is not UTF-8 text: the first bad byte is at position 3\n"
    );
}

/// Sends SIGINT as a terminal would.
fn interrupt(process: u32) {
    let done = std::process::Command::new("kill").args(["-INT", &process.to_string()]).status().unwrap();
    assert!(done.success());
}

#[test]
fn ctrl_c_cancels_the_request_on_the_server_too() {
    let home = Home::new();
    // An answer of several minutes.
    let long = "word ".repeat(2000);
    let server = home.serve(&home.script(&[&long], 20_000));
    home.model();
    let mut command = home.client(&server, &["run", "tiny.gguf", "--think=false", "go"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 8];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(&first, b"word wor");
    interrupt(child.id());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(130), &b""[..]));
    let running = || server.get("/metrics").text().lines().any(|line| line == "fathom_running 0");
    assert!((0..1000).any(|_| running() || {
        std::thread::sleep(std::time::Duration::from_millis(10));
        false
    }));
}

/// Ends a server that `fathom run` started; its process number stands in the message.
struct Started(String);

impl Drop for Started {
    fn drop(&mut self) {
        let _ = std::process::Command::new("kill").arg(&self.0).status();
    }
}

#[test]
fn run_starts_a_server_when_none_answers_and_uses_it_again() {
    let home = Home::new();
    home.model();
    let script = home.script(&["Hello."], 0);
    // Free now, and nobody else asks for it in the moment until the server does.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let flags = ["--engine=scripted", "--script", script.to_str().unwrap()];
    let run = |flags: &[&str]| {
        let mut command = home.fathom(&["run", "tiny.gguf", "--think=false"]);
        command.args(flags).arg("hi").env("FATHOM_HOST", &address);
        finish(command, None)
    };
    let first = run(&flags);
    let process = first.stderr.split_once("(process ").and_then(|(_, rest)| rest.split_once(','));
    let started = Started(process.unwrap_or_else(|| panic!("{first:#?}")).0.to_string());
    assert_eq!((first.code, first.stdout.as_str()), (Some(0), "Hello.\n\n"), "{first:#?}");
    assert!(first.stderr.starts_with(&format!("starting a server at http://{address} ")), "{first:#?}");

    let second = run(&[]);
    assert_eq!((second.stdout.as_str(), second.stderr.as_str()), ("Hello.\n\n", ""));

    let third = run(&["--threads=1"]).error();
    assert!(third.starts_with("error: `--threads=1` cannot be applied: a server runs already at"), "{third}");

    let log = std::fs::read_to_string(home.path().join(".fathom/logs/serve.log")).unwrap();
    assert!(log.contains(&format!("listening on http://{address}")), "{log}");
    drop(started);
}

#[test]
fn a_server_that_cannot_start_shows_its_own_words() {
    let home = Home::new();
    let mut command = home.fathom(&["run", "m", "hi"]);
    // A file stands where the models should be.
    std::fs::write(home.path().join("models"), "").unwrap();
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    command.env("FATHOM_HOST", &address);
    let ran = finish(command, None);
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("the server ended at once"), "{ran:#?}");
    assert!(ran.stderr.contains("FATHOM_MODELS"), "{ran:#?}");
}

#[test]
fn a_server_ends_gracefully_on_a_signal() {
    let home = Home::new();
    let mut server = home.serve(&home.script(&["Hello."], 0));
    interrupt(server.child.id());
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_second_signal_ends_a_server_at_once() {
    let home = Home::new();
    home.model();
    // An answer of several minutes would use the whole grace period.
    let mut server = home.serve(&home.script(&[&"word ".repeat(2000)], 20_000));
    let mut command = home.client(&server, &["run", "tiny.gguf", "--think=false", "go"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 8]).unwrap();
    interrupt(server.child.id());
    // The port closes before anything else ends.
    while std::net::TcpStream::connect(server.address).is_ok() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    interrupt(server.child.id());
    assert_eq!(server.child.wait().unwrap().code(), Some(130));
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.starts_with("error: the connection to http://"), "{text}");
}

#[test]
fn an_idle_server_ends_by_itself_when_told_to() {
    let home = Home::new();
    let mut server = Program::serve(home.path(), &[("FATHOM_ENGINE", "scripted"), ("FATHOM_IDLE_EXIT", "20ms")]);
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
}

/// Only release builds carry the model; with it `tests/tiny` asks it questions.
#[test]
#[cfg(debug_assertions)]
fn a_build_without_the_bundled_model_says_so() {
    let home = Home::new();
    let server = home.serve(&home.script(&["Hello."], 0));
    let expected = "error: model 'fathom-tiny' not found, and this build of fathom carries no model\n\
                    hint: release builds of the repository carry `fathom-tiny`; `fathom create fathom-tiny -f modelfiles/fathom-tiny/Modelfile` makes it from there\n";
    assert_eq!(home.ask(&server, &["run", "fathom-tiny", "hello"]).error(), expected);
    assert_eq!(home.run(&["eval", "fathom-tiny", "--engine", "scripted"]).error(), expected);
    let body = br#"{"model": "fathom-tiny", "messages": [{"role": "user", "content": "Hi"}]}"#;
    for path in ["/api/chat", "/api/show", "/api/generate"] {
        let reply = crate::support::http::open(server.address, "POST", path, &[], body).finish();
        assert_eq!(reply.status, 404, "{path}");
        assert_eq!(
            reply.json()["error"],
            "model 'fathom-tiny' not found, and this build of fathom carries no model",
            "{path}"
        );
    }
}
