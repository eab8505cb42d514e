//! Messages as OpenAI's clients write them, made into those that templates read.

use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::error::ValidationError;
use crate::limits::{MAX_CALLS_PER_MESSAGE, MAX_CONTENT_PARTS};
use crate::params::at_most;
use crate::routes::openapi::{JsonObjectOrText, describe_text_or_list};

/// One turn of a conversation.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct Message {
    /// `system`, `developer`, `user`, `assistant`, `tool`, or what else the template knows.
    #[schema(extensions(("x-limit" = json!("payload_limit"))))]
    role: String,
    content: Option<Content>,
    #[schema(extensions(("x-limit" = json!("payload_limit"))))]
    name: Option<String>,
    /// The calls that the assistant made.
    #[schema(max_items = 128)]
    tool_calls: Option<Vec<MessageToolCall>>,
    /// Of a `tool` message: the call it answers.
    #[schema(extensions(("x-limit" = json!("payload_limit"))))]
    tool_call_id: Option<String>,
    /// What the assistant thought; the template decides whether the model sees it.
    #[serde(alias = "reasoning")]
    #[schema(extensions(("x-limit" = json!("payload_limit"))))]
    reasoning_content: Option<String>,
    /// The older form of one tool call.
    function_call: Option<MessageFunction>,
    #[schema(extensions(("x-limit" = json!("payload_limit"))))]
    refusal: Option<String>,
}

/// The text of a message or of an item of the responses API.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Content {
    Text(String),
    Parts(Vec<Part>),
}

describe_text_or_list!(Content as "MessageContent", Part, MAX_CONTENT_PARTS);

/// A part of a message. Only text is served.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = MessagePart)]
pub(crate) struct Part {
    #[schema(max_length = 256)]
    r#type: String,
    #[schema(extensions(("x-limit" = json!("payload_limit"))))]
    text: Option<String>,
    #[schema(extensions(("x-limit" = json!("payload_limit"))))]
    refusal: Option<String>,
}

/// A call in a message of the assistant.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct MessageToolCall {
    #[serde(default)]
    #[schema(extensions(("x-limit" = json!("payload_limit"))))]
    id: String,
    #[schema(max_length = 256)]
    r#type: Option<String>,
    function: MessageFunction,
}

/// A function with the arguments of a call.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct MessageFunction {
    #[schema(extensions(("x-limit" = json!("payload_limit"))))]
    name: String,
    /// JSON in a string, or the JSON itself.
    #[serde(alias = "parameters", default)]
    #[schema(value_type = JsonObjectOrText)]
    arguments: Value,
}

/// Types of parts that are text.
const TEXT_PARTS: &[&str] = &["text", "input_text", "output_text", "refusal"];

/// The messages as templates read them.
///
/// # Errors
/// [`ValidationError`] naming the first message that is not text.
pub(crate) fn template_messages(messages: Vec<Message>) -> Result<Vec<Value>, ValidationError> {
    messages.into_iter().enumerate().map(|(index, message)| message.into_template(index)).collect()
}

impl Message {
    fn into_template(mut self, index: usize) -> Result<Value, ValidationError> {
        let calls = self.calls(index)?;
        let says_otherwise = calls.is_some() || self.refusal.is_some() || self.reasoning_content.is_some();
        let content = match (self.content, self.refusal) {
            (Some(content), _) => {
                let refuse = |kind| ValidationError::ContentPart { index, kind };
                content.into_text("messages[].content", TEXT_PARTS, refuse)?
            }
            (None, Some(refusal)) => refusal,
            // Templates add strings to it, so it is never null.
            (None, None) if says_otherwise => String::new(),
            (None, None) => return Err(ValidationError::NoContent { index }),
        };
        let mut message = Map::new();
        // A result of a function in the older form is a result of a tool.
        let role = if self.role == "function" { "tool".to_owned() } else { self.role };
        message.insert("role".to_owned(), Value::from(role));
        message.insert("content".to_owned(), Value::from(content));
        for (key, value) in
            [("name", self.name), ("tool_call_id", self.tool_call_id), ("reasoning_content", self.reasoning_content)]
        {
            if let Some(value) = value {
                message.insert(key.to_owned(), Value::from(value));
            }
        }
        if let Some(calls) = calls {
            message.insert("tool_calls".to_owned(), Value::from(calls));
        }
        Ok(Value::from(message))
    }

