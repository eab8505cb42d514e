//! `POST /v1/completions`: OpenAI's text completion of one prompt or several, whole or as a stream.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body as HttpBody;
use axum::extract::State;
use axum::http::{Response, StatusCode};
use futures::future::try_join_all;
use futures::stream::{self, Stream, StreamExt};
use serde::{Deserialize, Serialize};

use super::body::{Body, Wire};
use super::headers::{self, Cost};
use super::openai::{Head, Stop, StreamOptions, Usage, write_error};
use super::{json, sse, to_json};
use crate::error::{BodyError, Error, OpenAiFailure, ValidationError};
use crate::generation::{End, Generation, Step};
use crate::params::unsupported::{COMPLETIONS, Unsupported};
use crate::params::{Asked, seed, temperature, top_p};
use crate::server::Server;
use crate::text::StopText;
use crate::validation::SpecialTokens;

#[derive(Deserialize)]
pub(super) struct CompletionRequest {
    model: Option<String>,
    prompt: Prompt,
    max_tokens: Option<u32>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    stream: Option<bool>,
    seed: Option<i128>,
    suffix: Option<String>,
    repetition_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    stop: Option<Stop>,
    stream_options: Option<StreamOptions>,
}

impl Wire for CompletionRequest {
    const UNSUPPORTED: &'static [Unsupported] = COMPLETIONS;
    const PARAMETERS: Option<&'static str> = None;
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Prompt {
    One(String),
    Many(Vec<String>),
}

impl CompletionRequest {
    /// The prompts, within the operator's limit.
    fn prompts(&mut self, server: &Server) -> Result<Vec<String>, Error> {
        if self.suffix.is_some() {
            return Err(Error::Suffix);
        }
        let prompts = match std::mem::replace(&mut self.prompt, Prompt::Many(Vec::new())) {
            Prompt::One(prompt) => vec![prompt],
            Prompt::Many(prompts) => prompts,
        };
        if prompts.is_empty() {
            // TGI finds it while reading the body and answers in its words for that.
            let text = "Failed to deserialize the JSON body into the target type: prompt: \
                        Empty array detected. Do not use an empty array for the prompt.";
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            return Err(BodyError::Rejected { status, text: text.to_owned() }.into());
        }
        let limit = server.args.max_client_batch_size;
        if prompts.len() > limit { Err(Error::BatchSize { limit }) } else { Ok(prompts) }
    }

    fn asked(&mut self) -> Result<Asked, ValidationError> {
        let mut asked = Asked {
            repetition_penalty: self.repetition_penalty,
            frequency_penalty: self.frequency_penalty,
            max_new_tokens: self.max_tokens,
            stop: Stop::into_list(self.stop.take()),
            ..Asked::default()
        };
        temperature::ask_openai(&mut asked, self.temperature);
        top_p::ask_openai(&mut asked, self.top_p);
        seed::ask_openai(&mut asked, self.seed)?;
        Ok(asked)
    }
}

#[derive(Serialize)]
struct Completion<'a> {
    object: &'static str,
    id: &'a str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'a str,
    choices: &'a [Choice<'a>],
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: usize,
    text: &'a str,
    logprobs: Option<()>,
    finish_reason: Option<&'static str>,
}

/// The route.
pub(super) async fn handle(
    State(server): State<Arc<Server>>,
    mut body: Body<CompletionRequest>,
) -> Result<Response<HttpBody>, OpenAiFailure> {
    let request = &mut body.value;
    let head = Head::new("cmpl", request.model.take(), &server)?;
    let prompts = request.prompts(&server)?;
    let asked = request.asked()?;
    let includes_usage = StreamOptions::includes_usage(request.stream_options.as_ref());
    let is_stream = request.stream.unwrap_or(false);
    let started = prompts.into_iter().map(|prompt| {
        let asked = Asked { inputs: prompt, ..asked.clone() };
        start(&server, asked, body.arrived)
    });
    let started = try_join_all(started).await?;
    let response = if is_stream {
        let characters = started.iter().map(|started| started.characters).sum();
        let mut response = sse::response(chunks(started, head, includes_usage));
        headers::write_stream(&server, characters, response.headers_mut());
        response
    } else {
        complete(&server, started, &head).await?
    };
    Ok(body.unknown.tell(response))
}

