//! The inner types that every interface converts to and from: messages, tools, thinking.

use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// Who speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    System,
    User,
    Assistant,
    Tool,
    /// Any other word a client sent (`developer`, `latest_reminder`, ...); families decide what it means.
    Other(String),
}

#[derive(Clone, Debug, PartialEq)]
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
}

/// A tool as the model shall see it. `function` is kept with the client's key order, since it reaches the prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    pub name: String,
    /// The whole `function` object: `name`, `description`, `parameters`, ...
    pub function: Value,
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
    Object(Map<String, Value>),
    Text(String),
}

/// How much the model shall think before it answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Think {
    /// Not said: the family's default.
    #[default]
    Default,
    Off,
    /// On, effort not said.
    On,
    Low,
    Medium,
    High,
    Max,
}

/// What is rendered: one conversation, up to where the model shall go on.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub messages: Vec<Message>,
    pub tools: Vec<Tool>,
    pub think: Think,
    /// JSON schema (or the literal `"json"`) the answer shall follow; families with a prompt text for it show it.
    pub response_format: Option<Box<RawValue>>,
}
