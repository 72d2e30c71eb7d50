//! Connections that do not behave: slow, half closed, cut in every phase, too many; and models that come and go meanwhile.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use fathom::engine::scripted::{Play, Script};
use serde_json::{Value, json};

use crate::support::http;
use crate::support::program::Program;
use crate::support::{Server, answers};

const PATIENCE: Duration = Duration::from_secs(60);

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A request as text, for a connection that stays open.
fn request(path: &str, body: &Value) -> String {
    let body = body.to_string();
    format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// Reads until `wanted` has come, and gives everything read so far.
fn read_until(stream: &mut TcpStream, wanted: &str) -> String {
    let mut text = Vec::new();
    let mut part = [0; 4096];
    loop {
        let n =
            stream.read(&mut part).unwrap_or_else(|error| panic!("{error} after `{}`", String::from_utf8_lossy(&text)));
        text.extend_from_slice(&part[..n]);
        let so_far = String::from_utf8_lossy(&text);
        if so_far.contains(wanted) {
            return so_far.into_owned();
        }
        assert!(n > 0, "closed after `{so_far}`");
    }
}

fn generate(prompt: &str) -> Value {
    json!({"model": "tiny", "prompt": prompt, "raw": true})
}

/// An answer that does not end by itself.
fn endless() -> Script {
    Script { play: Play::Hash, step_delay_us: 2000, n_seq_max: Some(1), ..Script::default() }
}

fn endless_request() -> Value {
    json!({"model": "tiny", "prompt": "A", "raw": true, "options": {"seed": 1, "num_predict": 1_000_000}})
}

#[test]
fn requests_in_one_packet_are_answered_in_their_order() {
    let server = Server::start(answers(&["first", "second"]));
    let mut stream = connect(&server);
    let both = request("/api/generate", &generate("A")) + &request("/api/generate", &generate("B"));
    let version = "GET /api/version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all((both + version).as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 3, "{text}");
    let place = |words: &str| text.find(words).unwrap_or_else(|| panic!("no `{words}` in {text}"));
    let second_done = text.rfind("\"done\":true").unwrap();
    assert!(place("\"done\":true") < second_done && second_done < place("{\"version\":"), "{text}");
}

#[test]
fn a_request_may_come_byte_by_byte() {
    let server = Server::start(answers(&["x"]));
    let mut stream = connect(&server);
    stream.set_nodelay(true).unwrap();
    for byte in request("/api/generate", &json!({"model": "tiny", "prompt": "A", "stream": false})).bytes() {
        stream.write_all(&[byte]).unwrap();
    }
    assert!(read_until(&mut stream, "\"done\":true").starts_with("HTTP/1.1 200 OK"));
}

/// New, in the middle of a head, and in the middle of the second one of a connection: what does not go on is closed, and an answer that
/// takes longer than a head may is not cut.
#[test]
fn a_head_that_never_ends_is_given_up() {
    let settings = fathom::api::Settings { head_limit: Duration::from_millis(300), ..Default::default() };
    let slow = Script { step_delay_us: 100_000, ..answers(&["one two"]) };
    let server = Server::with_settings(slow, settings);
    let whole = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for text in ["", "GET / HTTP/1.1\r\nHo", &format!("{whole}GET / HT")] {
        let mut stream = connect(&server);
        stream.write_all(text.as_bytes()).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap_or_else(|error| panic!("{error} after {text:?}"));
        assert_eq!(reply.matches("Ollama is running").count(), text.matches(whole).count(), "{reply}");
    }
    let mut stream = connect(&server);
    stream.write_all(request("/api/generate", &generate("A")).as_bytes()).unwrap();
    let reply = read_until(&mut stream, "\"done\":true");
    assert!(reply.matches("\"done\":false").count() > 3, "each token takes a third of the limit: {reply}");
}

#[test]
fn what_is_not_http_is_refused_and_hurts_nobody() {
    let server = Server::start(answers(&["x"]));
    for bytes in [&b"\x16\x03\x01\x02\x00\x01\x00"[..], b"HELLO\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", &[b'a'; 100_000]] {
        let mut stream = connect(&server);
        // The server may close before it has read everything.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let mut reply = Vec::new();
        let _ = stream.read_to_end(&mut reply);
        assert!(!reply.starts_with(b"HTTP/1.1 2"), "{}", String::from_utf8_lossy(&reply));
    }
    let head = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "y".repeat(2 << 20));
    let mut stream = connect(&server);
    let _ = stream.write_all(head.as_bytes());
    let mut reply = Vec::new();
    let _ = stream.read_to_end(&mut reply);
    assert!(!reply.starts_with(b"HTTP/1.1 2"));
    assert_eq!(server.get("/").text(), "Ollama is running");
}

