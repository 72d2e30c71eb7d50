//! A conversation as the values that Ollama gives to templates.

use std::rc::Rc;

use serde_json::Value as Json;

use super::value::{Field, List, Map, Record, Value};
use crate::chat::message::{Arguments, Message, Role, Think, Tool, ToolCall};

/// What a template sees as `.` and `$`.
pub(super) fn root(entries: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    let entries = entries.into_iter().map(|(name, value)| (name.into(), value)).collect();
    Value::Map(Rc::new(Map { entries, as_json: false }))
}

/// `.Think`, `.ThinkLevel` and `.IsThinkSet`. Who says nothing gets the default of a model that can think: on.
pub(super) fn thinking(think: Think, can_think: bool) -> [(&'static str, Value); 3] {
    let (on, level) = match think {
        Think::Default if !can_think => (false, ""),
        Think::Off => (false, ""),
        Think::Default | Think::On | Think::Medium => (true, "medium"),
        Think::Low | Think::Percent(0..=37) => (true, "low"),
        Think::Percent(38..=62) => (true, "medium"),
        Think::High | Think::Percent(63..=87) => (true, "high"),
        Think::Max | Think::Percent(_) => (true, "max"),
    };
    let is_set = think != Think::Default || can_think;
    [("Think", Value::Bool(on)), ("ThinkLevel", level.into()), ("IsThinkSet", Value::Bool(is_set))]
}

/// Bytes of a message's texts.
pub(super) fn bytes(message: &Message) -> usize {
    let arguments = |call: &ToolCall| match &call.arguments {
        Arguments::Object(json) => json.text().len(),
        Arguments::Text(text) => text.len(),
    };
    message.content.len()
        + message.thinking.as_ref().map_or(0, String::len)
        + message.tool_calls.iter().map(arguments).sum::<usize>()
}

/// The data of a template that reads `.Messages`.
pub(super) fn whole(messages: &[Message], tools: &[Tool], thinking: [(&'static str, Value); 3]) -> Value {
    let tools = Value::List(Rc::new(List { items: tools.iter().map(tool).collect(), as_json: true }));
    let data = [
        ("System", system(messages).as_str().into()),
        ("Messages", Value::list(merged(messages).iter().map(message).collect())),
        ("Tools", tools),
        ("Response", "".into()),
    ];
    root(data.into_iter().chain(thinking))
}

/// One run of an older template.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Turn {
    pub(super) system: String,
    pub(super) prompt: String,
    pub(super) response: String,
}

/// Turns for a template that does not read `.Messages`; the last one is still open.
pub(super) fn turns(messages: &[Message]) -> Vec<Turn> {
    let mut turns = Vec::new();
    let mut turn = Turn::default();
    for message in merged(messages) {
        match message.role {
            Role::System => {
                if !turn.prompt.is_empty() || !turn.response.is_empty() {
                    turns.push(std::mem::take(&mut turn));
                }
                turn.system = message.content;
            }
            Role::User => {
                if !turn.response.is_empty() {
                    turns.push(std::mem::take(&mut turn));
                }
                turn.prompt = message.content;
            }
            Role::Assistant => turn.response = message.content,
            Role::Tool | Role::Other(_) => {}
        }
    }
    turns.push(turn);
    turns
}

/// All system messages as one text.
fn system(messages: &[Message]) -> String {
    let texts: Vec<&str> = messages
        .iter()
        .filter(|message| message.role == Role::System)
        .map(|message| message.content.as_str())
        .collect();
    texts.join("\n\n")
}

/// Messages with one role that follow each other become one, except results of tools.
fn merged(messages: &[Message]) -> Vec<Message> {
    let mut merged: Vec<Message> = Vec::new();
    for message in messages {
        match merged.last_mut() {
            Some(last) if last.role == message.role && message.role != Role::Tool => {
                last.content = format!("{}\n\n{}", last.content, message.content);
                last.tool_calls.extend(message.tool_calls.iter().cloned());
            }
            _ => merged.push(message.clone()),
        }
    }
    merged
}

fn record(as_json: bool, fields: Vec<Field>) -> Value {
    Value::Record(Rc::new(Record { fields, as_json }))
}

fn field(name: &'static str, json: &'static str, value: Value) -> Field {
    Field { name, json, optional: false, value }
}

fn optional(name: &'static str, json: &'static str, value: Value) -> Field {
    Field { name, json, optional: true, value }
}

fn message(message: &Message) -> Value {
    let text = |text: &Option<String>| text.as_deref().unwrap_or_default().into();
    record(
        false,
        vec![
            field("Role", "role", message.role.as_str().into()),
            field("Content", "content", message.content.as_str().into()),
            optional("Thinking", "thinking", text(&message.thinking)),
            // Placeholders for images stand in the content.
            optional("Images", "images", Value::list(Vec::new())),
            optional("ToolCalls", "tool_calls", Value::list(message.tool_calls.iter().enumerate().map(call).collect())),
            optional("ToolName", "tool_name", text(&message.tool_name)),
            optional("ToolCallID", "tool_call_id", text(&message.tool_call_id)),
        ],
    )
}

fn call((index, call): (usize, &ToolCall)) -> Value {
    let arguments = match &call.arguments {
        Arguments::Object(json) => match json.value() {
            // In the order in which the model wrote them.
            Json::Object(entries) => {
                let entries = entries.iter().map(|(key, value)| (key.as_str().into(), Value::of_json(value))).collect();
                Value::Map(Rc::new(Map { entries, as_json: true }))
            }
            other => Value::of_json(&other),
        },
        Arguments::Text(text) => text.as_str().into(),
    };
    let function = vec![
        field("Index", "index", Value::Int(index as i64)),
        field("Name", "name", call.name.as_str().into()),
        field("Arguments", "arguments", arguments),
    ];
    let id = call.id.as_deref().unwrap_or_default().into();
    record(false, vec![optional("ID", "id", id), field("Function", "function", record(false, function))])
}

fn tool(tool: &Tool) -> Value {
    let function = tool.function.value();
    let member = |name: &str| function.get(name).map_or(Value::Nil, Value::of_json);
    let parameters = function.get("parameters").map_or(Value::Nil, parameters);
    let fields = vec![
        field("Name", "name", tool.name.as_str().into()),
        optional("Description", "description", or_empty(member("description"))),
        field("Parameters", "parameters", parameters),
    ];
    record(
        true,
        vec![
            field("Type", "type", "function".into()),
            optional("Items", "items", Value::Nil),
            field("Function", "function", record(true, fields)),
        ],
    )
}

fn or_empty(value: Value) -> Value {
    if matches!(value, Value::Nil) { "".into() } else { value }
}

fn parameters(json: &Json) -> Value {
    let member = |name: &str| json.get(name).map_or(Value::Nil, Value::of_json);
    record(
        true,
        vec![
            field("Type", "type", or_empty(member("type"))),
            optional("Defs", "$defs", member("$defs")),
            optional("Items", "items", member("items")),
            optional("Required", "required", member("required")),
            field("Properties", "properties", json.get("properties").map_or(Value::Nil, properties)),
        ],
    )
}

fn properties(json: &Json) -> Value {
    let Json::Object(entries) = json else {
        return Value::of_json(json);
    };
    let mut entries: Vec<(Rc<str>, Value)> =
        entries.iter().map(|(name, value)| (name.as_str().into(), property(value))).collect();
    entries.sort_by(|(a, _), (b, _)| a.cmp(b));
    Value::Map(Rc::new(Map { entries, as_json: false }))
}

fn property(json: &Json) -> Value {
    let member = |name: &str| json.get(name).map_or(Value::Nil, Value::of_json);
    let any_of = match json.get("anyOf") {
        Some(Json::Array(options)) => Value::list(options.iter().map(property).collect()),
        _ => Value::Nil,
    };
    record(
        false,
        vec![
            optional("AnyOf", "anyOf", any_of),
            optional("Type", "type", member("type")),
            optional("Items", "items", member("items")),
            optional("Description", "description", or_empty(member("description"))),
            optional("Enum", "enum", member("enum")),
            optional("Properties", "properties", json.get("properties").map_or(Value::Nil, properties)),
            optional("Required", "required", member("required")),
        ],
    )
}
