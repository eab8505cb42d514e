//! One answer to one prompt, piece by piece. The whole answer is its pieces put together.

use std::time::Instant;

use super::logprobs::{LegacyLogprobs, Recorder};
use super::request::{Plan, Prompt};
use crate::error::Error;
use crate::generation::{End, Generation};
use crate::params::Asked;
use crate::routes::chat::TokenCounts;
use crate::routes::openai::Usage;
use crate::server::Server;
use crate::text::StopText;

/// A prompt on its way.
pub(super) struct Started {
    pub(super) choices: Vec<Choice>,
    /// Unicode scalar values of the prompt.
    pub(super) characters: usize,
    pub(super) input_tokens: u32,
}

/// An answer on its way.
pub(super) struct Choice {
    generation: Generation,
    /// What comes before the first token's text.
    echo: String,
    recorder: Option<Recorder>,
    is_prompt_only: bool,
}

/// What one token adds.
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) logprobs: Option<LegacyLogprobs>,
    /// Of the token.
    pub(super) logprob: f32,
    pub(super) end: Option<End>,
}

impl Started {
    /// Validates a prompt and queues its answers.
    ///
    /// # Errors
    /// Whatever validation or the queue refuses.
    pub(super) async fn new(
        server: &Server,
        plan: &Plan,
        prompt: Prompt,
        asked: Asked,
        arrived: Instant,
    ) -> Result<Self, Error> {
        let (inputs, input_ids) = match prompt {
            Prompt::Text(text) => (text, None),
            Prompt::Tokens(tokens) => (String::new(), Some(tokens)),
        };
        let is_whole_text = input_ids.is_none() && asked.truncate.is_none();
        let text = (plan.echoes && is_whole_text).then(|| inputs.clone());
        let valid = server.validation.validate(Asked { inputs, input_ids, ..asked }, plan.special_tokens).await?;
        let echo = match text {
            Some(text) => text,
            None if plan.echoes => {
                let (tokenizer, ids) = (server.validation.tokenizer.clone(), valid.request.parts().input_ids.clone());
                server.validation.pool.run(move || tokenizer.decode(&ids)).await?
            }
            None => String::new(),
        };
        let generations = server.submit_siblings(&valid, valid.n.max(valid.best_of), StopText::Remove, arrived)?;
        let choice = |generation| Choice {
            generation,
            echo: echo.clone(),
            recorder: plan.logprobs.map(|top| Recorder::new(server.validation.tokenizer.clone(), top)),
            is_prompt_only: plan.is_prompt_only,
        };
        Ok(Self {
            choices: generations.into_iter().map(choice).collect(),
            characters: valid.characters,
            input_tokens: valid.request.input_tokens(),
        })
    }
}

impl Choice {
    /// The next piece; `None` after the last one.
    pub(super) async fn next(&mut self) -> Option<Result<Piece, Error>> {
        let step = match self.generation.next().await? {
            Ok(step) => step,
            Err(error) => return Some(Err(error)),
        };
        let mut text = std::mem::take(&mut self.echo);
        let logprobs = self.recorder.as_mut().map(|recorder| {
            let mut logprobs = recorder.prompt(&step.prompt);
            if !self.is_prompt_only {
                recorder.token(&mut logprobs, &step.token, &step.top_tokens);
            }
            logprobs
        });
        if !self.is_prompt_only {
            text.push_str(&step.delta);
        }
        Some(Ok(Piece { text, logprobs, logprob: step.token.logprob, end: step.end }))
    }
}

impl Plan {
    /// The usage of one choice.
    pub(super) fn usage(&self, end: &End) -> Usage {
        Usage::from(TokenCounts {
            input: end.input_tokens,
            cached: end.cached_tokens,
            generated: if self.is_prompt_only { 0 } else { end.generated_tokens },
            reasoning: 0,
        })
    }

    /// What the choice `index` adds to the usage of the request: a prompt counts once.
    pub(super) fn share(&self, index: usize, end: &End) -> Usage {
        let usage = self.usage(end);
        if index.is_multiple_of(self.n) { usage } else { usage.without_prompt() }
    }

    /// Why the choice ended, in OpenAI's words.
    pub(super) fn finish_reason(&self, end: &End) -> &'static str {
        if self.is_prompt_only { "length" } else { end.finish.openai() }
    }
}
