//! The response object, and the answer in one piece.

use std::sync::Arc;

use axum::body::Body as HttpBody;
use axum::http::Response as HttpResponse;
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::error::Error;
use crate::routes::chat::{Block, Chat, ChatEnd, ChatFinish, ScoredToken};
use crate::routes::headers::Cost;
use crate::routes::openai::logprobs::TokenLogprob;
use crate::routes::openai::response_format::ResponseFormat;
use crate::routes::openai::{Head, new_id};
use crate::routes::{json, to_json};
use crate::server::Server;
use crate::text::TextTokenizer;

/// A response.
#[derive(Clone, Serialize, ToSchema)]
pub(super) struct Response {
    id: String,
    object: &'static str,
    created_at: u64,
    status: Status,
    error: Option<ResponseError>,
    incomplete_details: Option<IncompleteDetails>,
    instructions: Option<String>,
    max_output_tokens: Option<u32>,
    model: String,
    pub(super) output: Vec<OutputItem>,
    parallel_tool_calls: bool,
    previous_response_id: Option<String>,
    reasoning: ReasoningSettings,
    store: bool,
    temperature: f32,
    text: TextSettings,
    tool_choice: Value,
    tools: Vec<Value>,
    top_p: f32,
    truncation: &'static str,
    usage: Option<Usage>,
    #[schema(value_type = Object)]
    metadata: Map<String, Value>,
}

/// What of the request comes back with the answer.
pub(super) struct Settings {
    pub(super) instructions: Option<String>,
    pub(super) max_output_tokens: Option<u32>,
    pub(super) metadata: Map<String, Value>,
    pub(super) parallel_tool_calls: bool,
    pub(super) reasoning_effort: Option<String>,
    pub(super) temperature: f32,
    pub(super) format: Option<ResponseFormat>,
    pub(super) tool_choice: Option<Value>,
    pub(super) tools: Vec<Value>,
    pub(super) top_p: f32,
}

/// How the log-probabilities of output text are written.
pub(super) struct LogprobForm {
    tokenizer: Arc<TextTokenizer>,
    /// Alternatives per token.
    top: usize,
}

/// How far a response or an item is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Status {
    InProgress,
    Completed,
    /// It was cut.
    Incomplete,
}

/// Always null: a response that fails is an error of its own.
#[derive(Clone, Serialize, ToSchema)]
pub(super) struct ResponseError {
    code: String,
    message: String,
}

#[derive(Clone, Serialize, ToSchema)]
struct IncompleteDetails {
    reason: &'static str,
}

#[derive(Clone, Serialize, ToSchema)]
struct ReasoningSettings {
    effort: Option<String>,
    summary: Option<String>,
}

#[derive(Clone, Serialize, ToSchema)]
struct TextSettings {
    format: ResponseFormat,
}

/// An item of the answer.
#[derive(Clone, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum OutputItem {
    Message { id: String, status: Status, role: &'static str, content: Vec<ContentPart> },
    Reasoning { id: String, status: Status, summary: Vec<String>, content: Vec<ContentPart> },
    FunctionCall { id: String, status: Status, call_id: String, name: String, arguments: String },
}

/// A part of an item.
#[derive(Clone, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum ContentPart {
    OutputText { text: String, annotations: Vec<String>, logprobs: Vec<TokenLogprob> },
    ReasoningText { text: String },
}

#[derive(Clone, Copy, Serialize, ToSchema)]
#[schema(as = ResponsesUsage)]
struct Usage {
    input_tokens: u32,
    input_tokens_details: InputTokensDetails,
    output_tokens: u32,
    output_tokens_details: OutputTokensDetails,
    total_tokens: u32,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
struct InputTokensDetails {
    /// Tokens that came from the prefix cache.
    cached_tokens: u32,
}

#[derive(Clone, Copy, Serialize, ToSchema)]
struct OutputTokensDetails {
    reasoning_tokens: u32,
}

/// Runs the chat to its end.
///
/// # Errors
/// Its failure.
pub(super) async fn respond(
    server: &Server,
    chat: Chat,
    mut response: Response,
    logprobs: &LogprobForm,
) -> Result<HttpResponse<HttpBody>, Error> {
    let characters = chat.characters;
    let reply = chat.collect().await?.into_iter().next().ok_or(Error::Incomplete)?;
    let end = reply.end.ok_or(Error::Incomplete)?;
    response.output = reply.blocks.into_iter().map(|block| OutputItem::new(block, logprobs)).collect();
    response.end(&end);
    let mut answer = json(to_json(&response));
    Cost::new(characters, &end.generation).write(server, answer.headers_mut());
    Ok(answer)
}

impl LogprobForm {
    pub(super) fn new(server: &Server, chat: &Chat) -> Self {
        Self { tokenizer: server.validation.tokenizer.clone(), top: chat.logprobs.unwrap_or(0) }
    }

