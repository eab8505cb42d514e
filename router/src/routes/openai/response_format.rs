//! What a reply must match, in every spelling that clients have: OpenAI's `response_format`, TGI's, and vLLM's guided
//! decoding fields in their old and new form.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::error::ValidationError;
use crate::grammar::GrammarSpec;
use crate::limits::MAX_GRAMMAR_CHOICES;
use crate::params::at_most;
use crate::routes::openapi::{ChoiceText, JsonObjectOrText};

/// `response_format`.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub(crate) struct ResponseFormat {
    /// `text`, `json_object`, `json_schema`; TGI's `json` and `regex`.
    #[schema(max_length = 256)]
    r#type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(extensions(("x-limit" = json!("payload_limit"))))]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    strict: Option<bool>,
    /// OpenAI's place of the schema.
    #[serde(skip_serializing_if = "Option::is_none")]
    json_schema: Option<NamedSchema>,
    /// TGI's place of the schema or the expression.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<JsonObjectOrText>)]
    value: Option<Value>,
    /// The schema in the responses API, and of a `json_object` as some servers take it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<JsonObjectOrText>)]
    schema: Option<Value>,
}

impl Default for ResponseFormat {
    fn default() -> Self {
        Self { r#type: "text".to_owned(), name: None, strict: None, json_schema: None, value: None, schema: None }
    }
}

/// A schema with its name.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub(crate) struct NamedSchema {
    /// Means nothing here.
    #[schema(extensions(("x-limit" = json!("payload_limit"))))]
    name: Option<String>,
    #[schema(value_type = Option<JsonObjectOrText>)]
    schema: Option<Value>,
}

/// vLLM's `structured_outputs`; exactly one is set.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub(crate) struct StructuredOutputs {
    #[schema(value_type = Option<JsonObjectOrText>)]
    pub(crate) json: Option<Value>,
    #[schema(extensions(("x-limit" = json!("payload_limit"))))]
    pub(crate) regex: Option<String>,
    #[schema(value_type = Option<Vec<ChoiceText>>, max_items = 4096)]
    pub(crate) choice: Option<Vec<String>>,
    #[schema(extensions(("x-limit" = json!("payload_limit"))))]
    pub(crate) grammar: Option<String>,
    pub(crate) json_object: Option<bool>,
}

/// Every field of a request that can say what the reply must match.
#[derive(Debug, Default)]
pub(crate) struct Formats {
    pub(crate) response_format: Option<ResponseFormat>,
    pub(crate) structured_outputs: Option<StructuredOutputs>,
    /// The same in fields of their own: `guided_json`, `guided_regex`, ...
    pub(crate) guided: StructuredOutputs,
}

impl Formats {
    /// The one grammar of the request.
    ///
    /// # Errors
    /// [`ValidationError`] if a format is unknown or incomplete, or if there are several.
    pub(crate) fn into_grammar(self) -> Result<Option<GrammarSpec>, ValidationError> {
        let mut found: Option<(&'static str, GrammarSpec)> = None;
        let candidates = [
            ("response_format", self.response_format.map(ResponseFormat::into_grammar).transpose()?.flatten()),
            (
                "structured_outputs",
                self.structured_outputs.map(|outputs| outputs.into_grammar(STRUCTURED)).transpose()?.flatten(),
            ),
            ("guided_*", self.guided.into_grammar(GUIDED)?),
        ];
        for (field, grammar) in candidates {
            let Some(grammar) = grammar else { continue };
            if let Some((other, _)) = found {
                return Err(ValidationError::Conflict { field, other });
            }
            found = Some((field, grammar));
        }
        Ok(found.map(|(_, grammar)| grammar))
    }
}

impl ResponseFormat {
    fn into_grammar(self) -> Result<Option<GrammarSpec>, ValidationError> {
        const FIELD: &str = "response_format";
        let malformed = |expected| ValidationError::Malformed { field: FIELD, expected };
        let schema = |value: Value| json_value(FIELD, value).map(|schema| GrammarSpec::JsonSchema(Arc::new(schema)));
        match self.r#type.as_str() {
            "text" => Ok(None),
            "json_object" | "json" => match self.value.or(self.schema) {
                Some(value) => schema(value).map(Some),
                None if self.r#type == "json" => Err(malformed("a `json` format with its schema in `value`")),
                None => Ok(Some(GrammarSpec::JsonObject)),
            },
            "json_schema" => {
                // TGI's envelope, which may be left out.
                let inner = |value: Value| value.get("schema").cloned().unwrap_or(value);
                let found = self.json_schema.and_then(|named| named.schema).or(self.schema).or(self.value.map(inner));
                let found = found.ok_or_else(|| malformed("a `json_schema` format with `json_schema.schema`"))?;
                schema(found).map(Some)
            }
            "regex" => match self.value {
                Some(Value::String(regex)) => Ok(Some(GrammarSpec::Regex(regex.into()))),
                _ => Err(malformed("a `regex` format with the expression in `value`")),
            },
            _ => Err(malformed("of type `text`, `json_object`, `json_schema`, `json` or `regex`")),
        }
    }
}

