//! The rules of a [`Batch`], which every engine checks before it computes anything.
//!
//! Engines that end the process when a caller breaks a rule, and kernels that would read elsewhere, are behind this: what passes here names
//! sequences, positions and tokens that exist.

use super::{Batch, BatchToken, EngineInfo, Error, Output};
use crate::ids::SeqId;

/// What the rules must know of a sequence.
pub(super) trait Place {
    /// Position of the next token.
    fn next(&self) -> u32;

    /// A step failed while it computed this sequence: nobody knows what it holds.
    fn is_broken(&self) -> bool;
}

/// # Errors
/// [`Error::Batch`] when there is no such sequence.
pub(super) fn existing<S>(sequences: &[S], seq: SeqId) -> Result<&S, Error> {
    let n = sequences.len();
    sequences
        .get(seq.0 as usize)
        .ok_or_else(|| Error::Batch(format!("there is no sequence {}, only {n} of them", seq.0)))
}

/// A sequence whose state may be used.
///
/// # Errors
/// [`Error::Batch`] when there is none, or a step of it failed.
pub(super) fn sound<S: Place>(sequences: &[S], seq: SeqId) -> Result<&S, Error> {
    let sequence = existing(sequences, seq)?;
    if sequence.is_broken() {
        return Err(Error::Batch(format!("a step of sequence {} failed: release it first", seq.0)));
    }
    Ok(sequence)
}

/// # Errors
/// [`Error::Batch`] when the sequence holds anything.
pub(super) fn must_be_empty<S: Place>(sequences: &[S], seq: SeqId) -> Result<(), Error> {
    if sound(sequences, seq)?.next() != 0 {
        return Err(Error::Batch(format!("sequence {} is not empty: release it first", seq.0)));
    }
    Ok(())
}

/// Cuts a batch into the tokens of one sequence each.
pub(super) fn runs(tokens: &[BatchToken]) -> impl Iterator<Item = &[BatchToken]> {
    tokens.chunk_by(|a, b| a.seq == b.seq)
}

/// Checks batches. An engine keeps one, so that a step allocates nothing for it.
#[derive(Debug, Default)]
pub(super) struct Rules {
    /// An empty sequence may begin anywhere: [`super::Settings::jump`].
    jump: bool,
    /// Sequences that the batch had already.
    seen: Vec<bool>,
}

impl Rules {
    pub(super) fn new(jump: bool) -> Rules {
        Rules { jump, seen: Vec::new() }
    }

    /// Every rule of [`Batch`]. `output` refuses what this engine cannot give.
    ///
    /// # Errors
    /// The first broken rule: [`Error::Batch`], [`Error::ContextFull`], or that of `output`.
    pub(super) fn check<S: Place>(
        &mut self,
        batch: &Batch,
        info: &EngineInfo,
        sequences: &[S],
        output: impl Fn(Output) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if batch.tokens.len() > info.n_batch {
            let (n, most) = (batch.tokens.len(), info.n_batch);
            return Err(Error::Batch(format!("{n} tokens are more than a step takes ({most})")));
        }
        let rows = batch.tokens.iter().filter(|token| token.output.is_some()).count();
        if rows > info.n_outputs {
            let most = info.n_outputs;
            return Err(Error::Batch(format!("{rows} rows of output are more than a step gives ({most})")));
        }
        self.seen.clear();
        self.seen.resize(sequences.len(), false);
        for run in runs(&batch.tokens) {
            let seq = run[0].seq;
            let sequence = sound(sequences, seq)?;
            if std::mem::replace(&mut self.seen[seq.0 as usize], true) {
                return Err(Error::Batch(format!("the tokens of sequence {} are not consecutive", seq.0)));
            }
            let start = if self.jump && sequence.next() == 0 { run[0].pos.0 } else { sequence.next() };
            for (next, token) in (u64::from(start)..).zip(run) {
                check_token(token, next, info)?;
                token.output.map_or(Ok(()), &output)?;
            }
        }
        Ok(())
    }
}

