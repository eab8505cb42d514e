//! The body of completions.

use axum::http::StatusCode;
use serde::Deserialize;
use utoipa::ToSchema;

use crate::error::{BodyError, Error, ValidationError};
use crate::params::Asked;
use crate::params::unsupported::{COMPLETIONS, Unsupported};
use crate::routes::body::Wire;
use crate::routes::openai::StreamOptions;
use crate::routes::openai::request::{forbid_words, request_body};
use crate::server::Server;
use crate::validation::SpecialTokens;

request_body! {
    /// The body of `/v1/completions`.
    pub(in crate::routes) struct CompletionRequest {
        prompt: Prompts,
        /// Not supported: write it into the prompt.
        suffix: Option<String>,
        /// The answer begins with the prompt.
        echo: Option<bool>,
        /// Log-probabilities with so many alternatives per token; with `echo`, of the prompt too.
        logprobs: Option<u32>,
        /// So many answers are made per prompt, and the `n` of the highest mean log-probability given.
        best_of: Option<usize>,
        /// Whether the tokenizer adds the tokens a prompt begins with; it does unless this is false.
        add_special_tokens: Option<bool>,
    }
}

impl Wire for CompletionRequest {
    const UNSUPPORTED: &'static [Unsupported] = COMPLETIONS;
    const PARAMETERS: Option<&'static str> = None;
}

/// `prompt`: one text, one list of token ids, or several of a kind.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Prompts {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    TokenLists(Vec<Vec<u32>>),
}

/// One prompt.
#[derive(Debug)]
pub(super) enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// How the request is to be answered.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) is_stream: bool,
    pub(super) includes_usage: bool,
    pub(super) echoes: bool,
    /// Alternatives per token; `None` without log-probabilities.
    pub(super) logprobs: Option<usize>,
    /// Answers per prompt.
    pub(super) n: usize,
    /// Only the prompt is wanted (`max_tokens: 0` with `echo`): the one token that had to be made is not shown.
    pub(super) is_prompt_only: bool,
    pub(super) special_tokens: SpecialTokens,
}

impl CompletionRequest {
    pub(super) fn take_model(&mut self) -> Option<String> {
        self.model.take()
    }

    /// How to answer, the prompts, and what is asked of validation for each of them.
    ///
    /// # Errors
    /// [`Error::Suffix`], [`Error::BatchSize`], and [`ValidationError`] with the field that is at fault.
    pub(super) async fn into_plan(mut self, server: &Server) -> Result<(Plan, Vec<Prompt>, Asked), Error> {
        if self.suffix.is_some() {
            return Err(Error::Suffix);
        }
        let mut asked = self.take_asked()?;
        forbid_words(&mut asked, self.bad_words.take(), server).await?;
        let n = self.n.unwrap_or(1);
        let plan = Plan {
            is_stream: self.stream.unwrap_or(false),
            includes_usage: StreamOptions::includes_usage(self.stream_options.as_ref()),
            echoes: self.echo.unwrap_or(false),
            logprobs: self.logprobs.map(|logprobs| logprobs as usize),
            n,
            is_prompt_only: self.echo == Some(true) && self.max_tokens == Some(0),
            special_tokens: match self.add_special_tokens {
                Some(false) => SpecialTokens::Present,
                Some(true) | None => SpecialTokens::Add,
            },
        };
        if plan.is_prompt_only {
            asked.max_new_tokens = Some(1);
        }
        // As many as wanted are no choice.
        asked.best_of = self.best_of.filter(|best_of| *best_of != n);
        if plan.is_stream && asked.best_of.is_some() {
            return Err(ValidationError::BestOfStream.into());
        }
        asked.top_n_tokens = self.logprobs;
        asked.prompt_logprobs = plan.echoes && self.logprobs.is_some();
        let prompts = self.prompt.into_list(server.args.max_client_batch_size)?;
        Ok((plan, prompts, asked))
    }
}

impl Prompts {
    fn into_list(self, limit: usize) -> Result<Vec<Prompt>, Error> {
        let prompts: Vec<Prompt> = match self {
            Prompts::Text(text) => vec![Prompt::Text(text)],
            Prompts::Texts(texts) => texts.into_iter().map(Prompt::Text).collect(),
            Prompts::Tokens(tokens) => vec![Prompt::Tokens(tokens)],
            Prompts::TokenLists(lists) => lists.into_iter().map(Prompt::Tokens).collect(),
        };
        if prompts.is_empty() {
            // TGI finds it while reading the body and answers in its words for that.
            let text = "Failed to deserialize the JSON body into the target type: prompt: \
                        Empty array detected. Do not use an empty array for the prompt.";
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            return Err(BodyError::Rejected { status, text: text.to_owned() }.into());
        }
        if prompts.len() > limit { Err(Error::BatchSize { limit }) } else { Ok(prompts) }
    }
}
