//! Prompts and answers of DeepSeek-V4 against vectors of the released encoder.

use fathom::chat::deepseek_v4::{self, Effort, Generation, Mode, Options};
use fathom::chat::{Arguments, Message, Piece, RawJson, Request, Role, Think, Tool, ToolCall};
use serde::Deserialize;

#[derive(Deserialize)]
struct V4File {
    v4_0731: Vec<Case>,
    v4_april: Vec<Case>,
    v41: Vec<Case>,
}

#[derive(Deserialize)]
struct V41File {
    v41: Vec<Case>,
}

/// One call of the encoder.
#[derive(Deserialize)]
struct Case {
    name: String,
    messages: Vec<WireMessage>,
    thinking_mode: String,
    reasoning_effort: Option<serde_json::Value>,
    #[serde(default = "yes")]
    drop_thinking: bool,
    prompt: String,
}

fn yes() -> bool {
    true
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireMessage {
    role: String,
    #[serde(default)]
    content: String,
    reasoning_content: Option<String>,
    #[serde(default)]
    tool_calls: Vec<WireCall>,
    tool_call_id: Option<String>,
    #[serde(default)]
    tools: Vec<WireTool>,
    response_format: Option<RawJson>,
    task: Option<String>,
    #[serde(default)]
    wo_eos: bool,
}

#[derive(Deserialize)]
struct WireCall {
    id: String,
    function: WireFunction,
}

#[derive(Deserialize)]
struct WireFunction {
    name: String,
    arguments: String,
}

#[derive(Deserialize)]
struct WireTool {
    function: RawJson,
}

impl Case {
    fn mode(&self) -> Mode {
        let effort = match &self.reasoning_effort {
            None => Effort::Unsaid,
            Some(serde_json::Value::Number(n)) => Effort::Percent(n.as_u64().unwrap() as u8),
            Some(word) => match word.as_str().unwrap() {
                "low" => Effort::Low,
                // vLLM's addition, equal to high
                "high" | "xhigh" => Effort::High,
                "max" => Effort::Max,
                other => panic!("{}: effort {other}", self.name),
            },
        };
        if self.thinking_mode == "thinking" { Mode::Thinking(effort) } else { Mode::Chat }
    }

    /// The same effort in a client's words, if there are any.
    fn think(&self) -> Think {
        match self.mode() {
            Mode::Chat => Think::Off,
            Mode::Thinking(Effort::Unsaid) => Think::On,
            Mode::Thinking(Effort::Low) => Think::Low,
            Mode::Thinking(Effort::High) => Think::High,
            Mode::Thinking(Effort::Max) => Think::Max,
            Mode::Thinking(Effort::Percent(percent)) => Think::Percent(percent),
        }
    }

    fn request(&self) -> Request {
        let messages = self.messages.iter().map(|m| Message {
            role: Role::parse(&m.role),
            content: m.content.clone(),
            thinking: m.reasoning_content.clone(),
            tool_calls: m
                .tool_calls
                .iter()
                .map(|call| ToolCall {
                    id: Some(call.id.clone()),
                    name: call.function.name.clone(),
                    arguments: Arguments::parse(&call.function.arguments),
                })
                .collect(),
            tool_call_id: m.tool_call_id.clone(),
            tools: m.tools.iter().map(|t| Tool::from_function(t.function.clone()).unwrap()).collect(),
            task: m.task.clone(),
            ..Message::default()
        });
        Request {
            messages: messages.collect(),
            think: self.think(),
            response_format: self.messages.iter().find_map(|m| m.response_format.clone()),
            keep_thinking: !self.drop_thinking,
            ..Request::default()
        }
    }
}

fn cases() -> Vec<(Generation, Case)> {
    let v4: V4File = serde_json::from_str(include_str!("data/prompts/deepseek-v4-prompts.json")).unwrap();
    let v41: V41File = serde_json::from_str(include_str!("data/prompts/deepseek-v41-prompts.json")).unwrap();
    assert_eq!((v4.v4_0731.len(), v4.v4_april.len(), v4.v41.len(), v41.v41.len()), (30, 3, 9, 40));
    let mut cases = Vec::new();
    cases.extend(v4.v4_0731.into_iter().map(|case| (Generation::V4July, case)));
    cases.extend(v4.v4_april.into_iter().map(|case| (Generation::V4April, case)));
    cases.extend(v4.v41.into_iter().chain(v41.v41).map(|case| (Generation::V41, case)));
    cases
}

fn encode(generation: Generation, case: &Case) -> String {
    let options = Options { generation, mode: case.mode(), drop_thinking: case.drop_thinking };
    deepseek_v4::encode(&options, &case.request()).unwrap()
}

#[test]
fn every_prompt_is_that_of_the_released_encoder() {
    for (generation, case) in cases().iter().filter(|(_, case)| case.messages.iter().all(|m| !m.wo_eos)) {
        assert_eq!(encode(*generation, case), case.prompt, "{generation:?} {}", case.name);
    }
}

#[test]
fn without_effort_the_april_release_writes_the_same() {
    let no_effort = |case: &Case| case.reasoning_effort.is_none() || case.thinking_mode == "chat";
    for (_, case) in cases().iter().filter(|(g, case)| *g == Generation::V4July && no_effort(case)) {
        assert_eq!(encode(Generation::V4April, case), case.prompt, "{}", case.name);
    }
}

/// What a model goes on from: the encoder's prompt, but a last assistant message stays open.
#[test]
fn a_prompt_for_the_model_ends_where_it_goes_on() {
    for (generation, case) in cases() {
        let prompt = deepseek_v4::render(generation, &case.request()).unwrap();
        let last = case.messages.last().unwrap();
        let expected = match last.role.as_str() {
            "assistant" => case.prompt.strip_suffix("<｜end▁of▁sentence｜>").unwrap_or(&case.prompt),
            _ => &case.prompt,
        };
        assert_eq!(prompt.text, expected, "{generation:?} {}", case.name);
        assert_eq!(prompt.starts_in_thinking, prompt.text.ends_with("<think>"), "{generation:?} {}", case.name);
        let opened = prompt.text.rfind("<｜Assistant｜>").map(|at| at + "<｜Assistant｜>".len());
        let expected = match last.task.as_deref() {
            Some(task) if task != "action" => Some(prompt.text.len()),
            _ => opened,
        };
        assert_eq!(Some(prompt.stable_bytes), expected, "{generation:?} {}", case.name);
    }
}

/// The text that the model would have written for an assistant message is read back as that message.
#[test]
fn parsing_is_the_inverse_of_rendering() {
    let mut parsed_calls = 0;
    for (generation, case) in cases() {
        let request = case.request();
        for (index, message) in request.messages.iter().enumerate().filter(|(_, m)| m.role == Role::Assistant) {
            // The answer stands between the prompt before it and the prompt with it, both with their reasoning.
            let before =
                Request { messages: request.messages[..index].to_vec(), keep_thinking: true, ..request.clone() };
            let with =
                Request { messages: request.messages[..=index].to_vec(), keep_thinking: true, ..request.clone() };
            if before.messages.is_empty() || before.messages[index - 1].role == Role::Other("developer".into()) {
                continue;
            }
            let mut declared = before.clone();
            declared.tools.push(Tool::from_function(RawJson::parse(r#"{"name":"x"}"#).unwrap()).unwrap());
            let prompt = deepseek_v4::render(generation, &before).unwrap();
            let options = Options { generation, mode: case.mode(), drop_thinking: false };
            let whole = deepseek_v4::encode(&options, &with).unwrap();
            let answer = whole.strip_prefix(&prompt.text).unwrap().strip_suffix("<｜end▁of▁sentence｜>").unwrap();

            let mut parser = deepseek_v4::Parser::new(&declared, &prompt);
            let mut pieces = Vec::new();
            fathom::chat::Parser::push(&mut parser, answer, &mut pieces);
            fathom::chat::Parser::finish(&mut parser, &mut pieces);

            let thinks = case.thinking_mode == "thinking" && case.messages[index - 1].task.is_none();
            let expected = Message { thinking: message.thinking.clone().filter(|_| thinks), ..without_ids(message) };
            assert_eq!(collect(&pieces), expected, "{generation:?} {}", case.name);
            parsed_calls += message.tool_calls.len();
        }
    }
    assert!(parsed_calls > 20, "{parsed_calls}");
}

fn collect(pieces: &[Piece]) -> Message {
    let mut message = Message { role: Role::Assistant, ..Message::default() };
    for piece in pieces {
        match piece {
            Piece::Thinking(text) => message.thinking.get_or_insert_default().push_str(text),
            Piece::Content(text) => message.content.push_str(text),
            Piece::ToolCall(call) => message.tool_calls.push(call.clone()),
        }
    }
    without_ids(&message)
}

/// Ids are not part of the text; objects compare by value, spacing aside.
fn without_ids(message: &Message) -> Message {
    let mut message = Message { tools: Vec::new(), task: None, ..message.clone() };
    for call in &mut message.tool_calls {
        call.id = None;
        if let Arguments::Object(object) = &call.arguments {
            call.arguments = Arguments::Object(RawJson::parse(&object.python()).unwrap());
        }
    }
    message
}