/// A prompt on its way.
struct Started {
    generation: Generation,
    characters: usize,
}

async fn start(server: &Server, asked: Asked, arrived: Instant) -> Result<Started, Error> {
    let valid = server.validation.validate(asked, SpecialTokens::Add).await?;
    Ok(Started { generation: server.submit(&valid, StopText::Remove, arrived)?, characters: valid.characters })
}

async fn complete(server: &Server, started: Vec<Started>, head: &Head) -> Result<Response<HttpBody>, Error> {
    let ends = try_join_all(started.into_iter().map(collect)).await?;
    let (mut cost, mut usage) = (Cost::default(), Usage::default());
    for (characters, end) in &ends {
        cost.add(&Cost::new(*characters, end));
        usage.add(&Usage::new(end));
    }
    let choices: Vec<Choice<'_>> = ends
        .iter()
        .enumerate()
        .map(|(index, (_, end))| Choice {
            index,
            text: &end.generated_text,
            logprobs: None,
            finish_reason: Some(end.finish.openai()),
        })
        .collect();
    let mut response = json(to_json(&completion(head, &choices, Some(usage))));
    cost.write(server, response.headers_mut());
    Ok(response)
}

/// Runs one prompt to its end; its characters and its end.
async fn collect(mut started: Started) -> Result<(usize, End), Error> {
    while let Some(step) = started.generation.next().await {
        if let Some(end) = step?.end {
            return Ok((started.characters, end));
        }
    }
    Err(Error::Incomplete)
}

fn completion<'a>(head: &'a Head, choices: &'a [Choice<'a>], usage: Option<Usage>) -> Completion<'a> {
    let Head { id, created, model, system_fingerprint } = head;
    Completion { object: "text_completion", id, created: *created, model, system_fingerprint, choices, usage }
}

/// All prompts' steps as they come, then the usage if it was asked for, then the end mark. A prompt that fails does not
/// end the others.
fn chunks(started: Vec<Started>, head: Head, includes_usage: bool) -> impl Stream<Item = Vec<u8>> + Send {
    let steps = stream::select_all(started.into_iter().enumerate().map(|(index, started)| {
        Box::pin(stream::unfold(started.generation, move |mut generation| async move {
            let step = generation.next().await?;
            Some(((index, step), generation))
        }))
    }));
    let state = Some((steps, head, Usage::default()));
    stream::unfold(state, move |state| async move {
        let (mut steps, head, mut usage) = state?;
        let mut out = Vec::with_capacity(512);
        match steps.next().await {
            Some((index, Ok(step))) => {
                write_step(&mut out, &head, index, &step, includes_usage);
                if let Some(end) = &step.end {
                    usage.add(&Usage::new(end));
                }
            }
            Some((_, Err(error))) => write_error(&mut out, &error),
            None => {
                if includes_usage {
                    sse::write_event(&mut out, &completion(&head, &[], Some(usage)));
                }
                out.extend_from_slice(sse::DONE);
                return Some((out, None));
            }
        }
        Some((out, Some((steps, head, usage))))
    })
}

fn write_step(out: &mut Vec<u8>, head: &Head, index: usize, step: &Step, includes_usage: bool) {
    let finish_reason = step.end.as_ref().map(|end| end.finish.openai());
    let choice = Choice { index, text: &step.delta, logprobs: None, finish_reason };
    // Without include_usage a prompt's last chunk has its usage, as in TGI; with it, one chunk has the sum.
    let usage = step.end.as_ref().filter(|_| !includes_usage).map(Usage::new);
    sse::write_event(out, &completion(head, &[choice], usage));
}
