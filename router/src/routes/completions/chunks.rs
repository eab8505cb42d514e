//! The answer as a stream: one event per token, those of all choices as they come.

use futures::stream::{self, Stream, StreamExt};
use utoipa::ToSchema;

use super::choice::Piece;
use super::request::Plan;
use super::{Completion, CompletionChoice, Started};
use crate::error::OpenAiBody;
use crate::routes::openai::{Head, Usage, write_error};
use crate::routes::sse;

/// What an event says.
#[derive(ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "only the document speaks of it")]
pub(super) enum CompletionStreamEvent {
    Chunk(Completion<'static>),
    /// Of a reply that failed.
    Error(OpenAiBody<'static>),
}

/// The events of all choices, then the usage if it was asked for, then the end mark. A choice that fails does not end
/// the others.
pub(super) fn stream(started: Vec<Started>, plan: Plan, head: Head) -> impl Stream<Item = Vec<u8>> + Send {
    let input_tokens: u32 = started.iter().map(|started| started.input_tokens).sum();
    let choices = started.into_iter().flat_map(|started| started.choices);
    let pieces = stream::select_all(choices.enumerate().map(|(index, choice)| {
        Box::pin(stream::unfold(choice, move |mut choice| async move {
            let piece = choice.next().await?;
            Some(((index, piece), choice))
        }))
    }));
    let state = Some((pieces, plan, head, Usage::default(), 0));
    stream::unfold(state, move |state| async move {
        let (mut pieces, plan, head, mut usage, mut generated) = state?;
        let mut out = Vec::with_capacity(512);
        match pieces.next().await {
            Some((index, Ok(piece))) => {
                if let Some(end) = &piece.end {
                    usage.add(&plan.share(index, end));
                }
                generated += u32::from(!plan.is_prompt_only);
                let so_far = || usage.so_far(input_tokens, generated);
                let so_far = plan.stream_options.is_continuous().then(so_far);
                write_piece(&mut out, &plan, &head, index, piece, so_far);
            }
            Some((_, Err(error))) => write_error(&mut out, &error),
            None => {
                if plan.stream_options.includes_usage() {
                    sse::write_event(&mut out, &Completion::new(&head, &[], Some(usage)));
                }
                out.extend_from_slice(sse::DONE);
                return Some((out, None));
            }
        }
        Some((out, Some((pieces, plan, head, usage, generated))))
    })
}

fn write_piece(out: &mut Vec<u8>, plan: &Plan, head: &Head, index: usize, piece: Piece, so_far: Option<Usage>) {
    // Without include_usage a choice's last event has its usage, as in TGI; with it, one event has the sum.
    let of_choice = piece.end.as_ref().filter(|_| !plan.stream_options.includes_usage()).map(|end| plan.usage(end));
    let usage = so_far.or(of_choice);
    let finish_reason = piece.end.as_ref().map(|end| plan.finish_reason(end));
    let choice = CompletionChoice { index, text: piece.text, logprobs: piece.logprobs, finish_reason };
    sse::write_event(out, &Completion::new(head, &[choice], usage));
}
