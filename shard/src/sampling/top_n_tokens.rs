//! The n most likely tokens of a row, for clients that ask for alternatives.
//!
//! As in TGI: from the processed scores, whatever ties with the n-th included, tokens of probability zero never.

use kernels::ops::sample::{Scored, top_n};

use crate::limits::MAX_TOP_TIES;

/// The most likely tokens, best first, ties by ascending id. Reused from row to row.
#[derive(Debug, Default)]
pub struct TopTokens {
    tokens: Vec<(u32, f32)>,
    best: Vec<Scored>,
    scratch: Vec<Scored>,
}

impl TopTokens {
    /// Token ids with their log-probabilities.
    pub fn tokens(&self) -> &[(u32, f32)] {
        &self.tokens
    }

    /// Finds the `n` best of `scores`, whose log-sum-exp is `normalizer`.
    pub(super) fn select(&mut self, scores: &[f32], id_of: impl Fn(u32) -> u32, normalizer: f32, n: u32) {
        let n = n as usize;
        top_n(scores, n, n + MAX_TOP_TIES, &mut self.scratch, &mut self.best);
        self.tokens.clear();
        self.tokens.extend(self.best.iter().map(|best| (id_of(best.id), best.score - normalizer)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(scores: &[f32], n: u32, expected: &[u32]) {
        let mut top = TopTokens::default();
        top.select(scores, |index| index + 10, 5.0, n);
        let ids: Vec<u32> = top.tokens().iter().map(|&(id, _)| id).collect();
        assert_eq!(ids, expected);
        for &(id, logprob) in top.tokens() {
            assert_eq!(logprob, scores[id as usize - 10] - 5.0);
        }
    }

    #[test]
    fn best_first_and_ties_by_id() {
        check(&[1.0, 3.0, 2.0, 3.0], 3, &[11, 13, 12]);
        check(&[1.0, 3.0, 2.0, 3.0], 0, &[]);
    }

    #[test]
    fn ties_with_the_last_one_are_reported_too() {
        check(&[1.0, 3.0, 1.0, 1.0], 2, &[11, 10, 12, 13]);
        check(&[3.0, 3.0], 1, &[10, 11]);
    }

    #[test]
    fn ties_are_bounded() {
        let expected: Vec<u32> = (10..11 + MAX_TOP_TIES as u32).collect();
        check(&[0.0; 100], 1, &expected);
    }

    #[test]
    fn impossible_tokens_and_a_small_vocabulary_give_fewer() {
        check(&[1.0, f32::NEG_INFINITY, 0.0], 3, &[10, 12]);
        check(&[1.0, 0.0], 5, &[10, 11]);
    }
}
