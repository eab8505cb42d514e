//! The answer as a stream of typed events, numbered from 0.

use futures::stream::Stream;
use serde::Serialize;
use utoipa::ToSchema;

use super::answer::{ContentPart, LogprobForm, OutputItem, Response, Status};
use crate::error::{Dialect, Error};
use crate::routes::chat::{Block, BlockEvent, BlockKind, Chat, ChatEnd, ChatFinish, ScoredToken, block_stream};
use crate::routes::openai::logprobs::TokenLogprob;
use crate::routes::sse;

/// An event.
#[derive(Serialize, ToSchema)]
#[schema(as = ResponsesEvent)]
struct Event<T> {
    r#type: &'static str,
    sequence_number: u64,
    #[serde(flatten)]
    content: T,
}

/// What an event says, beside its type.
#[derive(Serialize, ToSchema)]
#[schema(as = ResponsesEventContent)]
#[serde(untagged)]
enum Content<'a> {
    Response {
        response: &'a Response,
    },
    Item {
        output_index: usize,
        item: &'a OutputItem,
    },
    Part {
        output_index: usize,
        item_id: &'a str,
        content_index: usize,
        part: &'a ContentPart,
    },
    /// Of output text, which can have log-probabilities.
    OutputDelta {
        output_index: usize,
        item_id: &'a str,
        content_index: usize,
        delta: &'a str,
        logprobs: Vec<TokenLogprob>,
    },
    OutputDone {
        output_index: usize,
        item_id: &'a str,
        content_index: usize,
        text: &'a str,
        logprobs: Vec<TokenLogprob>,
    },
    TextDelta {
        output_index: usize,
        item_id: &'a str,
        content_index: usize,
        delta: &'a str,
    },
    TextDone {
        output_index: usize,
        item_id: &'a str,
        content_index: usize,
        text: &'a str,
    },
    ArgumentsDelta {
        output_index: usize,
        item_id: &'a str,
        delta: &'a str,
    },
    ArgumentsDone {
        output_index: usize,
        item_id: &'a str,
        name: &'a str,
        arguments: &'a str,
    },
    Error {
        code: &'a str,
        message: String,
        param: Option<String>,
    },
}

/// A stream on its way.
struct Writer {
    response: Response,
    /// The next event's number.
    sequence_number: u64,
    logprobs: LogprobForm,
}

/// The events of `chat`.
pub(super) fn stream(chat: Chat, response: Response, logprobs: LogprobForm) -> impl Stream<Item = Vec<u8>> + Send {
    let mut writer = Writer { response, sequence_number: 0, logprobs };
    let mut first = Vec::with_capacity(2048);
    writer.write_response(&mut first, "response.created");
    writer.write_response(&mut first, "response.in_progress");
    block_stream(chat, first, move |out, step| match step {
        Ok((events, end)) => writer.write_step(out, events, end),
        Err(error) => writer.write_error(out, &error),
    })
}

impl Writer {
    fn write_step(&mut self, out: &mut Vec<u8>, events: Vec<BlockEvent>, end: Option<ChatEnd>) {
        let is_cut = end.as_ref().is_some_and(|end| end.finish == ChatFinish::Length);
        for event in events {
            match event {
                BlockEvent::Opened { index, block } => self.open(out, index, block),
                BlockEvent::Grew { index, kind, text, tokens } => self.grow(out, index, kind, &text, &tokens),
                BlockEvent::Closed { index, block } => {
                    let status = if is_cut { Status::Incomplete } else { Status::Completed };
                    self.close(out, index, block, status);
                }
            }
        }
        if let Some(end) = end {
            self.response.end(&end);
            let name = if self.response.is_incomplete() { "response.incomplete" } else { "response.completed" };
            self.write_response(out, name);
        }
    }

    fn open(&mut self, out: &mut Vec<u8>, output_index: usize, block: Block) {
        let part = ContentPart::new(&block, &self.logprobs);
        self.response.output.push(OutputItem::new(block, &self.logprobs).begun());
        self.write(out, "response.output_item.added", output_index, |item| Content::Item { output_index, item });
        if let Some(part) = &part {
            self.write(out, "response.content_part.added", output_index, |item| Content::Part {
                output_index,
                item_id: item.id(),
                content_index: 0,
                part,
            });
        }
    }

    fn grow(&mut self, out: &mut Vec<u8>, output_index: usize, kind: BlockKind, delta: &str, tokens: &[ScoredToken]) {
        let (content_index, logprobs) = (0, self.logprobs.entries(tokens));
        match kind {
            BlockKind::Content => self.write(out, "response.output_text.delta", output_index, |item| {
                Content::OutputDelta { output_index, item_id: item.id(), content_index, delta, logprobs }
            }),
            BlockKind::Reasoning => self.write(out, "response.reasoning_text.delta", output_index, |item| {
                Content::TextDelta { output_index, item_id: item.id(), content_index, delta }
            }),
            BlockKind::ToolCall => self.write(out, "response.function_call_arguments.delta", output_index, |item| {
                Content::ArgumentsDelta { output_index, item_id: item.id(), delta }
            }),
        }
    }

    fn close(&mut self, out: &mut Vec<u8>, output_index: usize, block: Block, status: Status) {
        let content_index = 0;
        match &block {
            Block::Content { text, tokens } => {
                let logprobs = self.logprobs.entries(tokens);
                self.write(out, "response.output_text.done", output_index, |item| Content::OutputDone {
                    output_index,
                    item_id: item.id(),
                    content_index,
                    text,
                    logprobs,
                });
            }
            Block::Reasoning(text) => self.write(out, "response.reasoning_text.done", output_index, |item| {
                Content::TextDone { output_index, item_id: item.id(), content_index, text }
            }),
            Block::ToolCall { name, arguments } => {
                self.write(out, "response.function_call_arguments.done", output_index, |item| Content::ArgumentsDone {
                    output_index,
                    item_id: item.id(),
                    name,
                    arguments,
                });
            }
        }
        let part = ContentPart::new(&block, &self.logprobs);
        if let Some(part) = &part {
            self.write(out, "response.content_part.done", output_index, |item| Content::Part {
                output_index,
                item_id: item.id(),
                content_index,
                part,
            });
        }
        let item = &mut self.response.output[output_index];
        item.complete(block, part);
        *item.status_mut() = status;
        self.write(out, "response.output_item.done", output_index, |item| Content::Item { output_index, item });
    }

    fn write_error(&mut self, out: &mut Vec<u8>, error: &Error) {
        // Counts and logs it; this event has a shape of its own.
        Dialect::OpenAi.body(error);
        let content = Content::Error { code: error.error_type(), message: error.to_string(), param: None };
        self.sequence_number += 1;
        write(out, "error", self.sequence_number - 1, content);
    }

    fn write_response(&mut self, out: &mut Vec<u8>, name: &'static str) {
        write(out, name, self.sequence_number, Content::Response { response: &self.response });
        self.sequence_number += 1;
    }

    /// Writes an event about the item `index`.
    fn write<'a>(
        &'a mut self,
        out: &mut Vec<u8>,
        name: &'static str,
        index: usize,
        content: impl FnOnce(&'a OutputItem) -> Content<'a>,
    ) {
        let number = self.sequence_number;
        self.sequence_number += 1;
        write(out, name, number, content(&self.response.output[index]));
    }
}

fn write(out: &mut Vec<u8>, name: &'static str, sequence_number: u64, content: Content<'_>) {
    sse::write_named_event(out, name, &Event { r#type: name, sequence_number, content });
}
