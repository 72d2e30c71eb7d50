//! What a measurement says, as it is printed by `--json`.

use std::path::PathBuf;

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::divergence::Divergence;
use super::needle::Grid;
use super::perplexity::Perplexity;
use super::{Job, Model, Split};
use crate::engine::EngineInfo;
use crate::tokens::Tokenizer;

/// Wrong answers that are kept as examples.
const EXAMPLES: usize = 10;

/// Everything that was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    pub schema: u32,
    pub model: String,
    /// The files of its weights, in order.
    pub files: Vec<PathBuf>,
    pub file_bytes: Option<u64>,
    pub architecture: String,
    pub engine: String,
    /// Nothing was rounded below F32.
    pub exact: bool,
    /// Element type of cached rows.
    pub kv: &'static str,
    /// Which of the chosen experts were computed.
    pub routing: String,
    pub n_vocab: usize,
    /// Text tokens of the vocabulary; the logits may have more rows.
    pub n_tokens_known: usize,
    /// Tokens of one step.
    pub step_tokens: usize,
    /// The same when everything was computed again for the noise floor.
    pub step_tokens_second_split: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub needles: Option<Needles>,
}

impl Report {
    pub(super) fn new(job: &Job<'_>, info: &EngineInfo, tokenizer: &Tokenizer) -> Report {
        let Split { first, second } = job.split;
        Report {
            schema: 1,
            model: job.model.name.clone(),
            files: job.model.weights.clone(),
            file_bytes: job.model.weights.iter().map(|file| Some(std::fs::metadata(file).ok()?.len())).sum(),
            architecture: info.architecture.clone(),
            engine: info.engine.to_owned(),
            exact: job.model.exact,
            kv: info.kv_type.name(),
            routing: job.model.routing.to_string(),
            n_vocab: info.n_vocab,
            n_tokens_known: tokenizer.n_vocab(),
            step_tokens: first.min(info.n_batch),
            step_tokens_second_split: second.min(info.n_batch),
            text: None,
            needles: None,
        }
    }
}

/// Perplexity and divergence on one text.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Text {
    pub source: String,
    /// Of the text's bytes: perplexities of different texts do not compare.
    pub sha256: String,
    pub tokens: u64,
    pub windows: usize,
    pub window_tokens: usize,
    pub scored_tokens: u64,
    pub perplexity: Perplexity,
    pub perplexity_second_split: Perplexity,
    /// The model against itself, computed in steps of another size.
    pub noise: Divergence,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub against: Option<Against>,
}

/// The model against a reference.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Against {
    pub model: String,
    pub engine: String,
    pub exact: bool,
    pub kv: &'static str,
    pub routing: String,
    pub perplexity: Perplexity,
    pub divergence: Divergence,
}

/// Right answers of all answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Score {
    pub right: u64,
    pub of: u64,
}

impl Score {
    fn add(&mut self, right: bool) {
        self.right += u64::from(right);
        self.of += 1;
    }

    /// `None` of none.
    pub fn share(self) -> Option<f64> {
        (self.of > 0).then(|| self.right as f64 / self.of as f64)
    }
}

/// Needles found, by length and depth.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Needles {
    pub seed: u64,
    pub lengths: Vec<usize>,
    /// In percent.
    pub depths: Vec<u8>,
    /// One row per length, one score per depth.
    pub cells: Vec<Vec<Score>>,
    pub all: Score,
    /// Noise: the same prompts in steps of another size, and how many answers came out otherwise.
    pub all_second_split: Score,
    pub answers_that_differ: u64,
    /// Answers that an end token ended.
    pub stopped: Score,
    /// Prompts that could not be made exactly as long as asked.
    pub inexact_lengths: u64,
    /// By the prompt's length modulo 4 and 128; only when every remainder was tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modulo_4: Option<Vec<Score>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modulo_128: Option<Vec<Score>>,
    /// The first wrong answers.
    pub wrong: Vec<Wrong>,
    /// What the reference found of the same prompts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub against: Option<Box<Found>>,
    #[serde(skip)]
    residues: bool,
    /// Whether each prompt was answered rightly, in their order.
    #[serde(skip)]
    right: Vec<bool>,
}

/// The needles of a reference beside those of the model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Found {
    pub model: String,
    pub engine: String,
    pub exact: bool,
    pub kv: &'static str,
    pub routing: String,
    pub needles: Needles,
    /// Prompts that only the model, and that only the reference answered rightly.
    pub only_model: u64,
    pub only_reference: u64,
}

impl Found {
    pub(super) fn new(model: &Model, info: &EngineInfo, needles: Needles) -> Found {
        Found {
            model: model.name.clone(),
            engine: info.engine.to_owned(),
            exact: model.exact,
            kv: info.kv_type.name(),
            routing: model.routing.to_string(),
            needles,
            only_model: 0,
            only_reference: 0,
        }
    }
}

/// An answer without the number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Wrong {
    pub tokens: usize,
    pub depth: u8,
    pub expected: String,
    pub answer: String,
}

