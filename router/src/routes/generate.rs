//! `POST /generate`: TGI's native call, one JSON answer. Also `best_of`: several generations, the best one answers.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body as HttpBody;
use axum::extract::State;
use axum::http::Response;
use futures::future::try_join_all;
use proto::v1::SamplingParams;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::body::{Body, Wire};
use super::grammar::Grammar;
use super::headers::Cost;
use super::openai::request::LogitBias;
use super::{json, to_json};
use crate::error::{Error, NativeFailure};
use crate::generation::{End, Generation, PromptToken, Token};
use crate::params::{Asked, watermark};
use crate::server::Server;
use crate::text::StopText;
use crate::validation::SpecialTokens;

/// The body of the native routes.
#[derive(Deserialize, ToSchema)]
pub(super) struct GenerateRequest {
    /// The prompt.
    #[schema(example = "My name is Olivier and I", min_length = 1, extensions(("x-limit" = json!("payload_limit"))))]
    pub(super) inputs: String,
    #[serde(default = "without_parameters")]
    pub(super) parameters: GenerateParameters,
}

/// TGI's asymmetry, on which clients depend: without `parameters` a request samples; with them, even empty, it does
/// not unless they say so.
pub(super) fn without_parameters() -> GenerateParameters {
    GenerateParameters { do_sample: true, ..GenerateParameters::default() }
}

/// `parameters`. A field that is not an `Option` may be missing but not null, as in TGI.
#[derive(Default, Deserialize, ToSchema)]
#[schema(description = "How to generate")]
pub(super) struct GenerateParameters {
    /// Generations to run; the one with the best mean log-probability answers.
    #[schema(minimum = 0, extensions(("x-limit" = json!("max_best_of"))), example = 1)]
    pub(super) best_of: Option<usize>,
    /// Divides the logits before sampling.
    #[schema(exclusive_minimum = 0, example = 0.5)]
    temperature: Option<f32>,
    /// Penalty on tokens of prompt and reply; 1.0 is none (arXiv:1909.05858).
    #[schema(exclusive_minimum = 0, example = 1.03)]
    repetition_penalty: Option<f32>,
    /// Penalty in proportion to a token's share of prompt and reply.
    #[schema(minimum = -2, maximum = 2, example = 0.1)]
    frequency_penalty: Option<f32>,
    /// Sample from this many most likely tokens.
    #[schema(minimum = 1, maximum = 2147483647, example = 10)]
    top_k: Option<i32>,
    /// Sample from the smallest set of tokens with this much probability.
    #[schema(exclusive_minimum = 0, exclusive_maximum = 1, example = 0.95)]
    top_p: Option<f32>,
    /// Locally typical sampling with this much probability (arXiv:2202.00666).
    #[schema(exclusive_minimum = 0, exclusive_maximum = 1, example = 0.95)]
    typical_p: Option<f32>,
    /// Whether to sample; any other sampling parameter switches it on too.
    #[serde(default)]
    #[schema(example = true)]
    do_sample: bool,
    /// Most tokens of the reply [default: what the context has room for].
    #[schema(minimum = 1, maximum = 4294967295_u32, example = 20)]
    max_new_tokens: Option<u32>,
    /// Whether the text begins with the prompt.
    #[schema(example = false)]
    pub(super) return_full_text: Option<bool>,
    /// Texts that end the reply.
    #[serde(default)]
    #[schema(schema_with = super::openapi::stop_strings)]
    stop: Vec<String>,
    /// Keep this many tokens from the end of the prompt.
    #[schema(minimum = 1, extensions(("x-limit" = json!("max_input_tokens"))))]
    truncate: Option<usize>,
    /// Whether to return tokens and reasons.
    #[serde(default)]
    pub(super) details: bool,
    /// Key of the random numbers.
    #[schema(maximum = 18446744073709551615_u64, example = 42)]
    seed: Option<u64>,
    /// Also return this many most likely tokens.
    #[schema(extensions(("x-limit" = json!("max_top_n_tokens"))), example = 5)]
    top_n_tokens: Option<u32>,
    #[serde(default)]
    watermark: bool,
    #[serde(default)]
    decoder_input_details: bool,
    grammar: Option<Grammar>,
    /// Empty for none; no adapter can be loaded yet.
    #[schema(extensions(("x-limit" = json!("payload_limit"))))]
    adapter_id: Option<String>,
    // Not TGI's, which ignores fields that it does not know: what OpenAI's routes serve too.
    /// Sample only from tokens with at least this share of the largest probability (arXiv:2407.01082).
    #[schema(minimum = 0, maximum = 1, example = 0.05)]
    min_p: Option<f32>,
    /// OpenAI's: once per distinct token of the reply.
    #[schema(minimum = -2, maximum = 2, example = 0.1)]
    presence_penalty: Option<f32>,
    /// Token ids and what is added to their logits, -100 to 100.
    #[schema(schema_with = LogitBias::described)]
    logit_bias: Option<LogitBias>,
    /// The reply does not end by itself before it has this many tokens.
    #[schema(minimum = 0, extensions(("x-limit" = json!("max_total_tokens"))), example = 5)]
    min_tokens: Option<u32>,
    /// Whether an end-of-sequence token is a token like any other.
    #[schema(example = false)]
    ignore_eos: Option<bool>,
}

