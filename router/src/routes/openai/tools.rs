//! Tools and the choice among them as OpenAI's clients write them, in the old form and the new, and as TGI's do.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::chat::{Tool, ToolChoice};
use crate::error::ValidationError;
use crate::limits::MAX_TOOLS;
use crate::params::at_most;
use crate::routes::openapi::JsonObject;

/// A function that the model may call.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct ToolObject {
    /// `function`.
    #[schema(max_length = 256)]
    r#type: Option<String>,
    function: Option<FunctionObject>,
}

/// What a function is called, does and takes.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct FunctionObject {
    #[schema(max_length = 256)]
    name: String,
    #[schema(extensions(("x-limit" = json!("payload_limit"))))]
    description: Option<String>,
    /// JSON Schema of the arguments.
    #[serde(alias = "arguments")]
    #[schema(value_type = Option<JsonObject>)]
    parameters: Option<Value>,
}

/// `tools`. They are kept as the client wrote them, for the template.
///
/// # Errors
/// [`ValidationError`] naming the first one that is no function.
pub(crate) fn tools(field: &'static str, tools: Vec<Value>) -> Result<Vec<Tool>, ValidationError> {
    tools.into_iter().enumerate().map(|(index, value)| tool(field, index, value)).collect()
}

fn tool(field: &'static str, index: usize, value: Value) -> Result<Tool, ValidationError> {
    let invalid = |reason: String| ValidationError::Item { field, index, reason };
    let ToolObject { r#type: kind, function } =
        ToolObject::deserialize(&value).map_err(|error| invalid(error.to_string()))?;
    if let Some(kind) = kind.filter(|kind| kind != "function") {
        return Err(ValidationError::ToolType { field, index, kind });
    }
    let function = function.ok_or_else(|| invalid("missing field `function`".to_owned()))?;
    Ok(from_function(function, value))
}

/// `functions`, which were there before tools.
///
/// # Errors
/// [`ValidationError`] naming the first one that is none.
pub(crate) fn functions(functions: Vec<Value>) -> Result<Vec<Tool>, ValidationError> {
    let tool = |(index, value): (usize, Value)| {
        let function = FunctionObject::deserialize(&value).map_err(|error| ValidationError::Item {
            field: "functions",
            index,
            reason: error.to_string(),
        })?;
        Ok(from_function(function, json!({"type": "function", "function": value})))
    };
    functions.into_iter().enumerate().map(tool).collect()
}

fn from_function(function: FunctionObject, mut original: Value) -> Tool {
    let parameters = function
        .parameters
        .filter(|schema| !schema.is_null())
        .unwrap_or_else(|| json!({"type": "object", "properties": {}}));
    if let Some(object) = original["function"].as_object_mut() {
        // TGI's other name; templates know only this one.
        object.shift_remove("arguments");
        object.insert("parameters".to_owned(), parameters.clone());
    }
    Tool {
        name: function.name,
        description: function.description,
        parameters: Arc::new(parameters),
        original: Arc::new(original),
    }
}

/// `tool_choice`.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Choice {
    pub(crate) choice: ToolChoice,
    /// The only functions that may be called; the model sees all.
    pub(crate) allowed: Option<Vec<String>>,
}

impl From<ToolChoice> for Choice {
    fn from(choice: ToolChoice) -> Self {
        Self { choice, allowed: None }
    }
}

/// `tool_choice`: a word, the name of a function (TGI's form), an object that names one, or one that names those that may
/// be called (`allowed_tools`, whose fields stand beside its type in the responses API).
///
/// # Errors
/// [`ValidationError::Malformed`] if it is something else, [`ValidationError::TooMany`].
pub(crate) fn tool_choice(choice: Option<&Value>) -> Result<Choice, ValidationError> {
    match choice {
        None | Some(Value::Null) => Ok(Choice::default()),
        Some(Value::String(word)) => Ok(Choice::from(match word.as_str() {
            "auto" => ToolChoice::Auto,
            "none" => ToolChoice::None,
            "required" | "any" => ToolChoice::Required,
            name => ToolChoice::Named(name.to_owned()),
        })),
        Some(object) if object["type"] == "allowed_tools" => {
            allowed_tools(object.get("allowed_tools").unwrap_or(object))
        }
        Some(object) => name(object).map(|name| Choice::from(ToolChoice::Named(name.to_owned()))).ok_or(
            ValidationError::Malformed {
                field: "tool_choice",
                expected: "`auto`, `none`, `required` or an object that names a function",
            },
        ),
    }
}

