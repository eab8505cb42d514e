//! What a reply must match, in the terms of every protocol.

use std::sync::Arc;

use serde_json::Value;

/// A constraint on the text of a reply.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum GrammarSpec {
    /// A JSON document that the schema accepts.
    JsonSchema(Arc<Value>),
    /// Any JSON object.
    JsonObject,
    /// The whole reply matches the expression.
    Regex(Arc<str>),
    /// The whole reply is one of these.
    Choice(Arc<[String]>),
    /// A grammar in llguidance's dialect of Lark; OpenAI's and vLLM's EBNF are translated into it.
    Lark(Arc<str>),
    /// Text with tool calls, as the model's format of calls writes them.
    ToolCalls {
        /// Lark that this server wrote, with the schemas of the arguments inside (`%json`).
        lark: Arc<str>,
        /// Each tool's name and the schema of its arguments, as the client wrote it.
        schemas: Arc<[(String, Arc<Value>)]>,
    },
    /// What the model thinks, and behind it a text that matches `answer`.
    AfterThought {
        /// Lark that this server wrote: all that comes before the answer. If it can be empty, so can the thought.
        thought: Arc<str>,
        answer: Arc<GrammarSpec>,
    },
}

impl GrammarSpec {
    /// White space around such a text means nothing.
    pub(crate) fn is_json(&self) -> bool {
        matches!(self, GrammarSpec::JsonSchema(_) | GrammarSpec::JsonObject)
    }
}
