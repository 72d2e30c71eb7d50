//! A fact hidden in a long prompt, asked for at its end: does the model find it at every depth of every length?
//!
//! A prompt is one user message in the model's own format: filler sentences with the needle ("The code of the red door is 4821.")
//! at its depth and a few codes of other things anywhere, then the question. Prompts have exactly the asked number of tokens, since compressed caches may fail at one
//! remainder of the length only ([`Grid::residues`] tries them all). Answers are greedy; the one thing that counts is whether the
//! number stands in the content of the answer.

use std::sync::Arc;

use serde::Deserialize;

use super::bootstrap::Random;
use super::divergence::top;
use super::perplexity::log_sum_exp;
use super::report;
use super::{Error, Job, Watch};
use crate::chat::{self, Family, Message, Piece, Request, Role, Think};
use crate::engine::{Batch, BatchToken, Engine, Output, Outputs};
use crate::ids::{Pos, SeqId, TokenId};
use crate::tokens::{self, Specials, Stream, Tokenizer};

/// Tokens after which an answer is cut: the expected one has about ten words.
const ANSWER_TOKENS: usize = 48;
/// Lengths that [`Grid::residues`] adds to each one: every remainder modulo 128, and so modulo 4, once.
const RESIDUES: usize = 128;
/// How often a prompt is made again when its parts tokenise differently together than alone.
const ATTEMPTS: usize = 6;

/// Codes that are hidden beside the one that is asked for, so that naming any number is not enough.
const OTHERS: usize = 3;

/// Words and sentences of the prompts. `fathom-tiny` was trained on texts of the same grammar.
const GRAMMAR: &str = include_str!("../../modelfiles/fathom-tiny/needle.json");

#[derive(Deserialize)]
struct Grammar {
    /// With `{key}` and `{value}`.
    needle: String,
    /// With `{key}`; the first one is asked.
    questions: Vec<String>,
    colours: Vec<String>,
    things: Vec<String>,
    filler: Vec<String>,
}

/// Which prompts are made.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    /// Tokens of the whole prompt.
    pub lengths: Vec<usize>,
    /// Where the needle is, in percent of the filler before it.
    pub depths: Vec<u8>,
    /// Prompts for each length and depth; with `residues`, for each remainder.
    pub samples: usize,
    /// In place of each length the 128 lengths that begin with it, with the depths in turn.
    pub residues: bool,
    pub seed: u64,
}

/// One prompt and what it hides.
pub struct Prompt {
    /// The length of the grid that it belongs to; the prompt itself may be longer.
    length: usize,
    depth: u8,
    code: String,
    tokens: Vec<TokenId>,
    /// What a parser of the answer wants to know.
    request: Request,
    text: chat::Prompt,
}

/// Room that the longest of `prompts` and its answer take.
pub(super) fn longest(prompts: &[Prompt]) -> usize {
    prompts.iter().map(|prompt| prompt.tokens.len()).max().unwrap_or(0) + ANSWER_TOKENS
}

