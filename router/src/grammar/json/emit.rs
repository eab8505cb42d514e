//! From shapes to grammar rules: how a JSON document with such a shape is spelled.
//!
//! Properties come in the order of the schema, then others. Where a name may come twice, the last one counts for every
//! reader of JSON, so what must hold for some property stands last.

use std::collections::HashMap;

use llguidance::derivre::RegexAst;

use super::super::error::GrammarError;
use super::super::rules::{Rule, RuleId, Rules};
use super::super::weight::{ByteWeights, Weight};
use super::expand::Expander;
use super::number::{self, NumberAtom, NumberPredicate};
use super::ordered_map::OrderedMap;
use super::predicate::Predicate;
use super::shape::{ArrayShape, Contains, Formula, ObjectShape, Property, Shape};
use super::text::{self, TextAtom, TextPredicate};
use crate::limits::{MAX_COUNTED_ITEMS, MAX_UNIQUE_VALUES};

pub(super) struct Emitter<'a> {
    expander: Expander<'a>,
    pub(super) rules: Rules,
    weights: &'a ByteWeights,
    content_weights: ByteWeights,
    formulas: HashMap<Formula, RuleId>,
    /// Formulas that are referred to and have no body yet.
    open: Vec<(Formula, RuleId)>,
    names: HashMap<TextPredicate, RuleId>,
    numbers: HashMap<NumberPredicate, RuleId>,
}

impl<'a> Emitter<'a> {
    pub(super) fn new(expander: Expander<'a>, weights: &'a ByteWeights) -> Self {
        Self {
            expander,
            rules: Rules::default(),
            weights,
            content_weights: weights.inside_json_string(),
            formulas: HashMap::new(),
            open: Vec::new(),
            names: HashMap::new(),
            numbers: HashMap::new(),
        }
    }

    /// The rule of the documents that satisfy the root schema.
    pub(super) fn root(&mut self) -> Result<RuleId, GrammarError> {
        let formula = Predicate::Atom(self.expander.schemas.root());
        let root = self.formula(&formula)?;
        while let Some((formula, rule)) = self.open.pop() {
            let shape = self.expander.shape(&formula)?;
            let options = self.shape(&shape)?;
            self.rules.complete(rule, options);
        }
        Ok(root)
    }

    fn formula(&mut self, formula: &Formula) -> Result<RuleId, GrammarError> {
        if let Some(&rule) = self.formulas.get(formula) {
            return Ok(rule);
        }
        let rule = self.rules.placeholder()?;
        self.formulas.insert(formula.clone(), rule);
        self.open.push((formula.clone(), rule));
        Ok(rule)
    }

    fn shape(&mut self, shape: &Shape) -> Result<Vec<RuleId>, GrammarError> {
        let mut options = Vec::new();
        for (word, allowed) in [("null", shape.null), ("true", shape.truth), ("false", shape.falsehood)] {
            if allowed {
                options.push(self.literal(word)?);
            }
        }
        if shape.numbers != Predicate::False {
            options.push(self.number(&shape.numbers)?);
        }
        if shape.strings != Predicate::False {
            options.push(self.string(&shape.strings)?);
        }
        for array in &shape.arrays {
            options.push(self.array(array)?);
        }
        for object in &shape.objects {
            options.push(self.object(object)?);
        }
        Ok(options)
    }

    fn literal(&mut self, text: &str) -> Result<RuleId, GrammarError> {
        self.rules.literal(text, self.weights.text(text.as_bytes()))
    }

    fn sequence(&mut self, parts: Vec<RuleId>) -> Result<RuleId, GrammarError> {
        self.rules.add(Rule::Sequence(parts))
    }

    fn choice(&mut self, options: Vec<RuleId>) -> Result<RuleId, GrammarError> {
        self.rules.add(Rule::Choice(options))
    }

