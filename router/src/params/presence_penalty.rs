//! `presence_penalty`, as OpenAI defines it: subtracted once from the score of every token that the reply already has.

use super::{Asked, Checked, ParamLimits, Parameter, within};
use crate::error::ValidationError;

pub(super) const PARAMETER: Parameter = Parameter { name: "presence_penalty", range: "[-2, 2]", enter };

fn enter(_: &Asked, _: &ParamLimits, checked: &mut Checked) -> Result<(), ValidationError> {
    within("presence_penalty", checked.sampling.presence_penalty, -2.0, 2.0)
}
