//! The steps of a running chat: one per token and choice, with what the token meant.

use std::pin::Pin;

use futures::stream::{self, SelectAll, Stream, StreamExt};

use super::call::Reasoning;
use super::reply::ChatReply;
use crate::chat::{Answer, ReplyParser, ReplyPart};
use crate::error::Error;
use crate::generation::{End, Finish, Generation, Token};
use crate::validation::Validated;

/// A running chat. Dropping it cancels every choice.
pub(crate) struct Chat {
    steps: SelectAll<Steps>,
    choices: usize,
    /// Unicode scalar values of the prompt.
    pub(crate) characters: usize,
    pub(crate) input_tokens: u32,
    /// How many alternatives per token the answer shows; `None` without log-probabilities.
    pub(crate) logprobs: Option<usize>,
}

type Steps = Pin<Box<dyn Stream<Item = (usize, Result<ChatStep, Error>)> + Send>>;

/// A token with the most likely ones in its place, best first.
pub(crate) type ScoredToken = (Token, Vec<Token>);

/// One token of one choice.
#[derive(Debug)]
pub(crate) struct ChatStep {
    /// What it adds to the reply; empty while its meaning is open.
    pub(crate) parts: Vec<ReplyPart>,
    pub(crate) token: Token,
    /// The most likely tokens, best first, if they were asked for.
    pub(crate) top_tokens: Vec<Token>,
    /// What the content among the parts is made of; empty without log-probabilities.
    pub(crate) content_tokens: Vec<ScoredToken>,
    /// Present on the choice's last step.
    pub(crate) end: Option<ChatEnd>,
}

/// How a choice ended.
#[derive(Clone, Debug)]
pub(crate) struct ChatEnd {
    pub(crate) finish: ChatFinish,
    pub(crate) generation: End,
    pub(crate) reasoning_tokens: u32,
}

/// Why a choice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChatFinish {
    /// The model was done.
    Stop,
    /// A stop string came.
    StopSequence,
    /// `max_tokens` or the context is full.
    Length,
    /// The model waits for the results of its calls.
    ToolCalls,
}

/// What an answer cost, in tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TokenCounts {
    pub(crate) input: u32,
    pub(crate) cached: u32,
    pub(crate) generated: u32,
    pub(crate) reasoning: u32,
}

impl TokenCounts {
    /// Adds a choice. All choices share one prompt, which is counted once.
    pub(crate) fn add(&mut self, end: &ChatEnd) {
        self.input = end.generation.input_tokens;
        self.cached = self.cached.max(end.generation.cached_tokens);
        self.generated += end.generation.generated_tokens;
        self.reasoning += end.reasoning_tokens;
    }
}

/// Whose form a reply has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaker {
    /// The chat format's: reasoning, content and calls are to be told apart.
    Model,
    /// A response format's: all of it is content.
    Grammar,
    /// A response format's, after what the model thinks.
    Thinker(Answer),
}

impl Chat {
    pub(super) fn new(choices: Vec<Choice>, valid: &Validated, logprobs: Option<usize>) -> Self {
        let number = choices.len();
        let steps = stream::select_all(choices.into_iter().enumerate().map(|(index, choice)| {
            Box::pin(stream::unfold(choice, move |mut choice| async move {
                let step = choice.next().await?;
                Some(((index, step), choice))
            })) as Steps
        }));
        Self {
            steps,
            choices: number,
            characters: valid.characters,
            input_tokens: valid.request.input_tokens(),
            logprobs,
        }
    }

    /// The next step of any choice, with the choice's index; `None` when all have ended. A choice that fails does not
    /// end the others.
    pub(crate) async fn next(&mut self) -> Option<(usize, Result<ChatStep, Error>)> {
        self.steps.next().await
    }

    /// Runs all choices to their end.
    ///
    /// # Errors
    /// The first failure of any choice; the others are cancelled.
    pub(crate) async fn collect(mut self) -> Result<Vec<ChatReply>, Error> {
        let mut replies: Vec<ChatReply> = (0..self.choices).map(|_| ChatReply::new(self.logprobs)).collect();
        while let Some((index, step)) = self.next().await {
            replies[index].push(step?);
        }
        if replies.iter().all(|reply| reply.end.is_some()) { Ok(replies) } else { Err(Error::Incomplete) }
    }
}

