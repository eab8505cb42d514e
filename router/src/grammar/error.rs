//! Why a grammar is not obeyed: everything a client can ask for that cannot be enforced, and what can go wrong on the way.

use std::time::Duration;

/// A grammar that cannot be compiled. Nothing was generated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum GrammarError {
    /// A keyword of a schema that cannot be enforced, with its JSON pointer. The client's to change.
    #[error("JSON schema: `{keyword}` at `{path}` cannot be enforced: {reason}")]
    Unsupported { keyword: String, path: String, reason: String },
    /// A schema that is not one.
    #[error("JSON schema: `{keyword}` at `{path}` is invalid: {reason}")]
    InvalidSchema { keyword: String, path: String, reason: String },
    /// A schema that no document satisfies.
    #[error("JSON schema: no JSON document satisfies the schema")]
    Unsatisfiable,
    /// An expression that is not one, or that no automaton can match (lookaround, backreferences).
    #[error("regex: {reason}")]
    InvalidRegex { reason: String },
    /// A list of choices that cannot be used.
    #[error("choice: {reason}")]
    InvalidChoice { reason: String },
    /// A grammar text that is not one.
    #[error("grammar: {reason}")]
    InvalidGrammar { reason: String },
    /// A keyword of a tool's schema that calls cannot obey, with the JSON pointer of its schema.
    #[error("`{keyword}` at `{path}` of the parameters of `{tool}` cannot be enforced: {reason}")]
    UnsupportedTool { tool: String, keyword: String, path: String, reason: String },
    /// Schemas of tools that cannot be enforced.
    #[error("{reason}")]
    InvalidTools { reason: String },
    /// Larger than a limit.
    #[error("the {what} has {value}, limit {limit}")]
    TooLarge { what: &'static str, value: usize, limit: usize },
    /// Within the limits on size, but its automaton is not within those on work or memory.
    #[error("the grammar is too complex: {reason}")]
    TooComplex { reason: String },
    /// Too many grammars wait for compilation.
    #[error("too many grammars wait for compilation (limit {limit})")]
    Overloaded { limit: usize },
    /// Compilation took too long.
    #[error("the grammar took longer than {limit:?} to compile")]
    TimedOut { limit: Duration },
    /// The model's tokenizer cannot be constrained.
    #[error("this model's tokenizer cannot be constrained: {reason}")]
    Tokenizer { reason: String },
    /// A defect of ours (or of the grammar library), contained to this request.
    #[error("the grammar compiler failed: {reason}")]
    Internal { reason: String },
}

/// A mask that could not be computed or a token that the grammar does not allow. The request fails alone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MatcherError {
    /// The mask would have cost more than its bound.
    #[error("the grammar's next token mask is too expensive: {reason}")]
    TooComplex { reason: String },
    /// A token outside the last mask.
    #[error("token {token_id} is not allowed by the grammar here")]
    NotAllowed { token_id: u32 },
    /// The grammar reached a state that no token leaves.
    #[error("the grammar has no continuation: {reason}")]
    Stuck { reason: String },
}
