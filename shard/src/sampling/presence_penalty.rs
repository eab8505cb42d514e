//! Presence penalty: tokens that the reply already has become less likely, once, however often they occur.
//!
//!   score[t] = score[t] − penalty   for every t in the reply
//!
//! The prompt does not count. Source: OpenAI's `presence_penalty`.

use super::TokenCounts;
use super::candidates::Candidates;

/// Subtracts `penalty` from every token of `reply`.
pub(super) fn apply(candidates: &mut Candidates, penalty: f32, reply: &TokenCounts) {
    if penalty == 0.0 {
        return;
    }
    for (token_id, _) in reply.iter() {
        *candidates.score_mut(token_id) -= penalty;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(reply: &[u32], penalty: f32, expected: [f32; 3]) {
        let mut candidates = Candidates::default();
        candidates.load(&[1.0, -1.0, 0.0]);
        let mut counts = TokenCounts::default();
        counts.extend(reply.iter().copied());
        apply(&mut candidates, penalty, &counts);
        assert_eq!(candidates.scores(), expected);
    }

    #[test]
    fn is_subtracted_once() {
        check(&[0, 1, 0, 0], 0.5, [0.5, -1.5, 0.0]);
    }

    #[test]
    fn zero_is_off_and_a_negative_penalty_rewards() {
        check(&[0, 1], 0.0, [1.0, -1.0, 0.0]);
        check(&[2, 2], -2.0, [1.0, -1.0, 2.0]);
    }
}