/// Names of the four fields in errors.
struct Names {
    json: &'static str,
    choice: &'static str,
    all: &'static str,
}

const STRUCTURED: Names =
    Names { json: "structured_outputs.json", choice: "structured_outputs.choice", all: "structured_outputs" };
const GUIDED: Names = Names { json: "guided_json", choice: "guided_choice", all: "guided_*" };

impl StructuredOutputs {
    fn into_grammar(self, names: Names) -> Result<Option<GrammarSpec>, ValidationError> {
        let choice = match self.choice {
            Some(choices) if choices.is_empty() => {
                return Err(ValidationError::Malformed {
                    field: names.choice,
                    expected: "a list of at least one string",
                });
            }
            Some(choices) => {
                at_most(names.choice, "choices", MAX_GRAMMAR_CHOICES, choices.len())?;
                Some(GrammarSpec::Choice(choices.into()))
            }
            None => None,
        };
        let json = self.json.filter(|value| !value.is_null()).map(|value| json_value(names.json, value)).transpose()?;
        let mut found = [
            json.map(|schema| GrammarSpec::JsonSchema(Arc::new(schema))),
            self.regex.map(|regex| GrammarSpec::Regex(regex.into())),
            choice,
            self.grammar.map(|grammar| GrammarSpec::Lark(grammar.into())),
            self.json_object.unwrap_or(false).then_some(GrammarSpec::JsonObject),
        ]
        .into_iter()
        .flatten();
        let first = found.next();
        if found.next().is_some() {
            return Err(ValidationError::Malformed { field: names.all, expected: "exactly one constraint" });
        }
        Ok(first)
    }
}

/// A schema, which may come as JSON in a string.
fn json_value(field: &'static str, value: Value) -> Result<Value, ValidationError> {
    match value {
        Value::String(text) => serde_json::from_str(&text)
            .map_err(|_| ValidationError::Malformed { field, expected: "a JSON schema, or a string that holds one" }),
        other => Ok(other),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(format: Value, expected: Result<Option<GrammarSpec>, &str>) {
        let formats =
            Formats { response_format: Some(serde_json::from_value(format.clone()).unwrap()), ..Formats::default() };
        let outcome = formats.into_grammar().map_err(|error| error.to_string());
        assert_eq!(outcome, expected.map_err(str::to_owned), "{format}");
    }

    #[test]
    fn every_spelling_means_the_same() {
        let schema = json!({"type": "object"});
        let expected = || Ok(Some(GrammarSpec::JsonSchema(Arc::new(schema.clone()))));
        check(
            json!({"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": schema}}),
            expected(),
        );
        check(json!({"type": "json_schema", "value": {"name": "n", "schema": schema}}), expected());
        check(json!({"type": "json", "value": schema}), expected());
        check(json!({"type": "json", "value": schema.to_string()}), expected());
        check(json!({"type": "json_object", "value": schema}), expected());
        check(json!({"type": "json_object", "schema": schema}), expected());
        check(json!({"type": "json_object"}), Ok(Some(GrammarSpec::JsonObject)));
        check(json!({"type": "text"}), Ok(None));
        check(json!({"type": "regex", "value": "a+"}), Ok(Some(GrammarSpec::Regex("a+".into()))));
    }

    #[test]
    fn what_is_missing_is_named() {
        check(
            json!({"type": "json_schema"}),
            Err("`response_format` must be a `json_schema` format with `json_schema.schema`"),
        );
        check(json!({"type": "json"}), Err("`response_format` must be a `json` format with its schema in `value`"));
        check(
            json!({"type": "yaml"}),
            Err("`response_format` must be of type `text`, `json_object`, `json_schema`, `json` or `regex`"),
        );
    }

    #[test]
    fn there_is_one_constraint() {
        let two = Formats {
            response_format: Some(serde_json::from_value(json!({"type": "json_object"})).unwrap()),
            guided: StructuredOutputs { regex: Some("a".to_owned()), ..StructuredOutputs::default() },
            ..Formats::default()
        };
        let error = two.into_grammar().unwrap_err().to_string();
        assert_eq!(error, "`guided_*` cannot be combined with `response_format`");
        let both = StructuredOutputs {
            regex: Some("a".to_owned()),
            choice: Some(vec!["a".to_owned()]),
            ..StructuredOutputs::default()
        };
        let formats = Formats { structured_outputs: Some(both), ..Formats::default() };
        assert_eq!(
            formats.into_grammar().unwrap_err().to_string(),
            "`structured_outputs` must be exactly one constraint"
        );
        let choice = StructuredOutputs { choice: Some(vec!["a".to_owned()]), ..StructuredOutputs::default() };
        let formats = Formats { guided: choice, ..Formats::default() };
        assert_eq!(formats.into_grammar().unwrap(), Some(GrammarSpec::Choice(vec!["a".to_owned()].into())));
    }
}
