//! OpenAI's `top_logprobs` (in completions `logprobs`): [`super::top_n_tokens`] with the limit that OpenAI's clients expect.

use super::{Asked, Checked, ParamLimits, Parameter};
use crate::error::ValidationError;

pub(super) const PARAMETER: Parameter = Parameter { name: "top_logprobs", range: "0 to 20", enter };

fn enter(asked: &Asked, limits: &ParamLimits, checked: &mut Checked) -> Result<(), ValidationError> {
    let Some((field, given)) = asked.top_logprobs else { return Ok(()) };
    let limit = limits.max_top_logprobs;
    if given > limit {
        return Err(ValidationError::TopNTokens { field, limit, given });
    }
    checked.sampling.top_n_tokens = Some(given);
    Ok(())
}
