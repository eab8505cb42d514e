//! `repetition_penalty`: scores of tokens that occur in prompt or output are divided (or, if negative, multiplied) by it.

use super::{Asked, Checked, ParamLimits, Parameter, positive};
use crate::error::ValidationError;

pub(super) const PARAMETER: Parameter = Parameter { name: "repetition_penalty", range: "> 0", enter };

fn enter(_: &Asked, _: &ParamLimits, checked: &mut Checked) -> Result<(), ValidationError> {
    positive("repetition_penalty", checked.sampling.repetition_penalty)
}
