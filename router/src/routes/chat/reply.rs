//! A whole reply, put together from its steps.

use super::steps::{ChatEnd, ChatStep};
use crate::chat::ReplyPart;
use crate::generation::Token;

/// One choice of a chat, complete once it has an `end`.
#[derive(Debug)]
pub(crate) struct ChatReply {
    /// In the order in which the model wrote them.
    pub(crate) blocks: Vec<Block>,
    /// Each token with its alternatives, if the answer shows log-probabilities.
    pub(crate) tokens: Vec<(Token, Vec<Token>)>,
    /// Those that content is made of, each with the index of its block.
    pub(crate) content_tokens: Vec<(usize, (Token, Vec<Token>))>,
    pub(crate) end: Option<ChatEnd>,
    keeps_tokens: bool,
}

/// A stretch of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    Content(String),
    Reasoning(String),
    ToolCall { name: String, arguments: String },
}

impl ChatReply {
    pub(super) fn new(logprobs: Option<usize>) -> Self {
        Self {
            blocks: Vec::new(),
            tokens: Vec::new(),
            content_tokens: Vec::new(),
            end: None,
            keeps_tokens: logprobs.is_some(),
        }
    }

    pub(super) fn push(&mut self, step: ChatStep) {
        for part in step.parts {
            self.push_part(part);
        }
        if let Some(block) = self.blocks.iter().rposition(|block| matches!(block, Block::Content(_))) {
            self.content_tokens.extend(step.content_tokens.into_iter().map(|token| (block, token)));
        }
        if self.keeps_tokens {
            self.tokens.push((step.token, step.top_tokens));
        }
        self.end = step.end;
    }

    fn push_part(&mut self, part: ReplyPart) {
        match (part, self.blocks.last_mut()) {
            (ReplyPart::Content(text), Some(Block::Content(content))) => content.push_str(&text),
            (ReplyPart::Content(text), _) => self.blocks.push(Block::Content(text)),
            (ReplyPart::Reasoning(text), Some(Block::Reasoning(reasoning))) => reasoning.push_str(&text),
            (ReplyPart::Reasoning(text), _) => self.blocks.push(Block::Reasoning(text)),
            (ReplyPart::ToolCall { name, .. }, _) => {
                self.blocks.push(Block::ToolCall { name, arguments: String::new() });
            }
            (ReplyPart::Arguments { index, fragment }, _) => {
                let mut calls = self.blocks.iter_mut().filter_map(|block| match block {
                    Block::ToolCall { arguments, .. } => Some(arguments),
                    _ => None,
                });
                calls.nth(index).expect("a call's arguments follow its name").push_str(&fragment);
            }
        }
    }

    /// All content, and all reasoning, each joined.
    pub(crate) fn texts(&self) -> (String, String) {
        let (mut content, mut reasoning) = (String::new(), String::new());
        for block in &self.blocks {
            match block {
                Block::Content(text) => content.push_str(text),
                Block::Reasoning(text) => reasoning.push_str(text),
                Block::ToolCall { .. } => {}
            }
        }
        (content, reasoning)
    }
}
