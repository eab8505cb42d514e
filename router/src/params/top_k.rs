//! `top_k`: only the k most likely tokens may be sampled.

use proto::v1::SamplingParams;

use super::{Asked, Checked, ParamLimits, Parameter};
use crate::error::ValidationError;

pub(super) const PARAMETER: Parameter = Parameter { name: "top_k", range: "> 0; OpenAI routes -1 and 0 too", enter };

fn enter(_: &Asked, _: &ParamLimits, checked: &mut Checked) -> Result<(), ValidationError> {
    match checked.sampling.top_k {
        Some(..=0) => Err(ValidationError::NotPositive { field: "top_k" }),
        Some(_) | None => Ok(()),
    }
}

/// On OpenAI's routes 0 and -1 are "off", as vLLM's clients write it; TGI refuses them on the native API.
pub(crate) fn ask_openai(sampling: &mut SamplingParams, top_k: Option<i32>) {
    sampling.top_k = top_k.filter(|value| !matches!(value, 0 | -1));
}
