//! `ignore_eos`: an end-of-sequence token is a token like any other; the reply ends by length or by a stop string.

use super::{Asked, Checked, ParamLimits, Parameter};
use crate::error::ValidationError;

pub(super) const PARAMETER: Parameter = Parameter { name: "ignore_eos", range: "true or false", enter };

fn enter(asked: &Asked, _: &ParamLimits, checked: &mut Checked) -> Result<(), ValidationError> {
    // A grammar says itself where the text may end, and nothing can follow its end.
    checked.ignore_eos = asked.ignore_eos && asked.grammar.is_none();
    Ok(())
}
