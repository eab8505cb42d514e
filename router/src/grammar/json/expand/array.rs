//! What is said of arrays.

use serde_json::{Map, Value};

use super::Expander;
use super::keyword::accepts_all;
use crate::grammar::error::GrammarError;
use crate::grammar::json::predicate::Predicate;
use crate::grammar::json::schemas::{Place, has_in_place_applicator};
use crate::grammar::json::shape::{ArrayShape, Contains};

impl<'a> Expander<'a> {
    pub(super) fn array(&mut self, place: Place, object: &'a Map<String, Value>) -> Result<ArrayShape, GrammarError> {
        let mut array = ArrayShape::any();
        array.min = self.count(place, object, "minItems")?.unwrap_or(0);
        array.max = self.count(place, object, "maxItems")?;
        // Before 2020-12 a list of `items` was what `prefixItems` is now.
        let (prefix, items) = match object.get("items") {
            Some(Value::Array(_)) => ("items", "additionalItems"),
            _ => ("prefixItems", "items"),
        };
        array.prefix = self.children(place, object, prefix)?.unwrap_or_default();
        let unevaluated = object.get("unevaluatedItems").filter(|schema| !accepts_all(schema));
        array.items = match (object.get(items), unevaluated) {
            (Some(schema), _) => self.child(place, &[items], schema)?,
            (None, Some(_)) if has_in_place_applicator(object) || object.contains_key("contains") => {
                let reason = "it depends on what other subschemas evaluate";
                return Err(self.unsupported(place, "unevaluatedItems", reason));
            }
            (None, Some(schema)) => self.child(place, &["unevaluatedItems"], schema)?,
            (None, None) => Predicate::True,
        };
        if let Some(schema) = object.get("contains") {
            let formula = self.child(place, &["contains"], schema)?;
            let min = self.count(place, object, "minContains")?.unwrap_or(1);
            let max = self.count(place, object, "maxContains")?;
            array.contains.push(Contains { from: 0, formula, min, max });
        }
        match object.get("uniqueItems") {
            None | Some(Value::Bool(false)) => {}
            Some(Value::Bool(true)) => array.unique = Some(place),
            Some(_) => return Err(self.invalid(place, "uniqueItems", "it is not a Boolean")),
        }
        Ok(array)
    }
}
