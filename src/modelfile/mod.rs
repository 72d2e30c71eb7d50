//! Modelfiles: how a model is made from another one, a GGUF file or a checkpoint.
//!
//! [`parse()`] and [`write()`] are inverse of each other. [`create()`] carries out what a Modelfile, or a request with the same
//! content, asks for. Clients parse; the server never sees the text.

mod base;
pub mod bundled;
mod checkpoint;
mod create;
mod parse;
#[cfg(test)]
mod tests;
mod write;

use serde_json::Value;

use crate::config::KV_TYPES;

pub use create::{Base, Changes, Error as CreateError, Event, Events, Spec, create};
pub use parse::{Error, Fault, Parsed, is_version, parameter, parse, parse_bytes};
pub use write::{Unwritable, number, write};

/// The instructions of a Modelfile, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Modelfile {
    pub instructions: Vec<Instruction>,
}

/// One instruction. Paths and names are as written.
#[derive(Clone, Debug, PartialEq)]
pub enum Instruction {
    /// A model name, a GGUF file, or a directory.
    From(String),
    /// An option under its own name, with a value of its own type; `stop` holds one string each time.
    Parameter {
        name: String,
        value: Value,
    },
    Template(String),
    System(String),
    License(String),
    Adapter(String),
    /// A draft model for speculative decoding.
    Draft(String),
    Renderer(String),
    Parser(String),
    /// Lowest version of a server that can run the model.
    Requires(String),
    Message {
        role: Role,
        content: String,
    },
}

/// Who speaks in a MESSAGE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    System,
    User,
    Assistant,
}

impl Role {
    const ALL: [Role; 3] = [Role::System, Role::User, Role::Assistant];

    /// The role with this word.
    pub fn from_word(word: &str) -> Option<Role> {
        Role::ALL.into_iter().find(|role| role.word() == word)
    }

    /// The word in the file.
    pub fn word(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

/// Type of a PARAMETER's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParameterType {
    Integer,
    Float,
    Boolean,
    /// Repeats; each one adds a string.
    Strings,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// One string.
    Text,
}

/// Every PARAMETER that means something.
pub const PARAMETERS: &[(&str, ParameterType)] = &[
    ("num_ctx", ParameterType::Integer),
    ("num_batch", ParameterType::Integer),
    ("num_gpu", ParameterType::Integer),
    ("main_gpu", ParameterType::Integer),
    ("use_mmap", ParameterType::Boolean),
    ("kv", ParameterType::OneOf(KV_TYPES)),
    ("num_thread", ParameterType::Integer),
    ("draft_num_predict", ParameterType::Integer),
    ("num_keep", ParameterType::Integer),
    ("routing", ParameterType::Text),
    ("seed", ParameterType::Integer),
    ("num_predict", ParameterType::Integer),
    ("top_k", ParameterType::Integer),
    ("top_p", ParameterType::Float),
    ("min_p", ParameterType::Float),
    ("typical_p", ParameterType::Float),
    ("repeat_last_n", ParameterType::Integer),
    ("repeat_penalty", ParameterType::Float),
    ("presence_penalty", ParameterType::Float),
    ("frequency_penalty", ParameterType::Float),
    ("temperature", ParameterType::Float),
    ("mirostat", ParameterType::Integer),
    ("mirostat_tau", ParameterType::Float),
    ("mirostat_eta", ParameterType::Float),
    ("stop", ParameterType::Strings),
];

/// PARAMETERs that Modelfiles still carry and that no longer mean anything: dropped with a warning.
pub const DROPPED_PARAMETERS: &[&str] =
    &["penalize_newline", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mlock"];
