//! The answer as a stream: one chunk per token.

use futures::stream::{self, Stream};
use serde::Serialize;
use utoipa::ToSchema;

use super::{CallForm, ReplyPart, Shape};
use crate::error::OpenAiBody;
use crate::routes::chat::{Chat, ChatStep, TokenCounts};
use crate::routes::openai::logprobs::{Logprobs, TokenLogprob};
use crate::routes::openai::{Head, Usage, new_id, write_error};
use crate::routes::sse;

/// An event of a streamed chat answer.
#[derive(Serialize, ToSchema)]
pub(super) struct ChatChunk<'a> {
    object: &'static str,
    id: &'a str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'a str,
    choices: &'a [ChunkChoice],
    usage: Option<Usage>,
}

/// What an event says.
#[derive(ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "only the document speaks of it")]
pub(super) enum ChatStreamEvent {
    Chunk(ChatChunk<'static>),
    /// Of a reply that failed.
    Error(OpenAiBody<'static>),
}

#[derive(Serialize, ToSchema)]
struct ChunkChoice {
    index: usize,
    delta: Delta,
    logprobs: Option<Logprobs>,
    finish_reason: Option<&'static str>,
}

/// What a token adds to the message.
#[derive(Default, Serialize, ToSchema)]
struct Delta {
    /// It stands in every chunk: huggingface_hub requires it there.
    role: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCallDelta>,
    #[serde(skip_serializing_if = "Option::is_none")]
    function_call: Option<FunctionDelta>,
}

#[derive(Serialize, ToSchema)]
struct ToolCallDelta {
    index: usize,
    /// In the first piece of a call only, like its type and name: clients add strings together.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<&'static str>,
    function: FunctionDelta,
}

#[derive(Default, Serialize, ToSchema)]
struct FunctionDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    arguments: String,
}

/// The events of `chat`.
pub(super) fn stream(chat: Chat, shape: Shape) -> impl Stream<Item = Vec<u8>> + Send {
    let state = Some((chat, shape, TokenCounts::default(), 0));
    stream::unfold(state, move |state| async move {
        let (mut chat, shape, mut counts, mut generated) = state?;
        let mut out = Vec::with_capacity(512);
        match chat.next().await {
            Some((index, Ok(step))) => {
                if let Some(end) = &step.end {
                    counts.add(end);
                }
                generated += 1;
                let usage = || Usage::from(counts).so_far(chat.input_tokens, generated);
                let usage = shape.stream_options.is_continuous().then(usage);
                shape.write_step(&mut out, index, step, chat.logprobs, usage);
            }
            Some((_, Err(error))) => write_error(&mut out, &error),
            None => {
                if shape.stream_options.includes_usage() {
                    shape.write_chunk(&mut out, &[], Some(Usage::from(counts)));
                }
                out.extend_from_slice(sse::DONE);
                return Some((out, None));
            }
        }
        Some((out, Some((chat, shape, counts, generated))))
    })
}

impl Shape {
    fn write_step(
        &self,
        out: &mut Vec<u8>,
        index: usize,
        step: ChatStep,
        logprobs: Option<usize>,
        usage: Option<Usage>,
    ) {
        let entry = |top| TokenLogprob::new(&self.tokenizer, &step.token, &step.top_tokens, top);
        let choice = ChunkChoice {
            index,
            logprobs: logprobs.map(|top| Logprobs { content: vec![entry(top)] }),
            finish_reason: step.end.as_ref().map(|end| self.calls.finish_reason(end.finish)),
            delta: Delta::new(step.parts, self.calls),
        };
        self.write_chunk(out, &[choice], usage);
    }

    fn write_chunk(&self, out: &mut Vec<u8>, choices: &[ChunkChoice], usage: Option<Usage>) {
        let Head { id, created, model, system_fingerprint } = &self.head;
        let chunk = ChatChunk {
            object: "chat.completion.chunk",
            id,
            created: *created,
            model,
            system_fingerprint,
            choices,
            usage,
        };
        sse::write_event(out, &chunk);
    }
}

impl Delta {
    fn new(parts: Vec<ReplyPart>, form: CallForm) -> Self {
        let mut delta = Self { role: "assistant", ..Self::default() };
        // A token without text still has its chunk, as in TGI: clients count them.
        if parts.is_empty() {
            delta.content = Some(String::new());
        }
        for part in parts {
            match part {
                ReplyPart::Content(text) => delta.content.get_or_insert_default().push_str(&text),
                ReplyPart::Reasoning(text) => delta.reasoning_content.get_or_insert_default().push_str(&text),
                ReplyPart::ToolCall { index, name } => delta.call(index, form, |id, r#type, function| {
                    (*id, *r#type) = (Some(new_id("call_")), Some("function"));
                    function.name = Some(name);
                }),
                ReplyPart::Arguments { index, fragment } => {
                    delta.call(index, form, |_, _, function| function.arguments.push_str(&fragment));
                }
            }
        }
        delta
    }

    /// Changes the piece of the call `index`, which is begun if there is none in this chunk.
    fn call(
        &mut self,
        index: usize,
        form: CallForm,
        change: impl FnOnce(&mut Option<String>, &mut Option<&'static str>, &mut FunctionDelta),
    ) {
        if form == CallForm::Function {
            // The older form has one call.
            if index == 0 {
                change(&mut None, &mut None, self.function_call.get_or_insert_default());
            }
            return;
        }
        if self.tool_calls.last().is_none_or(|call| call.index != index) {
            self.tool_calls.push(ToolCallDelta { index, id: None, r#type: None, function: FunctionDelta::default() });
        }
        let call = self.tool_calls.last_mut().expect("one was pushed if there was none");
        change(&mut call.id, &mut call.r#type, &mut call.function);
    }
}
