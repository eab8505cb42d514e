//! `frequency_penalty`: scores fall in proportion to a token's share of the sequence so far.

use super::{Asked, Checked, ParamLimits, Parameter};
use crate::error::ValidationError;

pub(super) const PARAMETER: Parameter = Parameter { name: "frequency_penalty", range: "[-2, 2]", enter };

fn enter(asked: &Asked, _: &ParamLimits, checked: &mut Checked) -> Result<(), ValidationError> {
    let penalty = asked.frequency_penalty.unwrap_or(0.0);
    if !(-2.0..=2.0).contains(&penalty) {
        return Err(ValidationError::FrequencyPenalty);
    }
    checked.sampling.frequency_penalty = penalty;
    Ok(())
}
