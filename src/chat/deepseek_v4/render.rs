//! Messages to prompt, as the release's `encode_messages` does it.
//!
//! Two steps. [`turns`] brings the messages into the format's own order: tool results become parts of user turns, sorted
//! by the order of their calls, and neighbouring user messages become one turn. [`Writer`] then writes turn after turn;
//! what opens the assistant's turn is written after the turn before it.

use super::{ASSISTANT, BOS, END_THINK, EOS, Error, Generation, Mode, Prompt, REMINDER, Request, SYSTEM, THINK, USER};
use crate::chat::json::RawJson;
use crate::chat::message::{Arguments, Message, Role, Tool, ToolCall};

/// Arguments of the encoder.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub generation: Generation,
    pub mode: Mode,
    /// Leave out the reasoning of turns before the last user message. Has no effect once tools are declared.
    pub drop_thinking: bool,
}

/// Token that a user message with a task ends in.
const TASKS: &[(&str, &str)] = &[
    ("action", ACTION),
    ("query", "<｜query｜>"),
    ("authority", "<｜authority｜>"),
    ("domain", "<｜domain｜>"),
    ("title", "<｜title｜>"),
    ("read_url", "<｜read_url｜>"),
];
const ACTION: &str = "<｜action｜>";

/// The release's `encode_messages`: exactly its output, also where a conversation ends in an assistant message (closed by
/// the end token) or, in V4, in a system message (no turn opened). Tools and schema of the request ride on a leading
/// system message, made up if there is none.
///
/// # Errors
/// [`Error::NoMessages`], [`Error::Role`], [`Error::Task`].
pub fn encode(options: &Options, request: &Request) -> Result<String, Error> {
    Ok(write(options, request, false)?.text)
}

/// As [`encode`], but ready to be continued by the model; see [`super::render()`].
pub(super) fn prompt(options: &Options, request: &Request) -> Result<Prompt, Error> {
    let mut written = write(options, request, true)?;
    if !written.opened && request.messages.last().is_some_and(|m| m.role == Role::System) {
        let thinks = options.mode != Mode::Chat;
        written.open(if thinks { THINK } else { END_THINK });
        written.starts_in_thinking = thinks;
    }
    let Written { text, stable_bytes, starts_in_thinking, .. } = written;
    Ok(Prompt { stable_bytes: stable_bytes.unwrap_or(text.len()), text, starts_in_thinking })
}

/// One turn of the format: a message, or several that became one.
struct Turn<'a> {
    kind: Kind<'a>,
    /// Token of the task that the turn ends in.
    task: Option<&'static str>,
}

