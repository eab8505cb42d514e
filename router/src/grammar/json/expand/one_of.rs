//! Exactly one of several schemas: which of them can hold at the same time.

use super::Expander;
use crate::grammar::error::GrammarError;
use crate::grammar::json::number;
use crate::grammar::json::predicate::Predicate;
use crate::grammar::json::schemas::Place;
use crate::grammar::json::shape::Formula;
use crate::grammar::json::text;
use crate::limits::SCHEMA_EMPTINESS_DEPTH;

impl Expander<'_> {
    /// Exactly one of `parts`: each without the others that it could meet.
    pub(super) fn exactly_one(&mut self, parts: &[Formula]) -> Result<Formula, GrammarError> {
        let mut disjoint = vec![vec![true; parts.len()]; parts.len()];
        for left in 0..parts.len() {
            for right in left + 1..parts.len() {
                let both = Predicate::and([parts[left].clone(), parts[right].clone()]);
                let empty = self.is_surely_empty(&both, SCHEMA_EMPTINESS_DEPTH)?;
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
            && !number::spellings(&shape.numbers).is_ok_and(|ast| text::is_empty(&ast).unwrap_or(false))
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
}

fn contains_any(formula: &Formula, places: &[Place]) -> bool {
    match formula {
        Predicate::True | Predicate::False => false,
        Predicate::Atom(place) | Predicate::NotAtom(place) => places.contains(place),
        Predicate::And(parts) | Predicate::Or(parts) => parts.iter().any(|part| contains_any(part, places)),
    }
}
