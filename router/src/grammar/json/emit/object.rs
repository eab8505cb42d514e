//! Objects: the properties in the order of the schema, then others.
//!
//! Where a name may come twice, the last one counts for every reader of JSON, so what must hold for some property stands
//! last.

use std::collections::HashMap;

use super::Emitter;
use crate::grammar::error::GrammarError;
use crate::grammar::json::ordered_map::OrderedMap;
use crate::grammar::json::predicate::Predicate;
use crate::grammar::json::shape::{Formula, ObjectShape, Property};
use crate::grammar::json::text::{self, TextAtom, TextPredicate};
use crate::grammar::rules::{Rule, RuleId};

impl Emitter<'_> {
    pub(super) fn object(&mut self, object: &ObjectShape) -> Result<RuleId, GrammarError> {
        let Some(((names, formula), others)) = object.some.split_first() else {
            return self.fields(object, None);
        };
        if !others.is_empty() {
            return Err(GrammarError::TooComplex {
                reason: "two demands on properties without a name (a negated `additionalProperties`, twice)".to_owned(),
            });
        }
        let plain = ObjectShape { some: Vec::new(), ..object.clone() };
        let mut options = Vec::new();
        for (name, property) in object.properties.iter() {
            let complex = |reason: String| GrammarError::TooComplex { reason };
            if text::holds(names, name).map_err(complex)? {
                let mut narrowed = plain.clone();
                let formula = Predicate::and([property.formula.clone(), formula.clone()]);
                narrowed.properties.insert(name.to_owned(), Property { formula, required: true });
                options.push(self.fields(&narrowed, None)?);
            }
        }
        for (part, part_formula) in &object.rest {
            let names = Predicate::and([names.clone(), part.clone()]);
            let formula = Predicate::and([formula.clone(), part_formula.clone()]);
            if names != Predicate::False && formula != Predicate::False {
                options.push(self.fields(&plain, Some((names, formula)))?);
            }
        }
        self.choice(options)
    }

    /// An object's properties; `last` must come last.
    fn fields(&mut self, object: &ObjectShape, last: Option<(TextPredicate, Formula)>) -> Result<RuleId, GrammarError> {
        let unnamed = unnamed(&object.properties);
        let mut rest = Vec::new();
        for (names, formula) in &object.rest {
            rest.push(self.field(Predicate::and([names.clone(), unnamed.clone()]), formula)?);
        }
        let rest = self.choice(rest)?;
        let last = last.map(|(names, formula)| self.field(Predicate::and([names, unnamed]), &formula)).transpose()?;
        let mut named = Vec::new();
        for (name, property) in object.properties.iter() {
            let key = self.literal(&serde_json::Value::from(name).to_string())?;
            named.push((self.pair(key, &property.formula)?, property.required));
        }
        let can_be_counted = named.len() + usize::from(!object.rest.is_empty());
        if object.min > can_be_counted
            && !object.rest.is_empty()
            && let Some(place) = object.counted
        {
            // Two properties without a name in the schema could come out with the same name, and count once.
            return Err(self.expander.unsupported(
                place,
                "minProperties",
                "it demands more than one property that the schema does not name",
            ));
        }
        let fields = Fields { named, rest, last, min: object.min, max: object.max };
        let body = self.fields_from(&fields, 0, 0, &mut HashMap::new())?;
        let open = self.literal("{")?;
        self.sequence(vec![open, body])
    }

    fn field(&mut self, names: TextPredicate, formula: &Formula) -> Result<RuleId, GrammarError> {
        if names == Predicate::False || *formula == Predicate::False {
            return self.choice(Vec::new());
        }
        let key = self.string(&names)?;
        self.pair(key, formula)
    }

    fn pair(&mut self, key: RuleId, formula: &Formula) -> Result<RuleId, GrammarError> {
        let colon = self.literal(":")?;
        let value = self.formula(formula)?;
        self.sequence(vec![key, colon, value])
    }

    /// The properties from `index` on after `count` written ones, and the closing brace.
    fn fields_from(
        &mut self,
        fields: &Fields,
        index: usize,
        count: usize,
        states: &mut HashMap<(usize, usize), RuleId>,
    ) -> Result<RuleId, GrammarError> {
        // Only whether there is one before matters, unless properties are counted.
        let cap = fields.max.unwrap_or(0).max(fields.min).max(1);
        let count = if fields.max.is_some() { count } else { count.min(cap) };
        if let Some(&rule) = states.get(&(index, count)) {
            return Ok(rule);
        }
        let full = fields.max.is_some_and(|max| count >= max);
        let rule = if let Some(&(field, required)) = fields.named.get(index) {
            let mut options = Vec::new();
            if !full {
                let rest = self.fields_from(fields, index + 1, count + 1, states)?;
                let field = self.after(count, field)?;
                options.push(self.sequence(vec![field, rest])?);
            }
            if !required {
                options.push(self.fields_from(fields, index + 1, count, states)?);
            }
            self.choice(options)?
        } else {
            self.unnamed_fields(fields, count)?
        };
        states.insert((index, count), rule);
        Ok(rule)
    }

    fn unnamed_fields(&mut self, fields: &Fields, count: usize) -> Result<RuleId, GrammarError> {
        let close = self.literal("}")?;
        let (end, end_after_others) = match fields.last {
            None => (close, close),
            Some(last) => {
                let last = self.sequence(vec![last, close])?;
                (self.after(count, last)?, self.after(1, last)?)
            }
        };
        let written = count + usize::from(fields.last.is_some());
        let room = match fields.max {
            Some(max) if written > max => return self.choice(Vec::new()),
            Some(max) => Some(max - written),
            None => None,
        };
        let missing = fields.min.saturating_sub(written);
        let mut options = Vec::new();
        if missing == 0 {
            options.push(end);
        }
        // One property more is certain to have a name of its own; two may share one.
        if missing <= 1 && room != Some(0) {
            let further = self.after(1, fields.rest)?;
            let further = self.rules.add(Rule::Repeat(further, 0, room.map(|room| room - 1)))?;
            let first = self.after(count, fields.rest)?;
            options.push(self.sequence(vec![first, further, end_after_others])?);
        }
        self.choice(options)
    }
}

/// The fields of an object as rules.
struct Fields {
    /// In order, with whether they must be there.
    named: Vec<(RuleId, bool)>,
    rest: RuleId,
    last: Option<RuleId>,
    min: usize,
    max: Option<usize>,
}

/// All names but those of `properties`.
fn unnamed(properties: &OrderedMap<Property>) -> TextPredicate {
    let names = properties.names().map(|name| Predicate::Atom(TextAtom::Literal(name.to_owned())));
    Predicate::or(names).negate()
}
