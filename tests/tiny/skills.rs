//! What the model has learnt: the questions that were held out of its training, asked as programs ask them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{chat, engines, serve};
use crate::support::heldout::{Case, cases};

/// Share of right answers of each skill, below which the model, an engine or the interface has got worse: a little below what the
/// checkpoint in the tree was seen to reach. A new checkpoint raises them, and nothing lowers them. Skills that it has not learnt have 0,
/// and are printed.
const FLOORS: &[(&str, f64)] = &[("chat", 0.85), ("json", 0.7), ("retrieval", 0.6), ("thinking", 0.2), ("tools", 0.25)];
/// Share of answers that an end token ended.
const STOPPED: f64 = 1.0;

/// Whether an answer is right. Reasoning where none was wanted, or none where it was, is wrong.
fn is_right(case: &Case, message: &Value) -> bool {
    let thinks = message["thinking"].as_str().is_some_and(|text| !text.is_empty());
    thinks == (case.request["think"] == true) && case.is_right(message)
}

#[derive(Default)]
struct Score {
    right: usize,
    stopped: usize,
    of: usize,
    wrong: Vec<String>,
}

#[test]
fn held_out_questions_are_answered_as_well_as_ever() {
    for engine in engines() {
        let home = tempfile::tempdir().unwrap();
        let server = serve(home.path(), engine);
        let mut scores: BTreeMap<String, Score> = BTreeMap::new();
        let mut formed = Score::default();
        for case in cases() {
            let answer = chat(&server, &case.request);
            // Held to a form, an answer is valid whatever the model has learnt.
            if case.request.get("format").is_some() {
                let content = answer["message"]["content"].as_str().unwrap_or_default();
                let is_valid = serde_json::from_str::<Value>(content).is_ok_and(|document| document.is_object());
                assert!(is_valid || answer["done_reason"] == "length", "{engine}: {answer} for {}", case.request);
                formed.of += 1;
                formed.right += usize::from(is_right(&case, &answer["message"]));
                continue;
            }
            let score = scores.entry(case.skill.clone()).or_default();
            score.of += 1;
            score.stopped += usize::from(answer["done_reason"] == "stop");
            if is_right(&case, &answer["message"]) {
                score.right += 1;
            } else if score.wrong.len() < 3 {
                score.wrong.push(format!("{:?} expected, got {}", case.answer, answer["message"]));
            }
        }
        let (mut stopped, mut of) = (0, 0);
        for (skill, score) in &scores {
            println!("{engine}: {skill}: {} of {} right, {} ended by themselves", score.right, score.of, score.stopped);
            score.wrong.iter().for_each(|wrong| println!("    {wrong}"));
            stopped += score.stopped;
            of += score.of;
        }
        println!("{engine}: {stopped} of {of} answers ended by themselves");
        println!("{engine}: {} of {} with `format` right, all of them valid JSON", formed.right, formed.of);
        assert!(stopped as f64 / of as f64 >= STOPPED, "{engine}: {stopped} of {of} answers ended by themselves");
        for (skill, floor) in FLOORS {
            let score = &scores[*skill];
            let share = score.right as f64 / score.of as f64;
            assert!(share >= *floor, "{engine}: {skill}: {share:.3} are right, the floor is {floor}");
        }
    }
}

/// One question of each kind, as in the README and the demo, and whether the checkpoint in the tree has learnt it: what it has not is
/// printed, not demanded.
fn known() -> Vec<(Case, bool)> {
    let case = |kind: &str, request: Value, expected: Value| -> Case {
        let case = json!({"skill": "known", "kind": kind, "request": request, "expected": expected, "answer": ""});
        serde_json::from_value(case).unwrap()
    };
    let ask = |text: &str, think: bool| json!({"think": think, "messages": [{"role": "user", "content": text}]});
    let weather = json!({"type": "function", "function": {
        "name": "get_weather",
        "description": "Get the weather for a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }});
    let mut call = ask("What is the weather in Berlin?", false);
    call["tools"] = json!([weather]);
    let mut told = call.clone();
    told["messages"] = json!([
        {"role": "user", "content": "What is the weather in Berlin?"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "get_weather", "arguments": {"city": "Berlin"}}}]},
        {"role": "tool", "tool_name": "get_weather", "content": "{\"temperature\": 15, \"condition\": \"sunny\"}"},
    ]);
    let haystack = format!(
        "{}The code of the red door is 4821. {}\n\nWhat is the code of the red door?",
        "The grass is green. We know the way. ".repeat(12),
        "The sky is blue. The night is long. ".repeat(12).trim_end(),
    );
    let called = json!({"tool": {"name": "get_weather", "arguments": {"city": "Berlin"}}});
    vec![
        (case("fact", ask("What is the capital of Italy?", false), json!({"contains": ["Rome"]})), true),
        (case("sum", ask("What is 27 + 45?", true), json!({"contains": ["72"]})), false),
        (case("tool call", call, called), true),
        (case("tool result", told, json!({"contains": ["15", "sunny"]})), true),
        (case("needle", ask(&haystack, false), json!({"contains": ["4821"]})), true),
    ]
}

#[test]
fn the_fact_the_sum_the_tool_and_the_needle() {
    for engine in engines() {
        let home = tempfile::tempdir().unwrap();
        let server = serve(home.path(), engine);
        for (case, learnt) in known() {
            let answer = chat(&server, &case.request);
            let right = is_right(&case, &answer["message"]);
            println!("{engine}: {}: {} {}", case.kind, if right { "right" } else { "WRONG" }, answer["message"]);
            assert!(right || !learnt, "{engine}: {case:?}\n{answer}");
        }
    }
}