    fn number(&mut self, predicate: &NumberPredicate) -> Result<RuleId, GrammarError> {
        if let Some(&rule) = self.numbers.get(predicate) {
            return Ok(rule);
        }
        let complex = |reason: String| GrammarError::TooComplex { reason: format!("a number of the schema: {reason}") };
        let ast = number::spellings(predicate)
            .map_err(|what| GrammarError::TooComplex { reason: format!("{what} cannot be enforced") })?;
        let weight = match predicate {
            Predicate::Atom(NumberAtom::Equal(value)) => self.weights.text(value.text().as_bytes()),
            _ => self.weights.lightest(b'0'..=b'9'),
        };
        let empty = *predicate != Predicate::True && text::is_empty(&ast).map_err(complex)?;
        let rule = self.rules.add(Rule::Lexeme(Box::new(ast), (!empty).then_some(weight)))?;
        self.numbers.insert(predicate.clone(), rule);
        Ok(rule)
    }

    fn string(&mut self, predicate: &TextPredicate) -> Result<RuleId, GrammarError> {
        if let Some(&rule) = self.names.get(predicate) {
            return Ok(rule);
        }
        let complex = |reason: String| GrammarError::TooComplex { reason: format!("a string of the schema: {reason}") };
        let ast = text::spellings(predicate);
        let empty = match predicate {
            Predicate::True | Predicate::Atom(TextAtom::Literal(_) | TextAtom::Format(_)) => false,
            _ => text::is_empty(&ast).map_err(complex)?,
        };
        let weight = self.weights.text(b"\"\"").plus(self.content(predicate));
        let rule = self.rules.add(Rule::Lexeme(Box::new(ast), (!empty).then_some(weight)))?;
        self.names.insert(predicate.clone(), rule);
        Ok(rule)
    }

    /// A lower bound of what the content of a string weighs.
    fn content(&self, predicate: &TextPredicate) -> Weight {
        let weights = &self.content_weights;
        match predicate {
            Predicate::True | Predicate::False | Predicate::NotAtom(_) => Weight::ZERO,
            Predicate::Atom(TextAtom::Literal(text)) => weights.text(text.as_bytes()),
            // The lightest character may be one that is spelled with others; two bytes of `\n` are still bytes.
            Predicate::Atom(TextAtom::Length { min, .. }) => self.weights.lightest_byte().times(*min as usize),
            Predicate::Atom(TextAtom::Pattern(pattern)) => weights.pattern(&llguidance::regex_to_lark(pattern, "dw")),
            Predicate::Atom(TextAtom::Format(name)) => {
                super::format::expression(name).map_or(Weight::ZERO, |(_, pattern)| weights.pattern(pattern))
            }
            Predicate::And(parts) => parts.iter().map(|part| self.content(part)).max().unwrap_or(Weight::ZERO),
            Predicate::Or(parts) => parts.iter().map(|part| self.content(part)).min().unwrap_or(Weight::ZERO),
        }
    }

    fn array(&mut self, array: &ArrayShape) -> Result<RuleId, GrammarError> {
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
        let comma = self.literal(",")?;
        let mut options = Vec::new();
        if index < array.prefix.len() {
            let item = self.formula(&array.prefix[index])?;
            let rest = self.items(array, index + 1)?;
            let parts = if index == 0 { vec![item, rest] } else { vec![comma, item, rest] };
            options.push(self.sequence(parts)?);
            if array.min <= index {
                options.push(close);
            }
            return self.choice(options);
        }
        let item = self.formula(&array.items)?;
        let further = self.sequence(vec![comma, item])?;
        let (min, max) = (array.min.saturating_sub(index), array.max.map(|max| max - index));
        if index > 0 {
            let items = self.rules.add(Rule::Repeat(further, min, max))?;
            return self.sequence(vec![items, close]);
        }
        let items = self.rules.add(Rule::Repeat(further, min.saturating_sub(1), max.map(|max| max - 1)))?;
        options.push(self.sequence(vec![item, items, close])?);
        if min == 0 {
            options.push(close);
        }
        self.choice(options)
    }

