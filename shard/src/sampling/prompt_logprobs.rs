//! Log-probabilities of a prompt's tokens: how likely the model itself made each of them, before penalties and warpers.

use kernels::ops::sample::row_stats;

use super::{RowFailure, Sampler, TopTokens, check_scores};

impl Sampler {
    /// The log-softmax of `logits` at `token_id`, the token at `position`; the `top_n_tokens` most likely ones go to `top`.
    ///
    /// # Errors
    /// [`RowFailure`] if the logits are no distribution.
    pub fn score(
        &mut self,
        logits: &[f32],
        token_id: u32,
        position: u32,
        top_n_tokens: u32,
        top: &mut TopTokens,
    ) -> Result<f32, RowFailure> {
        check_scores(logits, position)?;
        let normalizer = row_stats(&self.device, logits).log_sum_exp;
        if !normalizer.is_finite() {
            return Err(RowFailure::NoCandidate { position, sum: normalizer.to_string() });
        }
        top.select(logits, |index| index, normalizer, top_n_tokens);
        Ok(logits[token_id as usize] - normalizer)
    }
}

#[cfg(test)]
mod tests {
    use kernels::Device;

    use super::*;

    #[test]
    fn is_the_log_softmax_of_the_logits() {
        let (mut sampler, mut top) = (Sampler::new(Device::cpu(1)), TopTokens::default());
        let logits = [1.0, 3.0, f32::NEG_INFINITY, 2.0];
        let normalizer = (1.0_f64.exp() + 3.0_f64.exp() + 2.0_f64.exp()).ln();
        let logprob = sampler.score(&logits, 0, 5, 2, &mut top).unwrap();
        assert!((f64::from(logprob) - (1.0 - normalizer)).abs() < 1e-6);
        let ids: Vec<u32> = top.tokens().iter().map(|&(id, _)| id).collect();
        assert_eq!(ids, [1, 3]);
        assert_eq!(sampler.score(&logits, 2, 5, 0, &mut top), Ok(f32::NEG_INFINITY));
        assert!(top.tokens().is_empty());
        let error = sampler.score(&[0.0, f32::NAN], 0, 5, 0, &mut top).unwrap_err();
        assert_eq!(error.to_string(), "the logit of token 1 at position 5 is NaN");
    }
}