impl GenerateParameters {
    /// Greedy only if nothing at all asks for sampling (TGI's rule).
    fn is_sampling(&self) -> bool {
        self.do_sample
            || self.temperature.is_some_and(|temperature| temperature != 1.0)
            || self.top_k.is_some_and(|top_k| top_k != 0)
            || self.top_p.is_some_and(|top_p| top_p < 1.0)
            || self.typical_p.is_some_and(|typical_p| typical_p < 1.0)
            || self.min_p.is_some_and(|min_p| min_p > 0.0)
    }
}

impl Wire for GenerateRequest {}

/// How the answer of a native route looks.
pub(super) struct AnswerShape {
    pub(super) details: bool,
    /// The prompt, if the text begins with it.
    pub(super) prefix: String,
}

impl GenerateRequest {
    /// What is asked of validation, and how the answer looks. `full_text` is the route's default.
    pub(super) fn split(self, full_text: bool) -> (Asked, AnswerShape) {
        let GenerateRequest { inputs, parameters } = self;
        let is_full_text = parameters.return_full_text.unwrap_or(full_text);
        let shape = AnswerShape {
            // The prompt's tokens are part of the details, so asking for them asks for those.
            details: parameters.details || parameters.decoder_input_details,
            prefix: if is_full_text { inputs.clone() } else { String::new() },
        };
        let asked = Asked {
            inputs,
            sampling: SamplingParams {
                do_sample: parameters.is_sampling(),
                temperature: parameters.temperature,
                repetition_penalty: parameters.repetition_penalty,
                frequency_penalty: parameters.frequency_penalty,
                top_k: parameters.top_k,
                top_p: parameters.top_p,
                typical_p: parameters.typical_p,
                seed: parameters.seed,
                top_n_tokens: parameters.top_n_tokens,
                prompt_logprobs: parameters.decoder_input_details,
                watermark: watermark::ask(parameters.watermark),
                min_p: parameters.min_p,
                presence_penalty: parameters.presence_penalty,
                logit_bias: parameters.logit_bias.map(|bias| bias.0).unwrap_or_default(),
                min_tokens: parameters.min_tokens,
                ..SamplingParams::default()
            },
            ignore_eos: parameters.ignore_eos.unwrap_or(false),
            best_of: parameters.best_of,
            max_new_tokens: parameters.max_new_tokens,
            stop: parameters.stop,
            truncate: parameters.truncate,
            grammar: parameters.grammar.map(Into::into),
            adapter_id: parameters.adapter_id,
            ..Asked::default()
        };
        (asked, shape)
    }
}

#[derive(Serialize, ToSchema)]
pub(super) struct GenerateResponse {
    generated_text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
}

#[derive(Serialize, ToSchema)]
struct Details {
    #[schema(value_type = super::openapi::FinishReason)]
    finish_reason: &'static str,
    generated_tokens: u32,
    seed: Option<u64>,
    prefill: Vec<PrefillToken>,
    tokens: Vec<NativeToken>,
    #[serde(skip_serializing_if = "Option::is_none")]
    best_of_sequences: Option<Vec<BestOfSequence>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    top_tokens: Vec<Vec<NativeToken>>,
}

#[derive(Serialize, ToSchema)]
struct BestOfSequence {
    generated_text: String,
    #[schema(value_type = super::openapi::FinishReason)]
    finish_reason: &'static str,
    generated_tokens: u32,
    seed: Option<u64>,
    prefill: Vec<PrefillToken>,
    tokens: Vec<NativeToken>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    top_tokens: Vec<Vec<NativeToken>>,
}

/// A token of the prompt.
#[derive(Serialize, ToSchema)]
struct PrefillToken {
    id: u32,
    text: String,
    /// Null for the first token, and where the model gives the token no chance at all.
    logprob: Option<f32>,
}

impl From<PromptToken> for PrefillToken {
    fn from(token: PromptToken) -> Self {
        Self { id: token.id, text: token.text, logprob: token.logprob }
    }
}

/// A token in native answers and events.
#[derive(Serialize, ToSchema)]
#[schema(as = Token)]
pub(super) struct NativeToken {
    id: u32,
    text: String,
    logprob: f32,
    special: bool,
}

impl From<Token> for NativeToken {
    fn from(token: Token) -> Self {
        Self { id: token.id, text: token.text, logprob: token.logprob, special: token.is_special }
    }
}

