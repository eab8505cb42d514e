//! Occurrence penalty, which OpenAI calls `frequency_penalty`: tokens become less likely with every time the reply has them.
//!
//!   score[t] = score[t] − penalty · count[t],   count over the reply
//!
//! The prompt does not count, and nothing is divided by a length: both differ from TGI's penalty of that name
//! (`frequency_penalty.rs`). Source: OpenAI's `frequency_penalty`.

use super::TokenCounts;
use super::candidates::Candidates;
use super::processor::{Needs, Processor};

pub(super) const PROCESSOR: Processor = Processor {
    is_active: |params, _| params.sampling.occurrence_penalty.is_some_and(|penalty| penalty != 0.0),
    needs: Needs::reply_counts,
    apply: |candidates, row, _| apply(candidates, row.params.sampling.occurrence_penalty(), &row.history.reply),
};

/// Subtracts `penalty` times its number of occurrences from every token of `reply`.
fn apply(candidates: &mut Candidates, penalty: f32, reply: &TokenCounts) {
    candidates.penalise(reply, |count| penalty * count);
}

#[cfg(test)]
mod tests {
    use proto::v1::SamplingParams;

    use super::super::candidates::check_penalised;
    use super::*;

    #[track_caller]
    fn check(reply: &[u32], penalty: f32, expected: [f32; 3]) {
        check_penalised(reply, |candidates, counts| apply(candidates, penalty, counts), expected);
    }

    #[test]
    fn is_subtracted_per_occurrence() {
        check(&[0, 1, 0, 0], 0.5, [-0.5, -1.5, 0.0]);
    }

    #[test]
    fn zero_is_off_and_a_negative_penalty_rewards() {
        let is_on = |penalty| PROCESSOR.is_on(SamplingParams { occurrence_penalty: penalty, ..Default::default() });
        assert_eq!([None, Some(0.0), Some(-1.0)].map(is_on), [false, false, true]);
        check(&[2, 2], -2.0, [1.0, -1.0, 4.0]);
    }
}
