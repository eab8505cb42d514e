//! `top_p`: only the smallest set of tokens whose probabilities sum to it may be sampled.

use proto::v1::SamplingParams;

use super::{Asked, Checked, ParamLimits, Parameter, fraction};
use crate::error::ValidationError;

pub(super) const PARAMETER: Parameter = Parameter { name: "top_p", range: "(0, 1); OpenAI routes (0, 1]", enter };

fn enter(_: &Asked, _: &ParamLimits, checked: &mut Checked) -> Result<(), ValidationError> {
    fraction("top_p", checked.sampling.top_p)
}

/// OpenAI's rule: 1 is its default and means "off"; TGI refuses it on the native API.
pub(crate) fn ask_openai(sampling: &mut SamplingParams, top_p: Option<f32>) {
    sampling.top_p = top_p.filter(|value| *value != 1.0);
}
