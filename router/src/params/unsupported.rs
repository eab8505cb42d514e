//! Parameters that clients know and this version does not serve. A request that asks for one is refused by name: an
//! answer that ignored it would be wrong without anybody noticing.
//!
//! A value that asks for nothing (null, false, an empty list, the neutral number) is accepted, because several clients
//! always send every field.

use serde_json::Value;

/// When a value of an unsupported field asks for nothing and can be accepted.
pub(crate) enum Neutral {
    /// Only null.
    Null,
    /// Null, false.
    False,
    /// Null, an empty list or map.
    Empty,
    /// Null or this number.
    Number(f64),
    /// Null, or a string of this list.
    Words(&'static [&'static str]),
    /// Null, or an object whose `type` is this string.
    Type(&'static str),
}

/// A field that is refused unless its value is neutral.
pub(crate) struct Unsupported {
    /// The field's name in the request.
    pub(crate) field: &'static str,
    pub(crate) neutral: Neutral,
}

/// Of the native API's `parameters`: all are served.
pub(crate) const NATIVE: &[Unsupported] = &[];

/// Of `/v1/chat/completions`.
pub(crate) const CHAT: &[Unsupported] = &[
    Unsupported { field: "tools", neutral: Neutral::Empty },
    Unsupported { field: "tool_choice", neutral: Neutral::Words(&["none", "auto"]) },
    Unsupported { field: "functions", neutral: Neutral::Empty },
    Unsupported { field: "function_call", neutral: Neutral::Words(&["none", "auto"]) },
    Unsupported { field: "response_format", neutral: Neutral::Type("text") },
    Unsupported { field: "n", neutral: Neutral::Number(1.0) },
    Unsupported { field: "logit_bias", neutral: Neutral::Empty },
    Unsupported { field: "presence_penalty", neutral: Neutral::Number(0.0) },
    Unsupported { field: "adapter_id", neutral: Neutral::Null },
    Unsupported { field: "audio", neutral: Neutral::Null },
];

/// Of `/v1/completions`. (`suffix` is refused by its route, with TGI's own text.)
pub(crate) const COMPLETIONS: &[Unsupported] = &[
    Unsupported { field: "n", neutral: Neutral::Number(1.0) },
    Unsupported { field: "best_of", neutral: Neutral::Number(1.0) },
    Unsupported { field: "logit_bias", neutral: Neutral::Empty },
    Unsupported { field: "presence_penalty", neutral: Neutral::Number(0.0) },
    Unsupported { field: "echo", neutral: Neutral::False },
    Unsupported { field: "logprobs", neutral: Neutral::Null },
    Unsupported { field: "adapter_id", neutral: Neutral::Null },
];

impl Neutral {
    /// Whether `value` asks for nothing.
    pub(crate) fn covers(&self, value: &Value) -> bool {
        if value.is_null() {
            return true;
        }
        match self {
            Neutral::Null => false,
            Neutral::False => value == &Value::Bool(false),
            Neutral::Empty => {
                value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(serde_json::Map::is_empty)
            }
            Neutral::Number(number) => value.as_f64() == Some(*number),
            Neutral::Words(words) => value.as_str().is_some_and(|word| words.contains(&word)),
            Neutral::Type(name) => value.get("type").and_then(Value::as_str) == Some(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The first field of `table` that `body` sets to something.
    fn refused(table: &[Unsupported], body: Value) -> Option<&'static str> {
        let is_set = |entry: &&Unsupported| body.get(entry.field).is_some_and(|value| !entry.neutral.covers(value));
        table.iter().find(is_set).map(|entry| entry.field)
    }

    #[test]
    fn what_asks_for_nothing_is_accepted() {
        let neutral = json!({"tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "n": 1,
            "logit_bias": {}, "presence_penalty": 0, "functions": null});
        assert_eq!(refused(CHAT, neutral), None);
        assert_eq!(refused(COMPLETIONS, json!({"logprobs": null, "echo": false, "best_of": 1})), None);
    }

    #[test]
    fn what_asks_for_something_is_refused_by_name() {
        assert_eq!(refused(CHAT, json!({"tools": [{}]})), Some("tools"));
        assert_eq!(refused(CHAT, json!({"tool_choice": "required"})), Some("tool_choice"));
        assert_eq!(refused(CHAT, json!({"response_format": {"type": "json_object"}})), Some("response_format"));
        assert_eq!(refused(CHAT, json!({"n": 2})), Some("n"));
        assert_eq!(refused(CHAT, json!({"logit_bias": {"1": 5}})), Some("logit_bias"));
        assert_eq!(refused(COMPLETIONS, json!({"logprobs": 1})), Some("logprobs"));
    }
}
