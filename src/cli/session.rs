//! A conversation with one model: what was said, how it is to be answered, and how an answer is fetched.

use std::io;

use serde_json::{Map, Value, json};

use super::answer::{self, Answer, Style};
use super::{connect, progress};
use crate::client::{self, ChatMessage, Client, Show, Stats};

/// Everything that shapes the next answer.
#[derive(Clone)]
pub(super) struct Session {
    pub client: Client,
    /// As the server shall call it: a name or an absolute path.
    pub model: String,
    /// What the server says about the model.
    pub show: Show,
    pub messages: Vec<ChatMessage>,
    pub system: Option<String>,
    pub options: Map<String, Value>,
    /// `None` = the model's habit.
    pub think: Option<Value>,
    pub format: Option<Value>,
    pub keep_alive: Option<Value>,
    pub verbose: bool,
    pub style: Style,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Done,
    /// Ctrl-C: the request was cancelled, the program goes on.
    Interrupted,
}

impl Session {
    /// Loads the model into memory before anybody waits for an answer.
    pub(super) async fn preload(&self) -> anyhow::Result<Ended> {
        let spinner = progress::spinner("loading the model");
        let loaded = interruptible(async {
            let mut lines = self.client.generate(&self.body(json!({"prompt": ""}))).await?;
            while lines.next().await?.is_some() {}
            Ok::<(), client::Error>(())
        })
        .await;
        spinner.finish_and_clear();
        match loaded {
            Some(result) => result.map(|()| Ended::Done).map_err(connect::explained),
            None => Ok(Ended::Interrupted),
        }
    }

    /// Answers one prompt outside of any conversation, on stdout.
    pub(super) async fn generate(&self, prompt: &str) -> anyhow::Result<Ended> {
        let body = self.body(json!({"prompt": prompt}));
        let mut answer = Answer::new(io::stdout(), self.style);
        let mut stats = None;
        let result = interruptible(async {
            let mut lines = self.client.generate(&body).await.map_err(connect::explained)?;
            while let Some(line) = lines.next().await.map_err(connect::explained)? {
                answer.thinking(&line.thinking)?;
                answer.content(&line.response)?;
                if line.done {
                    stats = Some(line.stats);
                }
            }
            anyhow::Ok(())
        })
        .await;
        if matches!(result, Some(Err(_))) {
            answer.abandon()?;
        } else if !prompt.is_empty() {
            answer.finish()?;
        }
        self.finished(result, stats)
    }

    /// Says `text` and prints what the model says to that. What was heard before an interruption stays in the
    /// conversation; a turn that failed leaves no trace in it.
    pub(super) async fn turn(&mut self, text: String) -> anyhow::Result<Ended> {
        self.messages.push(ChatMessage { role: "user".into(), content: text, ..ChatMessage::default() });
        let body = self.body(json!({"messages": self.conversation()}));
        let mut answer = Answer::new(io::stdout(), self.style);
        let mut heard = ChatMessage { role: "assistant".into(), ..ChatMessage::default() };
        let mut stats = None;
        let result = interruptible(async {
            let mut lines = self.client.chat(&body).await.map_err(connect::explained)?;
            while let Some(line) = lines.next().await.map_err(connect::explained)? {
                answer.thinking(&line.message.thinking)?;
                answer.content(&line.message.content)?;
                heard.thinking.push_str(&line.message.thinking);
                heard.content.push_str(&line.message.content);
                for call in line.message.tool_calls {
                    answer.tool_call(&call)?;
                    heard.tool_calls.push(call);
                }
                if line.done {
                    stats = Some(line.stats);
                }
            }
            anyhow::Ok(())
        })
        .await;
        let failed = matches!(result, Some(Err(_)));
        if failed {
            answer.abandon()?
        } else {
            answer.finish()?
        }
        let heard_nothing = heard.content.is_empty() && heard.tool_calls.is_empty();
        if failed || (result.is_none() && heard_nothing) {
            self.messages.pop();
        } else {
            self.messages.push(heard);
        }
        self.finished(result, stats)
    }

    /// The system prompt and everything said so far.
    fn conversation(&self) -> Vec<ChatMessage> {
        let system = self.system.iter().map(|text| ChatMessage {
            role: "system".into(),
            content: text.clone(),
            ..ChatMessage::default()
        });
        system.chain(self.messages.iter().cloned()).collect()
    }

    /// A request: `fields`, and whatever of the session was set.
    fn body(&self, mut fields: Value) -> Value {
        let body = fields.as_object_mut().expect("callers pass objects");
        body.insert("model".into(), json!(self.model));
        let mut set = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                body.insert(name.into(), value);
            }
        };
        set("options", (!self.options.is_empty()).then(|| Value::Object(self.options.clone())));
        set("think", self.think.clone());
        set("format", self.format.clone());
        set("keep_alive", self.keep_alive.clone());
        fields
    }

    /// The request that makes a model of this session: what was set and what was said, on top of the present model.
    pub(super) fn as_model(&self, name: &str) -> Value {
        let said: Vec<_> = self.show.messages.iter().chain(&self.messages).collect();
        // A file is named by its absolute path, and no model name begins like one.
        let source = if self.model.starts_with('/') { "path" } else { "from" };
        let mut body = json!({"model": name, source: self.model});
        if let Some(system) = &self.system {
            body["system"] = json!(system);
        }
        if !self.options.is_empty() {
            body["parameters"] = json!(self.options);
        }
        if !said.is_empty() {
            body["messages"] = json!(said);
        }
        body
    }

    fn finished(&self, result: Option<anyhow::Result<()>>, stats: Option<Stats>) -> anyhow::Result<Ended> {
        let Some(result) = result else {
            return Ok(Ended::Interrupted);
        };
        result?;
        if let Some(stats) = stats.filter(|_| self.verbose) {
            answer::write_stats(&stats, &mut io::stderr())?;
        }
        Ok(Ended::Done)
    }
}

/// Waits for `work` or for Ctrl-C, whichever is first; dropping `work` closes its connection.
pub(super) async fn interruptible<T>(work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        _ = tokio::signal::ctrl_c() => None,
        value = work => Some(value),
    }
}
