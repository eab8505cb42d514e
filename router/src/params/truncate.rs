//! `truncate`: keep only the last n tokens of the prompt.

use super::{Asked, Checked, ParamLimits, Parameter};
use crate::error::ValidationError;

pub(super) const PARAMETER: Parameter = Parameter { name: "truncate", range: "1 to --max-input-tokens", enter };

fn enter(asked: &Asked, limits: &ParamLimits, checked: &mut Checked) -> Result<(), ValidationError> {
    if let Some(given) = asked.truncate
        && (given == 0 || given > limits.max_input_tokens)
    {
        return Err(ValidationError::Truncate { limit: limits.max_input_tokens, given });
    }
    checked.truncate = asked.truncate;
    Ok(())
}