    /// Items under `contains`: an automaton over the index and how many items have satisfied each rule.
    fn counted_items(&mut self, array: &ArrayShape) -> Result<RuleId, GrammarError> {
        let last = array.contains.iter().map(|rule| rule.from).chain([1, array.prefix.len(), array.min]);
        let last = last.chain(array.max).max().unwrap_or(1);
        let counts = array.contains.iter().map(|rule| rule.max.unwrap_or(rule.min)).max().unwrap_or(0);
        if last > MAX_COUNTED_ITEMS || counts > MAX_COUNTED_ITEMS || array.contains.len() > 2 {
            return Err(GrammarError::TooComplex {
                reason: format!("`contains` beside more than {MAX_COUNTED_ITEMS} counted items, or more than twice"),
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
                let parts = if index == 0 { vec![item] } else { vec![self.literal(",")?, item] };
                let item = self.sequence(parts)?;
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

    /// Unique items: an automaton over the index and the set of values used, if the values are few.
    fn unique_items(&mut self, array: &ArrayShape) -> Result<RuleId, GrammarError> {
        let place = array.unique.expect("the caller asked for unique items");
        let refuse =
            |emitter: &Self, reason: &str| emitter.expander.unsupported(place, "uniqueItems", reason.to_owned());
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
        let mut rules = Vec::new();
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
                    let rest = self.unique_from(array, allowed, values, index + 1, used | (1 << value), states)?;
                    let mut parts = vec![values[value], rest];
                    if index > 0 {
                        parts.insert(0, self.literal(",")?);
                    }
                    options.push(self.sequence(parts)?);
                }
            }
        }
        let rule = self.choice(options)?;
        states.insert((index, used), rule);
        Ok(rule)
    }

    fn object(&mut self, object: &ObjectShape) -> Result<RuleId, GrammarError> {
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
        let last = match last {
            Some((names, formula)) => Some(self.field(Predicate::and([names, unnamed]), &formula)?),
            None => None,
        };
        let mut named = Vec::new();
        for (name, property) in object.properties.iter() {
            let key = self.literal(&serde_json::Value::from(name).to_string())?;
            let colon = self.literal(":")?;
            let value = self.formula(&property.formula)?;
            named.push((self.sequence(vec![key, colon, value])?, property.required));
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
                "it demands more than one property that the schema does not name".to_owned(),
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
        let comma = self.literal(",")?;
        let end = match fields.last {
            None => close,
            Some(last) => {
                let last = self.sequence(vec![last, close])?;
                self.sequence(vec![comma, last])?
            }
        };
        let end_first = match fields.last {
            None => close,
            Some(last) => self.sequence(vec![last, close])?,
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
            options.push(if count == 0 { end_first } else { end });
        }
        // One property more is certain to have a name of its own; two may share one.
        if missing <= 1 && room != Some(0) {
            let further = self.sequence(vec![comma, fields.rest])?;
            let further = self.rules.add(Rule::Repeat(further, 0, room.map(|room| room - 1)))?;
            let first = self.after(count, fields.rest)?;
            options.push(self.sequence(vec![first, further, end])?);
        }
        self.choice(options)
    }

    /// A field with the comma it needs after `count` others.
    fn after(&mut self, count: usize, field: RuleId) -> Result<RuleId, GrammarError> {
        if count == 0 {
            return Ok(field);
        }
        let comma = self.literal(",")?;
        self.sequence(vec![comma, field])
    }
}

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

/// The values of a shape one by one, if it has few and all are scalars.
fn few_values(shape: &Shape) -> Option<Vec<Shape>> {
    if !shape.arrays.is_empty() || !shape.objects.is_empty() {
        return None;
    }
    let mut values = Vec::new();
    if shape.null {
        values.push(Shape { null: true, ..Shape::nothing() });
    }
    if shape.truth {
        values.push(Shape { truth: true, ..Shape::nothing() });
    }
    if shape.falsehood {
        values.push(Shape { falsehood: true, ..Shape::nothing() });
    }
    for number in alternatives(&shape.numbers) {
        match number {
            Predicate::Atom(NumberAtom::Equal(_)) => {
                values.push(Shape { numbers: number.clone(), ..Shape::nothing() });
            }
            _ => return None,
        }
    }
    for text in alternatives(&shape.strings) {
        match text {
            Predicate::Atom(TextAtom::Literal(_)) => values.push(Shape { strings: text.clone(), ..Shape::nothing() }),
            _ => return None,
        }
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

/// White space between the parts of a document: none, a space, or a line break and indentation. Bounded, so that no
/// reply consists of white space.
pub(super) fn white_space() -> RegexAst {
    RegexAst::Regex(r"\x20|\n[\x20]{0,32}".to_owned())
}
