//! Minimum length: no end-of-sequence token before the reply has its least number of tokens.
//!
//! Source: vLLM's `min_tokens`; transformers `MinNewTokensLengthLogitsProcessor`.

use super::candidates::Candidates;
use super::processor::{Needs, Processor};

pub(super) const PROCESSOR: Processor = Processor {
    // While the reply is still too short to end.
    is_active: |params, position| position.saturating_sub(params.prompt_tokens) < params.sampling.min_tokens(),
    needs: Needs::nothing,
    apply: |candidates, row, _| apply(candidates, row.eos_token_ids),
};

/// Forbids `eos_token_ids`; ids that the vocabulary does not have (configurations name such) are passed over.
fn apply(candidates: &mut Candidates, eos_token_ids: &[u32]) {
    let vocab_size = candidates.ids().len();
    for &token_id in eos_token_ids.iter().filter(|&&token_id| (token_id as usize) < vocab_size) {
        candidates.forbid(token_id);
    }
}

#[cfg(test)]
mod tests {
    use proto::v1::SamplingParams;

    use super::super::Params;
    use super::*;

    #[test]
    fn applies_until_the_reply_is_long_enough() {
        let applies = |min_tokens, position| {
            let sampling = SamplingParams { min_tokens, ..Default::default() };
            (PROCESSOR.is_active)(&Params::new(sampling, 5, false), position)
        };
        assert_eq!([5, 6, 7, 8].map(|position| applies(Some(2), position)), [true, true, false, false]);
        assert!(!applies(None, 5) && !applies(Some(0), 5));
    }

    #[test]
    fn forbids_every_end_of_sequence_token_of_the_vocabulary() {
        let mut candidates = Candidates::default();
        candidates.load(&[1.0, 2.0, 3.0]);
        apply(&mut candidates, &[2, 0, 7]);
        assert_eq!(candidates.scores(), [f32::NEG_INFINITY, 2.0, f32::NEG_INFINITY]);
    }
}
