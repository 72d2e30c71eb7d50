//! Who gets how many tokens of the next step. Pure.
//!
//! Decoding sequences come first, one token each: they are what people watch. The rest of the budget is shared by prefills in
//! equal parts; while anybody decodes it is only a small quantum, so that a long prompt does not stall running answers. When
//! there is less than one token for each, they take turns.

/// What one sequence could do next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Want {
    /// Empty, finished, or waiting for a slow reader.
    #[default]
    Nothing,
    Decode,
    /// Up to this many tokens, at least 1.
    Prefill(usize),
}

/// Forms batches; remembers whose turn it is.
#[derive(Clone, Debug)]
pub(super) struct Planner {
    /// Most tokens of a step.
    budget: usize,
    /// Most prefill tokens of a step in which somebody decodes.
    quantum: usize,
    decode_turn: usize,
    prefill_turn: usize,
    /// With a budget of one token, decodes and prefills have every second step.
    decoded: bool,
}

impl Planner {
    pub(super) fn new(budget: usize, quantum: usize) -> Self {
        let (budget, quantum) = (budget.max(1), quantum.max(1));
        Planner { budget, quantum, decode_turn: 0, prefill_turn: 0, decoded: false }
    }

    /// Writes into `shares` how many tokens each of `wants` gets, in the same order. Somebody gets something if anybody wants.
    pub(super) fn form(&mut self, wants: &[Want], shares: &mut Vec<usize>) {
        shares.clear();
        shares.resize(wants.len(), 0);
        let prefills = wants.iter().filter(|w| matches!(w, Want::Prefill(_))).count();
        let decodes = wants.iter().filter(|w| matches!(w, Want::Decode)).count();

        // A prefill can always move, whatever decodes: nobody starves.
        let for_decode = match self.budget {
            _ if prefills == 0 => self.budget,
            1 => usize::from(!self.decoded),
            budget => budget - 1,
        };
        let decoded = decodes.min(for_decode);
        self.decoded = decoded > 0;
        self.decode_turn = deal(wants, shares, self.decode_turn, decoded, |w| matches!(w, Want::Decode));

        let left = self.budget - decoded;
        let mut left = if decodes > 0 { left.min(self.quantum) } else { left };
        if left < prefills {
            self.prefill_turn = deal(wants, shares, self.prefill_turn, left, |w| matches!(w, Want::Prefill(_)));
            return;
        }
        // Equal parts; what the short ones leave over goes to the long ones, in as many rounds as that takes.
        loop {
            let hungry = |want: &Want, share: usize| matches!(want, Want::Prefill(n) if *n > share);
            let count = wants.iter().zip(&*shares).filter(|(w, s)| hungry(w, **s)).count();
            if count == 0 || left == 0 {
                break;
            }
            let part = (left / count).max(1);
            for (want, share) in wants.iter().zip(shares.iter_mut()) {
                if let Want::Prefill(n) = want {
                    let more = (n - *share).min(part).min(left);
                    *share += more;
                    left -= more;
                }
            }
        }
    }
}

/// Gives one token each to `n` of those that are `meant`, beginning with number `turn`; gives the next turn.
fn deal(wants: &[Want], shares: &mut [usize], turn: usize, n: usize, meant: impl Fn(&Want) -> bool) -> usize {
    let (mut next, mut left) = (turn, n);
    for i in (0..wants.len()).map(|i| (turn + i) % wants.len()) {
        if left == 0 {
            break;
        }
        if meant(&wants[i]) {
            shares[i] = 1;
            left -= 1;
            next = i + 1;
        }
    }
    next
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn form(planner: &mut Planner, wants: &[Want]) -> Vec<usize> {
        let mut shares = Vec::new();
        planner.form(wants, &mut shares);
        shares
    }

    #[test]
    fn a_lone_prefill_gets_the_whole_budget_and_a_quantum_beside_a_decode() {
        let mut planner = Planner::new(512, 128);
        assert_eq!(form(&mut planner, &[Want::Nothing, Want::Prefill(2000)]), [0, 512]);
        assert_eq!(form(&mut planner, &[Want::Decode, Want::Prefill(2000)]), [1, 128]);
    }

    #[test]
    fn prefills_share_equally_and_short_ones_leave_the_rest() {
        let mut planner = Planner::new(100, 10);
        let wants = [Want::Prefill(5), Want::Prefill(1000), Want::Prefill(1000)];
        assert_eq!(form(&mut planner, &wants), [5, 48, 47]);
    }

    #[test]
    fn more_sequences_than_budget_take_turns() {
        let mut planner = Planner::new(3, 2);
        let wants = [Want::Decode; 5];
        assert_eq!(form(&mut planner, &wants), [1, 1, 1, 0, 0]);
        assert_eq!(form(&mut planner, &wants), [1, 0, 0, 1, 1]);
    }

    fn want() -> impl Strategy<Value = Want> {
        prop_oneof![Just(Want::Nothing), Just(Want::Decode), (1usize..3000).prop_map(Want::Prefill)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn shares_keep_to_budget_quantum_and_wants(
            budget in 1usize..600,
            quantum in 1usize..300,
            steps in prop::collection::vec(prop::collection::vec(want(), 0..20), 1..10),
        ) {
            let mut planner = Planner::new(budget, quantum);
            for wants in &steps {
                let shares = form(&mut planner, wants);
                prop_assert!(shares.iter().sum::<usize>() <= budget);
                let mut prefill = 0;
                for (want, share) in wants.iter().zip(&shares) {
                    match want {
                        Want::Nothing => prop_assert_eq!(*share, 0),
                        Want::Decode => prop_assert!(*share <= 1),
                        Want::Prefill(n) => {
                            prop_assert!(share <= n);
                            prefill += share;
                        }
                    }
                }
                if wants.contains(&Want::Decode) {
                    prop_assert!(prefill <= quantum);
                }
                let idle = wants.iter().all(|w| *w == Want::Nothing);
                prop_assert_eq!(shares.iter().all(|s| *s == 0), idle);
            }
        }

        /// Whoever keeps wanting is served at least once in twice as many steps as there are sequences, whatever the others do.
        #[test]
        fn nobody_starves(
            budget in 1usize..6,
            quantum in 1usize..4,
            mine in prop_oneof![Just(Want::Decode), Just(Want::Prefill(50))],
            steps in prop::collection::vec(prop::collection::vec(want(), 7), 16),
        ) {
            let mut planner = Planner::new(budget, quantum);
            let mut served = false;
            for others in &steps {
                let mut wants = others.clone();
                wants.insert(3, mine);
                served |= form(&mut planner, &wants)[3] > 0;
            }
            prop_assert!(served);
        }

        /// Nothing of the budget is wasted while nobody decodes.
        #[test]
        fn a_budget_without_decodes_is_used_up(budget in 1usize..600, wants in prop::collection::vec(1usize..500, 1..16)) {
            let mut planner = Planner::new(budget, 1);
            let all: usize = wants.iter().sum();
            let wants: Vec<Want> = wants.into_iter().map(Want::Prefill).collect();
            prop_assert_eq!(form(&mut planner, &wants).iter().sum::<usize>(), all.min(budget));
        }
    }
}
