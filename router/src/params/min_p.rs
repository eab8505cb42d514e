//! `min_p`: only tokens with at least this share of the largest probability may be sampled (arXiv:2407.01082).

use super::{Asked, Checked, ParamLimits, Parameter, within};
use crate::error::ValidationError;

pub(super) const PARAMETER: Parameter = Parameter { name: "min_p", range: "[0, 1]", enter };

fn enter(_: &Asked, _: &ParamLimits, checked: &mut Checked) -> Result<(), ValidationError> {
    within("min_p", checked.sampling.min_p, 0.0, 1.0)
}
