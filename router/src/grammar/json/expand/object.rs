//! What is said of objects.

use serde_json::{Map, Value};

use super::Expander;
use super::keyword::accepts_all;
use crate::grammar::error::GrammarError;
use crate::grammar::json::ordered_map::OrderedMap;
use crate::grammar::json::predicate::Predicate;
use crate::grammar::json::schemas::{Place, has_in_place_applicator};
use crate::grammar::json::shape::{Formula, ObjectShape, Property, ShapeError};
use crate::grammar::json::text::{self, TextPredicate};
use crate::limits::MAX_SCHEMA_ALTERNATIVES;

impl<'a> Expander<'a> {
    pub(super) fn object(&mut self, place: Place, object: &'a Map<String, Value>) -> Result<ObjectShape, GrammarError> {
        let mut shape = ObjectShape::any();
        shape.min = self.count(place, object, "minProperties")?.unwrap_or(0);
        shape.max = self.count(place, object, "maxProperties")?;
        shape.counted = (shape.min > 0 || shape.max.is_some()).then_some(place);
        let mut patterns = Vec::new();
        for (pattern, schema) in self.map(place, object, "patternProperties")?.into_iter().flatten() {
            let names = self.pattern(place, "patternProperties", pattern)?;
            patterns.push((names, self.child(place, &["patternProperties", pattern], schema)?));
        }
        let names = match object.get("propertyNames") {
            None => Predicate::True,
            Some(schema) => {
                let formula = self.child(place, &["propertyNames"], schema)?;
                self.shape(&formula)?.strings
            }
        };
        let unevaluated = object.get("unevaluatedProperties").filter(|schema| !accepts_all(schema));
        let additional = match (object.get("additionalProperties"), unevaluated) {
            (Some(schema), _) => self.child(place, &["additionalProperties"], schema)?,
            (None, Some(_)) if has_in_place_applicator(object) => {
                let reason = "it depends on what other subschemas evaluate";
                return Err(self.unsupported(place, "unevaluatedProperties", reason));
            }
            (None, Some(schema)) => self.child(place, &["unevaluatedProperties"], schema)?,
            (None, None) => Predicate::True,
        };
        shape.rest = self.partition(place, &names, &patterns, &additional)?;
        let mut properties = OrderedMap::default();
        for (name, schema) in self.map(place, object, "properties")?.into_iter().flatten() {
            let mut demands = vec![self.child(place, &["properties", name], schema)?];
            for (pattern, formula) in &patterns {
                if self.name_matches(place, pattern, name)? {
                    demands.push(formula.clone());
                }
            }
            if !self.name_matches(place, &names, name)? {
                demands.push(Predicate::False);
            }
            properties.insert(name.clone(), Property { formula: Predicate::and(demands), required: false });
        }
        for name in self.required(place, object)? {
            if let Some(property) = properties.get_mut(name) {
                property.required = true;
                continue;
            }
            let mut formula = Predicate::False;
            for (names, part) in &shape.rest {
                if self.name_matches(place, names, name)? {
                    formula = part.clone();
                }
            }
            properties.insert(name.to_owned(), Property { formula, required: true });
        }
        shape.properties = properties;
        Ok(shape)
    }

    /// The parts into which the patterns divide all names, with what each part must satisfy: every pattern splits every
    /// part in two.
    fn partition(
        &self,
        place: Place,
        names: &TextPredicate,
        patterns: &[(TextPredicate, Formula)],
        additional: &Formula,
    ) -> Result<Vec<(TextPredicate, Formula)>, GrammarError> {
        let mut parts = vec![(names.clone(), Predicate::True, false)];
        for (pattern, formula) in patterns {
            let mut split = Vec::new();
            for (names, others, matched) in parts {
                let inside = Predicate::and([names.clone(), pattern.clone()]);
                let outside = Predicate::and([names, pattern.clone().negate()]);
                split.push((inside, Predicate::and([others.clone(), formula.clone()]), true));
                split.push((outside, others, matched));
            }
            split.retain(|(names, _, _)| !text::is_empty(&text::spellings(names)).unwrap_or(false));
            if split.len() > MAX_SCHEMA_ALTERNATIVES {
                return Err(self.shape_error(place, "patternProperties", ShapeError::TooMany));
            }
            parts = split;
        }
        let parts = parts
            .into_iter()
            .map(|(names, formula, matched)| (names, if matched { formula } else { additional.clone() }));
        Ok(parts.filter(|(names, formula)| *names != Predicate::False && *formula != Predicate::False).collect())
    }

    fn required(&self, place: Place, object: &'a Map<String, Value>) -> Result<Vec<&'a str>, GrammarError> {
        match object.get("required") {
            None => Ok(Vec::new()),
            // Draft 3, and a common slip inside a property.
            Some(Value::Bool(_)) if self.schemas.legacy => Ok(Vec::new()),
            Some(Value::Array(names)) => names
                .iter()
                .map(|name| name.as_str().ok_or_else(|| self.invalid(place, "required", "a name is not a string")))
                .collect(),
            Some(_) => Err(self.invalid(place, "required", "it is not a list of names")),
        }
    }

    fn name_matches(&self, place: Place, names: &TextPredicate, name: &str) -> Result<bool, GrammarError> {
        text::holds(names, name).map_err(|error| self.shape_error(place, "patternProperties", ShapeError::Name(error)))
    }
}
