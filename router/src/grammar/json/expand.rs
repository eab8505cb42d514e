//! From keywords to shapes: what each keyword of a schema means for the instance it stands beside.

use serde_json::{Map, Value};

use super::super::error::GrammarError;
use super::format;
use super::number::{Decimal, NumberAtom};
use super::ordered_map::OrderedMap;
use super::predicate::Predicate;
use super::schemas::{Content, Place, Schemas, has_in_place_applicator};
use super::shape::{ArrayShape, Contains, Formula, ObjectShape, Property, Shape, ShapeError};
use super::text::{self, TextAtom, TextPredicate};
use crate::limits::{MAX_GRAMMAR_REGEX_BYTES, MAX_SCHEMA_COUNT, MAX_SCHEMA_EXPANSIONS};

/// Keywords that constrain instances and cannot be enforced.
const REFUSED: &[(&str, &str)] = &[
    ("$dynamicRef", "dynamic references are resolved while validating"),
    ("$recursiveRef", "dynamic references are resolved while validating"),
    ("disallow", "it was removed in draft 4; use `not`"),
    ("divisibleBy", "it was removed in draft 4; use `multipleOf`"),
    ("extends", "it was removed in draft 4; use `allOf`"),
];

/// How deep emptiness is looked for below an instance.
const EMPTINESS_DEPTH: usize = 3;

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

    /// Whether nothing satisfies `formula`, as far as a short look tells.
    fn is_surely_empty(&mut self, formula: &Formula, depth: usize) -> Result<bool, GrammarError> {
        match formula {
            Predicate::True => return Ok(false),
            Predicate::False => return Ok(true),
            _ if depth == 0 => return Ok(false),
            _ => {}
        }
        // A recursive schema met while it is open is not looked into again.
        if contains_any(formula, &self.open) {
            return Ok(false);
        }
        let shape = self.shape(formula)?;
        if shape.null || shape.truth || shape.falsehood {
            return Ok(false);
        }
        if shape.numbers != Predicate::False
            && !super::number::spellings(&shape.numbers).is_ok_and(|ast| text::is_empty(&ast).unwrap_or(false))
        {
            return Ok(false);
        }
        if shape.strings != Predicate::False && !text::is_empty(&text::spellings(&shape.strings)).unwrap_or(false) {
            return Ok(false);
        }
        'arrays: for array in &shape.arrays {
            for index in 0..array.min.min(array.prefix.len() + 1) {
                let item = array.prefix.get(index).unwrap_or(&array.items);
                if self.is_surely_empty(item, depth - 1)? {
                    continue 'arrays;
                }
            }
            return Ok(false);
        }
        'objects: for object in &shape.objects {
            for (_, property) in object.properties.iter().filter(|(_, property)| property.required) {
                if self.is_surely_empty(&property.formula, depth - 1)? {
                    continue 'objects;
                }
            }
            return Ok(false);
        }
        Ok(true)
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
            return Err(self.unsupported(place, "$ref", "it refers to itself before it says anything".to_owned()));
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
            return Err(self.unsupported(place, keyword, (*reason).to_owned()));
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

    fn numbers(&self, place: Place, object: &Map<String, Value>) -> Result<Predicate<NumberAtom>, GrammarError> {
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
            let (coefficient, scale) = value.scaled().filter(|&(coefficient, _)| coefficient > 0).ok_or_else(|| {
                self.unsupported(place, "multipleOf", "it is zero or has more than nine digits".to_owned())
            })?;
            parts.push(Predicate::Atom(NumberAtom::MultipleOf { coefficient, scale }));
        }
        Ok(Predicate::and(parts))
    }

    fn strings(&self, place: Place, object: &Map<String, Value>) -> Result<TextPredicate, GrammarError> {
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

    fn pattern(&self, place: Place, keyword: &str, pattern: &str) -> Result<TextPredicate, GrammarError> {
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

    fn array(&mut self, place: Place, object: &'a Map<String, Value>) -> Result<ArrayShape, GrammarError> {
        let mut array = ArrayShape::any();
        array.min = self.count(place, object, "minItems")?.unwrap_or(0);
        array.max = self.count(place, object, "maxItems")?;
        let (prefix, items) = match object.get("items") {
            // Before 2020-12.
            Some(Value::Array(list)) => (Some(("items", list)), Some("additionalItems")),
            _ => (self.list(place, object, "prefixItems")?.map(|list| ("prefixItems", list)), Some("items")),
        };
        if let Some((keyword, list)) = prefix {
            for (index, schema) in list.iter().enumerate() {
                array.prefix.push(self.child(place, &[keyword, &index.to_string()], schema)?);
            }
        }
        let evaluated_by = has_in_place_applicator(object) || object.contains_key("contains");
        if let Some(keyword) = items
            && let Some(schema) = object.get(keyword)
        {
            array.items = self.child(place, &[keyword], schema)?;
        } else if let Some(schema) = object.get("unevaluatedItems").filter(|schema| !accepts_all(schema)) {
            if evaluated_by {
                return Err(self.unsupported(
                    place,
                    "unevaluatedItems",
                    "it depends on what other subschemas evaluate".to_owned(),
                ));
            }
            array.items = self.child(place, &["unevaluatedItems"], schema)?;
        }
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

    fn object(&mut self, place: Place, object: &'a Map<String, Value>) -> Result<ObjectShape, GrammarError> {
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
                return Err(self.unsupported(
                    place,
                    "unevaluatedProperties",
                    "it depends on what other subschemas evaluate".to_owned(),
                ));
            }
            (None, Some(schema)) => self.child(place, &["unevaluatedProperties"], schema)?,
            (None, None) => Predicate::True,
        };
        // The parts into which the patterns divide all names: each pattern splits every part in two.
        let mut parts = vec![(names.clone(), Predicate::True, false)];
        for (pattern, formula) in &patterns {
            let mut split = Vec::new();
            for (names, others, matched) in parts {
                let inside = Predicate::and([names.clone(), pattern.clone()]);
                let outside = Predicate::and([names, pattern.clone().negate()]);
                split.push((inside, Predicate::and([others.clone(), formula.clone()]), true));
                split.push((outside, others, matched));
            }
            split.retain(|(names, _, _)| !text::is_empty(&text::spellings(names)).unwrap_or(false));
            if split.len() > crate::limits::MAX_SCHEMA_ALTERNATIVES {
                let error = ShapeError::TooMany;
                return Err(self.shape_error(place, "patternProperties", error));
            }
            parts = split;
        }
        shape.rest = parts
            .into_iter()
            .map(|(names, formula, matched)| (names, if matched { formula } else { additional.clone() }))
            .filter(|(names, formula)| *names != Predicate::False && *formula != Predicate::False)
            .collect();

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
        if let Some(required) = self.required(place, object)? {
            for name in required {
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
        }
        shape.properties = properties;
        Ok(shape)
    }

    fn required(&self, place: Place, object: &'a Map<String, Value>) -> Result<Option<Vec<&'a str>>, GrammarError> {
        match object.get("required") {
            // Draft 3, and a common slip inside a property.
            None | Some(Value::Bool(_)) if self.schemas.legacy => Ok(None),
            None => Ok(None),
            Some(Value::Array(names)) => names
                .iter()
                .map(|name| name.as_str().ok_or_else(|| self.invalid(place, "required", "a name is not a string")))
                .collect::<Result<_, _>>()
                .map(Some),
            Some(_) => Err(self.invalid(place, "required", "it is not a list of names")),
        }
    }

    fn name_matches(&self, place: Place, names: &TextPredicate, name: &str) -> Result<bool, GrammarError> {
        text::holds(names, name).map_err(|error| self.shape_error(place, "patternProperties", ShapeError::Name(error)))
    }

    /// The keywords that apply other schemas to the same instance.
    fn in_place(
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
            formulas.push((
                "if",
                Predicate::or([
                    Predicate::and([condition.clone(), then]),
                    Predicate::and([condition.negate(), otherwise]),
                ]),
            ));
        }
        Ok(formulas)
    }

    /// One entry of `dependentRequired`, `dependentSchemas` or (before 2019-09, for both) `dependencies`: the property
    /// is absent, or it is present and the demand holds.
    fn dependency(
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

    /// Exactly one of `parts`: each without the others that it could meet.
    fn exactly_one(&mut self, parts: &[Formula]) -> Result<Formula, GrammarError> {
        let mut disjoint = vec![vec![true; parts.len()]; parts.len()];
        for left in 0..parts.len() {
            for right in left + 1..parts.len() {
                let both = Predicate::and([parts[left].clone(), parts[right].clone()]);
                let empty = self.is_surely_empty(&both, EMPTINESS_DEPTH)?;
                (disjoint[left][right], disjoint[right][left]) = (empty, empty);
            }
        }
        Ok(Predicate::or(parts.iter().enumerate().map(|(index, part)| {
            let others = parts
                .iter()
                .enumerate()
                .filter(|&(other, _)| other != index && !disjoint[index][other])
                .map(|(_, other)| other.clone().negate());
            Predicate::and(std::iter::once(part.clone()).chain(others))
        })))
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

    fn reference(&mut self, place: Place, reference: &Value) -> Result<Formula, GrammarError> {
        let reference = reference.as_str().ok_or_else(|| self.invalid(place, "$ref", "it is not a string"))?;
        Ok(Predicate::Atom(self.schemas.resolve(place, reference)?))
    }

    /// The formula of a subschema; Booleans become constants at once.
    fn child(&mut self, place: Place, steps: &[&str], schema: &'a Value) -> Result<Formula, GrammarError> {
        if accepts_all(schema) {
            return Ok(Predicate::True);
        }
        if *schema == Value::Bool(false) {
            return Ok(Predicate::False);
        }
        Ok(Predicate::Atom(self.schemas.child(place, steps, schema)?))
    }

    fn children(
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

    fn list(
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

    fn map(
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

    fn count(&self, place: Place, object: &Map<String, Value>, keyword: &str) -> Result<Option<usize>, GrammarError> {
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

    pub(super) fn unsupported(&self, place: Place, keyword: &str, reason: String) -> GrammarError {
        let (keyword, path) = self.named(place, keyword);
        GrammarError::Unsupported { keyword, path, reason }
    }

    fn invalid(&self, place: Place, keyword: &str, reason: &str) -> GrammarError {
        let (keyword, path) = self.named(place, keyword);
        GrammarError::InvalidSchema { keyword, path, reason: reason.to_owned() }
    }

    /// A keyword and where its schema stands; the root's pointer is empty and shown as `#`.
    fn named(&self, place: Place, keyword: &str) -> (String, String) {
        let path = self.schemas.path(place);
        let keyword = if keyword.is_empty() { path.rsplit('/').next().unwrap_or_default() } else { keyword };
        (keyword.to_owned(), format!("#{path}"))
    }

    fn shape_error(&self, place: Place, keyword: &str, error: ShapeError) -> GrammarError {
        match error {
            ShapeError::NotUnique => {
                self.unsupported(place, keyword, "it demands that items repeat (a negated `uniqueItems`)".to_owned())
            }
            ShapeError::TooMany => self.unsupported(place, keyword, "it has too many alternatives".to_owned()),
            ShapeError::Name(reason) => {
                self.unsupported(place, keyword, format!("a name could not be held against a pattern: {reason}"))
            }
        }
    }
}

fn accepts_all(schema: &Value) -> bool {
    *schema == Value::Bool(true) || schema.as_object().is_some_and(Map::is_empty)
}

fn first_place(formula: &Formula) -> Place {
    match formula {
        Predicate::Atom(place) | Predicate::NotAtom(place) => *place,
        Predicate::And(parts) | Predicate::Or(parts) => first_place(&parts[0]),
        Predicate::True | Predicate::False => unreachable!("constants are never parts"),
    }
}

fn contains_any(formula: &Formula, places: &[Place]) -> bool {
    match formula {
        Predicate::True | Predicate::False => false,
        Predicate::Atom(place) | Predicate::NotAtom(place) => places.contains(place),
        Predicate::And(parts) | Predicate::Or(parts) => parts.iter().any(|part| contains_any(part, places)),
    }
}
