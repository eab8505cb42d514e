//! `top_k`: only the k most likely tokens may be sampled.

use super::{Asked, Checked, ParamLimits, Parameter};
use crate::error::ValidationError;

pub(super) const PARAMETER: Parameter = Parameter { name: "top_k", range: "> 0", enter };

fn enter(asked: &Asked, _: &ParamLimits, checked: &mut Checked) -> Result<(), ValidationError> {
    if let Some(top_k) = asked.top_k {
        if top_k <= 0 {
            return Err(ValidationError::NotPositive { field: "top_k" });
        }
        checked.sampling.top_k = top_k.unsigned_abs();
    }
    Ok(())
}
