//! What the routes want and what their events mean. Every reply is asked to be exactly as long as wanted (`ignore_eos`);
//! a server that does not know the field ignores it, and the report counts what came.

use serde_json::{Map, Value, json};

use crate::args::{Api, Args};

/// What one event of a stream says.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Piece {
    /// It carries text, or a token.
    pub(super) has_output: bool,
    /// It is the last that must come.
    pub(super) is_last: bool,
    /// Tokens of the prompt, once the server says so.
    pub(super) prompt_tokens: Option<u64>,
    /// Tokens of the reply, once the server says so.
    pub(super) output_tokens: Option<u64>,
    /// The request has failed.
    pub(super) error: Option<ServerError>,
}

/// An error that a server reports within a stream, as TGI does once it has begun to answer.
#[derive(Debug, PartialEq)]
pub(super) struct ServerError {
    /// "overloaded", "generation", ...
    pub(super) kind: String,
    pub(super) message: String,
}

impl Api {
    /// The route.
    pub(super) fn path(self) -> &'static str {
        match self {
            Api::Generate => "/generate_stream",
            Api::Chat => "/v1/chat/completions",
            Api::Completions => "/v1/completions",
        }
    }
}

/// The body of request `number`.
pub(super) fn body(args: &Args, prompt: &str, number: u64) -> Value {
    let sampling = &args.sampling;
    let mut fields = Map::new();
    let mut set = |name: &str, value: Value| {
        if !value.is_null() {
            fields.insert(name.to_owned(), value);
        }
    };
    set("ignore_eos", json!(true));
    set("repetition_penalty", json!(sampling.repetition_penalty));
    set("frequency_penalty", json!(sampling.frequency_penalty));
    if sampling.do_sample {
        // Only then: on TGI's routes any of them alone switches sampling on.
        set("top_k", json!(sampling.top_k.filter(|&k| k > 0)));
        set("top_p", json!(sampling.top_p));
        set("typical_p", json!(sampling.typical_p));
        set("temperature", json!(sampling.temperature));
        set("seed", json!(args.seed.wrapping_add(number)));
    }
    if args.http.api == Api::Generate {
        set("max_new_tokens", json!(args.decode_length));
        set("details", json!(true));
        set("do_sample", json!(sampling.do_sample));
        set("top_n_tokens", json!(sampling.top_n_tokens));
        set("watermark", json!(sampling.watermark));
        return json!({ "inputs": prompt, "parameters": fields });
    }
    set("model", json!(args.tokenizer_name));
    set("max_tokens", json!(args.decode_length));
    set("stream", json!(true));
    set("stream_options", json!({ "include_usage": true }));
    if !sampling.do_sample {
        set("temperature", json!(0.0));
    }
    let top = sampling.top_n_tokens.filter(|&n| n > 0);
    if args.http.api == Api::Chat {
        set("messages", json!([{ "role": "user", "content": prompt }]));
        set("logprobs", json!(top.map(|_| true)));
        set("top_logprobs", json!(top));
    } else {
        set("prompt", json!(prompt));
        set("logprobs", json!(top));
    }
    fields.into()
}

