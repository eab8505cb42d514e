//! `bad_words`: token sequences that the reply must not contain, as lists of token ids.
//!
//! That the ids are tokens of the model is checked with the prompt's (`request.rs`).

use super::{Asked, Checked, ParamLimits, Parameter, at_most};
use crate::error::ValidationError;
use crate::limits::{MAX_BAD_WORD_TOKENS, MAX_BAD_WORDS};

pub(super) const PARAMETER: Parameter =
    Parameter { name: "bad_words", range: "at most 1024 lists of 1 to 32 token ids", enter };

fn enter(asked: &Asked, _: &ParamLimits, checked: &mut Checked) -> Result<(), ValidationError> {
    at_most("bad_words", "lists", MAX_BAD_WORDS, asked.bad_words.len())?;
    for word in &asked.bad_words {
        if word.is_empty() {
            return Err(ValidationError::EmptyBadWord);
        }
        at_most("bad_words[]", "tokens", MAX_BAD_WORD_TOKENS, word.len())?;
    }
    checked.sampling.bad_words = asked.bad_words.iter().map(|word| word.as_slice().into()).collect();
    Ok(())
}
