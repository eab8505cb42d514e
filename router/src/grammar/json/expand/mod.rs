//! From keywords to shapes: what each keyword of a schema means for the instance it stands beside.

mod applicator;
mod array;
mod keyword;
mod object;
mod one_of;
mod scalar;

use serde_json::{Map, Value};

use super::number::{Decimal, NumberAtom};
use super::predicate::Predicate;
use super::schemas::{Content, Place, Schemas};
use super::shape::{ArrayShape, Formula, ObjectShape, Property, Shape};
use super::text::TextAtom;
use crate::grammar::error::GrammarError;
use crate::limits::MAX_SCHEMA_EXPANSIONS;

/// Keywords that constrain instances and cannot be enforced.
const REFUSED: &[(&str, &str)] = &[
    ("$dynamicRef", "dynamic references are resolved while validating"),
    ("$recursiveRef", "dynamic references are resolved while validating"),
    ("disallow", "it was removed in draft 4; use `not`"),
    ("divisibleBy", "it was removed in draft 4; use `multipleOf`"),
    ("extends", "it was removed in draft 4; use `allOf`"),
];

/// Turns formulas into shapes.
pub(super) struct Expander<'a> {
    pub(super) schemas: Schemas<'a>,
    /// Places whose shape is being computed: meeting one again is a reference that leads nowhere.
    open: Vec<Place>,
    expansions: usize,
}

impl<'a> Expander<'a> {
    pub(super) fn new(schemas: Schemas<'a>) -> Self {
        Self { schemas, open: Vec::new(), expansions: 0 }
    }

    /// The instances that satisfy `formula`.
    pub(super) fn shape(&mut self, formula: &Formula) -> Result<Shape, GrammarError> {
        match formula {
            Predicate::True => Ok(Shape::any()),
            Predicate::False => Ok(Shape::nothing()),
            Predicate::Atom(place) => self.place(*place),
            Predicate::NotAtom(place) => {
                let shape = self.place(*place)?;
                shape.complement().map_err(|error| self.shape_error(*place, "not", error))
            }
            Predicate::And(parts) => {
                let mut result = Shape::any();
                for part in parts {
                    let shape = self.shape(part)?;
                    let place = first_place(part);
                    result = result.intersect(&shape).map_err(|error| self.shape_error(place, "allOf", error))?;
                }
                Ok(result)
            }
            Predicate::Or(parts) => {
                let mut result = Shape::nothing();
                for part in parts {
                    let shape = self.shape(part)?;
                    let place = first_place(part);
                    result = result.union(shape).map_err(|error| self.shape_error(place, "anyOf", error))?;
                }
                Ok(result)
            }
        }
    }

    fn place(&mut self, place: Place) -> Result<Shape, GrammarError> {
        self.expansions += 1;
        if self.expansions > MAX_SCHEMA_EXPANSIONS {
            return Err(GrammarError::TooComplex { reason: "the JSON schema combines too many subschemas".to_owned() });
        }
        let schema = match self.schemas.content(place) {
            Content::Constant(value) => return self.constant(place, value),
            Content::Schema(schema) => schema,
        };
        let object = match schema {
            Value::Bool(true) => return Ok(Shape::any()),
            Value::Bool(false) => return Ok(Shape::nothing()),
            Value::Object(object) => object,
            _ => return Err(self.invalid(place, "", "a schema is an object or a Boolean")),
        };
        if self.open.contains(&place) {
            return Err(self.unsupported(place, "$ref", "it refers to itself before it says anything"));
        }
        self.open.push(place);
        let shape = self.keywords(place, object);
        self.open.pop();
        shape
    }

