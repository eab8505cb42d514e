//! What a chat model's text means: content, reasoning and tool calls.

mod tool;

pub(crate) use tool::{ReplyPart, Tool, ToolChoice};

mod temporary;

pub(crate) use temporary::{ReasoningFormat, ReplyParser, ReplyStart, ToolFormat, instruction};