/// Whether another model's vocabulary makes the same tokens of them.
pub(super) fn have_the_tokens_of(prompts: &[Prompt], tokenizer: &Tokenizer) -> Result<bool, Error> {
    for prompt in prompts {
        if tokenizer.encode_prompt(&prompt.text.text)? != prompt.tokens {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Makes every prompt of the grid. The same grid and tokenizer give the same prompts.
///
/// # Errors
/// [`Error::ShortPrompt`] for a length that needle and question alone exceed.
pub fn prompts(grid: &Grid, family: &Family, tokenizer: &Tokenizer) -> Result<Vec<Prompt>, Error> {
    let maker = Maker::new(family, tokenizer)?;
    let mut prompts = Vec::new();
    for &length in &grid.lengths {
        let places: Vec<(usize, u8)> = match grid.residues {
            false => grid.depths.iter().map(|&depth| (length, depth)).collect(),
            true => (0..RESIDUES).map(|more| (length + more, grid.depths[more % grid.depths.len()])).collect(),
        };
        for (tokens, depth) in places {
            for sample in 0..grid.samples {
                let seed = [tokens as u64, u64::from(depth), sample as u64]
                    .iter()
                    .fold(grid.seed, |seed, number| Random::new(seed.wrapping_add(*number)).next_u64());
                let mut prompt = maker.prompt(tokens, depth, seed)?;
                prompt.length = length;
                prompts.push(prompt);
            }
        }
    }
    Ok(prompts)
}

/// A fact to hide: what it is about, and the code.
struct Fact {
    key: String,
    code: String,
}

/// Makes prompts for one model.
struct Maker<'a> {
    family: &'a Family,
    tokenizer: &'a Tokenizer,
    grammar: Grammar,
    /// Tokens of each filler sentence inside a text.
    tokens: Vec<usize>,
    /// For each number of tokens a sentence to add so that the rest is reachable too; `None`: no sentences have so many.
    exact: Vec<Option<usize>>,
}

impl<'a> Maker<'a> {
    fn new(family: &'a Family, tokenizer: &'a Tokenizer) -> Result<Maker<'a>, Error> {
        let grammar: Grammar = serde_json::from_str(GRAMMAR).expect("a constant that the tests read too");
        let count = |sentence: &String| Ok(tokenizer.encode(&format!(" {sentence}"), Specials::AsText)?.len());
        let tokens: Vec<usize> = grammar.filler.iter().map(count).collect::<Result<_, tokens::Error>>()?;
        let longest = tokens.iter().copied().max().unwrap_or(1).max(1);
        // Sums of a few sentences reach every number from some size on.
        let mut exact: Vec<Option<usize>> = vec![None; longest * 4];
        for total in 1..exact.len() {
            let reaches = |&i: &usize| match tokens[i] {
                0 => false,
                n => n == total || (n < total && exact[total - n].is_some()),
            };
            // Not always the same one: begin the search elsewhere for each total.
            let n = tokens.len();
            exact[total] = (0..n).map(|i| (i + total * 7) % n).find(reaches);
        }
        Ok(Maker { family, tokenizer, grammar, tokens, exact })
    }

    /// Sentences of `budget` tokens together, as near below it as there is.
    fn draw(&self, budget: usize, random: &mut Random) -> Vec<usize> {
        let mut drawn = Vec::new();
        let mut left = budget;
        while left >= self.exact.len() {
            let next = random.below(self.tokens.len());
            left -= self.tokens[next].clamp(1, left);
            drawn.push(next);
        }
        let mut left = (1..=left).rev().find(|&left| self.exact[left].is_some()).unwrap_or(0);
        while let Some(next) = self.exact[left] {
            drawn.push(next);
            left -= self.tokens[next];
        }
        // The exact part would otherwise always stand at the end.
        for i in (1..drawn.len()).rev() {
            drawn.swap(i, random.below(i + 1));
        }
        drawn
    }

    /// The asked fact, and the others.
    fn facts(&self, random: &mut Random) -> Vec<Fact> {
        let mut facts: Vec<Fact> = Vec::new();
        while facts.len() <= OTHERS {
            let mut word = |words: &[String]| words[random.below(words.len())].clone();
            let key = format!("{} {}", word(&self.grammar.colours), word(&self.grammar.things));
            let code = format!("{:04}", random.below(10_000));
            if facts.iter().all(|fact| fact.key != key && fact.code != code) {
                facts.push(Fact { key, code });
            }
        }
        facts
    }

    fn prompt(&self, length: usize, depth: u8, seed: u64) -> Result<Prompt, Error> {
        let mut random = Random::new(seed);
        let facts = self.facts(&mut random);
        let places: Vec<u8> = std::iter::once(depth).chain((0..OTHERS).map(|_| random.below(101) as u8)).collect();
        let make = |drawn: &[usize]| -> Result<Prompt, Error> {
            let messages = vec![Message::new(Role::User, self.content(drawn, &facts, &places))];
            let request = Request { messages, think: Think::Off, ..Request::default() };
            let text = self.family.render(&request)?;
            let tokens = self.tokenizer.encode_prompt(&text.text)?;
            Ok(Prompt { length, depth, code: facts[0].code.clone(), tokens, request, text })
        };
        let needed = make(&[])?.tokens.len();
        if needed > length {
            return Err(Error::ShortPrompt { length, needed });
        }
        let mut budget = length - needed;
        let mut best: Option<Prompt> = None;
        for _ in 0..ATTEMPTS {
            let prompt = make(&self.draw(budget, &mut random))?;
            let found = prompt.tokens.len();
            let nearer = best.as_ref().is_none_or(|best| found.abs_diff(length) < best.tokens.len().abs_diff(length));
            if nearer {
                best = Some(prompt);
            }
            if found == length {
                break;
            }
            budget = (budget + length).saturating_sub(found);
        }
        best.ok_or(Error::ShortPrompt { length, needed })
    }

    /// The user's message. A needle stands where its place, in percent of the filler's tokens, is before it.
    fn content(&self, drawn: &[usize], facts: &[Fact], places: &[u8]) -> String {
        let total: usize = drawn.iter().map(|&i| self.tokens[i]).sum();
        let mut needles: Vec<(u8, String)> =
            places.iter().zip(facts).map(|(place, fact)| (*place, self.needle(fact))).collect();
        needles.sort_by_key(|(place, _)| *place);
        let mut needles = needles.into_iter().peekable();
        let mut parts: Vec<String> = Vec::with_capacity(drawn.len() + facts.len());
        let mut before = 0;
        for &i in drawn {
            while let Some((_, needle)) = needles.next_if(|(place, _)| before * 100 >= total * usize::from(*place)) {
                parts.push(needle);
            }
            parts.push(self.grammar.filler[i].clone());
            before += self.tokens[i];
        }
        parts.extend(needles.map(|(_, needle)| needle));
        let question = self.grammar.questions[0].replace("{key}", &facts[0].key);
        format!("{}\n\n{question}", parts.join(" "))
    }

    fn needle(&self, fact: &Fact) -> String {
        self.grammar.needle.replace("{key}", &fact.key).replace("{value}", &fact.code)
    }
}

/// What came of one prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Answer {
    content: String,
    /// By an end token, not by our patience.
    stopped: bool,
}

