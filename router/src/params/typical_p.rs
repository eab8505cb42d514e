//! `typical_p`: locally typical sampling, keeping tokens whose surprise is close to the expected one up to this mass.
//!
//! Source: arXiv:2202.00666.

use proto::v1::SamplingParams;

use super::{Asked, Checked, ParamLimits, Parameter, fraction};
use crate::error::ValidationError;

pub(super) const PARAMETER: Parameter = Parameter { name: "typical_p", range: "(0, 1); OpenAI routes (0, 1]", enter };

fn enter(_: &Asked, _: &ParamLimits, checked: &mut Checked) -> Result<(), ValidationError> {
    fraction("typical_p", checked.sampling.typical_p)
}

/// On OpenAI's routes 1 is "off", as with [`super::top_p`].
pub(crate) fn ask_openai(sampling: &mut SamplingParams, typical_p: Option<f32>) {
    sampling.typical_p = typical_p.filter(|value| *value != 1.0);
}
