//! Min-p: only tokens at least `min_p` times as likely as the most likely one remain.
//!
//!   keep t if p[t] ≥ min_p · max p   ⟺   score[t] ≥ max score + ln min_p
//!
//! Source: arXiv:2407.01082 §3; transformers `MinPLogitsWarper`.

use super::candidates::Candidates;
use super::processor::{Needs, Processor};

pub(super) const PROCESSOR: Processor = Processor {
    is_active: |params, _| params.sampling.min_p.is_some_and(|min_p| min_p > 0.0),
    needs: Needs::nothing,
    apply: |candidates, row, _| apply(candidates, row.params.sampling.min_p()),
};

/// Removes what is less likely than `min_p` times the most likely token. The most likely tokens always stay.
fn apply(candidates: &mut Candidates, min_p: f32) {
    let max = candidates.scores().iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let threshold = max + min_p.ln();
    candidates.retain(|_, score, _| score >= threshold);
}

#[cfg(test)]
mod tests {
    use proto::v1::SamplingParams;

    use super::super::candidates::check_kept;
    use super::*;

    #[track_caller]
    fn check(probabilities: &[f32], min_p: f32, expected: &[u32]) {
        let logits: Vec<f32> = probabilities.iter().map(|probability| probability.ln()).collect();
        check_kept(&logits, |candidates| apply(candidates, min_p), expected);
    }

    #[test]
    fn keeps_what_is_near_the_most_likely_token() {
        check(&[0.1, 0.4, 0.2, 0.3], 0.7, &[1, 3]);
        check(&[0.1, 0.4, 0.2, 0.3], 0.45, &[1, 2, 3]);
        check(&[0.1, 0.4, 0.2, 0.3], 0.2, &[0, 1, 2, 3]);
    }

    #[test]
    fn one_keeps_the_modes_and_zero_is_off() {
        check(&[0.4, 0.2, 0.4], 1.0, &[0, 2]);
        let is_on = |min_p| PROCESSOR.is_on(SamplingParams { min_p, ..Default::default() });
        assert_eq!([None, Some(0.0), Some(1e-30)].map(is_on), [false, false, true]);
        check(&[0.4, 0.0, 0.6], 1e-30, &[0, 2]);
    }
}
