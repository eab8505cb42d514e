//! A whole reply, put together from its steps.

use super::blocks::{BlockEvent, Blocks};
use super::steps::{ChatEnd, ChatStep, ScoredToken};

/// One choice of a chat, complete once it has an `end`.
#[derive(Debug)]
pub(crate) struct ChatReply {
    /// In the order in which the model wrote them.
    pub(crate) blocks: Vec<Block>,
    /// Every token, if the answer shows log-probabilities.
    pub(crate) tokens: Vec<ScoredToken>,
    pub(crate) end: Option<ChatEnd>,
    /// The block that goes on.
    open: Blocks,
    keeps_tokens: bool,
}

/// A stretch of a reply.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Block {
    /// With the tokens that it is made of, if the answer shows log-probabilities.
    Content {
        text: String,
        tokens: Vec<ScoredToken>,
    },
    Reasoning(String),
    ToolCall {
        name: String,
        arguments: String,
    },
}

impl ChatReply {
    pub(super) fn new(logprobs: Option<usize>) -> Self {
        Self {
            blocks: Vec::new(),
            tokens: Vec::new(),
            end: None,
            open: Blocks::default(),
            keeps_tokens: logprobs.is_some(),
        }
    }

    pub(super) fn push(&mut self, step: ChatStep) {
        let events = self.open.step(step.parts, step.content_tokens, step.end.is_some());
        self.blocks.extend(events.into_iter().filter_map(|event| match event {
            BlockEvent::Closed { block, .. } => Some(block),
            BlockEvent::Opened { .. } | BlockEvent::Grew { .. } => None,
        }));
        if self.keeps_tokens {
            self.tokens.push((step.token, step.top_tokens));
        }
        self.end = step.end;
    }

    /// All content, and all reasoning, each joined.
    pub(crate) fn texts(&self) -> (String, String) {
        let (mut content, mut reasoning) = (String::new(), String::new());
        for block in &self.blocks {
            match block {
                Block::Content { text, .. } => content.push_str(text),
                Block::Reasoning(text) => reasoning.push_str(text),
                Block::ToolCall { .. } => {}
            }
        }
        (content, reasoning)
    }
}