    fn keywords(&mut self, place: Place, object: &'a Map<String, Value>) -> Result<Shape, GrammarError> {
        if let Some(reference) = object.get("$ref")
            && self.schemas.legacy
        {
            let target = self.reference(place, reference)?;
            return self.shape(&target);
        }
        if let Some((keyword, reason)) = REFUSED.iter().find(|(keyword, _)| object.contains_key(*keyword)) {
            return Err(self.unsupported(place, keyword, *reason));
        }
        let mut shape = Shape::any();
        self.types(place, object, &mut shape)?;
        if shape.numbers != Predicate::False {
            let numbers = self.numbers(place, object)?;
            shape.numbers = Predicate::and([shape.numbers, numbers]);
        }
        if shape.strings != Predicate::False {
            shape.strings = Predicate::and([shape.strings, self.strings(place, object)?]);
        }
        if !shape.arrays.is_empty() {
            shape.arrays = self.array(place, object)?.possible().into_iter().collect();
        }
        if !shape.objects.is_empty() {
            let properties = self.object(place, object)?;
            shape.objects = if properties.is_possible() { vec![properties] } else { Vec::new() };
        }
        for (keyword, formula) in self.in_place(place, object)? {
            let other = self.shape(&formula)?;
            shape = shape.intersect(&other).map_err(|error| self.shape_error(place, keyword, error))?;
        }
        for keyword in ["dependentRequired", "dependentSchemas", "dependencies"] {
            for (name, demand) in self.map(place, object, keyword)?.into_iter().flatten() {
                let other = self.dependency(place, keyword, name, demand)?;
                shape = shape.intersect(&other).map_err(|error| self.shape_error(place, keyword, error))?;
            }
        }
        Ok(shape)
    }

    fn types(&self, place: Place, object: &Map<String, Value>, shape: &mut Shape) -> Result<(), GrammarError> {
        let types: Vec<&Value> = match object.get("type") {
            None => return Ok(()),
            Some(Value::Array(types)) => types.iter().collect(),
            Some(one) => vec![one],
        };
        let all = std::mem::replace(shape, Shape::nothing());
        for name in types {
            match name.as_str() {
                Some("null") => shape.null = true,
                Some("boolean") => (shape.truth, shape.falsehood) = (true, true),
                Some("number") => shape.numbers = Predicate::True,
                Some("integer") => {
                    let integers = Predicate::Atom(NumberAtom::Integer);
                    shape.numbers = Predicate::or([std::mem::replace(&mut shape.numbers, Predicate::False), integers]);
                }
                Some("string") => shape.strings = Predicate::True,
                Some("array") => shape.arrays.clone_from(&all.arrays),
                Some("object") => shape.objects.clone_from(&all.objects),
                Some("any") if self.schemas.legacy => *shape = Shape::any(),
                _ => return Err(self.invalid(place, "type", &format!("`{name}` is no type of JSON"))),
            }
        }
        Ok(())
    }

    fn constant(&mut self, place: Place, value: &'a Value) -> Result<Shape, GrammarError> {
        let mut shape = Shape::nothing();
        match value {
            Value::Null => shape.null = true,
            Value::Bool(true) => shape.truth = true,
            Value::Bool(false) => shape.falsehood = true,
            Value::Number(number) => {
                let value = Decimal::new(number).ok_or_else(|| {
                    self.unsupported(place, "", format!("{number} has more than 64 digits on a side of the point"))
                })?;
                shape.numbers = Predicate::Atom(NumberAtom::Equal(value));
            }
            Value::String(text) => shape.strings = Predicate::Atom(TextAtom::Literal(text.clone())),
            Value::Array(values) => {
                let mut array = ArrayShape { items: Predicate::False, min: values.len(), ..ArrayShape::any() };
                for (index, value) in values.iter().enumerate() {
                    array.prefix.push(Predicate::Atom(self.schemas.constant(place, &[&index.to_string()], value)?));
                }
                shape.arrays = array.possible().into_iter().collect();
            }
            Value::Object(values) => {
                let mut object = ObjectShape { rest: Vec::new(), ..ObjectShape::any() };
                for (name, value) in values {
                    let formula = Predicate::Atom(self.schemas.constant(place, &[name], value)?);
                    object.properties.insert(name.clone(), Property { formula, required: true });
                }
                shape.objects = vec![object];
            }
        }
        Ok(shape)
    }
}

fn first_place(formula: &Formula) -> Place {
    match formula {
        Predicate::Atom(place) | Predicate::NotAtom(place) => *place,
        Predicate::And(parts) | Predicate::Or(parts) => first_place(&parts[0]),
        Predicate::True | Predicate::False => unreachable!("constants are never parts"),
    }
}
