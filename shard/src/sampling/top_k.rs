//! Top-k: only the k most likely tokens remain.
//!
//! Removes every token whose score is below the k-th largest one. Tokens that tie with the k-th all remain, so the
//! result does not depend on how a sort orders them. k beyond the number of candidates removes nothing.
//! Source: transformers `TopKLogitsWarper`.

use super::candidates::Candidates;
use super::processor::{Needs, Processor};
use super::select::nth_largest;

pub(super) const PROCESSOR: Processor = Processor {
    is_active: |params, _| params.sampling.top_k.is_some(),
    needs: Needs::nothing,
    apply: |candidates, row, _| apply(candidates, row.params.sampling.top_k().unsigned_abs() as usize),
};

/// Keeps the `k` highest scores and what ties with the last of them; `k` is not 0.
fn apply(candidates: &mut Candidates, k: usize) {
    if k >= candidates.ids().len() {
        return;
    }
    let (scores, scratch) = candidates.scores_mut();
    let threshold = nth_largest(scores, k, &mut scratch.values);
    candidates.retain(|_, score, _| score >= threshold);
}

#[cfg(test)]
mod tests {
    use super::super::candidates::check_kept;
    use super::*;

    #[track_caller]
    fn check(logits: &[f32], k: usize, expected: &[u32]) {
        check_kept(logits, |candidates| apply(candidates, k), expected);
    }

    #[test]
    fn keeps_the_k_largest() {
        check(&[0.1, 0.4, 0.2, 0.3], 2, &[1, 3]);
        check(&[0.1, 0.4, 0.2, 0.3], 1, &[1]);
    }

    #[test]
    fn ties_with_the_last_one_stay() {
        check(&[1.0, 2.0, 1.0, 0.0, 1.0], 2, &[0, 1, 2, 4]);
    }

    #[test]
    fn more_than_the_vocabulary_removes_nothing() {
        check(&[0.1, 0.4], 2, &[0, 1]);
        check(&[0.1, 0.4], usize::MAX, &[0, 1]);
    }
}
