//! JSON schemas as grammars.
//!
//! Everything that a schema demands is enforced or refused by name: `schemas` finds subschemas and references, `expand`
//! turns keywords into `shape`s (what is allowed, by JSON type), `emit` spells shapes as grammar rules. Between them
//! stand Boolean expressions (`predicate`) over schemas, over numbers and over strings, all of them exact, so `not`,
//! `oneOf` and `if` mean what they say. What follows the draft: unknown keywords and unknown formats are annotations.

mod emit;
mod expand;
mod format;
mod number;
mod ordered_map;
mod predicate;
mod schemas;
mod shape;
mod text;

use llguidance::api::GrammarInit;
use serde_json::Value;

use super::error::GrammarError;
use super::weight::{ByteWeights, Weight};

pub(super) use schemas::{check_depth, subschemas};

/// The grammar of the documents that satisfy `schema`, and a lower bound of what the shortest weighs. Recurses as deeply
/// as the schema nests: run it on a thread with [`crate::limits::GRAMMAR_STACK_BYTES`].
///
/// # Errors
/// [`GrammarError`] that names keyword and path, if the schema is malformed, cannot be enforced or cannot be satisfied.
pub(super) fn compile(schema: &Value, weights: &ByteWeights) -> Result<(GrammarInit, Weight), GrammarError> {
    schemas::check_depth(schema)?;
    let expander = expand::Expander::new(schemas::Schemas::new(schema)?);
    let mut emitter = emit::Emitter::new(expander, weights);
    let root = emitter.root()?;
    emitter.rules.build(root, emit::white_space())?.ok_or(GrammarError::Unsatisfiable)
}
