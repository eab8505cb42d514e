//! `watermark`: the reply is marked by the green-list scheme of arXiv:2301.10226. How strongly is the operator's choice.

use super::{Asked, Checked, ParamLimits, Parameter};
use crate::error::ValidationError;

pub(super) const PARAMETER: Parameter =
    Parameter { name: "watermark", range: "true or false, with --watermark-gamma and --watermark-delta", enter };

fn enter(asked: &Asked, limits: &ParamLimits, checked: &mut Checked) -> Result<(), ValidationError> {
    checked.sampling.watermark = asked.watermark.then_some(limits.watermark);
    Ok(())
}
