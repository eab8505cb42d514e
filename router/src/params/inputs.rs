//! `inputs` (OpenAI: `prompt`, `messages`): the text to continue, or its token ids. Its length in tokens is checked in
//! `validation.rs`.

use super::{Asked, Checked, ParamLimits, Parameter};
use crate::error::ValidationError;

pub(super) const PARAMETER: Parameter = Parameter { name: "inputs", range: "not empty", enter };

fn enter(asked: &Asked, _: &ParamLimits, _: &mut Checked) -> Result<(), ValidationError> {
    let is_empty = asked.input_ids.as_ref().map_or(asked.inputs.is_empty(), Vec::is_empty);
    if is_empty { Err(ValidationError::EmptyInput) } else { Ok(()) }
}
