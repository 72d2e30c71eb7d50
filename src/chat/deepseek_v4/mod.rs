//! How DeepSeek-V4 and V4.1 write conversations: three generations of one format.
//!
//! The releases ship no template but a Python encoder; [`encode`] follows it byte for byte (vectors in
//! `tests/data/prompts`). In short: `BOS`, an effort text, the system text, then turns
//! `<｜User｜>`text`<｜Assistant｜>` + `<think>` or `</think>` + reasoning`</think>`answer + tool block + `EOS`.
//!
//! # How [`Think`] becomes the encoder's arguments
//!
//! | `think` of a request | mode | `v4_april` | `v4_0731` | `v41` |
//! |---|---|---|---|---|
//! | absent, `true` | thinking | no text | no text (the encoder's default, low) | 75 (the encoder's default, high) |
//! | `false` | chat | no text | no text | no text |
//! | `"low"` | thinking | no text (has no low) | low: no text | 50 |
//! | `"medium"` | thinking | as high | as high | as high |
//! | `"high"` | thinking | high: no text | "Absolute maximum ..." | 75 |
//! | `"max"` | thinking | "Absolute maximum ..." | "Beyond maximum ..." | 100 |
//! | 1..=100 | thinking | nearest of 50, 75, 100 as a word | the same | the number |
//!
//! No encoder knows `medium`; it is rounded up, as DeepSeek's own service does.

mod parse;
mod render;

use std::borrow::Cow;

use super::{Error, Prompt, Request, Think};

pub use parse::Parser;
pub use render::{Options, encode};

const BOS: &str = "<｜begin▁of▁sentence｜>";
const EOS: &str = "<｜end▁of▁sentence｜>";
const USER: &str = "<｜User｜>";
const ASSISTANT: &str = "<｜Assistant｜>";
const SYSTEM: &str = "<｜System｜>";
const REMINDER: &str = "<｜latest_reminder｜>";
const THINK: &str = "<think>";
pub(super) const END_THINK: &str = "</think>";

/// Which release's encoder is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// The first V4 release (April 2026): efforts none, high, max.
    V4April,
    /// 2026-07-31 and later V4 releases: efforts low, high, max with new texts.
    V4July,
    /// V4.1: a token before system text, efforts 1..=100, a space in every tool tag.
    V41,
}

impl Generation {
    /// Reads `v4_april`, `v4_0731` or `v41`.
    ///
    /// # Errors
    /// [`Error::Generation`] for any other word.
    pub fn parse(name: &str) -> Result<Generation, Error> {
        match name {
            "v4_april" => Ok(Generation::V4April),
            "v4_0731" => Ok(Generation::V4July),
            "v41" => Ok(Generation::V41),
            _ => Err(Error::Generation { given: name.to_owned() }),
        }
    }

    /// The generation that a release (`fathom.source.release`) was trained on: `v4_april` and `v4_base` the first,
    /// `v4_MMDD` from 0731 on the second, `v41...` the third.
    ///
    /// # Errors
    /// [`Error::Generation`] when the release is none of these.
    pub fn of_release(release: &str) -> Result<Generation, Error> {
        let unknown = || Error::Generation { given: release.to_owned() };
        if release.starts_with("v41") {
            return Ok(Generation::V41);
        }
        match release.strip_prefix("v4_").ok_or_else(unknown)? {
            "april" | "base" => Ok(Generation::V4April),
            date if date.len() == 4 && date.bytes().all(|b| b.is_ascii_digit()) => {
                Ok(if date >= "0731" { Generation::V4July } else { Generation::V4April })
            }
            _ => Err(unknown()),
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Generation::V4April => "v4_april",
            Generation::V4July => "v4_0731",
            Generation::V41 => "v41",
        }
    }

    /// What stands between `｜DSML｜` and a tag's name.
    fn tag_space(self) -> &'static str {
        if self == Generation::V41 { " " } else { "" }
    }

    /// Name of the block of tool calls.
    fn calls_tag(self) -> &'static str {
        if self == Generation::V41 { "calls" } else { "tool_calls" }
    }
}

/// The encoder's `thinking_mode` and `reasoning_effort`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Chat,
    Thinking(Effort),
}

