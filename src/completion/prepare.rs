//! From what a client sent to the ids that are submitted: render, cut, tokenise.

use std::sync::Arc;

use super::truncate::{self, Room, Truncated};
use super::{Error, Overflow};
use crate::chat::{Family, Message, Parser, Prompt, Request, Role};
use crate::ids::TokenId;
use crate::tokens::Tokenizer;

/// What the model shall go on from.
#[derive(Clone, Debug)]
pub enum Input {
    Chat {
        request: Request,
        /// Ids of earlier prompts and answers, put in front as they are.
        context: Vec<TokenId>,
    },
    /// Text that reaches the model as it is; the answer is not parsed either.
    Raw(String),
    /// The text between these two is asked for.
    Insert { prefix: String, suffix: String },
}

/// A prompt that fits, and the reader of its answer.
pub struct Prepared {
    pub text: String,
    pub tokens: Vec<TokenId>,
    /// Positions that later requests will probably share.
    pub(super) checkpoint_at: Vec<usize>,
    /// `None`: the answer is all content.
    pub(super) parser: Option<Box<dyn Parser>>,
    /// The prompt opened the reasoning; the answer proper follows this text.
    pub(super) answer_after: Option<String>,
    pub truncated: Option<Truncated>,
}

/// The measures of the loaded model and of this request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Space {
    pub n_ctx: usize,
    /// The answer's token budget, if it has one.
    pub max_tokens: Option<usize>,
    pub overflow: Overflow,
}

/// Long prompts take tens of milliseconds: not for an async thread.
pub(super) fn prepare(
    family: &Family,
    tokenizer: &Arc<Tokenizer>,
    input: Input,
    space: Space,
) -> Result<Prepared, Error> {
    match input {
        Input::Raw(text) => {
            let tokens = tokenizer.encode_prompt(&text)?;
            fits(tokens.len(), space)?;
            Ok(Prepared { text, checkpoint_at: Vec::new(), tokens, parser: None, answer_after: None, truncated: None })
        }
        Input::Insert { prefix, suffix } => {
            let prompt = family.render_insert(&prefix, &suffix)?;
            let tokens = tokenizer.encode_prompt(&prompt.text)?;
            fits(tokens.len(), space)?;
            Ok(Prepared {
                checkpoint_at: Vec::new(),
                text: prompt.text,
                tokens,
                parser: None,
                answer_after: None,
                truncated: None,
            })
        }
        Input::Chat { request, context } => chat(family, tokenizer, request, context, space),
    }
}

fn chat(
    family: &Family,
    tokenizer: &Arc<Tokenizer>,
    mut request: Request,
    context: Vec<TokenId>,
    space: Space,
) -> Result<Prepared, Error> {
    let (mut prompt, mut tokens) = write(family, tokenizer, &request, &context)?;
    let mut truncated = None;
    if tokens.len() > space.n_ctx && space.overflow == Overflow::Truncate {
        let whole = tokens.len();
        let room = Room { prompt: space.n_ctx, answer: space.answer_room() };
        let mut part = request.clone();
        let from = truncate::first_kept(&request.messages, whole, room, |from| {
            part.messages = truncate::kept(&request.messages, from).cloned().collect();
            write(family, tokenizer, &part, &context).map(|(_, tokens)| tokens.len())
        })?
        .ok_or(Error::PromptTooLong { tokens: whole, n_ctx: space.n_ctx })?;
        part.messages = truncate::kept(&request.messages, from).cloned().collect();
        (prompt, tokens) = write(family, tokenizer, &part, &context)?;
        truncated = Some(Truncated {
            messages: request.messages.len() - part.messages.len(),
            tokens: whole.saturating_sub(tokens.len()),
        });
        request = part;
    }
    fits(tokens.len(), space)?;
    let checkpoint_at =
        if context.is_empty() { stable_positions(family, tokenizer, &request, &prompt, &tokens) } else { Vec::new() };
    let answer_after = family.thinking_end().filter(|_| prompt.starts_in_thinking).map(str::to_owned);
    let parser = Some(family.parser(&request, &prompt));
    Ok(Prepared { parser, answer_after, text: prompt.text, tokens, checkpoint_at, truncated })
}

fn write(
    family: &Family,
    tokenizer: &Tokenizer,
    request: &Request,
    context: &[TokenId],
) -> Result<(Prompt, Vec<TokenId>), Error> {
    let prompt = family.render(request)?;
    let tokens = tokenizer.encode_prompt(&prompt.text)?;
    if context.is_empty() {
        return Ok((prompt, tokens));
    }
    // The earlier ids begin with BOS; a second one in the middle would start the text anew.
    let rest = match tokenizer.bos() {
        Some(bos) if tokens.first() == Some(&bos) => &tokens[1..],
        _ => &tokens[..],
    };
    // Neither does it end with the token that ended the answer, which is no part of its text.
    let end = tokenizer.eos().filter(|_| !context.last().is_some_and(|last| tokenizer.is_end(*last)));
    let joined = context.iter().chain(&end).chain(rest).copied().collect();
    Ok((prompt, joined))
}

fn fits(tokens: usize, space: Space) -> Result<(), Error> {
    if tokens <= space.n_ctx { Ok(()) } else { Err(Error::ContextExceeded { tokens, n_ctx: space.n_ctx }) }
}

impl Space {
    /// An eighth of the context, less when the answer has a smaller budget.
    fn answer_room(self) -> usize {
        let eighth = self.n_ctx / 8;
        self.max_tokens.map_or(eighth, |budget| budget.min(eighth))
    }
}

/// Where the next requests will part from this one: after the system prompt and tools (another conversation of the same
/// agent), and where the answer is opened (the next turn of this conversation).
fn stable_positions(
    family: &Family,
    tokenizer: &Tokenizer,
    request: &Request,
    prompt: &Prompt,
    tokens: &[TokenId],
) -> Vec<usize> {
    let mut bytes = vec![prompt.stable_bytes];
    let opening: Vec<Message> =
        request.messages.iter().take_while(|message| message.role == Role::System).cloned().collect();
    if !opening.is_empty() || !request.tools.is_empty() {
        // What two conversations that differ in the first user message have in common; no family needs to know about this.
        let mut other = Request {
            messages: opening,
            tools: request.tools.clone(),
            think: request.think,
            response_format: request.response_format.clone(),
            keep_thinking: request.keep_thinking,
        };
        other.messages.push(Message::new(Role::User, "\u{0}"));
        if let Ok(other) = family.render(&other) {
            bytes.push(common_prefix(&other.text, &prompt.text));
        }
    }
    bytes.sort_unstable();
    bytes.dedup();

    // A beginning of text that the tokenizer put in front stands for no bytes of the prompt.
    let added = tokens.first().is_some_and(|first| !prompt.text.as_bytes().starts_with(tokenizer.piece(*first)));
    let mut positions = Vec::new();
    let mut at = 0;
    let mut bytes = bytes.into_iter().peekable();
    for (position, token) in tokens.iter().enumerate().skip(usize::from(added)) {
        let next = at + tokenizer.piece(*token).len();
        while bytes.next_if(|&wanted| wanted < next).is_some() {
            positions.push(position);
        }
        at = next;
    }
    positions.extend(bytes.map(|_| tokens.len()));
    positions.retain(|&position| position > 0);
    positions.dedup();
    positions
}

fn common_prefix(a: &str, b: &str) -> usize {
    a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count()
}
