//! The way back: one bounded stream of events per request.

use std::time::Instant;

use tokio::sync::mpsc;

use super::command::Commands;
use super::error::RequestError;
use crate::scheduler::RequestId;

pub use crate::scheduler::{FinishReason, PromptLogprob};

/// What happens to a request, in order: `Scheduled` once, `Prompt` once if it was asked for, `Token` per token, then
/// `Finished` (sent together with the last token) or `Failed`.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The request entered a batch for the first time.
    Scheduled {
        /// Prompt tokens whose KV came from the prefix cache.
        cached_tokens: u32,
        /// When.
        at: Instant,
    },
    /// Log-probabilities of the prompt's tokens from the second on, if they were asked for.
    Prompt {
        /// One per token.
        logprobs: Vec<PromptLogprob>,
    },
    /// One more token.
    Token {
        /// Its id.
        id: u32,
        /// Log-probability after all warpers.
        logprob: f32,
        /// The most likely tokens with their log-probabilities, best first, if they were asked for.
        top: Option<Box<[(u32, f32)]>>,
    },
    /// The last token has been sent.
    Finished {
        /// Why there are no more.
        reason: FinishReason,
    },
    /// The request ended alone; the engine goes on.
    Failed(RequestError),
}

impl Event {
    /// Whether no event follows.
    pub fn is_last(&self) -> bool {
        matches!(self, Event::Finished { .. } | Event::Failed(_))
    }
}

/// The events of one request. Dropping it cancels the request: slot and blocks are freed in the next plan.
pub struct ResponseStream {
    id: RequestId,
    events: mpsc::Receiver<Event>,
    commands: Commands,
    is_over: bool,
}

impl ResponseStream {
    /// The stream of `id` and the end the scheduler thread writes into.
    ///
    /// It holds every event the request can ever have, `max_new_tokens` + `Scheduled` + `Prompt` + the end, so a slow client never
    /// blocks a step and never loses a token. The channel grows as it fills: an unread reply costs its own size.
    pub(super) fn new(id: RequestId, max_new_tokens: u32, commands: Commands) -> (mpsc::Sender<Event>, Self) {
        let (sender, events) = mpsc::channel(max_new_tokens as usize + 3);
        (sender, Self { id, events, commands, is_over: false })
    }

    /// The next event; `None` after the last one.
    pub async fn next(&mut self) -> Option<Event> {
        if self.is_over {
            return None;
        }
        // The engine sends a last event before it lets go of its end, unless its thread died.
        let event = self.events.recv().await.unwrap_or(Event::Failed(RequestError::Stopped));
        self.is_over = event.is_last();
        Some(event)
    }

    /// The request's number, for logs.
    pub fn id(&self) -> RequestId {
        self.id
    }
}

impl Drop for ResponseStream {
    fn drop(&mut self) {
        if !self.is_over {
            self.commands.cancel(self.id);
        }
    }
}
