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
    /// Null, true.
    True,
    /// Null, or a list of nothing but this string.
    Only(&'static str),
    /// Whatever the value, nothing has to be done.
    Anything,
}

/// A field that is refused unless its value is neutral.
pub(crate) struct Unsupported {
    /// The field's name in the request.
    pub(crate) field: &'static str,
    pub(crate) neutral: Neutral,
}

/// OpenAI's, of chat completions and of responses. What asks only for bookkeeping on OpenAI's side is accepted whatever
/// its value.
pub(crate) const OPENAI: &[Unsupported] = &[
    Unsupported { field: "store", neutral: Neutral::False },
    Unsupported { field: "user", neutral: Neutral::Anything },
    Unsupported { field: "safety_identifier", neutral: Neutral::Anything },
    Unsupported { field: "prompt_cache_key", neutral: Neutral::Anything },
    Unsupported { field: "prompt_cache_retention", neutral: Neutral::Anything },
    Unsupported { field: "service_tier", neutral: Neutral::Words(&["auto", "default"]) },
];

/// vLLM's, of chat completions and of completions.
pub(crate) const VLLM: &[Unsupported] = &[
    Unsupported { field: "use_beam_search", neutral: Neutral::False },
    Unsupported { field: "length_penalty", neutral: Neutral::Number(1.0) },
    Unsupported { field: "stop_token_ids", neutral: Neutral::Empty },
    Unsupported { field: "allowed_token_ids", neutral: Neutral::Empty },
    Unsupported { field: "include_stop_str_in_output", neutral: Neutral::False },
    Unsupported { field: "skip_special_tokens", neutral: Neutral::True },
    Unsupported { field: "spaces_between_special_tokens", neutral: Neutral::Anything },
    Unsupported { field: "prompt_logprobs", neutral: Neutral::Null },
    Unsupported { field: "return_token_ids", neutral: Neutral::False },
    Unsupported { field: "return_tokens_as_token_ids", neutral: Neutral::False },
    Unsupported { field: "guided_whitespace_pattern", neutral: Neutral::Null },
    Unsupported { field: "guided_decoding_backend", neutral: Neutral::Anything },
    Unsupported { field: "logits_processors", neutral: Neutral::Empty },
    Unsupported { field: "kv_transfer_params", neutral: Neutral::Null },
    Unsupported { field: "cache_salt", neutral: Neutral::Null },
    Unsupported { field: "priority", neutral: Neutral::Number(0.0) },
    Unsupported { field: "request_id", neutral: Neutral::Anything },
];

/// Further ones of `/v1/chat/completions`: OpenAI's, then vLLM's.
pub(crate) const CHAT: &[Unsupported] = &[
    Unsupported { field: "audio", neutral: Neutral::Null },
    Unsupported { field: "modalities", neutral: Neutral::Only("text") },
    Unsupported { field: "prediction", neutral: Neutral::Anything },
    Unsupported { field: "verbosity", neutral: Neutral::Words(&["medium"]) },
    Unsupported { field: "web_search_options", neutral: Neutral::Null },
    Unsupported { field: "metadata", neutral: Neutral::Anything },
    Unsupported { field: "best_of", neutral: Neutral::Number(1.0) },
    Unsupported { field: "add_special_tokens", neutral: Neutral::False },
    Unsupported { field: "chat_template", neutral: Neutral::Null },
    Unsupported { field: "mm_processor_kwargs", neutral: Neutral::Empty },
];

/// Further ones of `/v1/completions`. (`suffix` is refused by its route, with TGI's own text.)
pub(crate) const COMPLETIONS: &[Unsupported] = &[
    Unsupported { field: "user", neutral: Neutral::Anything },
    Unsupported { field: "prompt_embeds", neutral: Neutral::Null },
];

/// Further ones of `/v1/responses`. Nothing is stored, so nothing can be referred to.
pub(crate) const RESPONSES: &[Unsupported] = &[
    Unsupported { field: "previous_response_id", neutral: Neutral::Null },
    Unsupported { field: "conversation", neutral: Neutral::Null },
    Unsupported { field: "prompt", neutral: Neutral::Null },
    Unsupported { field: "background", neutral: Neutral::False },
    Unsupported { field: "truncation", neutral: Neutral::Words(&["disabled"]) },
    Unsupported { field: "max_tool_calls", neutral: Neutral::Null },
    Unsupported { field: "stream_options", neutral: Neutral::Anything },
];

/// Of `/v1/messages`.
pub(crate) const MESSAGES: &[Unsupported] = &[
    Unsupported { field: "container", neutral: Neutral::Null },
    Unsupported { field: "mcp_servers", neutral: Neutral::Empty },
    Unsupported { field: "context_management", neutral: Neutral::Null },
    Unsupported { field: "service_tier", neutral: Neutral::Words(&["auto", "standard_only"]) },
    Unsupported { field: "metadata", neutral: Neutral::Anything },
    Unsupported { field: "cache_control", neutral: Neutral::Anything },
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
            Neutral::True => value == &Value::Bool(true),
            Neutral::Only(word) => value.as_array().is_some_and(|list| list.iter().all(|item| item == word)),
            Neutral::Anything => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The first field of `tables` that `body` sets to something.
    fn refused(tables: &[&'static [Unsupported]], body: Value) -> Option<&'static str> {
        let is_set = |entry: &&Unsupported| body.get(entry.field).is_some_and(|value| !entry.neutral.covers(value));
        tables.iter().copied().flatten().find(is_set).map(|entry| entry.field)
    }

    #[test]
    fn what_asks_for_nothing_is_accepted() {
        let neutral = json!({"modalities": ["text"], "audio": null, "store": false, "user": "me", "metadata": {"a": "b"},
            "service_tier": "auto", "priority": 0, "stop_token_ids": [], "skip_special_tokens": true});
        assert_eq!(refused(&[CHAT, OPENAI, VLLM], neutral), None);
        assert_eq!(refused(&[COMPLETIONS, VLLM], json!({"user": "me", "use_beam_search": false, "priority": 0})), None);
    }

    #[test]
    fn what_asks_for_something_is_refused_by_name() {
        for (body, field) in [
            (json!({"modalities": ["text", "audio"]}), "modalities"),
            (json!({"store": true}), "store"),
            (json!({"service_tier": "flex"}), "service_tier"),
            (json!({"stop_token_ids": [1]}), "stop_token_ids"),
            (json!({"skip_special_tokens": false}), "skip_special_tokens"),
            (json!({"cache_salt": "x"}), "cache_salt"),
        ] {
            assert_eq!(refused(&[CHAT, OPENAI, VLLM], body), Some(field));
        }
        assert_eq!(refused(&[COMPLETIONS, VLLM], json!({"use_beam_search": true})), Some("use_beam_search"));
    }
}
