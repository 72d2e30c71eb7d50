//! The held-out cases of fathom-tiny over HTTP, with the engine playing back what a right model would write: requests, answers and
//! the judge agree, whatever the model has learnt.

use serde_json::{Value, json};

use crate::support::heldout::{Case, cases};
use crate::support::{Server, answers};

fn message(server: &Server, case: &Case) -> Value {
    let mut request = case.request.clone();
    request["model"] = json!("tiny");
    request["stream"] = json!(false);
    let reply = server.post("/api/chat", &request);
    assert_eq!(reply.status, 200, "{}: {}", case.request, reply.text());
    reply.json()["message"].clone()
}

/// Long needles add time and nothing else, since this engine does not read them; requests with a `format` are refused so far.
fn short_cases() -> Vec<Case> {
    let wanted = |case: &Case| case.request.to_string().len() < 3000 && case.request.get("format").is_none();
    let cases: Vec<Case> = cases().into_iter().filter(wanted).collect();
    for skill in ["chat", "thinking", "tools", "retrieval", "json"] {
        assert!(cases.iter().filter(|case| case.skill == skill).count() > 5, "{skill}");
    }
    cases
}

#[test]
fn right_answers_are_judged_right() {
    let cases = short_cases();
    let texts: Vec<&str> = cases.iter().map(|case| case.answer.as_str()).collect();
    let server = Server::start(answers(&texts));
    for case in &cases {
        let message = message(&server, case);
        assert!(case.is_right(&message), "{case:?}\n{message}");
        let thinks = case.request["think"] == true;
        assert_eq!(message.get("thinking").is_some(), thinks, "{}\n{message}", case.request);
    }
}

#[test]
fn answers_to_other_questions_are_judged_wrong() {
    let cases = short_cases();
    for case in &cases {
        assert!(!case.is_right(&json!({"content": ""})), "{case:?}");
        assert!(!case.is_right(&json!({"content": "I do not know."})), "{case:?}");
    }
    let calls: Vec<&Case> = cases.iter().filter(|case| case.kind == "call").collect();
    let texts: Vec<&str> = calls.iter().map(|case| case.answer.as_str()).collect();
    let server = Server::start(answers(&texts));
    let said: Vec<Value> = calls.iter().map(|case| message(&server, case)).collect();
    let right = |case: &Case| said.iter().filter(|message| case.is_right(message)).count();
    assert!(calls.iter().all(|case| right(case) < said.len() / 4), "a judge that accepts anything");
}
