//! `repetition_penalty`: scores of tokens that occur in prompt or output are divided (or, if negative, multiplied) by it.

use super::{Asked, Checked, ParamLimits, Parameter, finite};
use crate::error::ValidationError;

pub(super) const PARAMETER: Parameter = Parameter { name: "repetition_penalty", range: "> 0", enter };

fn enter(asked: &Asked, _: &ParamLimits, checked: &mut Checked) -> Result<(), ValidationError> {
    let penalty = finite("repetition_penalty", asked.repetition_penalty.unwrap_or(1.0))?;
    if penalty <= 0.0 {
        return Err(ValidationError::NotPositive { field: "repetition_penalty" });
    }
    checked.sampling.repetition_penalty = penalty;
    Ok(())
}
