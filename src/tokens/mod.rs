//! Text to ids and ids to text. Pure.

/// How text that spells a special token is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Specials {
    /// `<think>` becomes its one token: for rendered prompts.
    Parse,
    /// `<think>` is seven ordinary characters: for text of unknown origin.
    AsText,
}

/// Why a [`Stream`] ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    EndToken,
    StopString(String),
}
