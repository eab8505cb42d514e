//! What is said of numbers and strings.

use serde_json::{Map, Value};

use super::Expander;
use crate::grammar::error::GrammarError;
use crate::grammar::json::format;
use crate::grammar::json::number::{Decimal, NumberAtom};
use crate::grammar::json::predicate::Predicate;
use crate::grammar::json::schemas::Place;
use crate::grammar::json::text::{self, TextAtom, TextPredicate};
use crate::limits::MAX_GRAMMAR_REGEX_BYTES;

impl Expander<'_> {
    pub(super) fn numbers(
        &self,
        place: Place,
        object: &Map<String, Value>,
    ) -> Result<Predicate<NumberAtom>, GrammarError> {
        let decimal = |keyword: &str| -> Result<Option<Decimal>, GrammarError> {
            match object.get(keyword) {
                None => Ok(None),
                Some(Value::Number(number)) => Decimal::new(number).map(Some).ok_or_else(|| {
                    self.unsupported(place, keyword, format!("{number} has more than 64 digits on a side of the point"))
                }),
                Some(_) => Err(self.invalid(place, keyword, "it is not a number")),
            }
        };
        // Draft 4: a Boolean that makes the bound beside it exclusive.
        let flag = |keyword: &str| object.get(keyword).and_then(Value::as_bool);
        let exclusive = |keyword: &str| if flag(keyword).is_some() { Ok(None) } else { decimal(keyword) };
        let at_least = |value| Predicate::Atom(NumberAtom::AtLeast(value));
        let above = |value| Predicate::Atom(NumberAtom::Above(value));
        let mut parts = Vec::new();
        if let Some(value) = decimal("minimum")? {
            parts.push(if flag("exclusiveMinimum") == Some(true) { above(value) } else { at_least(value) });
        }
        if let Some(value) = decimal("maximum")? {
            parts.push(if flag("exclusiveMaximum") == Some(true) {
                at_least(value).negate()
            } else {
                above(value).negate()
            });
        }
        parts.extend(exclusive("exclusiveMinimum")?.map(above));
        parts.extend(exclusive("exclusiveMaximum")?.map(|value| at_least(value).negate()));
        if let Some(value) = decimal("multipleOf")? {
            let (coefficient, scale) = value
                .scaled()
                .filter(|&(coefficient, _)| coefficient > 0)
                .ok_or_else(|| self.unsupported(place, "multipleOf", "it is zero or has more than nine digits"))?;
            parts.push(Predicate::Atom(NumberAtom::MultipleOf { coefficient, scale }));
        }
        Ok(Predicate::and(parts))
    }

    pub(super) fn strings(&self, place: Place, object: &Map<String, Value>) -> Result<TextPredicate, GrammarError> {
        let mut parts = Vec::new();
        let (min, max) = (self.count(place, object, "minLength")?, self.count(place, object, "maxLength")?);
        if min.is_some_and(|min| max.is_some_and(|max| max < min)) {
            return Ok(Predicate::False);
        }
        if min.is_some_and(|min| min > 0) || max.is_some() {
            // Counts are bounded far below u32.
            let length = |count: usize| u32::try_from(count).expect("a count of a schema is bounded");
            parts.push(Predicate::Atom(TextAtom::Length { min: length(min.unwrap_or(0)), max: max.map(length) }));
        }
        match object.get("pattern") {
            None => {}
            Some(Value::String(pattern)) => parts.push(self.pattern(place, "pattern", pattern)?),
            Some(_) => return Err(self.invalid(place, "pattern", "it is not a string")),
        }
        if let Some(name) = object.get("format").and_then(Value::as_str) {
            if format::NOT_ENFORCED.contains(&name) {
                return Err(self.unsupported(place, "format", format!("`{name}` has no mask")));
            }
            parts.extend(format::expression(name).map(|(known, _)| Predicate::Atom(TextAtom::Format(known))));
        }
        Ok(Predicate::and(parts))
    }

    pub(super) fn pattern(&self, place: Place, keyword: &str, pattern: &str) -> Result<TextPredicate, GrammarError> {
        if pattern.len() > MAX_GRAMMAR_REGEX_BYTES {
            return Err(GrammarError::TooLarge {
                what: "pattern of a JSON schema",
                value: pattern.len(),
                limit: MAX_GRAMMAR_REGEX_BYTES,
            });
        }
        let predicate = Predicate::Atom(TextAtom::Pattern(pattern.to_owned()));
        let mut builder = llguidance::derivre::RegexBuilder::new();
        builder.mk(&text::spellings(&predicate)).map_err(|error| {
            self.unsupported(place, keyword, format!("the expression `{pattern}` has no automaton: {error}"))
        })?;
        Ok(predicate)
    }
}
