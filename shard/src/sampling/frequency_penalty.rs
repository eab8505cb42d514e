//! Frequency penalty: tokens become less likely the larger their share of the sequence.
//!
//!   score[t] = score[t] − penalty · count[t] / length,   count over the prompt and the generated tokens
//!
//! OpenAI subtracts penalty · count instead; TGI divides by the sequence's length, and the native routes follow TGI.
//! Source: TGI `FrequencyPenaltyLogitsProcessor`, without its padding (there, a row's result depends on its batch).

use super::TokenCounts;
use super::candidates::Candidates;
use super::processor::{Needs, Processor};

pub(super) const PROCESSOR: Processor = Processor {
    is_active: |params, _| params.sampling.frequency_penalty.is_some_and(|penalty| penalty != 0.0),
    needs: Needs::counts,
    apply: |candidates, row, _| {
        apply(candidates, row.params.sampling.frequency_penalty(), &row.history.all, row.position);
    },
};

/// Subtracts `penalty` times each token's share of the `length` tokens that `counts` holds.
fn apply(candidates: &mut Candidates, penalty: f32, counts: &TokenCounts, length: u32) {
    candidates.penalise(counts, |count| penalty * (count / length as f32));
}

#[cfg(test)]
mod tests {
    use proto::v1::SamplingParams;

    use super::super::candidates::check_penalised;
    use super::*;

    #[track_caller]
    fn check(tokens: &[u32], penalty: f32, expected: [f32; 3]) {
        let length = tokens.len() as u32;
        check_penalised(tokens, |candidates, counts| apply(candidates, penalty, counts, length), expected);
    }

    #[test]
    fn subtracts_the_share_of_the_sequence() {
        check(&[0, 0, 1, 0], 2.0, [1.0 - 2.0 * 0.75, -1.0 - 2.0 * 0.25, 0.0]);
    }

    #[test]
    fn the_same_shares_in_a_longer_sequence_cost_the_same() {
        check(&[0, 0, 1, 0, 0, 0, 1, 0], 2.0, [-0.5, -1.5, 0.0]);
    }

    #[test]
    fn zero_is_off_and_a_negative_penalty_rewards() {
        let is_on = |penalty| PROCESSOR.is_on(SamplingParams { frequency_penalty: penalty, ..Default::default() });
        assert_eq!([None, Some(0.0), Some(-1.0)].map(is_on), [false, false, true]);
        check(&[2, 2], -1.0, [1.0, -1.0, 1.0]);
    }
}