/// The route.
#[utoipa::path(
    post, path = "/generate", operation_id = "generate", tag = super::openapi::TAG,
    summary = "Generate tokens",
    request_body = GenerateRequest,
    responses((status = 200, description = "Generated text", body = GenerateResponse), super::openapi::NativeErrors),
)]
pub(super) async fn handle(
    State(server): State<Arc<Server>>,
    body: Body<GenerateRequest>,
) -> Result<Response<HttpBody>, NativeFailure> {
    let (asked, shape) = body.value.split(false);
    let answer = answer(&server, asked, shape, body.arrived).await?;
    Ok(answer.respond(&server, |object| object))
}

/// A complete answer, not yet an HTTP response: `/` wraps it in an array.
pub(super) struct Answer {
    body: Vec<u8>,
    cost: Cost,
}

impl Answer {
    pub(super) fn respond(self, server: &Server, wrap: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Response<HttpBody> {
        let mut response = json(wrap(self.body));
        self.cost.write(server, response.headers_mut());
        response
    }
}

/// Runs the request to its end.
pub(super) async fn answer(
    server: &Server,
    asked: Asked,
    shape: AnswerShape,
    arrived: Instant,
) -> Result<Answer, Error> {
    let valid = server.validation.validate(asked, SpecialTokens::Add).await?;
    let mut generations = vec![server.submit(&valid, StopText::Keep, arrived)?];
    for _ in 1..valid.best_of {
        let sibling = valid.with_new_seed(&server.validation.request_limits);
        generations.push(server.submit(&sibling, StopText::Keep, arrived)?);
    }
    let mut replies = try_join_all(generations.into_iter().map(Reply::collect)).await?;
    let best = replies.remove(index_of_best(&replies));
    let cost = Cost::new(valid.characters, &best.end);
    let best_of_sequences = (valid.best_of > 1)
        .then(|| replies.into_iter().map(|reply| reply.into_sequence(&shape.prefix)).collect::<Vec<_>>());
    let generated_text = shape.prefix + &best.end.generated_text;
    let details = shape.details.then(|| best.into_details(best_of_sequences));
    Ok(Answer { body: to_json(&GenerateResponse { generated_text, details }), cost })
}

/// A generation that has ended.
struct Reply {
    prefill: Vec<PrefillToken>,
    tokens: Vec<NativeToken>,
    top_tokens: Vec<Vec<NativeToken>>,
    end: End,
}

impl Reply {
    async fn collect(mut generation: Generation) -> Result<Self, Error> {
        let (mut prefill, mut tokens, mut top_tokens) = (Vec::new(), Vec::new(), Vec::new());
        while let Some(step) = generation.next().await {
            let step = step?;
            prefill.extend(step.prompt.into_iter().map(PrefillToken::from));
            tokens.push(NativeToken::from(step.token));
            if !step.top_tokens.is_empty() {
                top_tokens.push(step.top_tokens.into_iter().map(NativeToken::from).collect());
            }
            if let Some(end) = step.end {
                return Ok(Self { prefill, tokens, top_tokens, end });
            }
        }
        Err(Error::Incomplete)
    }

    fn mean_logprob(&self) -> f64 {
        let sum: f64 = self.tokens.iter().map(|token| f64::from(token.logprob)).sum();
        sum / self.tokens.len().max(1) as f64
    }

    fn into_details(self, best_of_sequences: Option<Vec<BestOfSequence>>) -> Details {
        Details {
            finish_reason: self.end.finish.native(),
            generated_tokens: self.end.generated_tokens,
            seed: self.end.seed,
            prefill: self.prefill,
            tokens: self.tokens,
            best_of_sequences,
            top_tokens: self.top_tokens,
        }
    }

    fn into_sequence(self, prefix: &str) -> BestOfSequence {
        BestOfSequence {
            generated_text: format!("{prefix}{}", self.end.generated_text),
            finish_reason: self.end.finish.native(),
            generated_tokens: self.end.generated_tokens,
            seed: self.end.seed,
            prefill: self.prefill,
            tokens: self.tokens,
            top_tokens: self.top_tokens,
        }
    }
}

/// The highest mean log-probability wins; of equals the first.
fn index_of_best(replies: &[Reply]) -> usize {
    let mut best = 0;
    for (at, reply) in replies.iter().enumerate() {
        if reply.mean_logprob() > replies[best].mean_logprob() {
            best = at;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn is_sampling(parameters: Value) -> bool {
        serde_json::from_value::<GenerateParameters>(parameters).unwrap().is_sampling()
    }

    #[test]
    fn any_parameter_of_sampling_switches_it_on() {
        for greedy in [json!({}), json!({"temperature": 1.0, "top_k": null, "seed": 7, "repetition_penalty": 2.0})] {
            assert!(!is_sampling(greedy.clone()), "{greedy}");
        }
        for (field, value) in [("temperature", 0.5), ("top_k", 3.0), ("top_p", 0.9), ("typical_p", 0.9), ("min_p", 0.1)]
        {
            let value = if field == "top_k" { json!(value as i32) } else { json!(value) };
            assert!(is_sampling(json!({ field: value })), "{field}");
        }
        assert!(is_sampling(json!({"do_sample": true})));
    }
}
