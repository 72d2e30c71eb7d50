//! Which turns are dropped when a conversation does not fit the context. Pure: messages and a ruler in, a cut out.
//!
//! System messages, the last user message and the last message always stay. The front is cut only where the rest still
//! reads as a conversation: before a user message, or, inside the last turn (an agent that calls tools for hours has only
//! one), before an assistant message, so that no tool result stands without its call and the task stays known. Ollama drops
//! single messages, which leaves orphaned results behind.

use crate::chat::{Message, Role};

/// What was left out of a prompt so that it fits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Truncated {
    pub messages: usize,
    /// Tokens of the whole prompt minus tokens of the prompt that was used.
    pub tokens: usize,
}

/// How much space there is, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Most tokens that a prompt may have.
    pub prompt: usize,
    /// Tokens that stay free for the answer if dropping turns can achieve it: these caches cannot shift, so a prompt that just fits
    /// would be answered with a handful of tokens.
    pub answer: usize,
}

/// The messages that stay when the front is cut at `from`: everything from there on, system messages and the last user message.
pub fn kept(messages: &[Message], from: usize) -> impl Iterator<Item = &Message> {
    let last_user = last_user(messages);
    messages
        .iter()
        .enumerate()
        .filter(move |(i, message)| *i >= from || message.role == Role::System || Some(*i) == last_user)
        .map(|(_, message)| message)
}

fn last_user(messages: &[Message]) -> Option<usize> {
    messages.iter().rposition(|message| message.role == Role::User)
}

/// The positions at which the front may be cut, the mildest cut first.
fn cuts(messages: &[Message]) -> Vec<usize> {
    let Some(last) = messages.len().checked_sub(1) else {
        return Vec::new();
    };
    let last_user = last_user(messages);
    let mut cuts: Vec<usize> = (1..last)
        .filter(|&i| match messages[i].role {
            Role::User => true,
            Role::Assistant => last_user.is_none_or(|user| i > user),
            _ => false,
        })
        .collect();
    cuts.push(last);
    // A cut that drops nothing is none.
    cuts.retain(|&from| kept(messages, from).count() < messages.len());
    cuts
}

/// The first message to keep so that the prompt fits, or `None` when even the last one alone is too long. `tokens(from)` measures
/// the prompt made of [`kept`]`(messages, from)`; it is called a logarithmic number of times, since a later cut never makes a
/// longer prompt.
///
/// # Errors
/// Those of `tokens`.
pub fn first_kept<E>(
    messages: &[Message],
    whole: usize,
    room: Room,
    mut tokens: impl FnMut(usize) -> Result<usize, E>,
) -> Result<Option<usize>, E> {
    if whole <= room.prompt {
        return Ok(Some(0));
    }
    let cuts = cuts(messages);
    let comfortable = room.prompt.saturating_sub(room.answer);
    for limit in [comfortable, room.prompt] {
        let (mut low, mut high) = (0, cuts.len());
        while low < high {
            let middle = low + (high - low) / 2;
            if tokens(cuts[middle])? <= limit {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        if let Some(&from) = cuts.get(low) {
            return Ok(Some(from));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    /// One message per letter (`s`ystem, `u`ser, `a`ssistant, `t`ool), 10 tokens each.
    fn conversation(roles: &str) -> Vec<Message> {
        roles
            .chars()
            .map(|role| Message {
                role: match role {
                    's' => Role::System,
                    'u' => Role::User,
                    'a' => Role::Assistant,
                    _ => Role::Tool,
                },
                ..Message::default()
            })
            .collect()
    }

    fn cut(roles: &str, prompt: usize, answer: usize) -> Option<String> {
        let messages = conversation(roles);
        let ruler = |from: usize| Ok::<_, Infallible>(kept(&messages, from).count() * 10);
        let from = first_kept(&messages, messages.len() * 10, Room { prompt, answer }, ruler);
        from.unwrap().map(|from| {
            kept(&messages, from)
                .map(|message| match message.role {
                    Role::System => 's',
                    Role::User => 'u',
                    Role::Assistant => 'a',
                    _ => 't',
                })
                .collect()
        })
    }

    #[test]
    fn whole_turns_are_dropped_and_system_messages_stay() {
        for (roles, prompt, expected) in [
            ("u", 10, Some("u")),
            ("u", 9, None),
            ("sua", 30, Some("sua")),
            ("suauau", 60, Some("suauau")),
            ("suauau", 59, Some("suau")),
            ("suauau", 39, Some("su")),
            ("suauau", 19, None),
            // A system message in the middle stays too.
            ("suasuau", 49, Some("ssu")),
            // Inside the one turn of an agent, calls go together with their results.
            ("suatatat", 79, Some("suatat")),
            ("suatatat", 59, Some("suat")),
            // Nothing but the last message: a result without its call, because the last message always stays.
            ("suatatat", 39, Some("sut")),
            ("suatatat", 29, None),
            ("uauatat", 69, Some("uatat")),
            ("uauatat", 49, Some("uat")),
            ("sss", 29, None),
        ] {
            assert_eq!(cut(roles, prompt, 0).as_deref(), expected, "`{roles}` into {prompt} tokens");
        }
    }

    #[test]
    fn a_cut_leaves_room_for_the_answer_if_it_can() {
        // No cut needed: nothing is dropped for the answer's sake.
        assert_eq!(cut("uauau", 50, 30).as_deref(), Some("uauau"));
        assert_eq!(cut("uauau", 45, 20).as_deref(), Some("u"));
        assert_eq!(cut("uauau", 45, 15).as_deref(), Some("uau"));
        // The last message takes most of the context: better a short answer than none.
        assert_eq!(cut("uau", 15, 10).as_deref(), Some("u"));
    }

    #[test]
    fn a_long_conversation_is_measured_a_few_times_only() {
        let messages = conversation(&"ua".repeat(5000));
        let mut calls = 0;
        let from = first_kept(&messages, 100_000, Room { prompt: 1000, answer: 0 }, |from| {
            calls += 1;
            Ok::<_, Infallible>(kept(&messages, from).count() * 10)
        });
        assert_eq!(from.unwrap(), Some(9900));
        assert!(calls <= 14, "{calls} renderings");
    }
}
