//! Logit bias: the client's own additions to the logits of chosen tokens, before anything else looks at them.
//!
//!   score[t] = score[t] + bias[t],   −∞ forbids the token
//!
//! Source: OpenAI's `logit_bias`; there −100 and 100 are meant as "never" and "only", here −∞ says never and means it.

use proto::v1::TokenBias;

use super::candidates::Candidates;
use super::processor::{Needs, Processor};

pub(super) const PROCESSOR: Processor = Processor {
    is_active: |params, _| !params.sampling.logit_bias.is_empty(),
    needs: Needs::nothing,
    apply: |candidates, row, _| apply(candidates, &row.params.sampling.logit_bias),
};

/// Adds each bias to its token.
fn apply(candidates: &mut Candidates, biases: &[TokenBias]) {
    for &TokenBias { token_id, bias } in biases {
        *candidates.score_mut(token_id) += bias;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_to_its_tokens_only() {
        let mut candidates = Candidates::default();
        candidates.load(&[1.0, -1.0, 0.0]);
        let biases = [(0, -2.5), (2, f32::NEG_INFINITY)].map(|(token_id, bias)| TokenBias { token_id, bias });
        apply(&mut candidates, &biases);
        assert_eq!(candidates.scores(), [-1.5, -1.0, f32::NEG_INFINITY]);
    }
}
