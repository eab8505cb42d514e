//! Unique items: an automaton over the values used so far.

use std::collections::HashMap;

use super::Emitter;
use crate::grammar::error::GrammarError;
use crate::grammar::json::number::NumberAtom;
use crate::grammar::json::predicate::Predicate;
use crate::grammar::json::shape::{ArrayShape, Shape};
use crate::grammar::json::text::TextAtom;
use crate::grammar::rules::RuleId;
use crate::limits::MAX_UNIQUE_VALUES;

impl Emitter<'_> {
    /// Unique items: an automaton over the index and the set of values used, if the values are few.
    pub(super) fn unique_items(&mut self, array: &ArrayShape) -> Result<RuleId, GrammarError> {
        let place = array.unique.expect("the caller asked for unique items");
        let refuse = |emitter: &Self, reason: &str| emitter.expander.unsupported(place, "uniqueItems", reason);
        if !array.contains.is_empty() {
            return Err(refuse(self, "it stands beside `contains`"));
        }
        let mut values: Vec<Shape> = Vec::new();
        let mut allowed: Vec<Vec<usize>> = Vec::new();
        let positions = array.max.map_or(array.prefix.len() + 1, |max| max.min(array.prefix.len() + 1));
        for index in 0..positions {
            let formula = array.prefix.get(index).unwrap_or(&array.items).clone();
            let shape = self.expander.shape(&formula)?;
            let Some(options) = few_values(&shape) else {
                return Err(refuse(
                    self,
                    "only items with a few possible scalar values (`enum`, Booleans) are tracked",
                ));
            };
            let mut here = Vec::new();
            for option in options {
                let known = values.iter().position(|value| same_value(value, &option));
                here.push(known.unwrap_or_else(|| {
                    values.push(option);
                    values.len() - 1
                }));
            }
            allowed.push(here);
        }
        if values.len() > MAX_UNIQUE_VALUES {
            return Err(refuse(self, &format!("items have more than {MAX_UNIQUE_VALUES} possible values")));
        }
        let mut rules = Vec::with_capacity(values.len());
        for value in &values {
            let options = self.shape(value)?;
            rules.push(self.choice(options)?);
        }
        self.unique_from(array, &allowed, &rules, 0, 0, &mut HashMap::new())
    }

    fn unique_from(
        &mut self,
        array: &ArrayShape,
        allowed: &[Vec<usize>],
        values: &[RuleId],
        index: usize,
        used: u32,
        states: &mut HashMap<(usize, u32), RuleId>,
    ) -> Result<RuleId, GrammarError> {
        if let Some(&rule) = states.get(&(index, used)) {
            return Ok(rule);
        }
        let mut options = Vec::new();
        if index >= array.min {
            options.push(self.literal("]")?);
        }
        if array.max != Some(index) {
            for &value in allowed.get(index).or(allowed.last()).into_iter().flatten() {
                if used & (1 << value) == 0 {
                    let item = self.after(index, values[value])?;
                    let rest = self.unique_from(array, allowed, values, index + 1, used | (1 << value), states)?;
                    options.push(self.sequence(vec![item, rest])?);
                }
            }
        }
        let rule = self.choice(options)?;
        states.insert((index, used), rule);
        Ok(rule)
    }
}

/// The values of a shape one by one, if it has few and all are scalars.
fn few_values(shape: &Shape) -> Option<Vec<Shape>> {
    if !shape.arrays.is_empty() || !shape.objects.is_empty() {
        return None;
    }
    let mut values = Vec::new();
    values.extend(shape.null.then(|| Shape { null: true, ..Shape::nothing() }));
    values.extend(shape.truth.then(|| Shape { truth: true, ..Shape::nothing() }));
    values.extend(shape.falsehood.then(|| Shape { falsehood: true, ..Shape::nothing() }));
    for number in alternatives(&shape.numbers) {
        let Predicate::Atom(NumberAtom::Equal(_)) = number else { return None };
        values.push(Shape { numbers: number.clone(), ..Shape::nothing() });
    }
    for text in alternatives(&shape.strings) {
        let Predicate::Atom(TextAtom::Literal(_)) = text else { return None };
        values.push(Shape { strings: text.clone(), ..Shape::nothing() });
    }
    Some(values)
}

fn alternatives<A>(predicate: &Predicate<A>) -> &[Predicate<A>] {
    match predicate {
        Predicate::False => &[],
        Predicate::Or(options) => options,
        one => std::slice::from_ref(one),
    }
}

/// Whether two shapes of one value each are the same value.
fn same_value(left: &Shape, right: &Shape) -> bool {
    (left.null, left.truth, left.falsehood) == (right.null, right.truth, right.falsehood)
        && left.numbers == right.numbers
        && left.strings == right.strings
}
