//! Top-p (nucleus): only the most likely tokens that together hold probability p remain.
//!
//! In descending order of probability, ties by ascending token id, the shortest prefix whose probabilities sum to at
//! least p; so at least one token. transformers says the same from the other end: it sorts ascending and removes what
//! has a cumulative probability of at most 1 − p; in which order its sort leaves ties is not defined.
//! Source: arXiv:1904.09751 §3.1; transformers `TopPLogitsWarper`.

use super::candidates::Candidates;
use super::processor::{Needs, Processor};
use super::select::{ascending_key, shortest_prefix};

pub(super) const PROCESSOR: Processor = Processor {
    is_active: |params, _| params.sampling.top_p.is_some_and(|p| p < 1.0),
    needs: Needs::nothing,
    apply: |candidates, row, _| apply(candidates, row.params.sampling.top_p()),
};

/// Keeps the nucleus of probability `p`.
fn apply(candidates: &mut Candidates, p: f32) {
    let (scores, scratch) = candidates.scores_mut();
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scratch.keys.clear();
    scratch.keys.extend(scores.iter().map(|&score| ascending_key(score)));
    // Not normalised: the prefix is measured against p times the total instead.
    scratch.weights.clear();
    scratch.weights.extend(scores.iter().map(|&score| (score - max).exp()));
    let prefix = shortest_prefix(&scratch.keys, &scratch.weights, p.into(), &mut scratch.histogram);

    let mut ties_left = prefix.ties;
    candidates.retain(|index, _, scratch| {
        let key = scratch.keys[index];
        let keep = key > prefix.last_key || (key == prefix.last_key && ties_left > 0);
        ties_left -= usize::from(keep && key == prefix.last_key);
        keep
    });
}

#[cfg(test)]
mod tests {
    use proto::v1::SamplingParams;

    use super::super::candidates::check_kept;
    use super::*;

    /// Logits whose softmax is `probabilities`.
    #[track_caller]
    fn check(probabilities: &[f32], p: f32, expected: &[u32]) {
        let logits: Vec<f32> = probabilities.iter().map(|probability| probability.ln()).collect();
        check_kept(&logits, |candidates| apply(candidates, p), expected);
    }

    #[test]
    fn keeps_the_shortest_prefix_that_reaches_p() {
        // Ascending cumulative sums, as transformers has them: 0.1, 0.3, 0.6, 1.0 for ids 0, 2, 3, 1.
        check(&[0.1, 0.4, 0.2, 0.3], 0.39, &[1]);
        check(&[0.1, 0.4, 0.2, 0.3], 0.6, &[1, 3]);
        check(&[0.1, 0.4, 0.2, 0.3], 0.8, &[1, 2, 3]);
        check(&[0.1, 0.4, 0.2, 0.3], 0.95, &[0, 1, 2, 3]);
    }

    #[test]
    fn at_least_one_token_stays() {
        check(&[0.1, 0.4, 0.2, 0.3], 1e-9, &[1]);
    }

    #[test]
    fn ties_go_to_the_lowest_ids() {
        check(&[0.25, 0.25, 0.25, 0.25], 0.3, &[0, 1]);
        check(&[0.2, 0.4, 0.2, 0.2], 0.5, &[0, 1]);
    }

    #[test]
    fn impossible_tokens_are_never_kept_for_a_reachable_p() {
        check(&[0.0, 0.5, 0.0, 0.5], 0.99, &[1, 3]);
    }

    #[test]
    fn one_is_off() {
        let is_on = |top_p| PROCESSOR.is_on(SamplingParams { top_p, ..Default::default() });
        assert_eq!([None, Some(1.0), Some(0.9)].map(is_on), [false, false, true]);
    }
}
