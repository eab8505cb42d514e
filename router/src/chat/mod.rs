//! What a chat model's text means: content, reasoning and tool calls.
//!
//! One description per model family (`families`, a table) drives the mask (`mask`) and the parser (`section`), which reads
//! a stream and a whole answer alike. How a route uses it:
//!
//! - once per server: [`ToolFormat::detect`] and [`ReasoningFormat::detect`] with the chat template and
//!   `TextTokenizer::special_id`;
//! - per request: [`ReasoningFormat::start`] with the rendered prompt; [`ToolFormat::grammar`] as the request's grammar,
//!   or [`ToolFormat::after_thought`] around the one that the client asks for; if [`ToolFormat::is_fallback`],
//!   [`instruction`] behind the last message; `ReplyText::show` with both formats' `visible_tokens`, so that their marks
//!   are in the text;
//! - per reply: [`ReplyParser::new`] (or [`ReplyParser::of_answer`], for an answer under the client's grammar),
//!   [`ReplyParser::push`] with every delta (or once with everything), then [`ReplyParser::finish`]. Joined parts do not
//!   depend on the cuts. [`ReplyParser::calls`] above zero makes the finish reason `tool_calls`, unless the reply was cut.

mod families;
mod format;
mod instruction;
mod json_scanner;
mod keywords;
mod mask;
mod object;
mod parameters;
mod reasoning;
mod reply_parser;
mod section;
#[cfg(test)]
mod tests;
mod tool;

pub(crate) use format::ToolFormat;
pub(crate) use instruction::instruction;
pub(crate) use reasoning::{ReasoningFormat, ReplyStart};
pub(crate) use reply_parser::{Answer, ReplyParser};
pub(crate) use tool::{ReplyPart, Tool, ToolChoice};
