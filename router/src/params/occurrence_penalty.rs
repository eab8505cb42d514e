//! `occurrence_penalty`: OpenAI's `frequency_penalty`, subtracted from a token's score for each time the reply has it.
//!
//! TGI's parameter of that name means something else (`frequency_penalty.rs`), so this one has a name of its own here;
//! clients know it by OpenAI's.

use super::{Asked, Checked, ParamLimits, Parameter};
use crate::error::ValidationError;

pub(super) const PARAMETER: Parameter = Parameter { name: "occurrence_penalty", range: "[-2, 2]", enter };

fn enter(asked: &Asked, _: &ParamLimits, checked: &mut Checked) -> Result<(), ValidationError> {
    let penalty = asked.occurrence_penalty.unwrap_or(0.0);
    if !(-2.0..=2.0).contains(&penalty) {
        return Err(ValidationError::FrequencyPenalty);
    }
    checked.sampling.occurrence_penalty = penalty;
    Ok(())
}
