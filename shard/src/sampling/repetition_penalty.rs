//! Repetition penalty: tokens that occur already become less likely, however often they occur.
//!
//!   score[t] = score[t] / penalty   if score[t] > 0
//!              score[t] · penalty   otherwise,          for every t among the prompt and the generated tokens
//!
//! Source: CTRL, arXiv:1909.05858 §4.1; transformers `RepetitionPenaltyLogitsProcessor`.

use super::TokenCounts;
use super::candidates::Candidates;

/// Penalises every token of `counts`. A `penalty` of 1 changes nothing; below 1 it rewards.
pub(super) fn apply(candidates: &mut Candidates, penalty: f32, counts: &TokenCounts) {
    if penalty == 1.0 {
        return;
    }
    for (token_id, _) in counts.iter() {
        let score = candidates.score_mut(token_id);
        *score = if *score > 0.0 { *score / penalty } else { *score * penalty };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(tokens: &[u32], penalty: f32, expected: [f32; 4]) {
        let mut candidates = Candidates::default();
        candidates.load(&[2.0, -2.0, 0.0, 1.0]);
        let mut counts = TokenCounts::default();
        counts.extend(tokens.iter().copied());
        apply(&mut candidates, penalty, &counts);
        assert_eq!(candidates.scores(), expected);
    }

    #[test]
    fn divides_positive_and_multiplies_negative_scores() {
        check(&[0, 1, 2], 2.0, [1.0, -4.0, 0.0, 1.0]);
    }

    #[test]
    fn a_token_is_penalised_once_however_often_it_occurs() {
        check(&[0, 0, 0], 2.0, [1.0, -2.0, 0.0, 1.0]);
    }

    #[test]
    fn token_zero_is_penalised_only_if_it_occurs() {
        check(&[3], 2.0, [2.0, -2.0, 0.0, 0.5]);
    }

    #[test]
    fn one_is_off_and_below_one_rewards() {
        check(&[0, 1], 1.0, [2.0, -2.0, 0.0, 1.0]);
        check(&[0, 1], 0.5, [4.0, -1.0, 0.0, 1.0]);
    }
}