fn allowed_tools(allowed: &Value) -> Result<Choice, ValidationError> {
    let malformed = || ValidationError::Malformed {
        field: "tool_choice",
        expected: "of `mode` `auto` or `required` with a list of functions as its `tools` if it is `allowed_tools`",
    };
    let choice = match allowed["mode"].as_str() {
        Some("auto") => ToolChoice::Auto,
        Some("required") => ToolChoice::Required,
        _ => return Err(malformed()),
    };
    let tools = allowed["tools"].as_array().ok_or_else(malformed)?;
    at_most("tool_choice", "tools", MAX_TOOLS, tools.len())?;
    let names: Option<Vec<String>> = tools.iter().map(|tool| name(tool).map(str::to_owned)).collect();
    Ok(Choice { choice, allowed: Some(names.ok_or_else(malformed)?) })
}

/// The name of the function that an object is about, in the old form and the new.
fn name(object: &Value) -> Option<&str> {
    object.pointer("/function/name").or_else(|| object.get("name")).and_then(Value::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_have_many_forms() {
        let named = ToolChoice::Named("f".to_owned());
        for (given, expected) in [
            (json!(null), ToolChoice::Auto),
            (json!("auto"), ToolChoice::Auto),
            (json!("none"), ToolChoice::None),
            (json!("required"), ToolChoice::Required),
            (json!("f"), named.clone()),
            (json!({"type": "function", "function": {"name": "f"}}), named.clone()),
            (json!({"type": "function", "name": "f"}), named.clone()),
            (json!({"name": "f"}), named),
        ] {
            assert_eq!(tool_choice(Some(&given)).unwrap(), Choice::from(expected), "{given}");
        }
        let allowed = |choice| Choice { choice, allowed: Some(vec!["f".to_owned()]) };
        for (given, expected) in [
            (
                json!({"type": "allowed_tools", "allowed_tools": {"mode": "auto",
                    "tools": [{"type": "function", "function": {"name": "f"}}]}}),
                allowed(ToolChoice::Auto),
            ),
            (
                json!({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]}),
                allowed(ToolChoice::Required),
            ),
        ] {
            assert_eq!(tool_choice(Some(&given)).unwrap(), expected, "{given}");
        }
        for given in [
            json!({"type": "allowed_tools"}),
            json!({"type": "allowed_tools", "mode": "none", "tools": []}),
            json!({"type": "allowed_tools", "mode": "auto"}),
            json!({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "mcp", "server_label": "s"}]}),
            json!({"type": "allowed_tools", "mode": "auto", "tools": vec![json!({"name": "f"}); 129]}),
        ] {
            assert!(tool_choice(Some(&given)).is_err(), "{given}");
        }
        assert!(tool_choice(Some(&json!({"type": "function"}))).is_err());
        assert!(tool_choice(Some(&json!(7))).is_err());
    }

    #[test]
    fn tools_are_functions() {
        let given =
            json!({"type": "function", "function": {"name": "f", "strict": true, "arguments": {"type": "object"}}});
        let tool = tools("tools", vec![given]).unwrap().remove(0);
        assert_eq!((tool.name.as_str(), &*tool.parameters), ("f", &json!({"type": "object"})));
        let expected =
            json!({"type": "function", "function": {"name": "f", "strict": true, "parameters": {"type": "object"}}});
        assert_eq!(*tool.original, expected);
        let old = functions(vec![json!({"name": "g", "description": "d"})]).unwrap().remove(0);
        assert_eq!(old.original["function"]["parameters"], json!({"type": "object", "properties": {}}));
        for (given, text) in [
            (json!({}), "`tools[0]`: missing field `function`"),
            (json!({"type": "function", "function": {}}), "`tools[0]`: missing field `name`"),
            (json!({"type": "web_search"}), "`tools[0]` of type `web_search` is not supported by this version"),
        ] {
            assert_eq!(tools("tools", vec![given]).unwrap_err().to_string(), text);
        }
    }
}
