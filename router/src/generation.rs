//! One generation on its way back: events of the engine become text, timings and an end.
//!
//! It runs in the request's own task: detokenizing costs a few microseconds a token and needs no other thread. Dropping
//! a [`Generation`] cancels the request, wherever it is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::{Event, FinishReason, PromptLogprob, ResponseStream};
use crate::error::Error;
use crate::metrics::{self, FailureKind};
use crate::text::{Position, ReplyText, StopText, TextTokenizer, TokenText};
use crate::validation::Validated;

/// Where events come from: the engine, or a script in tests.
pub(crate) trait Events: Send {
    /// The next event; `None` after the last one.
    fn next(&mut self) -> impl Future<Output = Option<Event>> + Send;
}

impl Events for ResponseStream {
    fn next(&mut self) -> impl Future<Output = Option<Event>> + Send {
        ResponseStream::next(self)
    }
}

/// Why a reply ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finish {
    Length,
    EosToken,
    StopSequence,
}

/// A running generation.
pub(crate) struct Generation<E: Events = ResponseStream> {
    events: E,
    tokenizer: Arc<TextTokenizer>,
    text: ReplyText,
    eos_token_ids: Arc<[u32]>,
    ignore_eos: bool,
    max_new_tokens: u32,
    seed: Option<u64>,
    input_tokens: u32,
    cached_tokens: u32,
    generated_tokens: u32,
    clock: Clock,
    /// The prompt, if its log-probabilities are reported.
    prompt_ids: Option<Arc<[u32]>>,
    /// What the first step will say of the prompt.
    prompt: Vec<PromptToken>,
    has_ended: bool,
}

/// One token of the reply.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Token {
    pub(crate) id: u32,
    /// The token's text; special tokens literally; empty while a character is incomplete.
    pub(crate) text: String,
    pub(crate) logprob: f32,
    pub(crate) is_special: bool,
}

/// One token of the prompt.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PromptToken {
    pub(crate) id: u32,
    /// The token's text, outside any other.
    pub(crate) text: String,
    /// Given the tokens before it; `None` for the first.
    pub(crate) logprob: Option<f32>,
    /// The most likely tokens in its place, best first, if they were asked for.
    pub(crate) top_tokens: Vec<Token>,
}

/// One step of a generation.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) token: Token,
    /// What the reader may see now: no special tokens, and nothing that a stop string may still claim.
    pub(crate) delta: String,
    /// The most likely tokens, best first, if they were asked for.
    pub(crate) top_tokens: Vec<Token>,
    /// The prompt's tokens with their log-probabilities: on the first step, if they were asked for.
    pub(crate) prompt: Vec<PromptToken>,
    /// Present on the last step.
    pub(crate) end: Option<End>,
}

/// How a generation ended.
#[derive(Clone, Debug)]
pub(crate) struct End {
    pub(crate) finish: Finish,
    /// The stop string that ended the reply and is no longer part of it.
    pub(crate) stop: Option<String>,
    pub(crate) generated_text: String,
    pub(crate) generated_tokens: u32,
    pub(crate) input_tokens: u32,
    /// Prompt tokens that came from the prefix cache.
    pub(crate) cached_tokens: u32,
    pub(crate) seed: Option<u64>,
    pub(crate) timings: Timings,
}

/// Where the time of a request went.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Timings {
    /// From the request's arrival to its last token.
    pub(crate) total: Duration,
    /// From arrival to the queue.
    pub(crate) validation: Duration,
    /// From the queue to the first batch.
    pub(crate) queue: Duration,
    /// From the first batch to the last token.
    pub(crate) inference: Duration,
    /// Inference divided by the tokens.
    pub(crate) time_per_token: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Clock {
    arrived: Instant,
    queued: Instant,
    scheduled: Option<Instant>,
}

impl<E: Events> Generation<E> {
    /// Follows `events` of the request `valid`, which arrived at `arrived` and has just been queued.
    pub(crate) fn new(
        events: E,
        valid: &Validated,
        tokenizer: Arc<TextTokenizer>,
        eos_token_ids: Arc<[u32]>,
        stop_text: StopText,
        arrived: Instant,
    ) -> Self {
        let parts = valid.request.parts();
        Self {
            events,
            text: ReplyText::new(tokenizer.clone(), &parts.input_ids, &valid.stop, stop_text),
            tokenizer,
            eos_token_ids,
            ignore_eos: parts.ignore_eos,
            max_new_tokens: parts.max_new_tokens,
            seed: parts.sampling.seed,
            input_tokens: valid.request.input_tokens(),
            cached_tokens: 0,
            generated_tokens: 0,
            clock: Clock { arrived, queued: Instant::now(), scheduled: None },
            prompt_ids: parts.sampling.prompt_logprobs.then(|| parts.input_ids.clone()),
            prompt: Vec::new(),
            has_ended: false,
        }
    }

