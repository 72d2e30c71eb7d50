//! What people read when something is wrong, word by word.

use super::{Home, finish};

/// Every command that needs a server, without one.
#[test]
fn without_a_server_commands_say_how_to_start_one() {
    let home = Home::new();
    for args in [&["list"][..], &["ps"], &["show", "m"], &["stop", "m"], &["cp", "a", "b"], &["rm", "m"]] {
        assert_eq!(
            home.run(args).error(),
            "error: no server answers at http://127.0.0.1:1\nhint: start one with `fathom serve`; `fathom run` does so by itself\n",
            "{args:?}"
        );
    }
}

#[test]
fn a_server_elsewhere_is_not_started_from_here() {
    let home = Home::new();
    let mut command = home.fathom(&["run", "m", "hello"]);
    // A name that no resolver knows (RFC 6761).
    command.env("FATHOM_HOST", "fathom.invalid:80");
    insta::assert_snapshot!(finish(command, None).error(), @r"
    error: no server answers at http://fathom.invalid:80
    hint: start `fathom serve` there, or unset `FATHOM_HOST` to use this machine
    ");
}

#[test]
fn a_port_in_use_is_explained() {
    let home = Home::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let text = home.run(&["serve", "--host", &address]).error();
    insta::assert_snapshot!(text.replace(&address, "ADDRESS"), @r"
    error: cannot listen on ADDRESS: Address already in use (os error 98)
    hint: something listens there already, perhaps another fathom or Ollama; `--host 127.0.0.1:PORT` takes another port
    ");
}

#[test]
fn engines_that_are_not_built_or_not_known_are_refused() {
    let home = Home::new();
    let all = [("native", cfg!(feature = "native")), ("llama", cfg!(feature = "llama")), ("scripted", true)];
    let built: Vec<_> = all.iter().filter(|(_, is_built)| *is_built).map(|(engine, _)| *engine).collect();
    for (engine, _) in all.iter().filter(|(_, is_built)| !is_built) {
        for args in [&["serve", "--engine", engine][..], &["run", "--engine", engine, "m", "hello"]] {
            let error = format!("error: engine `{engine}` is not built into this program\n");
            let hint = format!("hint: this program has: {}\n", built.join(", "));
            assert_eq!(home.run(args).error(), format!("{error}{hint}"), "{args:?}");
        }
    }
    let text = home.run(&["serve", "--engine", "quick"]).error();
    assert!(text.starts_with("error: `quick` is not an engine"), "{text}");
}

#[test]
fn something_that_is_no_server_of_this_kind_is_named() {
    let home = Home::new();
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap().to_string();
    let answer = std::thread::spawn(move || {
        use std::io::{Read, Write};
        let (mut stream, _) = other.accept().unwrap();
        let _ = stream.read(&mut [0; 1024]).unwrap();
        stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").unwrap();
    });
    let mut command = home.fathom(&["list"]);
    command.env("FATHOM_HOST", &address);
    let text = finish(command, None).error();
    answer.join().unwrap();
    insta::assert_snapshot!(text.replace(&address, "ADDRESS"), @r"
    error: the answer of http://ADDRESS is not what a fathom or Ollama server sends: `HEAD /` gives status 404
    hint: is something else listening there? `FATHOM_HOST` says where to look
    ");
}

#[test]
fn bad_command_lines_end_with_code_2() {
    let home = Home::new();
    for args in [
        &["frobnicate"][..],
        &["show"],
        &["show", "m", "--license", "--system"],
        &["cp", "a"],
        &["rm"],
        &["run", "m", "--think=hard", "hello"],
        &["run", "m", "--keepalive", "soon", "hello"],
        &["--verbose"],
        &[],
    ] {
        let ran = home.run(args);
        assert_eq!(ran.code, Some(2), "{args:?}: {ran:#?}");
        assert_eq!(ran.stdout, "", "{args:?}");
    }
    let text = home.run(&["run", "m", "--think=hard", "hello"]).stderr;
    assert!(text.contains("must be true, false, low, medium, high or max"), "{text}");
}

#[test]
fn modelfiles_that_are_missing_or_wrong_are_explained() {
    let home = Home::new();
    insta::assert_snapshot!(home.run(&["create", "m"]).error(), @r"
    error: cannot read `Modelfile`: No such file or directory (os error 2)
    hint: `-f FILE` names another Modelfile
    ");
    std::fs::write(home.path().join("Modelfile"), "FROM ./m.gguf\nPARAMETER tempo 1\n").unwrap();
    insta::assert_snapshot!(home.run(&["create", "m"]).error());
    std::fs::write(home.path().join("Modelfile"), "FROM ./m.gguf\n").unwrap();
    insta::assert_snapshot!(home.run(&["create", "m"]).error(), @"error: FROM names `./m.gguf`, and there is no `./m.gguf`");
}

#[test]
fn who_stops_reading_is_no_error() {
    use std::process::Stdio;
    let home = Home::new();
    let mut child = home.fathom(&["--help"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}