    /// The entries of a text's tokens; there are none if log-probabilities were not asked for.
    pub(super) fn entries(&self, tokens: &[ScoredToken]) -> Vec<TokenLogprob> {
        TokenLogprob::list(&self.tokenizer, tokens, self.top)
    }
}

impl Response {
    /// A response without output, as a stream begins.
    pub(super) fn begun(head: Head, settings: Settings) -> Self {
        Self {
            id: head.id,
            object: "response",
            created_at: head.created,
            status: Status::InProgress,
            error: None,
            incomplete_details: None,
            instructions: settings.instructions,
            max_output_tokens: settings.max_output_tokens,
            model: head.model,
            output: Vec::new(),
            parallel_tool_calls: settings.parallel_tool_calls,
            previous_response_id: None,
            reasoning: ReasoningSettings { effort: settings.reasoning_effort, summary: None },
            store: false,
            temperature: settings.temperature,
            text: TextSettings { format: settings.format.unwrap_or_default() },
            tool_choice: settings.tool_choice.unwrap_or_else(|| Value::from("auto")),
            tools: settings.tools,
            top_p: settings.top_p,
            truncation: "disabled",
            usage: None,
            metadata: settings.metadata,
        }
    }

    /// Enters how it ended.
    pub(super) fn end(&mut self, end: &ChatEnd) {
        let is_cut = end.finish == ChatFinish::Length;
        self.status = if is_cut { Status::Incomplete } else { Status::Completed };
        self.incomplete_details = is_cut.then_some(IncompleteDetails { reason: "max_output_tokens" });
        if let Some(last) = self.output.last_mut() {
            *last.status_mut() = self.status;
        }
        let generation = &end.generation;
        self.usage = Some(Usage {
            input_tokens: generation.input_tokens,
            input_tokens_details: InputTokensDetails { cached_tokens: generation.cached_tokens },
            output_tokens: generation.generated_tokens,
            output_tokens_details: OutputTokensDetails { reasoning_tokens: end.reasoning_tokens },
            total_tokens: generation.input_tokens + generation.generated_tokens,
        });
    }

    pub(super) fn is_incomplete(&self) -> bool {
        self.status == Status::Incomplete
    }
}

impl OutputItem {
    /// A complete item with new ids.
    pub(super) fn new(block: Block, logprobs: &LogprobForm) -> Self {
        let status = Status::Completed;
        let content = Vec::from_iter(ContentPart::new(&block, logprobs));
        match block {
            Block::Content { .. } => OutputItem::Message { id: new_id("msg_"), status, role: "assistant", content },
            Block::Reasoning(_) => OutputItem::Reasoning { id: new_id("rs_"), status, summary: Vec::new(), content },
            Block::ToolCall { name, arguments } => {
                OutputItem::FunctionCall { id: new_id("fc_"), status, call_id: new_id("call_"), name, arguments }
            }
        }
    }

    /// The same item before it had any text.
    pub(super) fn begun(&self) -> Self {
        let mut item = self.clone();
        *item.status_mut() = Status::InProgress;
        match &mut item {
            OutputItem::Message { content, .. } | OutputItem::Reasoning { content, .. } => content.clear(),
            OutputItem::FunctionCall { arguments, .. } => arguments.clear(),
        }
        item
    }

    /// Enters what the block that this item was opened for became: its part, or the arguments of its call.
    pub(super) fn complete(&mut self, block: Block, part: Option<ContentPart>) {
        match (self, block) {
            (OutputItem::FunctionCall { arguments, .. }, Block::ToolCall { arguments: all, .. }) => *arguments = all,
            (OutputItem::Message { content, .. }, Block::Content { .. })
            | (OutputItem::Reasoning { content, .. }, Block::Reasoning(_)) => *content = Vec::from_iter(part),
            _ => unreachable!("an item is completed by the block that opened it"),
        }
    }

    pub(super) fn id(&self) -> &str {
        match self {
            OutputItem::Message { id, .. } | OutputItem::Reasoning { id, .. } | OutputItem::FunctionCall { id, .. } => {
                id
            }
        }
    }

    pub(super) fn status_mut(&mut self) -> &mut Status {
        match self {
            OutputItem::Message { status, .. }
            | OutputItem::Reasoning { status, .. }
            | OutputItem::FunctionCall { status, .. } => status,
        }
    }
}

impl ContentPart {
    /// The one part of a block's item; calls have none.
    pub(super) fn new(block: &Block, logprobs: &LogprobForm) -> Option<Self> {
        match block {
            Block::Content { text, tokens } => Some(ContentPart::OutputText {
                text: text.clone(),
                annotations: Vec::new(),
                logprobs: logprobs.entries(tokens),
            }),
            Block::Reasoning(text) => Some(ContentPart::ReasoningText { text: text.clone() }),
            Block::ToolCall { .. } => None,
        }
    }
}
