//! Reading a keyword: its value in the type it must have, and the errors that name it.

use serde_json::{Map, Value};

use super::Expander;
use crate::grammar::error::GrammarError;
use crate::grammar::json::predicate::Predicate;
use crate::grammar::json::schemas::Place;
use crate::grammar::json::shape::{Formula, ShapeError};
use crate::limits::MAX_SCHEMA_COUNT;

impl<'a> Expander<'a> {
    /// The formula of a subschema; Booleans become constants at once.
    pub(super) fn child(&mut self, place: Place, steps: &[&str], schema: &'a Value) -> Result<Formula, GrammarError> {
        if accepts_all(schema) {
            return Ok(Predicate::True);
        }
        if *schema == Value::Bool(false) {
            return Ok(Predicate::False);
        }
        Ok(Predicate::Atom(self.schemas.child(place, steps, schema)?))
    }

    pub(super) fn children(
        &mut self,
        place: Place,
        object: &'a Map<String, Value>,
        keyword: &str,
    ) -> Result<Option<Vec<Formula>>, GrammarError> {
        let Some(list) = self.list(place, object, keyword)? else { return Ok(None) };
        let mut formulas = Vec::with_capacity(list.len());
        for (index, schema) in list.iter().enumerate() {
            formulas.push(self.child(place, &[keyword, &index.to_string()], schema)?);
        }
        Ok(Some(formulas))
    }

    pub(super) fn list(
        &self,
        place: Place,
        object: &'a Map<String, Value>,
        keyword: &str,
    ) -> Result<Option<&'a Vec<Value>>, GrammarError> {
        match object.get(keyword) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(_) => Err(self.invalid(place, keyword, "it is not an array")),
        }
    }

    pub(super) fn map(
        &self,
        place: Place,
        object: &'a Map<String, Value>,
        keyword: &str,
    ) -> Result<Option<&'a Map<String, Value>>, GrammarError> {
        match object.get(keyword) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(_) => Err(self.invalid(place, keyword, "it is not an object")),
        }
    }

    pub(super) fn count(
        &self,
        place: Place,
        object: &Map<String, Value>,
        keyword: &str,
    ) -> Result<Option<usize>, GrammarError> {
        let Some(value) = object.get(keyword) else { return Ok(None) };
        // 2.0 counts as an integer; what is above the bound is refused, so the cast is exact.
        let count = value
            .as_u64()
            .or_else(|| value.as_f64().filter(|count| *count >= 0.0 && count.fract() == 0.0).map(|count| count as u64));
        let Some(count) = count else {
            return Err(self.invalid(place, keyword, "it is not a non-negative integer"));
        };
        match usize::try_from(count) {
            Ok(count) if count <= MAX_SCHEMA_COUNT => Ok(Some(count)),
            _ => Err(self.unsupported(place, keyword, format!("{count} is more than {MAX_SCHEMA_COUNT}"))),
        }
    }

    pub(in super::super) fn unsupported(&self, place: Place, keyword: &str, reason: impl Into<String>) -> GrammarError {
        let (keyword, path) = self.named(place, keyword);
        GrammarError::Unsupported { keyword, path, reason: reason.into() }
    }

    pub(super) fn invalid(&self, place: Place, keyword: &str, reason: &str) -> GrammarError {
        let (keyword, path) = self.named(place, keyword);
        GrammarError::InvalidSchema { keyword, path, reason: reason.to_owned() }
    }

    /// A keyword and where its schema stands; the root's pointer is empty and shown as `#`.
    fn named(&self, place: Place, keyword: &str) -> (String, String) {
        let path = self.schemas.path(place);
        let keyword = if keyword.is_empty() { path.rsplit('/').next().unwrap_or_default() } else { keyword };
        (keyword.to_owned(), format!("#{path}"))
    }

    pub(super) fn shape_error(&self, place: Place, keyword: &str, error: ShapeError) -> GrammarError {
        match error {
            ShapeError::NotUnique => {
                self.unsupported(place, keyword, "it demands that items repeat (a negated `uniqueItems`)")
            }
            ShapeError::TooMany => self.unsupported(place, keyword, "it has too many alternatives"),
            ShapeError::Name(reason) => {
                self.unsupported(place, keyword, format!("a name could not be held against a pattern: {reason}"))
            }
        }
    }
}

/// Whether a schema says nothing.
pub(super) fn accepts_all(schema: &Value) -> bool {
    *schema == Value::Bool(true) || schema.as_object().is_some_and(Map::is_empty)
}
