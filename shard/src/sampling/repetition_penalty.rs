//! Repetition penalty: tokens that occur already become less likely, however often they occur.
//!
//!   score[t] = score[t] / penalty   if score[t] > 0
//!              score[t] · penalty   otherwise,          for every t among the prompt and the generated tokens
//!
//! Source: CTRL, arXiv:1909.05858 §4.1; transformers `RepetitionPenaltyLogitsProcessor`.

use super::TokenCounts;
use super::candidates::Candidates;
use super::processor::{Needs, Processor};

pub(super) const PROCESSOR: Processor = Processor {
    is_active: |params, _| params.sampling.repetition_penalty.is_some_and(|penalty| penalty != 1.0),
    needs: Needs::counts,
    apply: |candidates, row, _| apply(candidates, row.params.sampling.repetition_penalty(), &row.history.all),
};

/// Penalises every token of `counts`; a `penalty` below 1 rewards.
fn apply(candidates: &mut Candidates, penalty: f32, counts: &TokenCounts) {
    for (token_id, _) in counts.iter() {
        let score = candidates.score_mut(token_id);
        *score = if *score > 0.0 { *score / penalty } else { *score * penalty };
    }
}

#[cfg(test)]
mod tests {
    use proto::v1::SamplingParams;

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
        let is_on = |penalty| PROCESSOR.is_on(SamplingParams { repetition_penalty: penalty, ..Default::default() });
        assert_eq!([None, Some(1.0), Some(0.5)].map(is_on), [false, false, true]);
        check(&[0, 1], 0.5, [4.0, -1.0, 0.0, 1.0]);
    }
}
