//! `top_n_tokens` (OpenAI: [`super::top_logprobs`]): also report the n most likely tokens of every position.

use super::{Asked, Checked, ParamLimits, Parameter};
use crate::error::ValidationError;

pub(super) const PARAMETER: Parameter = Parameter { name: "top_n_tokens", range: "0 to --max-top-n-tokens", enter };

fn enter(_: &Asked, limits: &ParamLimits, checked: &mut Checked) -> Result<(), ValidationError> {
    let (given, limit) = (checked.sampling.top_n_tokens(), limits.max_top_n_tokens);
    match given > limit {
        true => Err(ValidationError::TopNTokens { field: PARAMETER.name, limit, given }),
        false => Ok(()),
    }
}
