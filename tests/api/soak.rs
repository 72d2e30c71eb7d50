//! Many clients at once, half of which leave in the middle: nothing may leak or get stuck, and everybody else gets a whole answer.
//!
//! The server is the built program in a process of its own, so that its memory, threads and files can be counted.

use std::fs;
use std::io::Read;
use std::net::Shutdown;
#[cfg(any(feature = "llama", feature = "native"))]
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::http;
use crate::support::model::{self, Parts};
use crate::support::program::Program;
use fathom::store::Store;

const CLIENTS: usize = 16;

/// Allows naming a model by its path.
const LOCAL: [(&str, &str); 1] = [("Sec-Fathom-Local", "1")];

/// splitmix64: different but the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

/// What a process holds.
#[derive(Debug)]
struct Held {
    bytes: u64,
    threads: usize,
    files: usize,
}

fn held(program: &Program) -> Held {
    let process = format!("/proc/{}", program.child.id());
    let status = fs::read_to_string(format!("{process}/status")).unwrap();
    let number = |key: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap()
    };
    Held {
        bytes: number("VmRSS:") * 1024,
        threads: number("Threads:") as usize,
        files: fs::read_dir(format!("{process}/fd")).unwrap().count(),
    }
}

fn metric(program: &Program, name: &str) -> f64 {
    let text = program.get("/metrics").text();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no metric `{name}` in:\n{text}")).parse().unwrap()
}

fn wait_for_rest(program: &Program) {
    for _ in 0..6000 {
        let busy = ["fathom_running", "fathom_waiting_for_slot", "fathom_waiting_for_load"];
        if busy.iter().all(|name| metric(program, name) == 0.0) {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("a slot is stuck:\n{}", program.get("/metrics").text());
}

/// One request that is read to its end, and must have one.
fn whole(program: &Program, request: &Value) {
    let body = request.to_string();
    let mut exchange = http::open(program.address, "POST", "/api/generate", &LOCAL, body.as_bytes());
    assert_eq!(exchange.status, 200);
    let mut last = Value::Null;
    while let Some(line) = exchange.line() {
        assert!(line.get("error").is_none(), "{line}");
        last = line;
    }
    assert_eq!(last["done"], true, "the answer has no end: {last}");
}

/// One request whose client leaves: before the answer, or after some lines of it.
fn broken(program: &Program, request: &Value, random: &mut Random) {
    let body = request.to_string();
    let mut stream = http::send(program.address, "POST", "/api/generate", &LOCAL, body.as_bytes());
    let mut some = vec![0; random.below(2000)];
    if random.below(3) > 0 {
        let _ = stream.read_exact(&mut some);
    }
    let _ = stream.shutdown(Shutdown::Both);
}

/// Lets the clients loose for a while; `request(client, n)` makes their requests.
fn soak(program: &Program, time: Duration, request: impl Fn(usize, usize) -> Value + Sync) {
    let (wholes, brokens) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let round = |time: Duration| {
        let until = Instant::now() + time;
        std::thread::scope(|scope| {
            for client in 0..CLIENTS {
                let (request, wholes, brokens) = (&request, &wholes, &brokens);
                scope.spawn(move || {
                    let mut random = Random(client as u64);
                    let mut n = 0;
                    while Instant::now() < until {
                        let request = request(client, n);
                        if random.below(2) == 0 {
                            broken(program, &request, &mut random);
                            brokens.fetch_add(1, Ordering::Relaxed);
                        } else {
                            whole(program, &request);
                            wholes.fetch_add(1, Ordering::Relaxed);
                        }
                        n += 1;
                    }
                });
            }
        });
        wait_for_rest(program);
    };
    // The first part brings the model, the threads and the prefix cache to their size.
    round(time / 4);
    let (before, cached_before) = (held(program), metric(program, "fathom_prefix_bytes"));
    round(time * 3 / 4);
    let (after, cached_after) = (held(program), metric(program, "fathom_prefix_bytes"));

    let numbers = format!(
        "{} whole and {} broken answers; before {before:?}, after {after:?}, prefix cache {cached_before} and {cached_after} bytes",
        wholes.load(Ordering::Relaxed),
        brokens.load(Ordering::Relaxed),
    );
    println!("{numbers}");
    assert!(wholes.load(Ordering::Relaxed) > 0 && brokens.load(Ordering::Relaxed) > 0, "{numbers}");
    // A sixteenth of its size for the allocator's moods, and no less than 8 MiB; a leak of one small prompt per request is more.
    let growth = after.bytes.saturating_sub(before.bytes) as f64 - (cached_after - cached_before).max(0.0);
    assert!(growth < (before.bytes as f64 / 16.0).max(8e6), "memory grew by {growth} bytes: {numbers}");
    assert!(after.files <= before.files + 2, "files leak: {numbers}");
    // Preparing a prompt borrows a thread from a pool, which keeps as many as were once needed at the same time.
    assert!(after.threads <= before.threads + CLIENTS, "threads leak: {numbers}");
    // Every slot still works.
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let request = &request;
            scope.spawn(move || whole(program, &request(client, 0)));
        }
    });
}

#[test]
fn clients_that_leave_hurt_nobody() {
    let home = tempfile::tempdir().unwrap();
    let store = Store::open(home.path().join("models")).unwrap();
    model::install(&store, "tiny", model::metadata("deepseek4"), &Parts::default());
    let script = home.path().join("script.json");
    fs::write(&script, json!({"schema": 1, "play": "hash", "step_delay_us": 100}).to_string()).unwrap();
    let settings = [("FATHOM_ENGINE", "scripted"), ("FATHOM_SCRIPT", script.to_str().unwrap()), ("FATHOM_LOG", "warn")];
    let program = Program::serve(home.path(), &settings);
    soak(&program, Duration::from_secs(3), |client, n| {
        let prompt = format!("client {client} asks {}", "something long ".repeat(n % 7 * 10));
        json!({"model": "tiny", "prompt": prompt, "raw": true, "options": {"num_predict": 40, "seed": n}})
    });
}

/// A minute on the llama engine with real arithmetic.
#[cfg(feature = "llama")]
#[test]
fn clients_that_leave_hurt_nobody_on_llama() {
    soak_engine("llama", Duration::from_secs(60));
}

/// The same on the native engine.
#[cfg(feature = "native")]
#[test]
fn clients_that_leave_hurt_nobody_on_native() {
    soak_engine("native", Duration::from_secs(60));
}

#[cfg(any(feature = "llama", feature = "native"))]
fn soak_engine(engine: &str, duration: Duration) {
    use fathom_converters::{Options, Silent, convert};

    let home = tempfile::tempdir().unwrap();
    let gguf = home.path().join("tiny.gguf");
    let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-v4-a");
    convert(&Options::new(checkpoint, &gguf), &mut Silent).unwrap();
    // ggml's threads spin at barriers, and other tests use the cores: with two threads a step can take a scheduler slice.
    let settings = [("FATHOM_ENGINE", engine), ("FATHOM_LOG", "warn"), ("FATHOM_THREADS", "1")];
    let program = Program::serve(home.path(), &settings);
    let model = gguf.to_str().unwrap().to_owned();
    soak(&program, duration, |client, n| {
        let prompt = format!("client {client} asks {}", "something long ".repeat(n % 7 * 10));
        json!({"model": model, "prompt": prompt, "raw": true, "options": {"num_predict": 40, "seed": n}})
    });
}
