//! Structured output: from what a client asks (a schema, a regex, a list of choices, a grammar) to the token masks that
//! the sampler obeys.
//!
//! A [`GrammarSpec`] is compiled once ([`GrammarEngine`]); every reply walks its own [`Matcher`]. The automata are
//! llguidance's (Earley parser over derivatives of regular expressions) and learn from every reply (`automaton`); what
//! JSON Schema means is ours (`json`).

mod automaton;
mod cache;
mod compiled;
mod engine;
mod error;
mod json;
mod lark;
mod matcher;
mod regex;
mod rules;
mod spec;
#[cfg(test)]
mod tests;
mod tool_schema;
mod vocabulary;
mod weight;

pub(crate) use compiled::CompiledGrammar;
pub(crate) use engine::GrammarEngine;
pub(crate) use error::GrammarError;
pub(crate) use matcher::Matcher;
pub(crate) use spec::GrammarSpec;
