//! Strings: constraints on their characters as expressions over their JSON spelling.

use llguidance::derivre::{JsonQuoteOptions, RegexAst, RegexBuilder};
use llguidance::regex_to_lark;

use super::format;
use super::predicate::Predicate;
use crate::limits::GRAMMAR_EMPTINESS_FUEL;

pub(super) type TextPredicate = Predicate<TextAtom>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum TextAtom {
    Literal(String),
    /// An ECMA-262 expression that matches somewhere in the string.
    Pattern(String),
    /// Length in Unicode code points.
    Length {
        min: u32,
        max: Option<u32>,
    },
    /// A format that [`format::expression`] knows.
    Format(&'static str),
}

/// The JSON strings whose content satisfies `predicate`. Each character has its shortest spelling or, if it must be
/// escaped, any; what needs no escape is not escaped, so that no content is hidden from the expressions.
pub(super) fn spellings(predicate: &TextPredicate) -> RegexAst {
    match predicate {
        Predicate::True => any(),
        Predicate::False => RegexAst::NoMatch,
        Predicate::Atom(atom) => quote(content(atom)),
        Predicate::NotAtom(atom) => RegexAst::And(vec![any(), RegexAst::Not(Box::new(quote(content(atom))))]),
        Predicate::And(parts) => RegexAst::And(parts.iter().map(spellings).collect()),
        Predicate::Or(parts) => RegexAst::Or(parts.iter().map(spellings).collect()),
    }
}

/// Whether `text` satisfies `predicate`.
///
/// # Errors
/// The reason, if an expression is beyond its bound.
pub(super) fn holds(predicate: &TextPredicate, text: &str) -> Result<bool, String> {
    Ok(match predicate {
        Predicate::True => true,
        Predicate::False => false,
        Predicate::Atom(atom) => atom_holds(atom, text)?,
        Predicate::NotAtom(atom) => !atom_holds(atom, text)?,
        Predicate::And(parts) => {
            for part in parts {
                if !holds(part, text)? {
                    return Ok(false);
                }
            }
            true
        }
        Predicate::Or(parts) => {
            for part in parts {
                if holds(part, text)? {
                    return Ok(true);
                }
            }
            false
        }
    })
}

fn atom_holds(atom: &TextAtom, text: &str) -> Result<bool, String> {
    match atom {
        TextAtom::Literal(literal) => Ok(literal == text),
        TextAtom::Length { min, max } => {
            let length = text.chars().count();
            Ok(length >= *min as usize && max.is_none_or(|max| length <= max as usize))
        }
        TextAtom::Pattern(_) | TextAtom::Format(_) => {
            let both = RegexAst::And(vec![RegexAst::Literal(text.to_owned()), content(atom)]);
            Ok(!is_empty(&both)?)
        }
    }
}

/// Whether an expression matches nothing.
///
/// # Errors
/// The reason, if it is malformed or too expensive to decide.
pub(super) fn is_empty(ast: &RegexAst) -> Result<bool, String> {
    let mut builder = RegexBuilder::new();
    let expression = builder.mk(ast).map_err(|error| error.to_string())?;
    if builder.exprset().is_positive(expression) {
        return Ok(false);
    }
    let mut regex = builder.to_regex_limited(expression, GRAMMAR_EMPTINESS_FUEL).map_err(|error| error.to_string())?;
    Ok(regex.always_empty())
}

fn content(atom: &TextAtom) -> RegexAst {
    match atom {
        TextAtom::Literal(literal) => RegexAst::Literal(literal.clone()),
        // ECMA-262: `\d` and `\w` are ASCII.
        TextAtom::Pattern(pattern) => RegexAst::SearchRegex(regex_to_lark(pattern, "dw")),
        TextAtom::Length { min, max } => {
            let max = max.map_or(String::new(), |max| max.to_string());
            RegexAst::Regex(format!("(?s:.{{{min},{max}}})"))
        }
        TextAtom::Format(name) => {
            RegexAst::Regex(format::expression(name).expect("only known formats become atoms").1.to_owned())
        }
    }
}

fn any() -> RegexAst {
    quote(RegexAst::Regex("(?s:.*)".to_owned()))
}

fn quote(ast: RegexAst) -> RegexAst {
    RegexAst::JsonQuote(Box::new(ast), JsonQuoteOptions::regular())
}
