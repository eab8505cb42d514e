//! `inputs` (OpenAI: `prompt`, `messages`): the text to continue. Its length in tokens is checked in `validation.rs`.

use super::{Asked, Checked, ParamLimits, Parameter};
use crate::error::ValidationError;

pub(super) const PARAMETER: Parameter = Parameter { name: "inputs", range: "not empty", enter };

fn enter(asked: &Asked, _: &ParamLimits, _: &mut Checked) -> Result<(), ValidationError> {
    if asked.inputs.is_empty() && asked.input_ids.is_none() { Err(ValidationError::EmptyInput) } else { Ok(()) }
}
