//! From shapes to grammar rules: how a JSON document with such a shape is spelled.

mod array;
mod object;
mod unique;

use std::collections::HashMap;

use llguidance::derivre::RegexAst;

use super::expand::Expander;
use super::number::{self, NumberAtom, NumberPredicate};
use super::predicate::Predicate;
use super::shape::{Formula, Shape};
use super::text::{self, TextAtom, TextPredicate};
use crate::grammar::error::GrammarError;
use crate::grammar::rules::{Rule, RuleId, Rules};
use crate::grammar::weight::{ByteWeights, Weight};

/// Makes the rules of a schema.
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

    /// An item or a field with the comma it needs after `count` others.
    fn after(&mut self, count: usize, field: RuleId) -> Result<RuleId, GrammarError> {
        if count == 0 {
            return Ok(field);
        }
        let comma = self.literal(",")?;
        self.sequence(vec![comma, field])
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
}

/// White space between the parts of a document: none, a space, or a line break and indentation. Bounded, so that no
/// reply consists of white space.
pub(super) fn white_space() -> RegexAst {
    RegexAst::Regex(r"\x20|\n[\x20]{0,32}".to_owned())
}