    /// Makes the special tokens `ids` visible in the text: marks of a chat format that its parser must see.
    pub(crate) fn show(&mut self, ids: Arc<[u32]>) {
        self.text.show(ids);
    }

    /// The next token; `None` after the last one.
    ///
    /// # Errors
    /// [`Error::Generation`] if the engine gave the request up; nothing follows.
    pub(crate) async fn next(&mut self) -> Option<Result<Step, Error>> {
        if self.has_ended {
            return None;
        }
        let step = self.step().await;
        self.has_ended = step.as_ref().map_or(true, |step| step.end.is_some());
        Some(step)
    }

    async fn step(&mut self) -> Result<Step, Error> {
        loop {
            match self.events.next().await {
                Some(Event::Scheduled { cached_tokens, at }) => {
                    self.cached_tokens = cached_tokens;
                    self.clock.scheduled.get_or_insert(at);
                }
                Some(Event::Prompt { logprobs }) => self.prompt = self.prompt_tokens(logprobs),
                Some(Event::Token { id, logprob, top }) => return self.token(id, logprob, top.as_deref()).await,
                Some(Event::Failed(error)) => return Err(error.into()),
                Some(Event::Finished { .. }) | None => return Err(Error::Incomplete),
            }
        }
    }

    async fn token(&mut self, id: u32, logprob: f32, top: Option<&[(u32, f32)]>) -> Result<Step, Error> {
        self.generated_tokens += 1;
        let is_full = self.generated_tokens == self.max_new_tokens;
        let is_last = is_full || (!self.ignore_eos && self.eos_token_ids.contains(&id));
        let mut finish = None;
        if is_last {
            // The engine sends the end together with the last token, so this does not wait.
            finish = match self.events.next().await {
                // TGI's precedence where both apply.
                Some(Event::Finished { .. }) if is_full => Some(Finish::Length),
                Some(Event::Finished { reason: FinishReason::Length }) => Some(Finish::Length),
                Some(Event::Finished { reason: FinishReason::EosToken }) => Some(Finish::EosToken),
                Some(Event::Failed(error)) => return Err(error.into()),
                _ => return Err(Error::Incomplete),
            };
        }
        let position = if is_last { Position::Last } else { Position::Inner };
        let TokenText { token: text, delta, is_stopped } = self.text.push(id, position);
        if is_stopped {
            finish = finish.or(Some(Finish::StopSequence));
        }
        let token = Token { id, text, logprob, is_special: self.tokenizer.is_special(id) };
        let top_tokens = top.unwrap_or_default().iter().map(|&(id, logprob)| self.lone_token(id, logprob)).collect();
        let end = finish.map(|finish| self.end(finish));
        Ok(Step { token, delta, top_tokens, prompt: std::mem::take(&mut self.prompt), end })
    }

    /// The prompt's tokens: the first has no log-probability, the others those of `logprobs`.
    fn prompt_tokens(&mut self, logprobs: Vec<PromptLogprob>) -> Vec<PromptToken> {
        let ids = self.prompt_ids.take().unwrap_or_default();
        let logprobs = std::iter::once(None).chain(logprobs.into_iter().map(Some));
        let tokens = ids.iter().zip(logprobs).map(|(&id, known)| {
            let (logprob, top) = known.map(|known| (known.logprob, known.top)).unzip();
            let top = top.flatten().unwrap_or_default();
            let top_tokens = top.iter().map(|&(id, logprob)| self.lone_token(id, logprob)).collect();
            PromptToken { id, text: self.tokenizer.token_text(id), logprob, top_tokens }
        });
        tokens.collect()
    }

    /// A token outside any text.
    fn lone_token(&self, id: u32, logprob: f32) -> Token {
        Token { id, text: self.tokenizer.token_text(id), logprob, is_special: self.tokenizer.is_special(id) }
    }

    fn end(&self, finish: Finish) -> End {
        let end = End {
            finish,
            stop: self.text.removed_stop().map(str::to_owned),
            generated_text: self.text.generated().to_owned(),
            generated_tokens: self.generated_tokens,
            input_tokens: self.input_tokens,
            cached_tokens: self.cached_tokens,
            seed: self.seed,
            timings: self.clock.timings(self.generated_tokens),
        };
        metrics::request_succeeded(&end.timings, end.generated_tokens);
        let Timings { total, validation, queue, inference, time_per_token } = end.timings;
        tracing::info!(
            total_time = ?total,
            validation_time = ?validation,
            queue_time = ?queue,
            inference_time = ?inference,
            time_per_token = ?time_per_token,
            input_tokens = end.input_tokens,
            generated_tokens = end.generated_tokens,
            seed = ?end.seed,
            "Success"
        );
        end
    }
}

impl<E: Events> Drop for Generation<E> {
    fn drop(&mut self) {
        // Dropping the events cancels the request; here it is only counted.
        if !self.has_ended {
            FailureKind::Dropped.count();
        }
    }
}

