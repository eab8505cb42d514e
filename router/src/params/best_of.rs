//! `best_of`: run that many generations, answer with the one of the highest mean log-probability.

use super::{Asked, Checked, ParamLimits, Parameter};
use crate::error::ValidationError;

pub(super) const PARAMETER: Parameter =
    Parameter { name: "best_of", range: "1 to --max-best-of, with sampling, without streaming", enter };

fn enter(asked: &Asked, limits: &ParamLimits, checked: &mut Checked) -> Result<(), ValidationError> {
    // 0 counts as 1, as in TGI; the streaming routes refuse it before they come here.
    let best_of = asked.best_of.unwrap_or(1).max(1);
    if best_of > 1 {
        if limits.max_best_of == 1 {
            return Err(ValidationError::BestOfDisabled);
        }
        if best_of > limits.max_best_of {
            return Err(ValidationError::BestOf { limit: limits.max_best_of, given: best_of });
        }
        if !asked.sampling.do_sample {
            return Err(ValidationError::BestOfWithoutSampling);
        }
    }
    checked.best_of = best_of;
    Ok(())
}

/// The rule of a route that streams: one generation only, so even 0 is refused (TGI's rule).
pub(crate) fn check_stream(best_of: Option<usize>) -> Result<(), ValidationError> {
    match best_of {
        None | Some(1) => Ok(()),
        Some(_) => Err(ValidationError::BestOfStream),
    }
}
