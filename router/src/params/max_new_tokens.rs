//! `max_new_tokens` (OpenAI: `max_tokens`, `max_completion_tokens`): where a generation ends with `length`.
//!
//! How it meets the context limit is decided where the prompt's length is known (`validation.rs`).

use super::{Asked, Checked, ParamLimits, Parameter};
use crate::error::ValidationError;

pub(super) const PARAMETER: Parameter = Parameter { name: "max_new_tokens", range: "> 0", enter };

fn enter(asked: &Asked, _: &ParamLimits, checked: &mut Checked) -> Result<(), ValidationError> {
    if asked.max_new_tokens == Some(0) {
        return Err(ValidationError::NotPositive { field: "max_new_tokens" });
    }
    checked.max_new_tokens = asked.max_new_tokens;
    Ok(())
}