    /// `tool_calls` for the template; `None` if there are none, since templates ask whether the key is there.
    fn calls(&mut self, index: usize) -> Result<Option<Vec<Value>>, ValidationError> {
        let mut calls = self.tool_calls.take().unwrap_or_default();
        if let Some(function) = self.function_call.take() {
            calls.push(MessageToolCall { id: String::new(), r#type: None, function });
        }
        at_most("messages[].tool_calls", "calls", MAX_CALLS_PER_MESSAGE, calls.len())?;
        if let Some(kind) = calls.iter().find_map(|call| call.r#type.as_ref().filter(|kind| *kind != "function")) {
            return Err(ValidationError::ToolType { field: "messages[].tool_calls", index, kind: kind.clone() });
        }
        Ok((!calls.is_empty()).then(|| calls.into_iter().map(MessageToolCall::into_template).collect()))
    }
}

impl MessageToolCall {
    fn into_template(self) -> Value {
        let MessageFunction { name, arguments } = self.function;
        json!({"id": self.id, "type": "function", "function": {"name": name, "arguments": arguments_object(arguments)}})
    }
}

/// Templates print arguments as JSON, so they must see the object and not a string. Arguments that were cut and are no
/// JSON stay as they are: the conversation can go on.
pub(crate) fn arguments_object(arguments: Value) -> Value {
    match arguments {
        Value::String(text) if text.trim().is_empty() => json!({}),
        Value::String(text) => serde_json::from_str(&text).ok().filter(Value::is_object).unwrap_or(Value::String(text)),
        Value::Null => json!({}),
        other => other,
    }
}

impl Content {
    /// Parts of these types joined without separator, as in TGI; `refuse` makes the error of another type.
    ///
    /// # Errors
    /// That error, or [`ValidationError::TooMany`] about `field`.
    pub(crate) fn into_text(
        self,
        field: &'static str,
        types: &[&str],
        refuse: impl Fn(String) -> ValidationError,
    ) -> Result<String, ValidationError> {
        let parts = match self {
            Content::Text(text) => return Ok(text),
            Content::Parts(parts) => parts,
        };
        at_most(field, "parts", MAX_CONTENT_PARTS, parts.len())?;
        let text = |part: Part| match part.text.or(part.refusal) {
            Some(text) if types.contains(&part.r#type.as_str()) => Ok(text),
            _ => Err(refuse(part.r#type)),
        };
        parts.into_iter().map(text).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(message: Value, expected: Value) {
        let message: Message = serde_json::from_value(message).unwrap();
        let outcome = template_messages(vec![message]).map(|mut messages| messages.remove(0));
        assert_eq!(outcome.unwrap_or_else(|error| Value::from(error.to_string())), expected);
    }

    #[test]
    fn messages_become_what_templates_read() {
        check(json!({"role": "user", "content": "a", "extra": 1}), json!({"role": "user", "content": "a"}));
        let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
        check(json!({"role": "user", "content": parts}), json!({"role": "user", "content": "ab"}));
        check(
            json!({"role": "tool", "content": "4", "tool_call_id": "c1", "name": "add"}),
            json!({"role": "tool", "content": "4", "name": "add", "tool_call_id": "c1"}),
        );
        check(
            json!({"role": "assistant", "content": null, "reasoning_content": "hm"}),
            json!({"role": "assistant", "content": "", "reasoning_content": "hm"}),
        );
    }

    #[test]
    fn arguments_are_objects_for_the_template() {
        for (given, expected) in [
            (json!("{\"a\": 1}"), json!({"a": 1})),
            (json!({"a": 1}), json!({"a": 1})),
            (json!(""), json!({})),
            (json!("{\"a\": "), json!("{\"a\": ")),
            (json!("3"), json!("3")),
        ] {
            let call = json!({"id": "c1", "type": "function", "function": {"name": "f", "arguments": given}});
            let mut expected_call = call.clone();
            expected_call["function"]["arguments"] = expected;
            check(
                json!({"role": "assistant", "tool_calls": [call]}),
                json!({"role": "assistant", "content": "", "tool_calls": [expected_call]}),
            );
        }
    }

    #[test]
    fn the_older_function_form_is_a_tool_call() {
        check(
            json!({"role": "assistant", "content": null, "function_call": {"name": "f", "arguments": "{}"}}),
            json!({"role": "assistant", "content": "", "tool_calls": [
                {"id": "", "type": "function", "function": {"name": "f", "arguments": {}}}]}),
        );
        check(
            json!({"role": "function", "name": "f", "content": "1"}),
            json!({"role": "tool", "content": "1", "name": "f"}),
        );
    }

    #[test]
    fn what_is_not_text_is_named() {
        check(json!({"role": "user"}), json!("`messages[0].content` must be a string or a list of text parts"));
        check(
            json!({"role": "user", "content": [{"type": "input_audio"}]}),
            json!("`messages[0].content` of type `input_audio` is not supported by this version"),
        );
        check(
            json!({"role": "assistant", "tool_calls": [{"type": "custom", "function": {"name": "f"}}]}),
            json!("`messages[].tool_calls[0]` of type `custom` is not supported by this version"),
        );
    }
}
