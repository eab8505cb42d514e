//! `stop`: strings at whose first occurrence in the text a generation ends.

use super::{Asked, Checked, ParamLimits, Parameter};
use crate::error::ValidationError;
use crate::limits::MAX_STOP_BYTES;

pub(super) const PARAMETER: Parameter =
    Parameter { name: "stop", range: "at most --max-stop-sequences strings of 1 to 1024 bytes", enter };

fn enter(asked: &Asked, limits: &ParamLimits, checked: &mut Checked) -> Result<(), ValidationError> {
    let (given, limit) = (asked.stop.len(), limits.max_stop_sequences);
    if given > limit {
        return Err(ValidationError::StopSequences { limit, given });
    }
    // TGI lets an empty string through, which then ends every generation at its first token.
    if asked.stop.iter().any(String::is_empty) {
        return Err(ValidationError::EmptyStop);
    }
    if let Some(given) = asked.stop.iter().map(String::len).find(|length| *length > MAX_STOP_BYTES) {
        return Err(ValidationError::StopBytes { limit: MAX_STOP_BYTES, given });
    }
    checked.stop = asked.stop.clone();
    Ok(())
}