/// Asks every prompt in steps of both sizes.
pub(super) fn measure(
    job: &Job<'_>,
    grid: &Grid,
    prompts: &[Prompt],
    engine: &mut dyn Engine,
    tokenizer: &Arc<Tokenizer>,
    watch: &mut dyn Watch,
) -> Result<report::Needles, Error> {
    let total: usize = prompts.iter().map(|prompt| prompt.tokens.len()).sum();
    watch.begin("needles", total as u64 * 2);
    let mut asker = Asker { engine, tokenizer, family: job.family, batch: Batch::default(), out: Outputs::default() };
    let mut tally = report::Needles::new(grid);
    for prompt in prompts {
        let first = asker.ask(prompt, job.split.first, watch)?;
        let second = asker.ask(prompt, job.split.second, watch)?;
        tally.add(&report::Asked {
            length: prompt.length,
            tokens: prompt.tokens.len(),
            depth: prompt.depth,
            expected: &prompt.code,
            right: names(&first.content, &prompt.code),
            right_second_split: names(&second.content, &prompt.code),
            differs: first != second,
            stopped: first.stopped,
            answer: &first.content,
        });
    }
    Ok(tally)
}

/// Whether `text` holds the number as such, not inside a longer one.
fn names(text: &str, number: &str) -> bool {
    text.split(|c: char| !c.is_ascii_digit()).any(|digits| digits == number)
}

struct Asker<'a> {
    engine: &'a mut dyn Engine,
    tokenizer: &'a Arc<Tokenizer>,
    family: &'a Family,
    batch: Batch,
    out: Outputs,
}

