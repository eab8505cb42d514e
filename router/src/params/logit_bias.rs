//! `logit_bias`: numbers that are added to the scores of single tokens. -100 and 100 are numbers like the others: they
//! all but forbid or force a token, as OpenAI describes them.
//!
//! That the ids are tokens of the model is checked with the prompt's (`request.rs`).

use proto::MAX_LOGIT_BIASES;

use super::{Asked, Checked, ParamLimits, Parameter, at_most, within};
use crate::error::ValidationError;

pub(super) const PARAMETER: Parameter =
    Parameter { name: "logit_bias", range: "at most 1024 tokens, each once, each within [-100, 100]", enter };

fn enter(_: &Asked, _: &ParamLimits, checked: &mut Checked) -> Result<(), ValidationError> {
    let biases = &mut checked.sampling.logit_bias;
    at_most("logit_bias", "tokens", MAX_LOGIT_BIASES, biases.len())?;
    biases.iter().try_for_each(|entry| within("logit_bias", Some(entry.bias), -100.0, 100.0))?;
    biases.sort_unstable_by_key(|entry| entry.token_id);
    match biases.windows(2).find(|pair| pair[0].token_id == pair[1].token_id) {
        Some(pair) => Err(ValidationError::Repeated { field: "logit_bias", token_id: pair[0].token_id }),
        None => Ok(()),
    }
}
