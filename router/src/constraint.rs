//! What the engine needs to know of a grammar: which tokens may follow, and that one did.
//!
//! Grammars are compiled elsewhere (`grammar/`); scheduler and engine know these two traits only.

use std::fmt;
use std::sync::Arc;

use crate::grammar::{self, CompiledGrammar};

/// A compiled grammar. Shared by all requests that use it.
pub trait Constraint: Send + Sync {
    /// A reader that stands before the first token of a reply.
    fn matcher(&self) -> Box<dyn Matcher>;
}

/// The state of one reply under its grammar. It may take from microseconds to milliseconds, so it is called on the
/// engine's mask workers only.
pub trait Matcher: Send {
    /// The tokens that may come next, packed: bit `id % 32` of word `id / 32`. End-of-sequence tokens are among them
    /// exactly where the text may end.
    ///
    /// # Errors
    /// In words, if the grammar's limits are exceeded. The request fails alone.
    fn mask(&mut self) -> Result<Vec<u32>, String>;

    /// Goes on over a token that the last mask allowed.
    ///
    /// # Errors
    /// In words, if the grammar does not allow it after all.
    fn accept(&mut self, token_id: u32) -> Result<(), String>;
}

/// A [`Constraint`] that a request carries. Two are equal if they are the same object.
#[derive(Clone)]
pub struct SharedConstraint(pub Arc<dyn Constraint>);

impl PartialEq for SharedConstraint {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for SharedConstraint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SharedConstraint")
    }
}

impl Constraint for CompiledGrammar {
    fn matcher(&self) -> Box<dyn Matcher> {
        Box::new(CompiledGrammar::matcher(self))
    }
}

impl Matcher for grammar::Matcher {
    fn mask(&mut self) -> Result<Vec<u32>, String> {
        grammar::Matcher::mask(self).map_err(|error| error.to_string())
    }

    fn accept(&mut self, token_id: u32) -> Result<(), String> {
        grammar::Matcher::accept(self, token_id).map_err(|error| error.to_string())
    }
}
