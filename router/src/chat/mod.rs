//! What a chat model's text means: content, reasoning and tool calls.

mod families;
mod format;
mod json_scanner;
mod mask;
mod object;
mod parameters;
mod reasoning;
mod reply_parser;
mod section;
mod tool;

pub(crate) use format::ToolFormat;
pub(crate) use reasoning::{ReasoningFormat, ReplyStart};
pub(crate) use reply_parser::{BrokenCall, ReplyParser};
pub(crate) use tool::{ReplyPart, Tool, ToolChoice};
