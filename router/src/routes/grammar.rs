//! How clients of the native routes write what a reply must match. (`response_format` has more forms, and other errors.)

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::openapi::{JsonObjectOrText, RegexText};
use crate::grammar::GrammarSpec;

/// `{"type": "json", "value": {..}}` and its siblings.
#[derive(Deserialize, ToSchema)]
#[schema(as = GrammarType)]
#[serde(tag = "type", content = "value")]
pub(super) enum Grammar {
    /// A JSON schema, as an object or as text.
    #[serde(rename = "json", alias = "json_object")]
    #[schema(value_type = JsonObjectOrText)]
    Json(Value),
    /// A regular expression for the whole reply.
    #[serde(rename = "regex")]
    #[schema(value_type = RegexText)]
    Regex(String),
    /// A JSON schema in OpenAI's envelope.
    #[serde(rename = "json_schema")]
    JsonSchema(NamedSchema),
}

/// A schema with what OpenAI's clients say of it; only the schema counts.
#[derive(Deserialize, ToSchema)]
#[schema(as = GrammarSchema)]
pub(super) struct NamedSchema {
    #[schema(value_type = JsonObjectOrText)]
    schema: Value,
}

impl From<Grammar> for GrammarSpec {
    fn from(grammar: Grammar) -> Self {
        match grammar {
            Grammar::Json(schema) | Grammar::JsonSchema(NamedSchema { schema }) => {
                GrammarSpec::JsonSchema(Arc::new(schema))
            }
            Grammar::Regex(regex) => GrammarSpec::Regex(regex.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(body: Value, expected: GrammarSpec) {
        assert_eq!(GrammarSpec::from(serde_json::from_value::<Grammar>(body).unwrap()), expected);
    }

    #[test]
    fn tgis_shapes_are_read() {
        let schema = || GrammarSpec::JsonSchema(Arc::new(json!({"type": "object"})));
        check(json!({"type": "json", "value": {"type": "object"}}), schema());
        check(json!({"type": "json_object", "value": {"type": "object"}}), schema());
        check(
            json!({"type": "json_schema", "value": {"name": "x", "strict": true, "schema": {"type": "object"}}}),
            schema(),
        );
        check(json!({"value": "a+", "type": "regex"}), GrammarSpec::Regex("a+".into()));
        check(json!({"type": "json", "value": "{}"}), GrammarSpec::JsonSchema(Arc::new(json!("{}"))));
    }

    #[test]
    fn other_types_are_refused_with_those_that_exist() {
        let error = serde_json::from_value::<Grammar>(json!({"type": "xml", "value": ""})).err().unwrap();
        assert!(error.to_string().contains("expected one of `json`, `json_object`, `regex`, `json_schema`"), "{error}");
    }
}
