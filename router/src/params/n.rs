//! `n`: independent answers to one prompt. The first has the request's seed, the next the seed after it, and so on
//! ([`Validated::sibling`](crate::validation::Validated::sibling)), so each can be asked for again alone.

use super::{Asked, Checked, ParamLimits, Parameter};
use crate::error::ValidationError;

pub(super) const PARAMETER: Parameter = Parameter {
    name: "n",
    range: "1 to 128, at most --max-concurrent-requests; at most best_of if that is given",
    enter,
};

fn enter(asked: &Asked, limits: &ParamLimits, checked: &mut Checked) -> Result<(), ValidationError> {
    let n = asked.n.unwrap_or(1);
    if n == 0 || n > limits.max_n {
        return Err(ValidationError::N { limit: limits.max_n, given: n });
    }
    if checked.best_of > 1 && n > checked.best_of {
        return Err(ValidationError::NBeyondBestOf { n, best_of: checked.best_of });
    }
    checked.n = n;
    Ok(())
}