/// One choice of a chat.
pub(super) struct Choice {
    generation: Generation,
    /// `None` if all text is content.
    parser: Option<ReplyParser>,
    reasoning: Reasoning,
    /// Text that comes before the first token's.
    echo: Option<String>,
    meter: ReasoningMeter,
    /// Kept if the answer shows log-probabilities.
    content: Option<ContentTokens>,
}

impl Choice {
    pub(super) fn new(
        generation: Generation,
        parser: Option<ReplyParser>,
        reasoning: Reasoning,
        echo: Option<String>,
        logprobs: Option<usize>,
    ) -> Self {
        let content = logprobs.map(|_| ContentTokens::default());
        Self { generation, parser, reasoning, echo, meter: ReasoningMeter::default(), content }
    }

    async fn next(&mut self) -> Option<Result<ChatStep, Error>> {
        let step = match self.generation.next().await? {
            Ok(step) => step,
            Err(error) => return Some(Err(error)),
        };
        let (mut parts, added) = (Vec::new(), step.delta.len());
        match &mut self.parser {
            Some(parser) => {
                parser.push(&step.delta, &mut parts);
                if step.end.is_some()
                    && let Err(broken) = parser.finish(&mut parts)
                {
                    // The finish reason tells whether it was cut; what the model wrote is the client's to see.
                    tracing::debug!(%broken);
                }
            }
            None if step.delta.is_empty() => {}
            None => parts.push(ReplyPart::Content(step.delta)),
        }
        self.meter.count(&parts);
        let content = self.content.as_mut();
        let content_tokens =
            content.map(|content| content.take(&parts, added, &step.token, &step.top_tokens)).unwrap_or_default();
        if self.reasoning == Reasoning::Omitted {
            parts.retain(|part| !matches!(part, ReplyPart::Reasoning(_)));
        }
        if let Some(echo) = self.echo.take() {
            parts.insert(0, ReplyPart::Content(echo));
        }
        let has_called = self.parser.as_ref().is_some_and(|parser| parser.calls() > 0);
        let end = step.end.map(|generation| ChatEnd {
            finish: match generation.finish {
                Finish::Length => ChatFinish::Length,
                _ if has_called => ChatFinish::ToolCalls,
                Finish::EosToken => ChatFinish::Stop,
                Finish::StopSequence => ChatFinish::StopSequence,
            },
            generation,
            reasoning_tokens: self.meter.tokens,
        });
        Some(Ok(ChatStep { parts, token: step.token, top_tokens: step.top_tokens, content_tokens, end }))
    }
}

/// Counts the tokens that were spent on reasoning. The marks around it count as part of it.
#[derive(Default)]
struct ReasoningMeter {
    tokens: u32,
    /// Tokens whose text is still held back.
    open: u32,
}

impl ReasoningMeter {
    fn count(&mut self, parts: &[ReplyPart]) {
        self.open += 1;
        if let Some(part) = parts.first() {
            if matches!(part, ReplyPart::Reasoning(_)) {
                self.tokens += self.open;
            }
            self.open = 0;
        }
    }
}

/// Finds the tokens of the content: those before a piece of content that are as long as it is. One whose text is held back
/// counts once it is given out.
#[derive(Default)]
struct ContentTokens {
    /// Tokens whose text is still held back, and how many bytes each of them added.
    open: Vec<(usize, ScoredToken)>,
}

impl ContentTokens {
    fn take(&mut self, parts: &[ReplyPart], added: usize, token: &Token, top_tokens: &[Token]) -> Vec<ScoredToken> {
        if added > 0 || !token.is_special {
            self.open.push((added, (token.clone(), top_tokens.to_vec())));
        }
        if parts.is_empty() {
            return Vec::new();
        }
        let content = parts.iter().map(|part| match part {
            ReplyPart::Content(text) => text.len(),
            _ => 0,
        });
        let mut missing: usize = content.sum();
        let mut open = std::mem::take(&mut self.open);
        if missing == 0 {
            return Vec::new();
        }
        let mut first = open.len();
        // A token that is a part of a character adds nothing; the last part adds all of it.
        while first > 0 && (missing > 0 || open[first - 1].0 == 0) {
            first -= 1;
            missing = missing.saturating_sub(open[first].0);
        }
        open.drain(first..).map(|(_, token)| token).collect()
    }
}
