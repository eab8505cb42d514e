//! `top_p`: only the smallest set of tokens whose probabilities sum to it may be sampled.

use super::{Asked, Checked, ParamLimits, Parameter};
use crate::error::ValidationError;

pub(super) const PARAMETER: Parameter = Parameter { name: "top_p", range: "(0, 1); OpenAI routes (0, 1]", enter };

fn enter(asked: &Asked, _: &ParamLimits, checked: &mut Checked) -> Result<(), ValidationError> {
    if let Some(top_p) = asked.top_p {
        if !(top_p > 0.0 && top_p < 1.0) {
            return Err(ValidationError::NotAFraction { field: "top_p" });
        }
        checked.sampling.top_p = top_p;
    }
    Ok(())
}

/// OpenAI's rule: 1 is its default and means "off"; TGI refuses it on the native API.
pub(crate) fn ask_openai(asked: &mut Asked, top_p: Option<f32>) {
    asked.top_p = top_p.filter(|value| *value != 1.0);
}
