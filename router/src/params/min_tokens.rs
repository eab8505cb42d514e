//! `min_tokens`: the reply does not end by itself before it has this many tokens.
//!
//! That it is at most `max_new_tokens` is checked where that is known (`request.rs`).

use super::{Asked, Checked, ParamLimits, Parameter};
use crate::error::ValidationError;

pub(super) const PARAMETER: Parameter = Parameter { name: "min_tokens", range: "0 to max_new_tokens", enter };

fn enter(_: &Asked, _: &ParamLimits, _: &mut Checked) -> Result<(), ValidationError> {
    Ok(())
}
