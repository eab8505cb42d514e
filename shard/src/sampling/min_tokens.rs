//! Minimum length: no end-of-sequence token before the reply has its least number of tokens.
//!
//! Source: vLLM's `min_tokens`; transformers `MinNewTokensLengthLogitsProcessor`.

use super::candidates::Candidates;

/// Whether a reply of `reply_tokens` is still too short to end.
pub(super) fn applies(min_tokens: u32, reply_tokens: u32) -> bool {
    reply_tokens < min_tokens
}

/// Forbids `eos_token_ids`; ids that the vocabulary does not have (configurations name such) are passed over.
pub(super) fn apply(candidates: &mut Candidates, eos_token_ids: &[u32]) {
    let vocab_size = candidates.ids().len();
    for &token_id in eos_token_ids.iter().filter(|&&token_id| (token_id as usize) < vocab_size) {
        candidates.forbid(token_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn applies_until_the_reply_is_long_enough() {
        assert_eq!([0, 1, 2, 3].map(|reply| applies(2, reply)), [true, true, false, false]);
        assert!(!applies(0, 0));
    }

    #[test]
    fn forbids_every_end_of_sequence_token_of_the_vocabulary() {
        let mut candidates = Candidates::default();
        candidates.load(&[1.0, 2.0, 3.0]);
        apply(&mut candidates, &[2, 0, 7]);
        assert_eq!(candidates.scores(), [f32::NEG_INFINITY, 2.0, f32::NEG_INFINITY]);
    }
}
