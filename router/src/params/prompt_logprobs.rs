//! `prompt_logprobs` (TGI: `decoder_input_details`; OpenAI: `echo` with `logprobs`): also report the log-probability of
//! every token of the prompt.

use super::{Asked, Checked, ParamLimits, Parameter};
use crate::error::ValidationError;

pub(super) const PARAMETER: Parameter =
    Parameter { name: "decoder_input_details", range: "true or false; native routes: not when streaming", enter };

fn enter(_: &Asked, _: &ParamLimits, _: &mut Checked) -> Result<(), ValidationError> {
    Ok(())
}

/// The rule of a native route that streams: its events have no place for the prompt's tokens.
pub(crate) fn check_stream(prompt_logprobs: bool) -> Result<(), ValidationError> {
    if prompt_logprobs { Err(ValidationError::PromptLogprobsStream) } else { Ok(()) }
}
