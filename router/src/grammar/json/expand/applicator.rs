//! The keywords that apply other schemas to the same instance.

use serde_json::{Map, Value};

use super::Expander;
use crate::grammar::error::GrammarError;
use crate::grammar::json::predicate::Predicate;
use crate::grammar::json::schemas::Place;
use crate::grammar::json::shape::{Formula, ObjectShape, Property, Shape};

impl<'a> Expander<'a> {
    /// `const`, `enum`, `$ref` and the Boolean keywords, each with what it demands of the instance as a whole.
    pub(super) fn in_place(
        &mut self,
        place: Place,
        object: &'a Map<String, Value>,
    ) -> Result<Vec<(&'static str, Formula)>, GrammarError> {
        let mut formulas = Vec::new();
        if let Some(value) = object.get("const") {
            formulas.push(("const", Predicate::Atom(self.schemas.constant(place, &["const"], value)?)));
        }
        if let Some(values) = self.list(place, object, "enum")? {
            let mut options = Vec::new();
            for (index, value) in values.iter().enumerate() {
                let option = self.schemas.constant(place, &["enum", &index.to_string()], value)?;
                options.push(Predicate::Atom(option));
            }
            formulas.push(("enum", Predicate::or(options)));
        }
        if let Some(reference) = object.get("$ref") {
            formulas.push(("$ref", self.reference(place, reference)?));
        }
        if let Some(parts) = self.children(place, object, "allOf")? {
            formulas.push(("allOf", Predicate::and(parts)));
        }
        if let Some(parts) = self.children(place, object, "anyOf")? {
            formulas.push(("anyOf", Predicate::or(parts)));
        }
        if let Some(parts) = self.children(place, object, "oneOf")? {
            formulas.push(("oneOf", self.exactly_one(&parts)?));
        }
        if let Some(schema) = object.get("not") {
            formulas.push(("not", self.child(place, &["not"], schema)?.negate()));
        }
        if let Some(condition) = object.get("if") {
            let condition = self.child(place, &["if"], condition)?;
            let mut branch = |keyword| match object.get(keyword) {
                Some(schema) => self.child(place, &[keyword], schema),
                None => Ok(Predicate::True),
            };
            let (then, otherwise) = (branch("then")?, branch("else")?);
            let met = Predicate::and([condition.clone(), then]);
            let unmet = Predicate::and([condition.negate(), otherwise]);
            formulas.push(("if", Predicate::or([met, unmet])));
        }
        Ok(formulas)
    }

    /// One entry of `dependentRequired`, `dependentSchemas` or (before 2019-09, for both) `dependencies`: the property
    /// is absent, or it is present and the demand holds.
    pub(super) fn dependency(
        &mut self,
        place: Place,
        keyword: &str,
        name: &str,
        demand: &'a Value,
    ) -> Result<Shape, GrammarError> {
        let with = |names: &[&str], formula: Formula, required: bool| {
            let mut object = ObjectShape::any();
            for name in names {
                object.properties.insert((*name).to_owned(), Property { formula: formula.clone(), required });
            }
            vec![object]
        };
        let absent = Shape { objects: with(&[name], Predicate::False, false), ..Shape::any() };
        let present = Shape { objects: with(&[name], Predicate::True, true), ..Shape::nothing() };
        let demanded = match demand {
            Value::Array(names) => {
                let names: Option<Vec<&str>> = names.iter().map(Value::as_str).collect();
                let names = names.ok_or_else(|| self.invalid(place, keyword, "a name is not a string"))?;
                Shape { objects: with(&names, Predicate::True, true), ..Shape::nothing() }
            }
            schema => {
                let formula = self.child(place, &[keyword, name], schema)?;
                self.shape(&formula)?
            }
        };
        present
            .intersect(&demanded)
            .and_then(|both| absent.union(both))
            .map_err(|error| self.shape_error(place, keyword, error))
    }

    pub(super) fn reference(&mut self, place: Place, reference: &Value) -> Result<Formula, GrammarError> {
        let reference = reference.as_str().ok_or_else(|| self.invalid(place, "$ref", "it is not a string"))?;
        Ok(Predicate::Atom(self.schemas.resolve(place, reference)?))
    }
}
