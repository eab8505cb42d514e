//! Frequency penalty: tokens become less likely the larger their share of the sequence.
//!
//!   score[t] = score[t] − penalty · count[t] / length,   count over the prompt and the generated tokens
//!
//! OpenAI subtracts penalty · count instead; TGI divides by the sequence's length, and the native routes follow TGI.
//! Source: TGI `FrequencyPenaltyLogitsProcessor`, without its padding (there, a row's result depends on its batch).

use super::TokenCounts;
use super::candidates::Candidates;

/// Subtracts `penalty` times each token's share of the `length` tokens that `counts` holds.
pub(super) fn apply(candidates: &mut Candidates, penalty: f32, counts: &TokenCounts, length: u32) {
    if penalty == 0.0 {
        return;
    }
    for (token_id, count) in counts.iter() {
        *candidates.score_mut(token_id) -= penalty * (count as f32 / length as f32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(tokens: &[u32], penalty: f32, expected: [f32; 3]) {
        let mut candidates = Candidates::default();
        candidates.load(&[1.0, -1.0, 0.0]);
        let mut counts = TokenCounts::default();
        counts.extend(tokens.iter().copied());
        apply(&mut candidates, penalty, &counts, tokens.len() as u32);
        assert_eq!(candidates.scores(), expected);
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
        check(&[0, 0, 1, 0], 0.0, [1.0, -1.0, 0.0]);
        check(&[2, 2], -1.0, [1.0, -1.0, 1.0]);
    }
}