impl Clock {
    fn timings(&self, tokens: u32) -> Timings {
        let now = Instant::now();
        let scheduled = self.scheduled.unwrap_or(self.queued);
        let inference = now.saturating_duration_since(scheduled);
        Timings {
            total: now.saturating_duration_since(self.arrived),
            validation: self.queued.saturating_duration_since(self.arrived),
            queue: scheduled.saturating_duration_since(self.queued),
            inference,
            time_per_token: inference / tokens.max(1),
        }
    }
}

impl Finish {
    /// TGI's name.
    pub(crate) fn native(self) -> &'static str {
        match self {
            Finish::Length => "length",
            Finish::EosToken => "eos_token",
            Finish::StopSequence => "stop_sequence",
        }
    }

    /// OpenAI's name.
    pub(crate) fn openai(self) -> &'static str {
        match self {
            Finish::Length => "length",
            Finish::EosToken | Finish::StopSequence => "stop",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::engine::RequestError;
    use crate::request::{GenerateRequest, RequestLimits, RequestParts};
    use crate::text::test_tokenizers::byte_level;

    /// Events in a fixed order.
    struct Script(VecDeque<Event>);

    impl Events for Script {
        async fn next(&mut self) -> Option<Event> {
            self.0.pop_front()
        }
    }

    const EOS: u32 = 257;

    /// Runs `text` (one token a byte, `$` stands for the end-of-sequence token) followed by `end`; prints each step as
    /// `token/delta` and the end.
    async fn run(text: &str, end: Event, max_new_tokens: u32, stop: &[&str], stop_text: StopText) -> String {
        let tokenizer = Arc::new(byte_level());
        let mut events = VecDeque::from([Event::Scheduled { cached_tokens: 0, at: Instant::now() }]);
        for id in tokenizer.encode(text, false).unwrap().into_iter().take(max_new_tokens as usize) {
            let id = if tokenizer.decode(&[id]) == "$" { EOS } else { id };
            events.push_back(Event::Token { id, logprob: -1.0, top: None });
        }
        events.push_back(end);
        let parts = RequestParts {
            input_ids: [0].into(),
            sampling: proto::v1::SamplingParams::default(),
            max_new_tokens,
            ignore_eos: false,
            cache_prompt: true,
            salt: None,
            constraint: None,
        };
        let limits = RequestLimits { max_total_tokens: 100, vocab_size: 300, max_top_n_tokens: 5 };
        let valid = Validated {
            request: GenerateRequest::new(parts, &limits).unwrap(),
            stop: stop.iter().map(|stop| (*stop).to_owned()).collect(),
            best_of: 1,
            n: 1,
            characters: 1,
        };
        let mut generation =
            Generation::new(Script(events), &valid, tokenizer, [EOS].into(), stop_text, Instant::now());
        let mut shown = String::new();
        while let Some(step) = generation.next().await {
            match step {
                Ok(step) => {
                    shown.push_str(&format!("{}/{} ", step.token.text, step.delta));
                    if let Some(end) = step.end {
                        shown.push_str(&format!("{} {:?}", end.finish.native(), end.generated_text));
                    }
                }
                Err(error) => shown.push_str(&error.to_string()),
            }
        }
        shown
    }

    const LENGTH: Event = Event::Finished { reason: FinishReason::Length };
    const END: Event = Event::Finished { reason: FinishReason::EosToken };

    #[tokio::test]
    async fn ends_have_their_reason_and_text() {
        assert_eq!(run("ab", LENGTH, 2, &[], StopText::Keep).await, "a/a b/b length \"ab\"");
        assert_eq!(run("a$", END, 9, &[], StopText::Keep).await, "a/a </s>/ eos_token \"a\"");
        assert_eq!(run("a$", END, 2, &[], StopText::Keep).await, "a/a </s>/ length \"a\"", "length comes first");
        assert_eq!(run("abc", LENGTH, 3, &["b"], StopText::Keep).await, "a/a b/b stop_sequence \"ab\"");
        assert_eq!(run("abc", LENGTH, 3, &["b"], StopText::Remove).await, "a/a b/ stop_sequence \"a\"");
    }

    #[tokio::test]
    async fn an_unfinished_character_comes_with_the_last_token() {
        assert_eq!(run("aé", LENGTH, 2, &[], StopText::Keep).await, "a/a \u{fffd}/\u{fffd} length \"a\u{fffd}\"");
    }

    #[tokio::test]
    async fn failures_end_the_stream_once() {
        let failed = Event::Failed(RequestError::Stopped);
        assert_eq!(
            run("a", failed, 9, &[], StopText::Keep).await,
            "a/a Request failed during generation: the engine stopped before the request was complete"
        );
        let early = run("a", LENGTH, 9, &[], StopText::Keep).await;
        assert_eq!(early, "a/a Incomplete generation");
    }
}