enum Kind<'a> {
    System { content: &'a str, tools: Vec<&'a Tool>, schema: Option<&'a RawJson> },
    Developer { content: &'a str, tools: Vec<&'a Tool> },
    User { parts: Vec<Part<'a>> },
    Reminder { content: &'a str },
    Assistant { message: &'a Message, open: bool },
}

enum Part<'a> {
    Text(&'a str),
    /// What a tool answered to call number `call` of the assistant message before.
    Result {
        call: usize,
        content: &'a str,
    },
}

impl Turn<'_> {
    /// Whether the assistant's turn is opened after this one.
    fn is_question(&self, generation: Generation, index: usize) -> bool {
        match self.kind {
            Kind::User { .. } | Kind::Developer { .. } => true,
            Kind::System { .. } => generation == Generation::V41 && index > 0,
            Kind::Reminder { .. } | Kind::Assistant { .. } => false,
        }
    }

    /// Whether this turn makes the reasoning before it history. V4.1 keeps the reasoning inside one loop of tool calls.
    fn ends_reasoning(&self, generation: Generation, index: usize) -> bool {
        match &self.kind {
            Kind::User { parts } if generation == Generation::V41 => parts.iter().any(|p| matches!(p, Part::Text(_))),
            _ => self.is_question(generation, index),
        }
    }
}

/// What the encoder knows besides the roles of all interfaces.
const OTHER_ROLES: [&str; 2] = ["developer", "latest_reminder"];

fn turns(request: &Request, open_end: bool) -> Result<Vec<Turn<'_>>, Error> {
    // `"json"` names no schema, so there is nothing to show.
    let schema = request.response_format.as_ref().filter(|format| format.is_object());
    let mut turns = Vec::with_capacity(request.messages.len() + 1);
    let first = request.messages.first().ok_or(Error::NoMessages)?;
    if first.role != Role::System && (!request.tools.is_empty() || schema.is_some()) {
        let kind = Kind::System { content: "", tools: request.tools.iter().collect(), schema };
        turns.push(Turn { kind, task: None });
    }
    let mut calls: &[ToolCall] = &[];
    for (index, message) in request.messages.iter().enumerate() {
        let content = message.content.as_str();
        let task = message.task.as_deref().map(task_token).transpose()?;
        // The release's encoder refuses roles that it does not know. Servers of this interface check none, so in a prompt whoever
        // else speaks is heard as the user.
        let role = match &message.role {
            Role::Other(word) if open_end && !OTHER_ROLES.contains(&word.as_str()) => &Role::User,
            role => role,
        };
        let kind = match role {
            Role::System => {
                let of_request: &[Tool] = if index == 0 { &request.tools } else { &[] };
                let tools = message.tools.iter().chain(of_request).collect();
                Kind::System { content, tools, schema: schema.filter(|_| index == 0) }
            }
            Role::User | Role::Tool => {
                let part = match role {
                    Role::Tool => Part::Result { call: call_order(calls, message), content },
                    _ => Part::Text(content),
                };
                match turns.last_mut() {
                    // A task ends its turn; only tool results still join it.
                    Some(Turn { kind: Kind::User { parts }, task: before })
                        if before.is_none() || matches!(part, Part::Result { .. }) =>
                    {
                        parts.push(part);
                        *before = before.or(task);
                        continue;
                    }
                    _ => Kind::User { parts: vec![part] },
                }
            }
            Role::Assistant => {
                if !message.tool_calls.is_empty() {
                    calls = &message.tool_calls;
                }
                Kind::Assistant { message, open: open_end && index + 1 == request.messages.len() }
            }
            Role::Other(word) if word == "developer" => {
                Kind::Developer { content, tools: message.tools.iter().collect() }
            }
            Role::Other(word) if word == "latest_reminder" => Kind::Reminder { content },
            Role::Other(word) => return Err(Error::Role { role: word.clone() }),
        };
        turns.push(Turn { kind, task });
    }
    for turn in &mut turns {
        if let Kind::User { parts } = &mut turn.kind {
            sort_results(parts);
        }
    }
    Ok(turns)
}

fn task_token(task: &str) -> Result<&'static str, Error> {
    let row = TASKS.iter().find(|(name, _)| *name == task);
    row.map(|(_, token)| *token).ok_or_else(|| Error::Task { task: task.to_owned() })
}

/// Number of the call that a tool message answers: by id, or by the tool's name when the client knows no ids. What answers
/// nothing known counts as first, as in the reference.
fn call_order(calls: &[ToolCall], message: &Message) -> usize {
    let by_id = message.tool_call_id.as_deref().and_then(|id| calls.iter().position(|c| c.id.as_deref() == Some(id)));
    let by_name = || message.tool_name.as_deref().and_then(|name| calls.iter().position(|c| c.name == name));
    by_id.or_else(by_name).unwrap_or(0)
}