#[test]
fn a_body_that_is_announced_too_large_is_refused_before_it_comes() {
    let server = Server::start(answers(&[]));
    let mut stream = connect(&server);
    stream.write_all(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999999\r\n\r\n{").unwrap();
    let reply = read_until(&mut stream, "bytes\"}");
    assert!(reply.starts_with("HTTP/1.1 413 "), "{reply}");
}

/// Waiting for a place, in the middle of a body, in the middle of an answer: whoever closes its side is gone, and its place is free.
#[test]
fn a_client_that_leaves_in_any_phase_frees_its_place() {
    let server = Server::start(endless());
    let open = |text: &str| {
        let mut stream = connect(&server);
        stream.write_all(text.as_bytes()).unwrap();
        stream
    };
    let whole = request("/api/generate", &endless_request());
    let in_body = open(&whole[..whole.len() - 5]);
    let in_head = open(&whole[..20]);
    let mut answered = open(&whole);
    read_until(&mut answered, "\"response\"");
    let waiting = open(&whole);
    server.wait_for_metric("fathom_waiting_for_slot", 1.0);
    assert_eq!(server.metric("fathom_running"), 1.0);

    waiting.shutdown(Shutdown::Both).unwrap();
    server.wait_for_metric("fathom_waiting_for_slot", 0.0);
    // Half closed is closed, as for Go's server.
    answered.shutdown(Shutdown::Write).unwrap();
    server.wait_for_metric("fathom_running", 0.0);
    assert_eq!(server.metric("fathom_requests_total{reason=\"cancelled\"}"), 2.0);
    drop((in_body, in_head));

    let mut next = open(&whole);
    read_until(&mut next, "\"response\"");
    drop(next);
    server.wait_for_metric("fathom_running", 0.0);
}

#[test]
fn a_client_that_leaves_while_its_model_loads_cancels_the_load() {
    let server = Server::start(Script { load_delay_ms: 600_000, ..answers(&["x"]) });
    let loads = http::send(server.address, "POST", "/api/generate", &[], generate("A").to_string().as_bytes());
    server.wait_for_metric("fathom_waiting_for_load", 1.0);
    drop(loads);
    server.wait_for_metric("fathom_waiting_for_load", 0.0);
    // The load itself was given up: the server ends without waiting for it.
}

#[test]
fn a_model_can_be_unloaded_while_it_loads() {
    let server = Server::start(Script { load_delay_ms: 300, ..answers(&["x", "y"]) });
    std::thread::scope(|scope| {
        let address = server.address;
        let asking = scope.spawn(move || {
            let body = json!({"model": "tiny", "prompt": "A", "stream": false}).to_string();
            http::open(address, "POST", "/api/generate", &[], body.as_bytes()).finish()
        });
        server.wait_for_metric("fathom_waiting_for_load", 1.0);
        let unload = server.post("/api/generate", &json!({"model": "tiny", "keep_alive": 0})).json();
        assert_eq!(unload["done_reason"], "unload");
        // Whoever waited gets its answer first.
        let reply = asking.join().unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
    });
    server.wait_for_metric("fathom_models_loaded", 0.0);
    assert_eq!(server.post("/api/generate", &generate("A")).status, 200, "it is loaded again");
}

#[test]
fn a_model_that_is_deleted_or_replaced_while_it_answers_finishes() {
    let server = Server::start(endless());
    let mut answer = server.open("/api/generate", &endless_request());
    answer.line().expect("a first line");
    let copied = server.post("/api/copy", &json!({"source": "tiny", "destination": "kept"}));
    assert_eq!(copied.status, 200);
    let body = json!({"model": "tiny"}).to_string();
    let deleted = http::open(server.address, "DELETE", "/api/delete", &[], body.as_bytes()).finish();
    let described = deleted.text();
    assert_eq!(deleted.status, 200, "{described}");
    for _ in 0..5 {
        let line = answer.line().expect("it goes on");
        assert!(line.get("error").is_none(), "{line}");
    }
    drop(answer);
    server.wait_for_metric("fathom_running", 0.0);
    assert_eq!(server.post("/api/generate", &generate("A")).status, 404);
    let mut kept = server.open("/api/generate", &json!({"model": "kept", "prompt": "A", "raw": true}));
    assert!(kept.line().is_some_and(|line| line.get("error").is_none()));
}

/// A hundred at once, four places, each the answer that it gets alone; some of them ask for the model to be unloaded after them,
/// some for it to stay.
#[test]
fn a_hundred_requests_for_four_places_are_all_answered() {
    let server = Server::start(Script { play: Play::Hash, n_seq_max: Some(4), ..Script::default() });
    let address = server.address;
    let ask = move |i: usize| {
        let keep_alive = [json!(null), json!(0), json!(-1), json!("5m")][i % 4].clone();
        let request = json!({
            "model": "tiny", "prompt": format!("number {i}"), "raw": true, "stream": i.is_multiple_of(2), "keep_alive": keep_alive,
            "options": {"seed": i, "num_predict": 20}
        });
        let reply = http::open(address, "POST", "/api/generate", &[], request.to_string().as_bytes()).finish();
        assert_eq!(reply.status, 200, "{}", reply.text());
        let lines: Vec<Value> = if i.is_multiple_of(2) { reply.lines() } else { vec![reply.json()] };
        assert_eq!(lines.last().unwrap()["done"], true);
        lines.iter().map(|line| line["response"].as_str().unwrap()).collect::<String>()
    };
    let together: Vec<String> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..100).map(|i| scope.spawn(move || ask(i))).collect();
        asking.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let alone: Vec<String> = (0..100).map(ask).collect();
    assert_eq!(together, alone);
    for name in ["fathom_running", "fathom_waiting_for_slot", "fathom_waiting_for_load"] {
        server.wait_for_metric(name, 0.0);
    }
    // The last word counts.
    server.post("/api/generate", &json!({"model": "tiny", "prompt": "A", "stream": false, "keep_alive": -1}));
    assert_eq!(server.get("/api/ps").json()["models"].as_array().map(Vec::len), Some(1));
    server.post("/api/generate", &json!({"model": "tiny", "prompt": "A", "stream": false, "keep_alive": 0}));
    server.wait_for_metric("fathom_models_loaded", 0.0);
}

/// Browsers open connections ahead and keep used ones. The test fails when the server does not stop.
#[test]
fn idle_connections_do_not_keep_the_server_from_ending() {
    let server = Server::start(answers(&["x"]));
    let silent = connect(&server);
    let mut kept_alive = connect(&server);
    kept_alive.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    read_until(&mut kept_alive, "Ollama is running");
    drop(server);
    drop((silent, kept_alive));
}

/// With everything between engine and client: the only place goes to the next request, and the reason stands at the end of what was
/// never read.
#[test]
fn a_client_that_reads_nothing_loses_its_place_to_the_next() {
    let home = tempfile::tempdir().unwrap();
    let store = fathom::store::Store::open(home.path().join("models")).unwrap();
    crate::support::model::install(
        &store,
        "tiny",
        crate::support::model::metadata("deepseek4"),
        &crate::support::model::Parts::default(),
    );
    // More than the buffers of two sockets hold, and a short one for who comes next.
    let play = ["no end ".repeat(10_000), "short".into()].map(|text| json!({"text": text}));
    let script = home.path().join("script.json");
    std::fs::write(&script, json!({"schema": 1, "play": {"answers": play}, "n_ctx": 100_000}).to_string()).unwrap();
    let settings = [
        ("FATHOM_ENGINE", "scripted"),
        ("FATHOM_SCRIPT", script.to_str().unwrap()),
        ("FATHOM_NUM_PARALLEL", "1"),
        ("FATHOM_STALL_LIMIT", "2s"),
        ("FATHOM_LOG", "warn"),
    ];
    let program = Program::serve(home.path(), &settings);
    // Long lines fill the socket's buffers soon.
    let long = json!({
        "model": "tiny", "prompt": "A", "raw": true, "logprobs": true, "top_logprobs": 20,
        "options": {"seed": 1, "num_predict": 1_000_000}
    });
    let mut stalled = http::send(program.address, "POST", "/api/generate", &[], long.to_string().as_bytes());
    let mut head = [0; 12];
    stalled.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    let next = json!({"model": "tiny", "prompt": "B", "raw": true, "stream": false, "options": {"num_predict": 3}});
    let reply = http::open(program.address, "POST", "/api/generate", &[], next.to_string().as_bytes()).finish();
    assert_eq!(reply.status, 200, "{}", reply.text());
    let metrics = program.get("/metrics").text();
    assert!(metrics.contains("fathom_requests_total{reason=\"stalled\"} 1\n"), "{metrics}");
    let mut rest = String::new();
    stalled.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("{\"error\":\"the client read nothing of its answer for 0.2 s; the request was ended\"}\n"));
}