fn check_token(token: &BatchToken, next: u64, info: &EngineInfo) -> Result<(), Error> {
    if token.token.0 as usize >= info.n_vocab {
        let (id, n) = (token.token.0, info.n_vocab);
        return Err(Error::Batch(format!("token {id} is not in the vocabulary of {n}")));
    }
    if next >= info.n_ctx as u64 {
        return Err(Error::ContextFull { seq: token.seq, n_ctx: info.n_ctx });
    }
    if u64::from(token.pos.0) != next {
        let (seq, pos) = (token.seq.0, token.pos.0);
        return Err(Error::Batch(format!("position {pos} of sequence {seq} does not follow: expected {next}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{KvType, Memory, Support};
    use crate::ids::{Pos, TokenId};

    struct Sequence(u32, bool);

    impl Place for Sequence {
        fn next(&self) -> u32 {
            self.0
        }

        fn is_broken(&self) -> bool {
            self.1
        }
    }

    fn info() -> EngineInfo {
        EngineInfo {
            engine: "none",
            architecture: String::new(),
            n_vocab: 100,
            n_embd: 8,
            n_ctx: 16,
            n_ctx_train: 16,
            n_seq_max: 3,
            n_batch: 4,
            n_outputs: 2,
            kv_type: KvType::F16,
            memory: Memory::default(),
            support: Support::default(),
        }
    }

    /// Tokens as `(sequence, position)`.
    fn batch(tokens: &[(u32, u32)]) -> Batch {
        let token =
            |&(seq, pos): &(u32, u32)| BatchToken { token: TokenId(7), seq: SeqId(seq), pos: Pos(pos), output: None };
        Batch { tokens: tokens.iter().map(token).collect() }
    }

    /// Sequence 0 is empty, 1 has five tokens, 2 has failed.
    fn check(rules: &mut Rules, batch: &Batch) -> Result<(), Error> {
        let sequences = [Sequence(0, false), Sequence(5, false), Sequence(5, true)];
        rules.check(batch, &info(), &sequences, |output| match output {
            Output::Logits => Ok(()),
            _ => Err(Error::Unsupported { engine: "none", what: "give that".to_owned() }),
        })
    }

    #[test]
    fn what_follows_is_computed() {
        let mut rules = Rules::new(false);
        for tokens in [&[][..], &[(0, 0)], &[(1, 5), (1, 6)], &[(1, 5), (0, 0), (0, 1)]] {
            check(&mut rules, &batch(tokens)).unwrap_or_else(|error| panic!("{tokens:?}: {error}"));
        }
        let last = [(1, 15)];
        assert!(check(&mut rules, &batch(&last)).is_err(), "a gap");
        check(&mut Rules::new(true), &batch(&[(0, 15)])).expect("a jump to the last position");
    }

    #[test]
    fn every_broken_rule_is_named() {
        for (tokens, expected) in [
            (&[(0, 0), (0, 1), (0, 2), (0, 3), (0, 4)][..], "bad batch: 5 tokens are more than a step takes (4)"),
            (&[(0, 1)], "bad batch: position 1 of sequence 0 does not follow: expected 0"),
            (&[(1, 5), (1, 7)], "bad batch: position 7 of sequence 1 does not follow: expected 6"),
            (&[(1, 4)], "bad batch: position 4 of sequence 1 does not follow: expected 5"),
            (&[(0, 0), (1, 5), (0, 0)], "bad batch: the tokens of sequence 0 are not consecutive"),
            (&[(0, 0), (1, 5), (0, 1)], "bad batch: the tokens of sequence 0 are not consecutive"),
            (&[(2, 5)], "bad batch: a step of sequence 2 failed: release it first"),
            (&[(3, 0)], "bad batch: there is no sequence 3, only 3 of them"),
        ] {
            let error = check(&mut Rules::new(false), &batch(tokens)).expect_err(expected);
            assert_eq!(error.to_string(), expected);
        }
        let full = check(&mut Rules::new(true), &batch(&[(0, 16)])).unwrap_err();
        assert!(matches!(full, Error::ContextFull { seq: SeqId(0), n_ctx: 16 }), "{full}");
        let jumped = check(&mut Rules::new(true), &batch(&[(1, 9)])).unwrap_err();
        assert!(jumped.to_string().contains("expected 5"), "only empty sequences jump: {jumped}");
    }

    #[test]
    fn tokens_and_outputs_are_checked() {
        let with = |change: fn(&mut BatchToken)| {
            let mut batch = batch(&[(0, 0), (0, 1), (0, 2)]);
            batch.tokens.iter_mut().for_each(change);
            check(&mut Rules::new(false), &batch).unwrap_err().to_string()
        };
        assert_eq!(with(|token| token.token = TokenId(100)), "bad batch: token 100 is not in the vocabulary of 100");
        assert_eq!(
            with(|token| token.output = Some(Output::Logits)),
            "bad batch: 3 rows of output are more than a step gives (2)"
        );
        let last_hidden = |token: &mut BatchToken| token.output = (token.pos.0 == 2).then_some(Output::Hidden);
        assert_eq!(with(last_hidden), "none cannot give that");
    }

    #[test]
    fn only_sound_sequences_are_used_and_only_empty_ones_filled() {
        let sequences = [Sequence(0, false), Sequence(5, false), Sequence(0, true)];
        assert!(must_be_empty(&sequences, SeqId(0)).is_ok() && sound(&sequences, SeqId(1)).is_ok());
        assert!(must_be_empty(&sequences, SeqId(1)).is_err() && existing(&sequences, SeqId(2)).is_ok());
        for seq in [2, 3] {
            assert!(sound(&sequences, SeqId(seq)).is_err() && must_be_empty(&sequences, SeqId(seq)).is_err(), "{seq}");
        }
    }
}