impl Asker<'_> {
    /// The greedy answer, computed in steps of at most `chunk` tokens.
    fn ask(&mut self, prompt: &Prompt, chunk: usize, watch: &mut dyn Watch) -> Result<Answer, Error> {
        self.engine.release(SeqId(0));
        let chunk = chunk.clamp(1, self.engine.info().n_batch);
        let mut position = 0;
        for part in prompt.tokens.chunks(chunk) {
            self.step(part, position, position + part.len() == prompt.tokens.len())?;
            position += part.len();
            watch.advance(part.len() as u64);
        }
        let mut stream = Stream::new(Arc::clone(self.tokenizer), Vec::new());
        let (mut text, mut stopped) = (String::new(), false);
        for _ in 0..ANSWER_TOKENS {
            let row = self.out.row(0);
            if !log_sum_exp(row).is_finite() {
                return Err(Error::NotFinite { what: "logits", position: position - 1 });
            }
            let token = TokenId(top(row) as u32);
            if stream.push(token, &mut text).is_some() {
                stopped = true;
                break;
            }
            self.step(&[token], position, true)?;
            position += 1;
        }
        self.engine.release(SeqId(0));
        stream.finish(&mut text);
        let mut parser = self.family.parser(&prompt.request, &prompt.text);
        let mut pieces = Vec::new();
        parser.push(&text, &mut pieces);
        parser.finish(&mut pieces);
        let content = pieces.into_iter().filter_map(|piece| match piece {
            Piece::Content(text) => Some(text),
            Piece::Thinking(_) | Piece::ToolCall(_) => None,
        });
        Ok(Answer { content: content.collect(), stopped })
    }

    /// Computes `tokens` from `position` on; the last one gives a row of logits if that is wanted.
    fn step(&mut self, tokens: &[TokenId], position: usize, wanted: bool) -> Result<(), Error> {
        self.batch.tokens.clear();
        self.batch.tokens.extend((position..).zip(tokens).map(|(position, &token)| BatchToken {
            token,
            seq: SeqId(0),
            pos: Pos(position as u32),
            output: None,
        }));
        if let Some(last) = self.batch.tokens.last_mut().filter(|_| wanted) {
            last.output = Some(Output::Logits);
        }
        self.engine.step(&self.batch, &mut self.out)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_counts_only_as_a_whole() {
        assert!(names("The code of the red door is 4821.", "4821"));
        assert!(names("4821", "4821"));
        for wrong in ["48215", "It is 14821.", "482 1", "", "four"] {
            assert!(!names(wrong, "4821"), "{wrong}");
        }
    }

    /// A tokenizer of single bytes, and a family that adds nothing.
    fn plain() -> (Tokenizer, Family) {
        let mut metadata = fathom_gguf::Metadata::new();
        // Visible ASCII stands for itself in GPT-2's spelling; blank and newline have letters of their own.
        let tokens: Vec<String> =
            (33_u8..127).map(|byte| (byte as char).to_string()).chain(["Ġ".into(), "Ċ".into()]).collect();
        metadata.insert("tokenizer.ggml.model", "gpt2");
        metadata.insert("tokenizer.ggml.pre", "deepseek-v3");
        metadata.insert("tokenizer.ggml.token_type", vec![1_i32; tokens.len()]);
        metadata.insert("tokenizer.ggml.tokens", fathom_gguf::Strings::from(tokens));
        metadata.insert("tokenizer.ggml.merges", fathom_gguf::Strings::from(Vec::new()));
        let family = chat::family::for_model(&chat::family::Facts::default()).unwrap();
        (Tokenizer::from_gguf(&metadata).unwrap(), family)
    }

    #[test]
    fn prompts_are_exactly_as_long_as_asked_and_the_needle_is_where_it_should_be() {
        let (tokenizer, family) = plain();
        let grid = Grid { lengths: vec![400, 1001], depths: vec![0, 40, 100], samples: 2, residues: false, seed: 5 };
        let prompts = prompts(&grid, &family, &tokenizer).unwrap();
        assert_eq!(prompts.len(), 12);
        for prompt in &prompts {
            assert_eq!(prompt.tokens.len(), prompt.length);
            let (text, question) = prompt.text.text.split_once("\n\n").unwrap();
            assert_eq!(text.matches("The code of the ").count(), 1 + OTHERS, "{text}");
            let key = question.strip_prefix("What is the code of the ").unwrap().strip_suffix('?').unwrap();
            let needle = format!("The code of the {key} is {}.", prompt.code);
            let at = text.find(&needle).unwrap_or_else(|| panic!("no `{needle}` in {text}"));
            // Sentences and the other needles are not cut, so the place is a little off.
            let share = at as f64 / (text.len() - needle.len()) as f64;
            let slack = (OTHERS + 1) as f64 * 45.0 / text.len() as f64;
            assert!((share - f64::from(prompt.depth) / 100.0).abs() < slack, "{share} for {} %", prompt.depth);
        }
        let again = super::prompts(&grid, &family, &tokenizer).unwrap();
        assert!(prompts.iter().zip(&again).all(|(a, b)| a.tokens == b.tokens), "the same grid, the same prompts");
        let codes: std::collections::BTreeSet<&str> = prompts.iter().map(|prompt| prompt.code.as_str()).collect();
        assert_eq!(codes.len(), 12, "each hides another code");
    }

    #[test]
    fn residues_are_128_consecutive_lengths() {
        let (tokenizer, family) = plain();
        let grid = Grid { lengths: vec![400], depths: vec![10, 90], samples: 1, residues: true, seed: 5 };
        let prompts = prompts(&grid, &family, &tokenizer).unwrap();
        let lengths: Vec<usize> = prompts.iter().map(|prompt| prompt.tokens.len()).collect();
        assert_eq!(lengths, (400..528).collect::<Vec<_>>());
        assert_eq!(longest(&prompts), 527 + ANSWER_TOKENS);
        assert!(prompts.iter().all(|prompt| prompt.length == 400));
    }

    #[test]
    fn a_length_without_room_is_refused() {
        let (tokenizer, family) = plain();
        let grid = Grid { lengths: vec![100], depths: vec![0], samples: 1, residues: false, seed: 5 };
        let error = prompts(&grid, &family, &tokenizer).map(drop).unwrap_err();
        assert!(matches!(error, Error::ShortPrompt { length: 100, .. }), "{error}");
    }

    #[test]
    fn the_grammar_can_be_asked_about() {
        let grammar: Grammar = serde_json::from_str(GRAMMAR).unwrap();
        assert!(grammar.needle.contains("{key}") && grammar.needle.contains("{value}"));
        assert!(grammar.questions[0].contains("{key}"));
        assert!(grammar.colours.len() * grammar.things.len() >= 50);
        for sentence in &grammar.filler {
            assert!(!sentence.contains(|c: char| c.is_ascii_digit()) && !sentence.contains("code"), "{sentence}");
        }
    }
}
