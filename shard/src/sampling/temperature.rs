//! Temperature: flattens (above 1) or sharpens (below 1) the distribution.
//!
//!   score[t] = score[t] / temperature
//!
//! Source: transformers `TemperatureLogitsWarper`.

use super::candidates::Candidates;
use super::processor::{Needs, Processor};

pub(super) const PROCESSOR: Processor = Processor {
    is_active: |params, _| params.sampling.temperature.is_some_and(|temperature| temperature != 1.0),
    needs: Needs::nothing,
    apply: |candidates, row, _| apply(candidates, row.params.sampling.temperature()),
};

/// Divides every score by `temperature`, which is positive.
fn apply(candidates: &mut Candidates, temperature: f32) {
    // A division, not a multiplication by the reciprocal: that rounds twice, and goldens compare bits.
    candidates.scores_mut().0.iter_mut().for_each(|score| *score /= temperature);
}

#[cfg(test)]
mod tests {
    use proto::v1::SamplingParams;

    use super::*;

    #[track_caller]
    fn check(temperature: f32, expected: [f32; 3]) {
        let mut candidates = Candidates::default();
        candidates.load(&[3.0, -1.0, f32::NEG_INFINITY]);
        apply(&mut candidates, temperature);
        assert_eq!(candidates.scores(), expected);
    }

    #[test]
    fn divides_every_score() {
        check(2.0, [1.5, -0.5, f32::NEG_INFINITY]);
        check(0.7, [3.0 / 0.7, -1.0 / 0.7, f32::NEG_INFINITY]);
    }

    #[test]
    fn one_is_off() {
        let is_on = |temperature| PROCESSOR.is_on(SamplingParams { temperature, ..Default::default() });
        assert_eq!([None, Some(1.0), Some(0.7)].map(is_on), [false, false, true]);
    }
}
