//! A stream of parts as blocks that open, grow and close: the view of protocols whose answers are lists of blocks.

use futures::stream::{self, Stream, StreamExt};

use super::reply::Block;
use super::steps::{Chat, ChatEnd, ChatStep, ScoredToken};
use crate::chat::ReplyPart;
use crate::error::Error;

/// The bytes of a stream that begins with `first`. `write` makes them of what a step did to the blocks, or of a failure.
pub(crate) fn block_stream(
    chat: Chat,
    first: Vec<u8>,
    write: impl FnMut(&mut Vec<u8>, Result<(Vec<BlockEvent>, Option<ChatEnd>), Error>) + Send,
) -> impl Stream<Item = Vec<u8>> + Send {
    let state = (chat, Blocks::default(), write);
    let rest = stream::unfold(state, |(mut chat, mut blocks, mut write)| async move {
        loop {
            let (_, step) = chat.next().await?;
            let mut out = Vec::with_capacity(512);
            let events = |step: ChatStep| (blocks.step(step.parts, step.content_tokens, step.end.is_some()), step.end);
            write(&mut out, step.map(events));
            // A token whose meaning is open makes no event.
            if !out.is_empty() {
                return Some((out, (chat, blocks, write)));
            }
        }
    });
    stream::once(async { first }).chain(rest)
}

/// Follows one reply.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    /// The block that grows, complete so far.
    open: Option<Block>,
    /// Blocks before the open one.
    closed: usize,
}

/// What happens to the block `index`.
#[derive(Debug, PartialEq)]
pub(crate) enum BlockEvent {
    /// It begins; it is empty.
    Opened { index: usize, block: Block },
    /// Its text, or the arguments of its call, go on. `tokens` are those of a [`Block::Content`].
    Grew { index: usize, kind: BlockKind, text: String, tokens: Vec<ScoredToken> },
    /// It is complete.
    Closed { index: usize, block: Block },
}

/// What a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BlockKind {
    Content,
    Reasoning,
    ToolCall,
}

impl Blocks {
    /// What the parts of a step do to the blocks; after the last step all are closed. The tokens of the step's content go to
    /// the last of it.
    pub(super) fn step(
        &mut self,
        parts: Vec<ReplyPart>,
        mut content_tokens: Vec<ScoredToken>,
        is_last: bool,
    ) -> Vec<BlockEvent> {
        let last_content = parts.iter().rposition(|part| matches!(part, ReplyPart::Content(text) if !text.is_empty()));
        let mut events = Vec::new();
        for (at, part) in parts.into_iter().enumerate() {
            let tokens = if last_content == Some(at) { std::mem::take(&mut content_tokens) } else { Vec::new() };
            self.push(part, tokens, &mut events);
        }
        if is_last {
            self.close(&mut events);
        }
        events
    }

    fn push(&mut self, part: ReplyPart, tokens: Vec<ScoredToken>, out: &mut Vec<BlockEvent>) {
        let (block, text) = match part {
            ReplyPart::Content(text) => (Block::Content { text: String::new(), tokens: Vec::new() }, text),
            ReplyPart::Reasoning(text) => (Block::Reasoning(String::new()), text),
            ReplyPart::ToolCall { name, .. } => {
                self.close(out);
                (Block::ToolCall { name, arguments: String::new() }, String::new())
            }
            // Arguments follow the name of their call, so that one is open.
            ReplyPart::Arguments { fragment, .. } => return self.grow(fragment, tokens, out),
        };
        if self.open.as_ref().is_none_or(|open| open.kind() != block.kind()) {
            self.close(out);
            out.push(BlockEvent::Opened { index: self.closed, block: block.clone() });
            self.open = Some(block);
        }
        self.grow(text, tokens, out);
    }

    fn close(&mut self, out: &mut Vec<BlockEvent>) {
        if let Some(block) = self.open.take() {
            out.push(BlockEvent::Closed { index: self.closed, block });
            self.closed += 1;
        }
    }

    fn grow(&mut self, text: String, tokens: Vec<ScoredToken>, out: &mut Vec<BlockEvent>) {
        if text.is_empty() {
            return;
        }
        let Some(block) = &mut self.open else { return };
        match block {
            Block::Content { text: all, tokens: all_tokens } => {
                all.push_str(&text);
                all_tokens.extend_from_slice(&tokens);
            }
            Block::Reasoning(all) | Block::ToolCall { arguments: all, .. } => all.push_str(&text),
        }
        out.push(BlockEvent::Grew { index: self.closed, kind: block.kind(), text, tokens });
    }
}

impl Block {
    fn kind(&self) -> BlockKind {
        match self {
            Block::Content { .. } => BlockKind::Content,
            Block::Reasoning(_) => BlockKind::Reasoning,
            Block::ToolCall { .. } => BlockKind::ToolCall,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generation::Token;

    #[test]
    fn blocks_open_grow_and_close_in_order() {
        let mut blocks = Blocks::default();
        let call = |index| ReplyPart::ToolCall { index, name: "f".to_owned() };
        let arguments = |index| ReplyPart::Arguments { index, fragment: "{}".to_owned() };
        let text = |text: &str| ReplyPart::Content(text.to_owned());
        let token = || (Token { id: 7, text: "ab".to_owned(), logprob: -0.5, is_special: false }, Vec::new());
        let mut out = blocks.step(vec![text("a"), text("b"), call(0), arguments(0), call(1)], vec![token()], false);
        out.extend(blocks.step(vec![arguments(1), text("c")], Vec::new(), true));
        let shown: Vec<String> = out
            .iter()
            .map(|event| match event {
                BlockEvent::Opened { index, .. } => format!("({index}"),
                BlockEvent::Grew { index, text, .. } => format!("{index}{text}"),
                BlockEvent::Closed { index, .. } => format!("{index})"),
            })
            .collect();
        assert_eq!(shown.join(" "), "(0 0a 0b 0) (1 1{} 1) (2 2{} 2) (3 3c 3)");
        assert_eq!(
            out[3],
            BlockEvent::Closed { index: 0, block: Block::Content { text: "ab".to_owned(), tokens: vec![token()] } }
        );
    }
}
