//! Typical-p: keeps the tokens whose information content is closest to what the distribution leads one to expect.
//!
//!   H = −Σ p[t]·ln p[t],   distance[t] = |−ln p[t] − H|
//!
//! In ascending order of distance, the shortest prefix whose probabilities sum to at least typical_p, and whatever ties
//! with its last token. Source: arXiv:2202.00666 §4; transformers `TypicalLogitsWarper`.

use kernels::Device;
use kernels::ops::sample::row_stats;

use super::candidates::Candidates;
use super::processor::{Needs, Processor};
use super::select::{ascending_key, shortest_prefix};

pub(super) const PROCESSOR: Processor = Processor {
    is_active: |params, _| params.sampling.typical_p.is_some_and(|mass| mass < 1.0),
    needs: Needs::nothing,
    apply: |candidates, row, device| apply(candidates, row.params.sampling.typical_p(), device),
};

/// Keeps the typical set of probability `mass`.
fn apply(candidates: &mut Candidates, mass: f32, device: &Device) {
    let (scores, scratch) = candidates.scores_mut();
    let normalizer = row_stats(device, scores).log_sum_exp;
    scratch.weights.clear();
    scratch.weights.extend(scores.iter().map(|&score| (score - normalizer).exp()));
    // A token of probability zero adds nothing to the entropy (0·ln 0 = 0).
    let entropy: f64 = scores
        .iter()
        .zip(&scratch.weights)
        .filter(|&(_, &probability)| probability > 0.0)
        .map(|(&score, &probability)| -f64::from(probability) * f64::from(score - normalizer))
        .sum();
    // The nearest token comes first, so its key has to be the largest.
    scratch.keys.clear();
    scratch.keys.extend(scores.iter().map(|&score| !ascending_key(((normalizer - score) - entropy as f32).abs())));
    let prefix = shortest_prefix(&scratch.keys, &scratch.weights, mass.into(), &mut scratch.histogram);
    candidates.retain(|index, _, scratch| scratch.keys[index] >= prefix.last_key);
}

#[cfg(test)]
mod tests {
    use proto::v1::SamplingParams;

    use super::super::candidates::check_kept;
    use super::*;

    #[track_caller]
    fn check(probabilities: &[f32], mass: f32, expected: &[u32]) {
        let logits: Vec<f32> = probabilities.iter().map(|probability| probability.ln()).collect();
        check_kept(&logits, |candidates| apply(candidates, mass, &Device::cpu(1)), expected);
    }

    #[test]
    fn keeps_what_is_nearest_to_the_entropy() {
        // H = 0.5·ln 2 + 0.3·ln(10/3) + 0.2·ln 5 = 1.0297; −ln p = 0.6931, 1.2040, 1.6094;
        // distances 0.3365, 0.1743, 0.5798: token 1 first, then 0, then 2.
        check(&[0.5, 0.3, 0.2], 0.2, &[1]);
        check(&[0.5, 0.3, 0.2], 0.5, &[0, 1]);
        check(&[0.5, 0.3, 0.2], 0.9, &[0, 1, 2]);
    }

    #[test]
    fn the_mode_can_be_atypical() {
        // H = 0.6·ln(5/3) + 0.4·ln 10 = 1.2275 for one token of 0.6 and four of 0.1;
        // distances |0.5108 − 1.2275| = 0.7167 and |2.3026 − 1.2275| = 1.0751.
        check(&[0.1, 0.6, 0.1, 0.1, 0.1], 0.5, &[1]);
        // H = 1.8444 for 0.3 and seven of 0.1: distances 0.6404 and 0.4582, so all sevenths come before the mode.
        check(&[0.1, 0.3, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1], 0.5, &[0, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn ties_with_the_last_one_stay() {
        check(&[0.25, 0.25, 0.25, 0.25], 0.3, &[0, 1, 2, 3]);
    }

    #[test]
    fn one_is_off() {
        let is_on = |typical_p| PROCESSOR.is_on(SamplingParams { typical_p, ..Default::default() });
        assert_eq!([None, Some(1.0), Some(0.9)].map(is_on), [false, false, true]);
    }
}
