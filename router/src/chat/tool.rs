//! Tools in the terms of every protocol.

use std::sync::Arc;

use serde_json::Value;

/// A function that the model may call.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tool {
    pub(crate) name: String,
    pub(crate) description: Option<String>,
    /// JSON Schema of the arguments; an object without properties if the client gave none.
    pub(crate) parameters: Arc<Value>,
    /// The tool as the client wrote it, for the chat template.
    pub(crate) original: Arc<Value>,
}

/// What the client wants of the tools.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum ToolChoice {
    /// The model decides.
    #[default]
    Auto,
    /// No call: the template does not see the tools.
    None,
    /// At least one call.
    Required,
    /// Exactly this function.
    Named(String),
}

/// A piece of a reply, in order. Pieces of one kind that follow each other are one text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ReplyPart {
    /// What the reader sees.
    Content(String),
    /// What the model thinks before it answers.
    Reasoning(String),
    /// A call begins: its number in this reply, from 0, and its function.
    ToolCall { index: usize, name: String },
    /// A further piece of the arguments of the call `index`. All pieces together are one JSON object.
    Arguments { index: usize, fragment: String },
}
