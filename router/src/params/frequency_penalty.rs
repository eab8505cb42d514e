//! `frequency_penalty`: scores fall in proportion to a token's share of the sequence so far.

use super::{Asked, Checked, ParamLimits, Parameter, within};
use crate::error::ValidationError;

pub(super) const PARAMETER: Parameter = Parameter { name: "frequency_penalty", range: "[-2, 2]", enter };

fn enter(_: &Asked, _: &ParamLimits, checked: &mut Checked) -> Result<(), ValidationError> {
    // In TGI's words, which do not say what was given.
    within("frequency_penalty", checked.sampling.frequency_penalty, -2.0, 2.0)
        .map_err(|_| ValidationError::FrequencyPenalty)
}
