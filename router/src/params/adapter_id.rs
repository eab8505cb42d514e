//! `adapter_id`: the LoRA adapter to use. None can be loaded yet, so every name is unknown; TGI would silently answer
//! with the base model.

use super::{Asked, Checked, ParamLimits, Parameter};
use crate::error::ValidationError;
use crate::limits::MAX_NAME_BYTES;

pub(super) const PARAMETER: Parameter = Parameter { name: "adapter_id", range: "the name of a loaded adapter", enter };

fn enter(asked: &Asked, _: &ParamLimits, _: &mut Checked) -> Result<(), ValidationError> {
    match asked.adapter_id.as_deref() {
        // Clients that always send every field send an empty name for "none".
        None | Some("") => Ok(()),
        Some(name) => Err(ValidationError::Adapter { given: name.chars().take(MAX_NAME_BYTES).collect() }),
    }
}
