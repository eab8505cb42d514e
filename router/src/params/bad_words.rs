//! `bad_words`: token sequences that the reply must not contain, as lists of token ids.
//!
//! That the ids are tokens of the model is checked with the prompt's (`request.rs`).

use proto::{MAX_BAD_WORD_TOKENS, MAX_BAD_WORDS};

use super::{Asked, Checked, ParamLimits, Parameter, at_most};
use crate::error::ValidationError;

pub(super) const PARAMETER: Parameter =
    Parameter { name: "bad_words", range: "at most 1024 lists of 1 to 32 token ids", enter };

fn enter(_: &Asked, _: &ParamLimits, checked: &mut Checked) -> Result<(), ValidationError> {
    let words = &checked.sampling.bad_words;
    at_most("bad_words", "lists", MAX_BAD_WORDS, words.len())?;
    for word in words {
        if word.ids.is_empty() {
            return Err(ValidationError::EmptyBadWord);
        }
        at_most("bad_words[]", "tokens", MAX_BAD_WORD_TOKENS, word.ids.len())?;
    }
    Ok(())
}
