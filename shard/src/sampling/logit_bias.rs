//! Logit bias: the client's own additions to the logits of chosen tokens, before anything else looks at them.
//!
//!   score[t] = score[t] + bias[t],   −∞ forbids the token
//!
//! Source: OpenAI's `logit_bias`; there −100 and 100 are meant as "never" and "only", here −∞ says never and means it.

use proto::v1;
use proto::{unpack_f32, unpack_u32};

use super::InvalidParam;
use super::candidates::Candidates;
use crate::limits::MAX_LOGIT_BIASES;

/// Adds each bias to its token.
pub(super) fn apply(candidates: &mut Candidates, biases: &[(u32, f32)]) {
    for &(token_id, bias) in biases {
        *candidates.score_mut(token_id) += bias;
    }
}

/// Reads and checks the two packed fields: as many biases as ids, ids ascending and in the vocabulary, biases finite or −∞.
pub(super) fn parse(wire: &v1::SamplingParams, vocab_size: usize) -> Result<Vec<(u32, f32)>, InvalidParam> {
    let invalid = |field, value: f64, expected| Err(InvalidParam { field, value, expected });
    let (Ok(ids), Ok(biases)) = (unpack_u32(&wire.logit_bias_ids), unpack_f32(&wire.logit_biases)) else {
        let cut = wire.logit_bias_ids.len().max(wire.logit_biases.len());
        return invalid("logit_bias_ids", cut as f64, "packed: a multiple of 4 bytes");
    };
    if ids.len() > MAX_LOGIT_BIASES {
        return invalid("logit_bias_ids", ids.len() as f64, "at most 4096 ids");
    }
    if ids.len() != biases.len() {
        return invalid("logit_biases", biases.len() as f64, "as many values as `logit_bias_ids`");
    }
    let mut pairs: Vec<(u32, f32)> = Vec::with_capacity(ids.len());
    for (token_id, bias) in ids.zip(biases) {
        if token_id as usize >= vocab_size {
            return invalid("logit_bias_ids", token_id.into(), "ids below Info.vocab_size");
        }
        if pairs.last().is_some_and(|&(previous, _)| previous >= token_id) {
            return invalid("logit_bias_ids", token_id.into(), "ascending ids");
        }
        if bias.is_nan() || bias == f32::INFINITY {
            return invalid("logit_biases", bias.into(), "finite numbers or -inf");
        }
        pairs.push((token_id, bias));
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use proto::{pack_f32, pack_u32};

    use super::*;

    #[test]
    fn adds_to_its_tokens_only() {
        let mut candidates = Candidates::default();
        candidates.load(&[1.0, -1.0, 0.0]);
        apply(&mut candidates, &[(0, -2.5), (2, f32::NEG_INFINITY)]);
        assert_eq!(candidates.scores(), [-1.5, -1.0, f32::NEG_INFINITY]);
    }

    fn wire(ids: &[u32], biases: &[f32]) -> v1::SamplingParams {
        let (logit_bias_ids, logit_biases) = (pack_u32(ids.iter().copied()), pack_f32(biases.iter().copied()));
        v1::SamplingParams { logit_bias_ids, logit_biases, ..v1::SamplingParams::default() }
    }

    #[track_caller]
    fn check_refused(wire: &v1::SamplingParams, expected: &str) {
        assert_eq!(parse(wire, 10).unwrap_err().to_string(), expected);
    }

    #[test]
    fn pairs_are_read_and_checked() {
        assert_eq!(parse(&wire(&[0, 9], &[-1.0, 2.0]), 10).unwrap(), [(0, -1.0), (9, 2.0)]);
        check_refused(&wire(&[10], &[1.0]), "`logit_bias_ids` is 10, expected ids below Info.vocab_size");
        check_refused(&wire(&[3, 3], &[1.0, 1.0]), "`logit_bias_ids` is 3, expected ascending ids");
        check_refused(&wire(&[3], &[]), "`logit_biases` is 0, expected as many values as `logit_bias_ids`");
        check_refused(&wire(&[3], &[f32::NAN]), "`logit_biases` is NaN, expected finite numbers or -inf");
        check_refused(&wire(&[3], &[f32::INFINITY]), "`logit_biases` is inf, expected finite numbers or -inf");
        let many = vec![0; MAX_LOGIT_BIASES + 1];
        let expected = format!("`logit_bias_ids` is {}, expected at most {MAX_LOGIT_BIASES} ids", many.len());
        check_refused(&wire(&many, &[]), &expected);
        let cut = v1::SamplingParams { logit_biases: vec![0; 3].into(), ..v1::SamplingParams::default() };
        check_refused(&cut, "`logit_bias_ids` is 3, expected packed: a multiple of 4 bytes");
    }
}
