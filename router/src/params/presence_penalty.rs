//! `presence_penalty`, as OpenAI defines it: subtracted once from the score of every token that the reply already has.

use super::{Asked, Checked, ParamLimits, Parameter, within};
use crate::error::ValidationError;

pub(super) const PARAMETER: Parameter = Parameter { name: "presence_penalty", range: "[-2, 2]", enter };

fn enter(asked: &Asked, _: &ParamLimits, checked: &mut Checked) -> Result<(), ValidationError> {
    let penalty = asked.presence_penalty.unwrap_or(0.0);
    checked.sampling.presence_penalty = within("presence_penalty", penalty, -2.0, 2.0)?;
    Ok(())
}
