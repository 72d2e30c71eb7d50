//! The inner types that every interface converts to and from: messages, tools, thinking.

use serde_json::Value;

use super::json::RawJson;

/// Who speaks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Role {
    System,
    #[default]
    User,
    Assistant,
    Tool,
    /// Any other word a client sent (`developer`, `latest_reminder`, ...); families decide what it means.
    Other(String),
}

impl Role {
    /// Reads a role as clients write it; case does not matter.
    pub fn parse(word: &str) -> Role {
        match word.to_lowercase().as_str() {
            "system" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            "tool" => Role::Tool,
            other => Role::Other(other.to_owned()),
        }
    }

    pub fn as_str(&self) -> &str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
            Role::Other(word) => word,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Message {
    pub role: Role,
    pub content: String,
    /// Reasoning of an assistant message, if the client replayed it.
    pub thinking: Option<String>,
    pub tool_calls: Vec<ToolCall>,
    /// For [`Role::Tool`]: the call it answers, and the tool's name.
    pub tool_call_id: Option<String>,
    pub tool_name: Option<String>,
    /// Images as files (png, jpeg, webp bytes).
    pub images: Vec<bytes::Bytes>,
    /// Tools that this very message declares (agents put some on a developer message); most are in [`Request::tools`].
    pub tools: Vec<Tool>,
    /// DeepSeek's quick tasks on a user message: `title`, `query`, `authority`, `domain`, `read_url`, `action`.
    pub task: Option<String>,
}

impl Message {
    pub fn new(role: Role, content: impl Into<String>) -> Message {
        Message { role, content: content.into(), ..Message::default() }
    }
}

/// A tool as the model shall see it. `function` keeps the client's text, since its key order and numbers reach the prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    pub name: String,
    /// The whole `function` object: `name`, `description`, `parameters`, ...
    pub function: RawJson,
}

impl Tool {
    /// From a `function` object; `None` when it is no object or has no name.
    pub fn from_function(function: RawJson) -> Option<Tool> {
        let name = function.value().get("name")?.as_str()?.to_owned();
        Some(Tool { name, function })
    }

    /// Whether the schema lists `parameter`; false also when there is no schema.
    pub fn has_parameter(&self, parameter: &str) -> bool {
        self.function.value().pointer("/parameters/properties").is_some_and(|p| p.get(parameter).is_some())
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct ToolCall {
    pub id: Option<String>,
    pub name: String,
    pub arguments: Arguments,
}

/// Arguments of a tool call: an object in the model's key order, or text that is no JSON object.
#[derive(Clone, Debug, PartialEq)]
pub enum Arguments {
    Object(RawJson),
    Text(String),
}

impl Arguments {
    /// Reads what a client sent as text: nothing is `{}`, an object is an object, the rest stays text.
    pub fn parse(text: &str) -> Arguments {
        let trimmed = text.trim();
        match RawJson::parse(if trimmed.is_empty() { "{}" } else { trimmed }) {
            Ok(json) if json.is_object() => Arguments::Object(json),
            _ => Arguments::Text(text.to_owned()),
        }
    }
}

/// An object is taken as it is, a string is read as [`Arguments::parse`] does (OpenAI clients send arguments so).
impl From<RawJson> for Arguments {
    fn from(json: RawJson) -> Self {
        if json.is_object() {
            return Arguments::Object(json);
        }
        match json.value() {
            Value::String(text) => Arguments::parse(&text),
            Value::Null => Arguments::parse(""),
            _ => Arguments::Text(json.text().to_owned()),
        }
    }
}

/// How much the model shall think before it answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Think {
    /// Not said: on if the family can think.
    #[default]
    Default,
    Off,
    /// On, effort not said: the family's own default.
    On,
    Low,
    Medium,
    High,
    Max,
    /// 1..=100, for families that take a number (DeepSeek-V4.1); others round it to a word.
    Percent(u8),
}

/// What is rendered: one conversation, up to where the model shall go on. A last message from the assistant is
/// continued, not answered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request {
    pub messages: Vec<Message>,
    pub tools: Vec<Tool>,
    pub think: Think,
    /// JSON schema (or the literal `"json"`) the answer shall follow; families with a prompt text for a schema show it.
    pub response_format: Option<RawJson>,
    /// Show the reasoning of earlier turns again, also where the family would drop it.
    pub keep_thinking: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read_as_clients_send_them() {
        let object = |text: &str| Arguments::Object(RawJson::parse(text).unwrap());
        let from = |text: &str| Arguments::from(RawJson::parse(text).unwrap());
        assert_eq!(Arguments::parse(""), object("{}"));
        assert_eq!(Arguments::parse(" {\"a\": 1.0} "), object("{\"a\": 1.0}"));
        assert_eq!(Arguments::parse("[1]"), Arguments::Text("[1]".into()));
        assert_eq!(from(r#"{"a":1}"#), object(r#"{"a":1}"#));
        assert_eq!(from(r#""{\"a\":1}""#), object(r#"{"a":1}"#));
        assert_eq!(from("null"), object("{}"));
        assert_eq!(from("7"), Arguments::Text("7".into()));
    }

    #[test]
    fn a_tool_needs_a_name() {
        let tool = |text: &str| Tool::from_function(RawJson::parse(text).unwrap());
        let t = tool(r#"{"name":"f","parameters":{"type":"object","properties":{"a":{}}}}"#).unwrap();
        assert_eq!(t.name, "f");
        assert!(t.has_parameter("a") && !t.has_parameter("b"));
        assert_eq!(tool(r#"{"description":"x"}"#), None);
        assert_eq!(tool("3"), None);
    }
}