/// One prompt's outcome.
pub(super) struct Asked<'a> {
    /// Of the grid.
    pub length: usize,
    /// Of the prompt.
    pub tokens: usize,
    pub depth: u8,
    pub expected: &'a str,
    pub right: bool,
    pub right_second_split: bool,
    pub differs: bool,
    pub stopped: bool,
    pub answer: &'a str,
}

impl Needles {
    pub(super) fn new(grid: &Grid) -> Needles {
        let scores = |n: usize| grid.residues.then(|| vec![Score::default(); n]);
        Needles {
            seed: grid.seed,
            lengths: grid.lengths.clone(),
            depths: grid.depths.clone(),
            cells: vec![vec![Score::default(); grid.depths.len()]; grid.lengths.len()],
            all: Score::default(),
            all_second_split: Score::default(),
            answers_that_differ: 0,
            stopped: Score::default(),
            inexact_lengths: 0,
            modulo_4: scores(4),
            modulo_128: scores(128),
            wrong: Vec::new(),
            against: None,
            residues: grid.residues,
            right: Vec::new(),
        }
    }

    /// With what a reference found of the same prompts.
    pub(super) fn beside(mut self, found: Option<Found>) -> Needles {
        self.against = found.map(|mut found| {
            let both = || self.right.iter().zip(&found.needles.right);
            let (only_model, only_reference) = both().fold((0, 0), |(here, there), (model, reference)| {
                (here + u64::from(*model && !*reference), there + u64::from(*reference && !*model))
            });
            (found.only_model, found.only_reference) = (only_model, only_reference);
            Box::new(found)
        });
        self
    }

    pub(super) fn add(&mut self, asked: &Asked<'_>) {
        let row = self.lengths.iter().position(|length| *length == asked.length);
        let column = self.depths.iter().position(|depth| *depth == asked.depth);
        if let (Some(row), Some(column)) = (row, column) {
            self.cells[row][column].add(asked.right);
        }
        self.all.add(asked.right);
        self.right.push(asked.right);
        self.all_second_split.add(asked.right_second_split);
        self.answers_that_differ += u64::from(asked.differs);
        self.stopped.add(asked.stopped);
        // With remainders a prompt is up to 127 tokens longer than the length it stands for; a miss shows in `modulo_128`.
        self.inexact_lengths += u64::from(!self.residues && asked.tokens != asked.length);
        for scores in [&mut self.modulo_4, &mut self.modulo_128].into_iter().flatten() {
            let n = scores.len();
            scores[asked.tokens % n].add(asked.right);
        }
        if !asked.right && self.wrong.len() < EXAMPLES {
            self.wrong.push(Wrong {
                tokens: asked.tokens,
                depth: asked.depth,
                expected: asked.expected.to_owned(),
                answer: asked.answer.to_owned(),
            });
        }
    }
}

/// As `sha256sum` prints it.
pub fn sha256(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_where_they_belong() {
        let grid = Grid { lengths: vec![256, 512], depths: vec![0, 50], samples: 1, residues: true, seed: 0 };
        let mut needles = Needles::new(&grid);
        let asked = |length, tokens, depth, right| Asked {
            length,
            tokens,
            depth,
            expected: "1234",
            right,
            right_second_split: true,
            differs: !right,
            stopped: right,
            answer: "none",
        };
        needles.add(&asked(256, 256, 0, true));
        needles.add(&asked(512, 515, 50, false));
        let one = |right| Score { right, of: 1 };
        assert_eq!(needles.cells, [[one(1), Score::default()], [Score::default(), one(0)]]);
        assert_eq!((needles.all, needles.all_second_split), (Score { right: 1, of: 2 }, Score { right: 2, of: 2 }));
        assert_eq!((needles.answers_that_differ, needles.stopped), (1, Score { right: 1, of: 2 }));
        let modulo_4 = needles.modulo_4.clone().unwrap();
        assert_eq!(modulo_4, [one(1), Score::default(), Score::default(), one(0)]);
        assert_eq!(needles.modulo_128.clone().unwrap()[3], one(0));
        assert_eq!((needles.wrong.len(), needles.wrong[0].tokens), (1, 515));

        let mut reference = Needles::new(&grid);
        reference.add(&asked(256, 256, 0, false));
        reference.add(&asked(512, 515, 50, true));
        let mut found = Found {
            model: "other".to_owned(),
            engine: "llama".to_owned(),
            exact: false,
            kv: "f16",
            routing: "off".to_owned(),
            needles: reference,
            only_model: 0,
            only_reference: 0,
        };
        let compared = *needles.clone().beside(Some(found.clone())).against.unwrap();
        assert_eq!((compared.only_model, compared.only_reference), (1, 1));
        found.needles = needles.clone();
        let same = *needles.clone().beside(Some(found)).against.unwrap();
        assert_eq!((same.only_model, same.only_reference), (0, 0));
        assert_eq!((one(1).share(), Score::default().share()), (Some(1.0), None));
    }

    #[test]
    fn texts_are_named_by_what_sha256sum_prints() {
        // FIPS 180-2, appendix B.1
        assert_eq!(sha256("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
