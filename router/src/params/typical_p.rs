//! `typical_p`: locally typical sampling, keeping tokens whose surprise is close to the expected one up to this mass.
//!
//! Source: arXiv:2202.00666.

use super::{Asked, Checked, ParamLimits, Parameter};
use crate::error::ValidationError;

pub(super) const PARAMETER: Parameter = Parameter { name: "typical_p", range: "(0, 1)", enter };

fn enter(asked: &Asked, _: &ParamLimits, checked: &mut Checked) -> Result<(), ValidationError> {
    if let Some(typical_p) = asked.typical_p {
        if !(typical_p > 0.0 && typical_p < 1.0) {
            return Err(ValidationError::NotAFraction { field: "typical_p" });
        }
        checked.sampling.typical_p = typical_p;
    }
    Ok(())
}
