//! Regular expressions and lists of choices as grammars: the whole reply matches.

use llguidance::api::GrammarInit;
use llguidance::derivre::RegexAst;
use regex_syntax::ParserBuilder;

use super::error::GrammarError;
use super::rules::{Rule, Rules};
use super::weight::{ByteWeights, Weight};
use crate::limits::{MAX_GRAMMAR_BYTES, MAX_GRAMMAR_CHOICES, MAX_GRAMMAR_REGEX_BYTES, MAX_GRAMMAR_REGEX_NESTING};

/// The grammar of the texts that match `pattern` (Rust's syntax) from end to end. `^` and `$` at the ends say nothing new.
///
/// # Errors
/// [`GrammarError::InvalidRegex`] if it does not parse or needs what an automaton has not (lookaround, backreferences);
/// [`GrammarError::TooLarge`].
pub(super) fn compile(pattern: &str, weights: &ByteWeights) -> Result<(GrammarInit, Weight), GrammarError> {
    if pattern.len() > MAX_GRAMMAR_REGEX_BYTES {
        return Err(GrammarError::TooLarge { what: "regex", value: pattern.len(), limit: MAX_GRAMMAR_REGEX_BYTES });
    }
    let invalid = |reason: String| GrammarError::InvalidRegex { reason };
    let hir = ParserBuilder::new()
        .nest_limit(MAX_GRAMMAR_REGEX_NESTING)
        .build()
        .parse(pattern)
        .map_err(|error| invalid(error.to_string()))?;
    lexeme(RegexAst::Regex(pattern.to_owned()), weights.expression(&hir)).map_err(|error| match error {
        GrammarError::TooComplex { reason } => invalid(reason),
        GrammarError::Unsatisfiable => invalid("it matches no text".to_owned()),
        other => other,
    })
}

/// The grammar of exactly these texts, and the fewest tokens of one.
///
/// # Errors
/// [`GrammarError::InvalidChoice`] if there is none or an empty one; [`GrammarError::TooLarge`].
pub(super) fn choice(choices: &[String]) -> Result<GrammarInit, GrammarError> {
    let too_large = |what, value, limit| Err(GrammarError::TooLarge { what, value, limit });
    let bytes = choices.iter().map(String::len).sum();
    if choices.len() > MAX_GRAMMAR_CHOICES {
        return too_large("list of choices", choices.len(), MAX_GRAMMAR_CHOICES);
    }
    if bytes > MAX_GRAMMAR_BYTES {
        return too_large("text of all choices", bytes, MAX_GRAMMAR_BYTES);
    }
    if choices.is_empty() {
        return Err(GrammarError::InvalidChoice { reason: "the list is empty".to_owned() });
    }
    if let Some(index) = choices.iter().position(String::is_empty) {
        return Err(GrammarError::InvalidChoice { reason: format!("choice {index} is empty") });
    }
    let options = choices.iter().map(|choice| RegexAst::Literal(choice.clone())).collect();
    Ok(lexeme(RegexAst::Or(options), Weight::ZERO)?.0)
}

fn lexeme(ast: RegexAst, weight: Weight) -> Result<(GrammarInit, Weight), GrammarError> {
    let mut rules = Rules::default();
    let root = rules.add(Rule::Lexeme(Box::new(ast), Some(weight)))?;
    rules.build(root, RegexAst::NoMatch)?.ok_or(GrammarError::Unsatisfiable)
}
