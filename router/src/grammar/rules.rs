//! A context-free grammar in construction: what can never be completed is cut, what a shortest text costs is known,
//! then it becomes llguidance's.
//!
//! A rule that derives no text would lead a reply into a dead end, so such rules are removed before a mask is computed.

use std::collections::HashMap;

use llguidance::api::{GrammarInit, SkipSpec};
use llguidance::derivre::RegexAst;
use llguidance::earley::lexerspec::{LexemeClass, LexerSpec};
use llguidance::earley::{Grammar, SymIdx, SymbolProps};

use super::error::GrammarError;
use super::weight::Weight;
use crate::limits::MAX_GRAMMAR_RULES;

/// A rule of a [`Rules`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct RuleId(usize);

#[derive(Clone, Debug)]
pub(super) enum Rule {
    /// A terminal; a lower bound of what its shortest text weighs, `None` if it matches nothing.
    Lexeme(Box<RegexAst>, Option<Weight>),
    Literal(String, Weight),
    Sequence(Vec<RuleId>),
    Choice(Vec<RuleId>),
    /// At least, at most.
    Repeat(RuleId, usize, Option<usize>),
}

/// The rules of one grammar.
#[derive(Default)]
pub(super) struct Rules {
    rules: Vec<Rule>,
    literals: HashMap<String, RuleId>,
}

impl Rules {
    pub(super) fn add(&mut self, rule: Rule) -> Result<RuleId, GrammarError> {
        if self.rules.len() == MAX_GRAMMAR_RULES {
            return Err(GrammarError::TooComplex { reason: format!("more than {MAX_GRAMMAR_RULES} rules") });
        }
        self.rules.push(rule);
        Ok(RuleId(self.rules.len() - 1))
    }

    pub(super) fn literal(&mut self, text: &str, weight: Weight) -> Result<RuleId, GrammarError> {
        if let Some(&id) = self.literals.get(text) {
            return Ok(id);
        }
        let id = self.add(Rule::Literal(text.to_owned(), weight))?;
        self.literals.insert(text.to_owned(), id);
        Ok(id)
    }

    /// A rule whose options come later, by [`Rules::complete`].
    pub(super) fn placeholder(&mut self) -> Result<RuleId, GrammarError> {
        self.add(Rule::Choice(Vec::new()))
    }

    pub(super) fn complete(&mut self, placeholder: RuleId, options: Vec<RuleId>) {
        self.rules[placeholder.0] = Rule::Choice(options);
    }

    /// The grammar of the texts that `root` derives, with `skip` allowed once between terminals, and a lower bound of
    /// what its shortest text weighs. `None` if it derives no text.
    pub(super) fn build(&self, root: RuleId, skip: RegexAst) -> Result<Option<(GrammarInit, Weight)>, GrammarError> {
        let weights = self.weights();
        let Some(weight) = weights[root.0] else { return Ok(None) };
        let complex = |error: anyhow::Error| GrammarError::TooComplex { reason: error.to_string() };
        let mut lexer = LexerSpec::new().map_err(complex)?;
        let class = lexer.setup_lexeme_class_with_skip(SkipSpec::once(skip)).map_err(complex)?;
        let mut emitter = Emitter {
            rules: self,
            weights,
            grammar: Grammar::new(None),
            lexer,
            class,
            symbols: HashMap::new(),
            repeats: HashMap::new(),
            open: Vec::new(),
        };
        // The first symbol is the start.
        let start = emitter.symbol();
        emitter.grammar.sym_props_mut(start).is_start = true;
        let root = emitter.emit(root).map_err(complex)?;
        emitter.rule(start, vec![root]).map_err(complex)?;
        while let Some((id, symbol)) = emitter.open.pop() {
            let Rule::Choice(options) = &self.rules[id.0] else { unreachable!("only choices are left open") };
            for &option in options {
                if emitter.weights[option.0].is_some() {
                    let option = emitter.emit(option).map_err(complex)?;
                    emitter.rule(symbol, vec![option]).map_err(complex)?;
                }
            }
        }
        Ok(Some((GrammarInit::Internal(emitter.grammar, emitter.lexer), weight)))
    }

    /// The lightest text of every rule: the least fixed point, `None` where there is no text.
    fn weights(&self) -> Vec<Option<Weight>> {
        let mut weights: Vec<Option<Weight>> = vec![None; self.rules.len()];
        let mut changed = true;
        while changed {
            changed = false;
            for (index, rule) in self.rules.iter().enumerate().rev() {
                let weight = match rule {
                    Rule::Lexeme(_, weight) => *weight,
                    Rule::Literal(_, weight) => Some(*weight),
                    Rule::Sequence(parts) => {
                        parts.iter().try_fold(Weight::ZERO, |sum, part| Some(sum.plus(weights[part.0]?)))
                    }
                    Rule::Choice(options) => options.iter().filter_map(|option| weights[option.0]).min(),
                    Rule::Repeat(_, 0, _) => Some(Weight::ZERO),
                    Rule::Repeat(part, min, _) => weights[part.0].map(|weight| weight.times(*min)),
                };
                if weight != weights[index] {
                    weights[index] = weight;
                    changed = true;
                }
            }
        }
        weights
    }
}

