//! `POST /v1/chat/completions`: OpenAI's chat call, whole or as a stream.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body as HttpBody;
use axum::extract::State;
use axum::http::Response;
use futures::stream::{self, Stream};
use serde::{Deserialize, Serialize};

use super::body::{Body, Wire};
use super::headers::{self, Cost};
use super::openai::{Head, Logprobs, Stop, StreamOptions, TokenLogprob, Usage, write_error};
use super::{json, sse, to_json};
use crate::error::{Error, OpenAiFailure, ValidationError};
use crate::generation::{Generation, Step};
use crate::limits::{MAX_CONTENT_PARTS, MAX_MESSAGES};
use crate::params::unsupported::{CHAT, Unsupported};
use crate::params::{Asked, seed, temperature, top_p};
use crate::server::Server;
use crate::template::TemplateMessage;
use crate::text::StopText;
use crate::validation::SpecialTokens;

/// The body of the chat routes.
#[derive(Deserialize)]
pub(super) struct ChatRequest {
    model: Option<String>,
    messages: Vec<Message>,
    frequency_penalty: Option<f32>,
    logprobs: Option<bool>,
    top_logprobs: Option<u32>,
    max_tokens: Option<u32>,
    /// OpenAI's newer name; it wins if both are given.
    max_completion_tokens: Option<u32>,
    stop: Option<Stop>,
    stream: Option<bool>,
    seed: Option<i128>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    stream_options: Option<StreamOptions>,
}

impl Wire for ChatRequest {
    const UNSUPPORTED: &'static [Unsupported] = CHAT;
    const PARAMETERS: Option<&'static str> = None;
}

#[derive(Deserialize)]
struct Message {
    role: String,
    content: Option<Content>,
    #[serde(default)]
    tool_calls: Option<Vec<serde::de::IgnoredAny>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
struct Part {
    r#type: String,
    text: Option<String>,
}

impl ChatRequest {
    /// The messages as the template sees them: text parts joined without separator, as in TGI.
    ///
    /// # Errors
    /// [`ValidationError`] if there are too many, or one is not text.
    pub(super) fn template_messages(&mut self) -> Result<Vec<TemplateMessage>, ValidationError> {
        let given = self.messages.len();
        if given > MAX_MESSAGES {
            return Err(ValidationError::TooMany { field: "messages", unit: "messages", limit: MAX_MESSAGES, given });
        }
        std::mem::take(&mut self.messages)
            .into_iter()
            .enumerate()
            .map(|(index, message)| message.flatten(index))
            .collect()
    }

    /// What is asked of validation; the prompt is still missing.
    fn asked(&mut self) -> Result<Asked, ValidationError> {
        let mut asked = Asked {
            frequency_penalty: self.frequency_penalty,
            max_new_tokens: self.max_completion_tokens.or(self.max_tokens),
            stop: Stop::into_list(self.stop.take()),
            top_n_tokens: self.top_logprobs,
            ..Asked::default()
        };
        temperature::ask_openai(&mut asked, self.temperature);
        top_p::ask_openai(&mut asked, self.top_p);
        seed::ask_openai(&mut asked, self.seed)?;
        Ok(asked)
    }
}

impl Message {
    fn flatten(self, index: usize) -> Result<TemplateMessage, ValidationError> {
        if self.tool_calls.is_some_and(|calls| !calls.is_empty()) {
            return Err(ValidationError::Unsupported { field: "messages[].tool_calls" });
        }
        let content = match self.content {
            None => return Err(ValidationError::NoContent { index }),
            Some(Content::Text(text)) => text,
            Some(Content::Parts(parts)) if parts.len() > MAX_CONTENT_PARTS => {
                let (limit, given) = (MAX_CONTENT_PARTS, parts.len());
                return Err(ValidationError::TooMany { field: "messages[].content", unit: "parts", limit, given });
            }
            Some(Content::Parts(parts)) => {
                let mut content = String::new();
                for part in parts {
                    match part {
                        Part { r#type, text: Some(text) } if r#type == "text" => content.push_str(&text),
                        Part { r#type: kind, .. } => return Err(ValidationError::ContentPart { index, kind }),
                    }
                }
                content
            }
        };
        Ok(TemplateMessage { role: self.role, content })
    }
}

#[derive(Serialize)]
struct ChatCompletion<'a> {
    object: &'static str,
    id: &'a str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'a str,
    choices: [ChatChoice<'a>; 1],
    usage: Usage,
}

#[derive(Serialize)]
struct ChatChoice<'a> {
    index: u32,
    message: TextMessage<'a>,
    logprobs: Option<Logprobs>,
    finish_reason: &'static str,
}

#[derive(Serialize)]
struct TextMessage<'a> {
    role: &'static str,
    content: &'a str,
}

#[derive(Serialize)]
struct ChatChunk<'a> {
    object: &'static str,
    id: &'a str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'a str,
    choices: &'a [ChunkChoice<'a>],
    usage: Option<Usage>,
}

