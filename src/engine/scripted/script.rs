//! What the scripted engine plays, as JSON or built in code.
//!
//! ```json
//! {"schema": 1, "play": {"answers": [{"text": "Hello."}, {"tokens": [17, 4]}]},
//!  "step_delay_us": 1000, "token_delay_us": 50, "fail_at_step": 7, "n_ctx": 4096, "n_seq_max": 4}
//! ```

use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use serde::Deserialize;

use crate::engine::{Batch, Error};
use crate::ids::TokenId;

/// What to play, and which troubles to have on the way. Everything but `schema` may be left out.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    pub schema: u32,
    #[serde(default)]
    pub play: Play,
    /// Every step takes this long ...
    #[serde(default)]
    pub step_delay_us: u64,
    /// ... and this much longer for each of its tokens.
    #[serde(default)]
    pub token_delay_us: u64,
    /// This step (the first is 1) fails, once.
    #[serde(default)]
    pub fail_at_step: Option<u64>,
    /// This step panics.
    #[serde(default)]
    pub panic_at_step: Option<u64>,
    #[serde(default)]
    pub load_delay_ms: u64,
    /// Loading fails with this reason.
    #[serde(default)]
    pub load_error: Option<String>,
    /// Loading panics, after its delay.
    #[serde(default)]
    pub load_panic: bool,
    /// Overrides the settings.
    #[serde(default)]
    pub n_ctx: Option<usize>,
    #[serde(default)]
    pub n_seq_max: Option<usize>,
    #[serde(default)]
    pub n_batch: Option<usize>,
    /// Memory that the plan claims.
    #[serde(default)]
    pub memory_bytes: u64,
    /// Memory that each token of a checkpoint claims.
    #[serde(default)]
    pub checkpoint_token_bytes: usize,
    /// Checkpoints are only marks in their sequence ([`crate::engine::Checkpoint::within`]).
    #[serde(default)]
    pub marks: bool,
    /// Has neither checkpoints nor forks nor saved states.
    #[serde(default)]
    pub forgetful: bool,
    /// Hears every batch before it is computed.
    #[serde(skip)]
    pub trace: Option<mpsc::Sender<Batch>>,
}

/// What the logits say.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Play {
    /// The tokens of the prompt, control tokens left out, then an end token.
    #[default]
    Echo,
    /// One answer after the other, again from the first after the last; an end token after each.
    Answers(Vec<Answer>),
    /// Random numbers that depend on every token of the sequence and on nothing else: a wrong, missing or foreign token
    /// anywhere in a sequence's past changes what follows.
    Hash,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Tokens(Vec<u32>),
    /// Made tokens by [`Script::resolve`].
    Text(String),
}

impl Default for Script {
    fn default() -> Self {
        Script {
            schema: 1,
            play: Play::Echo,
            step_delay_us: 0,
            token_delay_us: 0,
            fail_at_step: None,
            panic_at_step: None,
            load_delay_ms: 0,
            load_error: None,
            load_panic: false,
            n_ctx: None,
            n_seq_max: None,
            n_batch: None,
            memory_bytes: 0,
            checkpoint_token_bytes: 0,
            marks: false,
            forgetful: false,
            trace: None,
        }
    }
}

impl Script {
    /// Reads a script file.
    ///
    /// # Errors
    /// [`Error::Load`] with the place of the mistake.
    pub fn read(path: &Path) -> Result<Script, Error> {
        let failed = |reason: String| Error::Load { path: path.to_owned(), reason };
        let text = std::fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
        let script: Script = serde_json::from_str(&text).map_err(|e| failed(format!("not a script: {e}")))?;
        match script.schema {
            1 => Ok(script),
            other => Err(failed(format!("script schema {other}, this program knows 1"))),
        }
    }

    /// Makes tokens of the answers that are text. An engine knows no tokenizer: whoever has one calls this.
    ///
    /// # Errors
    /// Those of `encode`.
    pub fn resolve<E>(&mut self, mut encode: impl FnMut(&str) -> Result<Vec<TokenId>, E>) -> Result<(), E> {
        if let Play::Answers(answers) = &mut self.play {
            for answer in answers {
                if let Answer::Text(text) = answer {
                    *answer = Answer::Tokens(encode(text)?.iter().map(|t| t.0).collect());
                }
            }
        }
        Ok(())
    }

    pub(super) fn delay(&self, n_tokens: usize) -> Duration {
        Duration::from_micros(self.step_delay_us + self.token_delay_us * n_tokens as u64)
    }
}
