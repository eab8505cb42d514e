//! `occurrence_penalty`: OpenAI's `frequency_penalty`, subtracted from a token's score for each time the reply has it.
//!
//! TGI's parameter of that name means something else (`frequency_penalty.rs`), so this one has a name of its own here;
//! clients know it by OpenAI's.

use super::{Asked, Checked, ParamLimits, Parameter, within};
use crate::error::ValidationError;

pub(super) const PARAMETER: Parameter = Parameter { name: "occurrence_penalty", range: "[-2, 2]", enter };

fn enter(_: &Asked, _: &ParamLimits, checked: &mut Checked) -> Result<(), ValidationError> {
    // In TGI's words, which do not say what was given.
    within("frequency_penalty", checked.sampling.occurrence_penalty, -2.0, 2.0)
        .map_err(|_| ValidationError::FrequencyPenalty)
}
