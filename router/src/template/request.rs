//! What a rendering is asked for, and how a client's messages become what the template expects.

use serde_json::{Map, Value as Json, json};

use super::TemplateError;
use super::facts::{ArgumentsFormat, ContentFormat, EmptyContent, TemplateFacts};
use crate::limits::{MAX_MESSAGES, MAX_TEMPLATE_VARIABLES};

/// Names of reasoning text in messages. Templates read the first; clients and older models use the others.
const REASONING_FIELDS: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// Variables that a request must not set through `chat_template_kwargs`: they have fields of their own, or are the
/// dialect's functions. Special tokens are added to these.
const RESERVED: [&str; 15] = [
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template",
    "tokenize",
    "raise_exception",
    "strftime_now",
    "namespace",
    "range",
    "dict",
    "joiner",
    "cycler",
    "loop",
];

/// What a rendering is asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct RenderRequest {
    /// Objects as OpenAI's API has them: `role`, `content` (text, parts or null), `tool_calls`, `tool_call_id`, `name`,
    /// `reasoning_content` and whatever else the template may read.
    pub(crate) messages: Vec<Json>,
    /// The tools as the client wrote them; empty: the template sees none.
    pub(crate) tools: Vec<Json>,
    /// Texts to answer from, for templates that know them.
    pub(crate) documents: Option<Vec<Json>>,
    /// `chat_template_kwargs`: further variables, such as `enable_thinking`.
    pub(crate) variables: Map<String, Json>,
    pub(crate) ending: Ending,
}

/// How the prompt ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Ending {
    /// TGI's rule: after a final assistant message if the prompt shows it, else with the generation prompt.
    #[default]
    Automatic,
    /// With the words that begin an assistant message (`add_generation_prompt`).
    GenerationPrompt,
    /// After the last message (neither flag).
    Closed,
    /// Inside the final message, so that the model goes on writing it (`continue_final_message`).
    ContinueFinalMessage,
}

impl RenderRequest {
    /// # Errors
    /// [`TemplateError::Variable`], [`TemplateError::TooMany`].
    pub(super) fn check(&self, special_tokens: &Map<String, Json>) -> Result<(), TemplateError> {
        let too_many = |field, limit, given| Err(TemplateError::TooMany { field, limit, given });
        if self.messages.len() > MAX_MESSAGES {
            return too_many("messages", MAX_MESSAGES, self.messages.len());
        }
        if self.variables.len() > MAX_TEMPLATE_VARIABLES {
            return too_many("chat_template_kwargs", MAX_TEMPLATE_VARIABLES, self.variables.len());
        }
        let is_reserved = |name: &&String| RESERVED.contains(&name.as_str()) || special_tokens.contains_key(*name);
        match self.variables.keys().find(is_reserved) {
            Some(name) => Err(TemplateError::Variable { name: name.clone() }),
            None => Ok(()),
        }
    }

    /// The messages in the form that this template shows fully.
    ///
    /// # Errors
    /// [`TemplateError::Message`] if one is no object; [`TemplateError::ContentPart`] if the template shows text only and a
    /// part is none.
    pub(super) fn adapted_messages(&self, facts: &TemplateFacts) -> Result<Vec<Json>, TemplateError> {
        self.messages.iter().enumerate().map(|(index, message)| adapt(index, message, facts)).collect()
    }
}

fn adapt(index: usize, message: &Json, facts: &TemplateFacts) -> Result<Json, TemplateError> {
    let Json::Object(message) = message else { return Err(TemplateError::Message { index }) };
    let mut message = with_reasoning(message.clone());
    let has_calls = message.get("tool_calls").and_then(Json::as_array).is_some_and(|calls| !calls.is_empty());
    if message.get("tool_calls").is_some() && !has_calls {
        // Templates ask `if 'tool_calls' in message`, and an empty list or null means that there are none.
        message.shift_remove("tool_calls");
    }
    adapt_content(index, &mut message, has_calls, facts)?;
    for call in message.get_mut("tool_calls").and_then(Json::as_array_mut).into_iter().flatten() {
        let owner = match call.get("function") {
            Some(Json::Object(_)) => &mut call["function"],
            _ => call,
        };
        if let Some(arguments) = owner.get_mut("arguments") {
            adapt_arguments(arguments, facts.arguments);
        }
    }
    Ok(Json::Object(message))
}

/// transformers' rule: reasoning under any of its names is shown under `reasoning_content` and `thinking`.
pub(super) fn with_reasoning(message: Map<String, Json>) -> Map<String, Json> {
    let given = REASONING_FIELDS.iter().find_map(|name| message.get(*name).filter(|value| !value.is_null()));
    let Some(reasoning) = given.cloned() else { return message };
    let mut named = Map::new();
    named.insert("thinking".to_owned(), reasoning.clone());
    named.extend(message);
    named.insert("reasoning_content".to_owned(), reasoning);
    named
}

fn adapt_content(
    index: usize,
    message: &mut Map<String, Json>,
    has_calls: bool,
    facts: &TemplateFacts,
) -> Result<(), TemplateError> {
    let content = message.entry("content").or_insert(Json::Null);
    if has_calls && (content.is_null() || content.as_str() == Some("")) {
        *content = match facts.empty_content {
            EmptyContent::Null => Json::Null,
            EmptyContent::Text => Json::from(""),
        };
        return Ok(());
    }
    match (&mut *content, facts.content) {
        (Json::String(text), ContentFormat::Parts) => {
            let text = std::mem::take(text);
            *content = json!([{"type": "text", "text": text}]);
        }
        (Json::Array(parts), ContentFormat::Text) => {
            let mut text = String::new();
            for part in parts {
                match (part["type"].as_str(), part["text"].as_str(), part.as_str()) {
                    (Some("text"), Some(piece), _) | (_, _, Some(piece)) => text.push_str(piece),
                    (kind, ..) => {
                        let kind = kind.unwrap_or("unknown").to_owned();
                        return Err(TemplateError::ContentPart { index, kind });
                    }
                }
            }
            *content = Json::String(text);
        }
        _ => {}
    }
    Ok(())
}

/// OpenAI's clients send arguments as a text of JSON; most templates print them with `tojson` or walk through them.
/// What is not the text of a JSON object stays as it is.
fn adapt_arguments(arguments: &mut Json, format: ArgumentsFormat) {
    match (&*arguments, format) {
        (Json::String(text), ArgumentsFormat::Object) => {
            let text = if text.trim().is_empty() { "{}" } else { text };
            if let Ok(object @ Json::Object(_)) = serde_json::from_str(text) {
                *arguments = object;
            }
        }
        (Json::Object(_), ArgumentsFormat::Text) => *arguments = Json::String(arguments.to_string()),
        _ => {}
    }
}