/// The encoder's `reasoning_effort`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// `None`: the encoder's own default.
    Unsaid,
    Low,
    High,
    Max,
    /// 1..=100
    Percent(u8),
}

impl Mode {
    /// The table at the head of this module.
    ///
    /// # Errors
    /// [`Error::Effort`] when a number is not in 1..=100.
    pub fn of(think: Think) -> Result<Mode, Error> {
        Ok(match think {
            Think::Off => Mode::Chat,
            Think::Default | Think::On => Mode::Thinking(Effort::Unsaid),
            Think::Low => Mode::Thinking(Effort::Low),
            Think::Medium | Think::High => Mode::Thinking(Effort::High),
            Think::Max => Mode::Thinking(Effort::Max),
            Think::Percent(percent @ 1..=100) => Mode::Thinking(Effort::Percent(percent)),
            Think::Percent(percent) => return Err(Error::Effort { percent }),
        })
    }
}

const ABSOLUTE_MAXIMUM: &str = "Reasoning Effort: Absolute maximum with no shortcuts permitted.\n\
    You MUST be very thorough in your thinking and comprehensively decompose the problem to resolve the root cause, \
    rigorously stress-testing your logic against all potential paths, edge cases, and adversarial scenarios.\n\
    Explicitly write out your entire deliberation process, documenting every intermediate step, considered alternative, \
    and rejected hypothesis to ensure absolutely no assumption is left unchecked.\n\n";

const BEYOND_MAXIMUM: &str = "Reasoning Effort: Beyond maximum — exhaustive, relentless, and uncompromising.\n\
    You MUST reason with the utmost depth and rigor, leaving absolutely nothing to chance: exhaustively decompose the \
    problem into its most fundamental components, trace every causal chain to its root, and resolve the underlying cause \
    rather than any surface symptom.\n\
    Do not stop reasoning until you have independently verified the solution from multiple angles and are certain that no \
    assumption remains unchecked and no error remains undiscovered.\n\n";

/// The text right after `BOS` (after `<｜System｜>` in V4.1) in thinking mode.
fn effort_text(generation: Generation, effort: Effort) -> Cow<'static, str> {
    let effort = match (generation, effort) {
        (Generation::V41, _) => effort,
        // V4.1 says that low is 50, high 75 and max 100; elsewhere a number is the nearest of these words.
        (_, Effort::Percent(0..=62)) => Effort::Low,
        (_, Effort::Percent(63..=87)) => Effort::High,
        (_, Effort::Percent(_)) => Effort::Max,
        _ => effort,
    };
    match (generation, effort) {
        (Generation::V41, _) => {
            let budget = match effort {
                Effort::Low => 50,
                Effort::Unsaid | Effort::High => 75,
                Effort::Max => 100,
                Effort::Percent(percent) => percent,
            };
            let range = "(range 1-100, the higher the value, the more thorough the reasoning)";
            Cow::Owned(format!("Reasoning Effort: {budget} {range}\n\n"))
        }
        (Generation::V4April, Effort::Max) | (Generation::V4July, Effort::High) => Cow::Borrowed(ABSOLUTE_MAXIMUM),
        (Generation::V4July, Effort::Max) => Cow::Borrowed(BEYOND_MAXIMUM),
        _ => Cow::Borrowed(""),
    }
}

/// Writes a conversation up to where the model goes on: [`encode`], but a last message from the assistant stays open, and a
/// conversation that ends in a system message gets the assistant's turn opened (V4's encoder would leave it out, and the
/// model would go on writing the system text).
///
/// # Errors
/// [`Error::NoMessages`], [`Error::Role`], [`Error::Task`], [`Error::Effort`].
pub fn render(generation: Generation, request: &Request) -> Result<Prompt, Error> {
    let options = Options { generation, mode: Mode::of(request.think)?, drop_thinking: !request.keep_thinking };
    render::prompt(&options, request)
}

/// Writes the prompt for what stands between `prefix` and `suffix`.
pub fn render_insert(prefix: &str, suffix: &str) -> Prompt {
    let text = format!("{BOS}<｜fim▁begin｜>{prefix}<｜fim▁hole｜>{suffix}<｜fim▁end｜>");
    Prompt { stable_bytes: text.len(), starts_in_thinking: false, text }
}
