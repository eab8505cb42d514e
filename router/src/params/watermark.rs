//! `watermark`: the reply is marked by the green-list scheme of arXiv:2301.10226. How strongly is the operator's choice.

use proto::v1::Watermark;

use super::{Asked, Checked, ParamLimits, Parameter};
use crate::error::ValidationError;

pub(super) const PARAMETER: Parameter =
    Parameter { name: "watermark", range: "true or false, with --watermark-gamma and --watermark-delta", enter };

fn enter(_: &Asked, limits: &ParamLimits, checked: &mut Checked) -> Result<(), ValidationError> {
    checked.sampling.watermark = checked.sampling.watermark.map(|_| limits.watermark);
    Ok(())
}

/// TGI's clients only say whether.
pub(crate) fn ask(is_wanted: bool) -> Option<Watermark> {
    is_wanted.then(Watermark::default)
}