#[derive(Serialize)]
struct ChunkChoice<'a> {
    index: u32,
    /// The role stands in every chunk: huggingface_hub requires it there.
    delta: TextMessage<'a>,
    logprobs: Option<Logprobs>,
    finish_reason: Option<&'static str>,
}

/// What the answer must show.
struct Shape {
    head: Head,
    /// How many alternatives per token; `None` without log-probabilities.
    logprobs: Option<usize>,
    includes_usage: bool,
}

/// The route.
pub(super) async fn handle(
    State(server): State<Arc<Server>>,
    mut body: Body<ChatRequest>,
) -> Result<Response<HttpBody>, OpenAiFailure> {
    let request = &mut body.value;
    let shape = Shape {
        head: Head::new("chatcmpl", request.model.take(), &server)?,
        logprobs: request.logprobs.unwrap_or(false).then_some(request.top_logprobs.unwrap_or(0) as usize),
        includes_usage: StreamOptions::includes_usage(request.stream_options.as_ref()),
    };
    let (is_stream, arrived) = (request.stream.unwrap_or(false), body.arrived);
    let (generation, characters) = start(&server, request, arrived).await?;
    let response = if is_stream {
        let mut response = sse::response(chunks(generation, shape));
        headers::write_stream(&server, characters, response.headers_mut());
        response
    } else {
        complete(&server, generation, characters, &shape).await?
    };
    Ok(body.unknown.tell(response))
}

async fn start(server: &Server, request: &mut ChatRequest, arrived: Instant) -> Result<(Generation, usize), Error> {
    let messages = request.template_messages()?;
    let asked = Asked { inputs: server.render_chat(messages).await?, ..request.asked()? };
    let valid = server.validation.validate(asked, SpecialTokens::Present).await?;
    Ok((server.submit(&valid, StopText::Remove, arrived)?, valid.characters))
}

async fn complete(
    server: &Server,
    mut generation: Generation,
    characters: usize,
    shape: &Shape,
) -> Result<Response<HttpBody>, Error> {
    let mut content = Vec::new();
    while let Some(step) = generation.next().await {
        let step = step?;
        content.extend(shape.logprobs.map(|top| TokenLogprob::new(&step, top)));
        let Some(end) = step.end else { continue };
        let Head { id, created, model, system_fingerprint } = &shape.head;
        let mut response = json(to_json(&ChatCompletion {
            object: "chat.completion",
            id,
            created: *created,
            model,
            system_fingerprint,
            choices: [ChatChoice {
                index: 0,
                message: TextMessage { role: "assistant", content: &end.generated_text },
                logprobs: shape.logprobs.map(|_| Logprobs { content }),
                finish_reason: end.finish.openai(),
            }],
            usage: Usage::new(&end),
        }));
        Cost::new(characters, &end).write(server, response.headers_mut());
        return Ok(response);
    }
    Err(Error::Incomplete)
}

fn chunks(generation: Generation, shape: Shape) -> impl Stream<Item = Vec<u8>> + Send {
    stream::unfold((generation, shape), |(mut generation, shape)| async move {
        let step = generation.next().await?;
        let mut out = Vec::with_capacity(512);
        let is_over = match step {
            Ok(step) => shape.write_step(&mut out, &step),
            Err(error) => {
                write_error(&mut out, &error);
                true
            }
        };
        if is_over {
            out.extend_from_slice(sse::DONE);
        }
        Some((out, (generation, shape)))
    })
}

impl Shape {
    /// Appends the chunk of one step, and the usage chunk after the last; whether it was the last.
    fn write_step(&self, out: &mut Vec<u8>, step: &Step) -> bool {
        let choice = ChunkChoice {
            index: 0,
            delta: TextMessage { role: "assistant", content: &step.delta },
            logprobs: self.logprobs.map(|top| Logprobs { content: vec![TokenLogprob::new(step, top)] }),
            finish_reason: step.end.as_ref().map(|end| end.finish.openai()),
        };
        self.write_chunk(out, &[choice], None);
        if let Some(end) = step.end.as_ref().filter(|_| self.includes_usage) {
            self.write_chunk(out, &[], Some(Usage::new(end)));
        }
        step.end.is_some()
    }

    fn write_chunk(&self, out: &mut Vec<u8>, choices: &[ChunkChoice<'_>], usage: Option<Usage>) {
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
