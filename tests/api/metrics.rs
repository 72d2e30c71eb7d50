//! `/metrics`.

use serde_json::json;

use crate::support::{Server, answers};

#[test]
fn requests_tokens_and_loads_are_counted() {
    let server = Server::start(answers(&["abc"]));
    let before = server.get("/metrics");
    assert_eq!(before.header("content-type"), Some("application/openmetrics-text; version=1.0.0; charset=utf-8"));
    assert!(before.text().ends_with("# EOF\n"));
    server.post("/api/generate", &json!({"model": "tiny", "prompt": "A", "raw": true}));
    for (name, value) in [
        ("fathom_requests_total{reason=\"stop\"}", 1.0),
        ("fathom_computed_requests_total{engine=\"scripted\",kv=\"f16\"}", 1.0),
        ("fathom_prompt_tokens_total", 2.0),
        ("fathom_generated_tokens_total", 4.0),
        ("fathom_loads_total", 1.0),
        ("fathom_models_loaded", 1.0),
        ("fathom_first_token_seconds_count", 1.0),
    ] {
        server.wait_for_metric(name, value);
    }
}

#[test]
fn metrics_are_answered_while_the_engine_computes() {
    let slow = fathom::engine::scripted::Script { step_delay_us: 20_000, ..answers(&["abcdefghijklmnopqrstuvwxyz"]) };
    let server = Server::start(slow);
    let mut running = server.open("/api/generate", &json!({"model": "tiny", "prompt": "A", "raw": true}));
    running.line().unwrap();
    assert_eq!(server.metric("fathom_running"), 1.0);
    running.finish();
    server.wait_for_metric("fathom_running", 0.0);
}
