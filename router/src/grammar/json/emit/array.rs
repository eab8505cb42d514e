//! Arrays: items by position, and items that are counted (`contains`).

use std::collections::HashMap;

use super::Emitter;
use crate::grammar::error::GrammarError;
use crate::grammar::json::predicate::Predicate;
use crate::grammar::json::shape::{ArrayShape, Contains, Formula};
use crate::grammar::rules::{Rule, RuleId};
use crate::limits::{MAX_CONTAINS, MAX_COUNTED_ITEMS};

impl Emitter<'_> {
    pub(super) fn array(&mut self, array: &ArrayShape) -> Result<RuleId, GrammarError> {
        let open = self.literal("[")?;
        let items = if array.unique.is_some() && array.max.is_none_or(|max| max > 1) {
            self.unique_items(array)?
        } else if array.contains.is_empty() {
            self.items(array, 0)?
        } else {
            self.counted_items(array)?
        };
        self.sequence(vec![open, items])
    }

    /// The items from `index` on, and the closing bracket.
    fn items(&mut self, array: &ArrayShape, index: usize) -> Result<RuleId, GrammarError> {
        let close = self.literal("]")?;
        if array.max == Some(index) {
            return Ok(close);
        }
        let item = self.formula(array.prefix.get(index).unwrap_or(&array.items))?;
        let first = if index < array.prefix.len() {
            let item = self.after(index, item)?;
            let rest = self.items(array, index + 1)?;
            self.sequence(vec![item, rest])?
        } else {
            let further = self.after(1, item)?;
            let (min, max) = (array.min.saturating_sub(index), array.max.map(|max| max - index));
            if index > 0 {
                let items = self.rules.add(Rule::Repeat(further, min, max))?;
                return self.sequence(vec![items, close]);
            }
            let items = self.rules.add(Rule::Repeat(further, min.saturating_sub(1), max.map(|max| max - 1)))?;
            self.sequence(vec![item, items, close])?
        };
        if array.min <= index { self.choice(vec![first, close]) } else { Ok(first) }
    }

    /// Items under `contains`: an automaton over the index and how many items have satisfied each rule.
    fn counted_items(&mut self, array: &ArrayShape) -> Result<RuleId, GrammarError> {
        let last = array.contains.iter().map(|rule| rule.from).chain([1, array.prefix.len(), array.min]);
        let last = last.chain(array.max).max().unwrap_or(1);
        let counts = array.contains.iter().map(|rule| rule.max.unwrap_or(rule.min)).max().unwrap_or(0);
        if last > MAX_COUNTED_ITEMS || counts > MAX_COUNTED_ITEMS || array.contains.len() > MAX_CONTAINS {
            return Err(GrammarError::TooComplex {
                reason: format!(
                    "`contains` beside more than {MAX_COUNTED_ITEMS} counted items, or more than {MAX_CONTAINS} times"
                ),
            });
        }
        self.count_from(array, last, 0, &vec![0; array.contains.len()], &mut HashMap::new())
    }

    fn count_from(
        &mut self,
        array: &ArrayShape,
        last: usize,
        index: usize,
        counts: &[usize],
        states: &mut HashMap<(usize, Vec<usize>), RuleId>,
    ) -> Result<RuleId, GrammarError> {
        if let Some(&rule) = states.get(&(index, counts.to_vec())) {
            return Ok(rule);
        }
        let state = self.rules.placeholder()?;
        states.insert((index, counts.to_vec()), state);
        let mut options = Vec::new();
        let satisfied = array.contains.iter().zip(counts).all(|(rule, count)| *count >= rule.min);
        if index >= array.min && satisfied {
            options.push(self.literal("]")?);
        }
        if array.max != Some(index) {
            let mut same = Vec::new();
            for (formula, next) in transitions(array, index, counts) {
                let item = self.formula(&formula)?;
                let item = self.after(index, item)?;
                // Beyond `last` the index no longer matters; without a maximum it stays there.
                let next_index = if array.max.is_none() { (index + 1).min(last) } else { index + 1 };
                if next_index == index && next == counts {
                    same.push(item);
                } else {
                    let rest = self.count_from(array, last, next_index, &next, states)?;
                    options.push(self.sequence(vec![item, rest])?);
                }
            }
            if !same.is_empty() {
                let one = self.choice(same)?;
                let many = self.rules.add(Rule::Repeat(one, 0, None))?;
                let then = self.choice(options)?;
                options = vec![self.sequence(vec![many, then])?];
            }
        }
        self.rules.complete(state, options);
        Ok(state)
    }
}

/// What the item at `index` may be, with the counts after it.
fn transitions(array: &ArrayShape, index: usize, counts: &[usize]) -> Vec<(Formula, Vec<usize>)> {
    let item = array.prefix.get(index).unwrap_or(&array.items);
    let mut options = vec![(item.clone(), counts.to_vec())];
    for (at, rule) in array.contains.iter().enumerate() {
        let Contains { from, formula, min, max } = rule;
        if index < *from || (max.is_none() && counts[at] >= *min) {
            continue;
        }
        let mut split = Vec::new();
        for (item, counts) in options {
            // Without a maximum an item need not be told apart: it may match and not be counted.
            let other = if max.is_some() { formula.clone().negate() } else { Predicate::True };
            let uncounted = Predicate::and([item.clone(), other]);
            if max.is_none_or(|max| counts[at] < max) {
                let mut counted = counts.clone();
                counted[at] += 1;
                split.push((Predicate::and([item, formula.clone()]), counted));
            }
            split.push((uncounted, counts));
        }
        options = split;
    }
    options.retain(|(formula, _)| *formula != Predicate::False);
    options
}
