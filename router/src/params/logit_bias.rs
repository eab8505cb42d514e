//! `logit_bias`: numbers that are added to the scores of single tokens. -100 and 100 are numbers like the others: they
//! all but forbid or force a token, as OpenAI describes them.
//!
//! That the ids are tokens of the model is checked with the prompt's (`request.rs`).

use super::{Asked, Checked, ParamLimits, Parameter, at_most, within};
use crate::error::ValidationError;
use crate::limits::MAX_LOGIT_BIASES;

pub(super) const PARAMETER: Parameter =
    Parameter { name: "logit_bias", range: "at most 1024 tokens, each once, each within [-100, 100]", enter };

fn enter(asked: &Asked, _: &ParamLimits, checked: &mut Checked) -> Result<(), ValidationError> {
    at_most("logit_bias", "tokens", MAX_LOGIT_BIASES, asked.logit_bias.len())?;
    let mut biases = asked.logit_bias.clone();
    biases.iter().try_for_each(|(_, bias)| within("logit_bias", *bias, -100.0, 100.0).map(|_| ()))?;
    biases.sort_unstable_by_key(|(id, _)| *id);
    if let Some(pair) = biases.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(ValidationError::Repeated { field: "logit_bias", token_id: pair[0].0 });
    }
    checked.sampling.logit_bias = biases.into();
    Ok(())
}