/// The meaning of one event's data.
///
/// # Errors
/// If it is no JSON.
pub(super) fn read(api: Api, data: &[u8]) -> Result<Piece, String> {
    if data == b"[DONE]" {
        return Ok(Piece { is_last: true, ..Piece::default() });
    }
    let event: Value = serde_json::from_slice(data).map_err(|error| error.to_string())?;
    let error = match &event["error"] {
        Value::Null => None,
        error => Some(ServerError {
            kind: event["error_type"].as_str().or(error["type"].as_str()).unwrap_or("unknown").to_owned(),
            message: error.as_str().or(error["message"].as_str()).map_or_else(|| error.to_string(), str::to_owned),
        }),
    };
    if api == Api::Generate {
        return Ok(Piece {
            has_output: event["token"].is_object(),
            is_last: event["generated_text"].is_string(),
            prompt_tokens: event["details"]["input_length"].as_u64(),
            output_tokens: event["details"]["generated_tokens"].as_u64(),
            error,
        });
    }
    let choice = &event["choices"][0];
    let has_text = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
    let delta = &choice["delta"];
    Ok(Piece {
        has_output: has_text(&choice["text"])
            || has_text(&delta["content"])
            || has_text(&delta["reasoning_content"])
            || delta["tool_calls"].is_array(),
        is_last: false,
        prompt_tokens: event["usage"]["prompt_tokens"].as_u64(),
        output_tokens: event["usage"]["completion_tokens"].as_u64(),
        error,
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn asked(line: &str) -> Value {
        let words = ["benchmark", "--url", "http://x", "-d", "5"].into_iter().chain(line.split_whitespace());
        body(&Args::parse_from(words), "a b", 3)
    }

    #[test]
    fn bodies_ask_for_exactly_the_wanted_length() {
        assert_eq!(
            asked("--temperature 0.5 --top-n-tokens 2"),
            json!({ "inputs": "a b", "parameters": {
                "ignore_eos": true, "max_new_tokens": 5, "details": true, "do_sample": false, "top_n_tokens": 2,
                "watermark": false } }),
            "greedy: no field that would switch sampling on"
        );
        assert_eq!(
            asked("--api chat --top-n-tokens 2"),
            json!({ "ignore_eos": true, "model": "tgi", "max_tokens": 5, "stream": true,
                "stream_options": { "include_usage": true }, "temperature": 0.0,
                "messages": [{ "role": "user", "content": "a b" }], "logprobs": true, "top_logprobs": 2 })
        );
        assert_eq!(
            asked("--api completions --do-sample --top-k 4 --seed 10 -t m"),
            json!({ "ignore_eos": true, "top_k": 4, "seed": 13, "model": "m", "max_tokens": 5, "stream": true,
                "stream_options": { "include_usage": true }, "prompt": "a b" })
        );
    }

    #[test]
    fn events_mean_tokens_ends_counts_and_errors() {
        #[track_caller]
        fn check(api: Api, event: &str, expected: Piece) {
            assert_eq!(read(api, event.as_bytes()).unwrap(), expected, "{event}");
        }
        let token = Piece { has_output: true, ..Piece::default() };
        let error = |kind: &str, message: &str| {
            let error = ServerError { kind: kind.to_owned(), message: message.to_owned() };
            Piece { error: Some(error), ..Piece::default() }
        };
        check(Api::Generate, r#"{"token":{"id":3,"text":""},"generated_text":null,"details":null}"#, token);
        check(
            Api::Generate,
            r#"{"token":{"id":3},"generated_text":"","details":{"generated_tokens":8,"input_length":10}}"#,
            Piece { has_output: true, is_last: true, prompt_tokens: Some(10), output_tokens: Some(8), error: None },
        );
        check(Api::Generate, r#"{"error":"too hot","error_type":"generation"}"#, error("generation", "too hot"));
        let token = || Piece { has_output: true, ..Piece::default() };
        check(Api::Chat, r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#, Piece::default());
        check(Api::Chat, r#"{"choices":[{"delta":{"content":"a"}}],"usage":null}"#, token());
        check(Api::Completions, r#"{"choices":[{"text":"a"}]}"#, token());
        check(
            Api::Chat,
            r#"{"choices":[],"usage":{"prompt_tokens":4,"completion_tokens":2}}"#,
            Piece { prompt_tokens: Some(4), output_tokens: Some(2), ..Piece::default() },
        );
        check(Api::Completions, r#"{"error":{"message":"no","type":"x"}}"#, error("x", "no"));
        check(Api::Chat, "[DONE]", Piece { is_last: true, ..Piece::default() });
        assert!(read(Api::Chat, b"{").is_err());
    }
}