struct Emitter<'a> {
    rules: &'a Rules,
    weights: Vec<Option<Weight>>,
    grammar: Grammar,
    lexer: LexerSpec,
    class: LexemeClass,
    symbols: HashMap<RuleId, SymIdx>,
    repeats: HashMap<(SymIdx, Times), SymIdx>,
    /// Choices that are referred to and have no body yet.
    open: Vec<(RuleId, SymIdx)>,
}

/// How often something is repeated.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Times {
    Any,
    Exactly(usize),
    AtMost(usize),
}

impl Emitter<'_> {
    fn symbol(&mut self) -> SymIdx {
        self.grammar.fresh_symbol_ext("rule", SymbolProps { grammar_id: self.class, ..SymbolProps::default() })
    }

    fn rule(&mut self, left: SymIdx, right: Vec<SymIdx>) -> anyhow::Result<()> {
        self.grammar.add_rule(left, right)
    }

    /// A symbol that may be used before its body exists. Every cycle passes through a choice, so recursion ends here.
    fn choice(&mut self, id: RuleId) -> SymIdx {
        if let Some(&symbol) = self.symbols.get(&id) {
            return symbol;
        }
        let symbol = self.symbol();
        self.symbols.insert(id, symbol);
        self.open.push((id, symbol));
        symbol
    }

    fn emit(&mut self, id: RuleId) -> anyhow::Result<SymIdx> {
        if let Some(&symbol) = self.symbols.get(&id) {
            return Ok(symbol);
        }
        let rules = self.rules;
        let symbol = match &rules.rules[id.0] {
            Rule::Choice(_) => return Ok(self.choice(id)),
            Rule::Lexeme(ast, _) => self.lexeme((**ast).clone())?,
            Rule::Literal(text, _) if text.is_empty() => self.sequence(Vec::new())?,
            Rule::Literal(text, _) => self.lexeme(RegexAst::Literal(text.clone()))?,
            Rule::Sequence(parts) => {
                let parts = parts.iter().map(|&part| self.emit(part)).collect::<anyhow::Result<_>>()?;
                self.sequence(parts)?
            }
            // What cannot be repeated is left out: such a rule has a text only if none is demanded.
            Rule::Repeat(part, ..) if self.weights[part.0].is_none() => self.sequence(Vec::new())?,
            Rule::Repeat(part, min, max) => {
                let part = self.emit(*part)?;
                let more = match max {
                    None => Times::Any,
                    Some(max) => Times::AtMost(max - min),
                };
                let parts = vec![self.repeat(part, Times::Exactly(*min))?, self.repeat(part, more)?];
                self.sequence(parts)?
            }
        };
        self.symbols.insert(id, symbol);
        Ok(symbol)
    }

    fn lexeme(&mut self, ast: RegexAst) -> anyhow::Result<SymIdx> {
        let lexeme = self.lexer.add_greedy_lexeme(String::new(), ast, false, None, usize::MAX)?;
        let symbol = self.symbol();
        self.grammar.make_terminal(symbol, lexeme, &self.lexer)?;
        Ok(symbol)
    }

    fn sequence(&mut self, parts: Vec<SymIdx>) -> anyhow::Result<SymIdx> {
        let symbol = self.symbol();
        self.rule(symbol, parts)?;
        Ok(symbol)
    }

    /// Repetition in a number of symbols logarithmic in the count: blocks of powers of two.
    fn repeat(&mut self, part: SymIdx, times: Times) -> anyhow::Result<SymIdx> {
        if let Some(&symbol) = self.repeats.get(&(part, times)) {
            return Ok(symbol);
        }
        let symbol = self.symbol();
        match times {
            Times::Any => {
                self.rule(symbol, vec![])?;
                self.rule(symbol, vec![symbol, part])?;
            }
            Times::Exactly(0) | Times::AtMost(0) => self.rule(symbol, vec![])?,
            Times::Exactly(1) => self.rule(symbol, vec![part])?,
            Times::Exactly(count) => {
                let half = self.repeat(part, Times::Exactly(count / 2))?;
                let mut parts = vec![half, half];
                if count % 2 == 1 {
                    parts.push(part);
                }
                self.rule(symbol, parts)?;
            }
            Times::AtMost(1) => {
                self.rule(symbol, vec![])?;
                self.rule(symbol, vec![part])?;
            }
            // Fewer than the largest power of two within the count, or that many and at most what remains: each
            // number of repetitions has one derivation.
            Times::AtMost(count) => {
                let block = 1 << count.ilog2();
                let fewer = self.repeat(part, Times::AtMost(block - 1))?;
                self.rule(symbol, vec![fewer])?;
                let full = self.repeat(part, Times::Exactly(block))?;
                let rest = self.repeat(part, Times::AtMost(count - block))?;
                self.rule(symbol, vec![full, rest])?;
            }
        }
        self.repeats.insert((part, times), symbol);
        Ok(symbol)
    }
}