/// Sorts the results among themselves; text between them keeps its place.
fn sort_results(parts: &mut [Part<'_>]) {
    let mut results: Vec<(usize, &str)> = parts
        .iter()
        .filter_map(|part| match part {
            Part::Result { call, content } => Some((*call, *content)),
            Part::Text(_) => None,
        })
        .collect();
    results.sort_by_key(|(call, _)| *call);
    let mut sorted = results.into_iter();
    for part in parts {
        if let Part::Result { call, content } = part
            && let Some(next) = sorted.next()
        {
            (*call, *content) = next;
        }
    }
}

fn write(options: &Options, request: &Request, open_end: bool) -> Result<Written, Error> {
    let mut turns = turns(request, open_end)?;
    let declares_tools = !request.tools.is_empty() || request.messages.iter().any(|m| !m.tools.is_empty());
    let drop_thinking = options.drop_thinking && !declares_tools;
    if drop_thinking
        && options.mode != Mode::Chat
        && let Some(last) = last_question(&turns, options.generation)
    {
        let mut index = 0..;
        turns.retain(|turn| index.next() >= Some(last) || !matches!(turn.kind, Kind::Developer { .. }));
    }
    let bytes = request.messages.iter().map(|m| m.content.len() + m.thinking.as_ref().map_or(0, String::len) + 64);
    let mut writer = Writer {
        options,
        drop_thinking,
        last_question: last_question(&turns, options.generation),
        out: Written { text: String::with_capacity(bytes.sum()), ..Written::default() },
    };
    writer.conversation(&turns);
    Ok(writer.out)
}

/// Index of the last turn that makes the reasoning before it history.
fn last_question(turns: &[Turn<'_>], generation: Generation) -> Option<usize> {
    turns.iter().enumerate().rev().find(|(index, turn)| turn.ends_reasoning(generation, *index)).map(|(index, _)| index)
}

#[derive(Default)]
struct Written {
    text: String,
    /// Where the last assistant turn was opened.
    stable_bytes: Option<usize>,
    starts_in_thinking: bool,
    /// The text ends in an opened assistant turn.
    opened: bool,
}

impl Written {
    fn open(&mut self, tag: &str) {
        self.text.push_str(ASSISTANT);
        self.stable_bytes = Some(self.text.len());
        self.text.push_str(tag);
        self.opened = true;
    }
}

struct Writer<'o> {
    options: &'o Options,
    drop_thinking: bool,
    last_question: Option<usize>,
    out: Written,
}

impl Writer<'_> {
    fn conversation(&mut self, turns: &[Turn<'_>]) {
        self.put(BOS);
        let effort = match self.options.mode {
            Mode::Thinking(effort) => super::effort_text(self.options.generation, effort),
            Mode::Chat => "".into(),
        };
        let first_is_system = turns.first().is_some_and(|t| matches!(t.kind, Kind::System { .. }));
        if self.options.generation == Generation::V41 && (first_is_system || !effort.is_empty()) {
            self.put(SYSTEM);
        }
        self.put(&effort);
        for (index, turn) in turns.iter().enumerate() {
            self.out.opened = false;
            let after_task = index > 0 && turns[index - 1].task.is_some();
            self.turn(index, turn, after_task);
            let next = turns.get(index + 1).map(|t| &t.kind);
            if matches!(next, None | Some(Kind::Assistant { .. } | Kind::Reminder { .. })) {
                self.opening(index, turn);
            }
        }
    }

    fn turn(&mut self, index: usize, turn: &Turn<'_>, after_task: bool) {
        match &turn.kind {
            Kind::System { content, tools, schema } => {
                if self.options.generation == Generation::V41 && index > 0 {
                    self.put(SYSTEM);
                }
                self.put(content);
                self.tools(tools);
                if let Some(schema) = schema {
                    self.put("\n\n## Response Format:\n\n");
                    self.put("You MUST strictly adhere to the following schema to reply:\n");
                    schema.write_python(&mut self.out.text);
                }
            }
            Kind::Developer { content, tools } => {
                self.put(USER);
                self.put(content);
                self.tools(tools);
            }
            Kind::User { parts } => {
                self.put(USER);
                for (i, part) in parts.iter().enumerate() {
                    if i > 0 {
                        self.put("\n\n");
                    }
                    match part {
                        Part::Text(text) => self.put(text),
                        Part::Result { content, .. } => {
                            self.put("<tool_result>");
                            self.put(content);
                            self.put("</tool_result>");
                        }
                    }
                }
            }
            Kind::Reminder { content } => {
                self.put(REMINDER);
                self.put(content);
            }
            Kind::Assistant { message, open } => self.assistant(index, message, *open, after_task),
        }
    }

    fn assistant(&mut self, index: usize, message: &Message, open: bool, after_task: bool) {
        let is_history = self.drop_thinking && self.last_question.is_some_and(|last| index <= last);
        if self.options.mode != Mode::Chat && !after_task && !is_history {
            self.put(message.thinking.as_deref().unwrap_or(""));
            // A prefill that has only begun to think goes on thinking.
            if open && message.content.is_empty() && message.tool_calls.is_empty() {
                self.out.starts_in_thinking = true;
                return;
            }
            self.put(END_THINK);
        }
        self.out.starts_in_thinking = false;
        self.put(&message.content);
        if !message.tool_calls.is_empty() {
            self.calls(&message.tool_calls);
        }
        if !open {
            self.put(EOS);
        }
    }

    /// What comes between a turn and the assistant's.
    fn opening(&mut self, index: usize, turn: &Turn<'_>) {
        let thinks = self.options.mode != Mode::Chat;
        let tag = |thinks| if thinks { THINK } else { END_THINK };
        match turn.task {
            Some(ACTION) => {
                self.out.open(tag(thinks));
                self.put(ACTION);
                self.out.starts_in_thinking = false;
            }
            Some(token) => {
                self.put(token);
                self.out.opened = true;
                self.out.stable_bytes = Some(self.out.text.len());
                self.out.starts_in_thinking = false;
            }
            None if turn.is_question(self.options.generation, index) => {
                let is_history = self.drop_thinking && self.last_question.is_some_and(|last| index < last);
                self.out.open(tag(thinks && !is_history));
                self.out.starts_in_thinking = thinks && !is_history;
            }
            None => {}
        }
    }

    fn tools(&mut self, tools: &[&Tool]) {
        if tools.is_empty() {
            return;
        }
        let (space, calls) = (self.options.generation.tag_space(), self.options.generation.calls_tag());
        self.put(&format!(
            "\n\n## Tools\n\n\
             You have access to a set of tools to help answer the user's question. \
             You can invoke tools by writing a \"<｜DSML｜{space}{calls}>\" block like the following:\n\n\
             <｜DSML｜{space}{calls}>\n\
             <｜DSML｜{space}invoke name=\"$TOOL_NAME\">\n\
             <｜DSML｜{space}parameter name=\"$PARAMETER_NAME\" string=\"true|false\">$PARAMETER_VALUE\
             </｜DSML｜{space}parameter>\n\
             ...\n\
             </｜DSML｜{space}invoke>\n\
             <｜DSML｜{space}invoke name=\"$TOOL_NAME2\">\n\
             ...\n\
             </｜DSML｜{space}invoke>\n\
             </｜DSML｜{space}{calls}>\n\n\
             String parameters should be specified as is and set `string=\"true\"`. For all other types \
             (numbers, booleans, arrays, objects), pass the value in JSON format and set `string=\"false\"`.\n\n\
             If thinking_mode is enabled (triggered by {THINK}), you MUST output your complete reasoning inside \
             {THINK}...{END_THINK} BEFORE any tool calls or final response.\n\n\
             Otherwise, output directly after {END_THINK} with tool calls or final response.\n\n\
             ### Available Tool Schemas\n\n"
        ));
        for tool in tools {
            tool.function.write_python(&mut self.out.text);
            self.put("\n");
        }
        self.put(
            "\nYou MUST strictly follow the above defined tool name and parameter schemas to invoke tool calls.\n",
        );
    }

    fn calls(&mut self, calls: &[ToolCall]) {
        let (space, block) = (self.options.generation.tag_space(), self.options.generation.calls_tag());
        self.put(&format!("\n\n<｜DSML｜{space}{block}>\n"));
        for call in calls {
            self.put(&format!("<｜DSML｜{space}invoke name=\"{}\">\n", call.name));
            match &call.arguments {
                Arguments::Object(object) => self.parameters(object),
                Arguments::Text(text) => self.parameter("arguments", true, text),
            }
            self.put(&format!("\n</｜DSML｜{space}invoke>\n"));
        }
        self.put(&format!("</｜DSML｜{space}{block}>"));
    }

    fn parameters(&mut self, object: &RawJson) {
        let Some(entries) = object.entries() else {
            return self.parameter("arguments", true, object.text());
        };
        for (i, (name, value)) in entries.iter().enumerate() {
            if i > 0 {
                self.put("\n");
            }
            match value.as_string() {
                Some(text) => self.parameter(name, true, &text),
                None => self.parameter(name, false, &value.python()),
            }
        }
    }

    fn parameter(&mut self, name: &str, string: bool, value: &str) {
        let space = self.options.generation.tag_space();
        self.put(&format!("<｜DSML｜{space}parameter name=\"{name}\" string=\"{string}\">"));
        self.put(value);
        self.put(&format!("</｜DSML｜{space}parameter>"));
    }

    fn put(&mut self, text: &str) {
        self.out.text.push_str(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::deepseek_v4::{self, Effort};
    use crate::chat::message::Think;

    fn request(messages: Vec<Message>) -> Request {
        Request { messages, ..Request::default() }
    }

    fn text(generation: Generation, request: &Request) -> String {
        deepseek_v4::render(generation, request).unwrap().text
    }

    fn tool(function: &str) -> Tool {
        Tool::from_function(RawJson::parse(function).unwrap()).unwrap()
    }

    #[test]
    fn tools_of_a_request_ride_on_a_leading_system_message() {
        let tools = vec![tool(r#"{"name":"f","x":1.50,"n":12345678901234567890123}"#)];
        let ask = Request { tools, think: Think::Off, ..request(vec![Message::new(Role::User, "Hi")]) };
        let made_up = text(Generation::V4July, &ask);
        assert!(made_up.starts_with("<｜begin▁of▁sentence｜>\n\n## Tools\n\n"), "{made_up}");
        assert!(made_up.contains("\n{\"name\": \"f\", \"x\": 1.5, \"n\": 12345678901234567890123}\n"), "{made_up}");

        let mut with_system = ask.clone();
        with_system.messages.insert(0, Message::new(Role::System, "Be brief."));
        with_system.response_format = Some(RawJson::parse(r#"{"type":"object"}"#).unwrap());
        let rendered = text(Generation::V4July, &with_system);
        assert!(rendered.starts_with("<｜begin▁of▁sentence｜>Be brief.\n\n## Tools\n\n"), "{rendered}");
        assert!(rendered.contains("schema to reply:\n{\"type\": \"object\"}<｜User｜>Hi"), "{rendered}");
        with_system.response_format = Some(RawJson::parse("\"json\"").unwrap());
        assert!(!text(Generation::V4July, &with_system).contains("Response Format"));
    }

    #[test]
    fn results_without_ids_are_sorted_by_the_names_of_their_calls() {
        let call = |name: &str| ToolCall { id: None, name: name.into(), arguments: Arguments::parse("") };
        let result =
            |name: &str| Message { tool_name: Some(name.into()), ..Message::new(Role::Tool, format!("of {name}")) };
        let mut ask = request(vec![
            Message::new(Role::User, "?"),
            Message { tool_calls: vec![call("a"), call("b")], ..Message::new(Role::Assistant, "") },
            result("b"),
            result("a"),
        ]);
        ask.think = Think::Off;
        let rendered = text(Generation::V4July, &ask);
        assert!(rendered.contains("<tool_result>of a</tool_result>\n\n<tool_result>of b</tool_result>"), "{rendered}");
    }

    #[test]
    fn a_conversation_that_ends_in_a_system_message_still_asks_for_an_answer() {
        for (generation, ending) in [
            (Generation::V4July, "Be rude.<｜Assistant｜><think>"),
            (Generation::V41, "<｜System｜>Be rude.<｜Assistant｜><think>"),
        ] {
            let messages = vec![Message::new(Role::User, "Hi"), Message::new(Role::System, "Be rude.")];
            let prompt = deepseek_v4::render(generation, &request(messages)).unwrap();
            assert!(prompt.text.ends_with(ending), "{}", prompt.text);
            assert!(prompt.starts_in_thinking);
            assert_eq!(prompt.text.len() - prompt.stable_bytes, "<think>".len());
        }
        let alone = deepseek_v4::render(Generation::V41, &request(vec![Message::new(Role::System, "x")])).unwrap();
        assert!(alone.text.ends_with("\n\nx<｜Assistant｜><think>"), "{}", alone.text);
    }

    #[test]
    fn a_prefill_is_left_open() {
        let prefilled = |thinking: Option<&str>, content: &str, think| {
            let answer = Message { thinking: thinking.map(str::to_owned), ..Message::new(Role::Assistant, content) };
            let ask = Request { think, ..request(vec![Message::new(Role::User, "?"), answer]) };
            let prompt = deepseek_v4::render(Generation::V4July, &ask).unwrap();
            let (_, tail) = prompt.text.split_once("<｜Assistant｜>").unwrap();
            assert!(prompt.text[..prompt.stable_bytes].ends_with("<｜Assistant｜>"));
            (tail.to_owned(), prompt.starts_in_thinking)
        };
        assert_eq!(prefilled(None, "So", Think::Off), ("</think>So".into(), false));
        assert_eq!(prefilled(None, "So", Think::On), ("<think></think>So".into(), false));
        assert_eq!(prefilled(Some("Hm"), "So", Think::On), ("<think>Hm</think>So".into(), false));
        assert_eq!(prefilled(Some("Hm"), "", Think::On), ("<think>Hm".into(), true));
        assert_eq!(prefilled(None, "", Think::On), ("<think>".into(), true));
        assert_eq!(prefilled(None, "", Think::Off), ("</think>".into(), false));
    }

    #[test]
    fn levels_of_thinking_map_to_the_efforts_of_each_generation() {
        use Generation::{V4April, V4July, V41};
        let effort = |generation, think| {
            let ask = Request { think, ..request(vec![Message::new(Role::User, "?")]) };
            let rendered = text(generation, &ask);
            let (prefix, _) = rendered.split_once("<｜User｜>").unwrap();
            prefix.trim_start_matches(BOS).trim_start_matches(SYSTEM).chars().take(24).collect::<String>()
        };
        let (none, absolute, beyond) = ("", "Reasoning Effort: Absolu", "Reasoning Effort: Beyond");
        let v41 = |n: u8| format!("Reasoning Effort: {n} (range 1").chars().take(24).collect::<String>();
        for (think, april, july, number) in [
            (Think::Default, none, none, 75),
            (Think::On, none, none, 75),
            (Think::Low, none, none, 50),
            (Think::Medium, none, absolute, 75),
            (Think::High, none, absolute, 75),
            (Think::Max, absolute, beyond, 100),
            (Think::Percent(1), none, none, 1),
            (Think::Percent(70), none, absolute, 70),
            (Think::Percent(99), absolute, beyond, 99),
        ] {
            assert_eq!(effort(V4April, think), april, "{think:?}");
            assert_eq!(effort(V4July, think), july, "{think:?}");
            assert_eq!(effort(V41, think), v41(number), "{think:?}");
        }
        for generation in [V4April, V4July, V41] {
            assert_eq!(effort(generation, Think::Off), none);
        }
        assert!(matches!(Mode::of(Think::Percent(0)), Err(Error::Effort { percent: 0 })));
        assert!(matches!(Mode::of(Think::Percent(101)), Err(Error::Effort { percent: 101 })));
        assert_eq!(Mode::of(Think::Percent(100)).unwrap(), Mode::Thinking(Effort::Percent(100)));
    }

    #[test]
    fn unknown_tasks_are_named_and_unknown_roles_are_heard_as_the_user() {
        let sing = request(vec![Message { task: Some("sing".into()), ..Message::new(Role::User, "x") }]);
        let error = deepseek_v4::render(Generation::V41, &sing).unwrap_err().to_string();
        assert!(error.contains("`sing`"), "{error}");
        for generation in [Generation::V4April, Generation::V4July, Generation::V41] {
            let [critic, user] = [Role::parse("Critic"), Role::User].map(|role| {
                let messages = vec![Message::new(Role::User, "Hi"), Message::new(role, "Too short.")];
                deepseek_v4::render(generation, &request(messages)).unwrap().text
            });
            assert_eq!(critic, user);
        }
        let critic = request(vec![Message::new(Role::parse("Critic"), "x")]);
        let options = Options { generation: Generation::V41, mode: Mode::Chat, drop_thinking: true };
        let error = encode(&options, &critic).unwrap_err().to_string();
        assert!(error.contains("`critic`"), "the encoder itself: {error}");
        assert!(matches!(deepseek_v4::render(Generation::V41, &Request::default()), Err(Error::NoMessages)));
    }

    #[test]
    fn filling_in_the_middle() {
        let prompt = deepseek_v4::render_insert("a", "b");
        assert_eq!(prompt.text, "<｜begin▁of▁sentence｜><｜fim▁begin｜>a<｜fim▁hole｜>b<｜fim▁end｜>");
        assert_eq!(prompt.stable_bytes, prompt.text.len());
    }

    /// The prompt of the next turn begins with the stable part of this one, whatever was answered.
    #[test]
    fn the_stable_part_begins_the_next_prompt() {
        for generation in [Generation::V4April, Generation::V4July, Generation::V41] {
            for think in [Think::Off, Think::On, Think::Max] {
                let mut ask = Request { think, ..request(vec![Message::new(Role::User, "1+1?")]) };
                for turn in 0..3 {
                    let prompt = deepseek_v4::render(generation, &ask).unwrap();
                    let answer = Message { thinking: Some("I add.".into()), ..Message::new(Role::Assistant, "2") };
                    ask.messages.push(answer);
                    ask.messages.push(Message::new(Role::User, "and again?"));
                    let next = text(generation, &ask);
                    assert!(next.starts_with(&prompt.text[..prompt.stable_bytes]), "{generation:?} {think:?} {turn}");
                    assert!(prompt.stable_bytes > 0);
                }
            }
        }
    }
}
