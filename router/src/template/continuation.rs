//! `continue_final_message`: the prompt ends inside the final message, so that the model goes on writing it.
//!
//! As in transformers, a mark is written behind the message before rendering, and the prompt is cut at the mark. The
//! place of the message's own text would be ambiguous, and templates may change the text around it.

use serde_json::Value as Json;

use super::TemplateError;

/// The mark. It ends in white space, so that a template which trims the message shows it.
const MARK: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// Writes the mark behind the final message and returns the message's text.
///
/// # Errors
/// [`TemplateError::Continuation`] if there is no message, or no text in it.
pub(super) fn mark(messages: &mut [Json]) -> Result<String, TemplateError> {
    let refuse = |reason| TemplateError::Continuation { reason };
    let last = messages.last_mut().ok_or(refuse("`messages` is empty"))?;
    let text = match &mut last["content"] {
        Json::String(text) => text,
        Json::Array(parts) => match parts.iter_mut().rev().find_map(|part| match part.get_mut("text") {
            Some(Json::String(text)) => Some(text),
            _ => None,
        }) {
            Some(text) => text,
            None => return Err(refuse("its content has no text part")),
        },
        _ => return Err(refuse("it has no text content")),
    };
    let original = text.clone();
    text.push_str(MARK);
    Ok(original)
}

/// Cuts the prompt at the mark that stands behind `text`.
///
/// # Errors
/// [`TemplateError::Continuation`] if the template did not show the message.
pub(super) fn cut(prompt: &mut String, text: &str) -> Result<(), TemplateError> {
    let at = prompt.rfind(MARK.trim_end()).filter(|_| prompt.contains(text.trim()));
    let Some(at) = at else {
        return Err(TemplateError::Continuation { reason: "the chat template does not show it unchanged" });
    };
    let is_trimmed = !prompt[at..].starts_with(MARK);
    prompt.truncate(at);
    if is_trimmed {
        prompt.truncate(prompt.trim_end().len());
    }
    Ok(())
}
