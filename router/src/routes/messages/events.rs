//! The answer as a stream of named events.

use futures::stream::Stream;
use serde::Serialize;
use utoipa::ToSchema;

use super::answer::{Message, OutputBlock, Usage, stop_reason};
use crate::error::{AnthropicBody, Dialect, Error};
use crate::routes::chat::{BlockEvent, BlockKind, Chat, ChatEnd, block_stream};
use crate::routes::openai::Head;
use crate::routes::sse;

/// An event. Its name is its type.
#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum MessageEvent<'a> {
    MessageStart { message: Message<'a> },
    Ping,
    ContentBlockStart { index: usize, content_block: OutputBlock },
    ContentBlockDelta { index: usize, delta: BlockDelta },
    ContentBlockStop { index: usize },
    MessageDelta { delta: MessageDelta, usage: Usage },
    MessageStop,
}

/// What an event says.
#[derive(ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "only the document speaks of it")]
pub(super) enum MessageStreamEvent {
    Event(MessageEvent<'static>),
    /// Of a reply that failed.
    Error(AnthropicBody<'static>),
}

/// What a block grows by.
#[derive(Serialize, ToSchema)]
#[serde(tag = "type")]
pub(super) enum BlockDelta {
    #[serde(rename = "text_delta")]
    Text { text: String },
    #[serde(rename = "thinking_delta")]
    Thinking { thinking: String },
    /// A piece of the arguments' JSON text.
    #[serde(rename = "input_json_delta")]
    InputJson { partial_json: String },
}

#[derive(Serialize, ToSchema)]
pub(super) struct MessageDelta {
    stop_reason: &'static str,
    stop_sequence: Option<String>,
}

impl MessageEvent<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        let name = match self {
            MessageEvent::MessageStart { .. } => "message_start",
            MessageEvent::Ping => "ping",
            MessageEvent::ContentBlockStart { .. } => "content_block_start",
            MessageEvent::ContentBlockDelta { .. } => "content_block_delta",
            MessageEvent::ContentBlockStop { .. } => "content_block_stop",
            MessageEvent::MessageDelta { .. } => "message_delta",
            MessageEvent::MessageStop => "message_stop",
        };
        sse::write_named_event(out, name, self);
    }
}

/// The events of `chat`.
pub(super) fn stream(chat: Chat, head: Head) -> impl Stream<Item = Vec<u8>> + Send {
    let mut first = Vec::with_capacity(512);
    let message = Message::begun(&head, Usage::of_prompt(chat.input_tokens));
    MessageEvent::MessageStart { message }.write(&mut first);
    MessageEvent::Ping.write(&mut first);
    block_stream(chat, first, |out, step| match step {
        Ok((events, end)) => write_step(out, events, end),
        Err(error) => write_error(out, &error),
    })
}

fn write_step(out: &mut Vec<u8>, events: Vec<BlockEvent>, end: Option<ChatEnd>) {
    for event in events {
        match event {
            BlockEvent::Opened { index, block } => {
                MessageEvent::ContentBlockStart { index, content_block: OutputBlock::new(block) }
            }
            BlockEvent::Grew { index, kind, text, .. } => MessageEvent::ContentBlockDelta {
                index,
                delta: match kind {
                    BlockKind::Content => BlockDelta::Text { text },
                    BlockKind::Reasoning => BlockDelta::Thinking { thinking: text },
                    BlockKind::ToolCall => BlockDelta::InputJson { partial_json: text },
                },
            },
            BlockEvent::Closed { index, .. } => MessageEvent::ContentBlockStop { index },
        }
        .write(out);
    }
    if let Some(end) = end {
        let delta = MessageDelta { stop_reason: stop_reason(&end), stop_sequence: end.generation.stop.clone() };
        MessageEvent::MessageDelta { delta, usage: Usage::new(&end) }.write(out);
        MessageEvent::MessageStop.write(out);
    }
}

fn write_error(out: &mut Vec<u8>, error: &Error) {
    out.extend_from_slice(b"event: error\n");
    sse::write_raw_event(out, &Dialect::Anthropic.body(error));
}
