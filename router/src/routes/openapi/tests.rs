//! The document against the router, against its committed form, and against the rule that every field has a bound.

use std::collections::BTreeSet;

use expect_test::expect_file;

use super::*;
use crate::routes::Route;

#[test]
fn the_committed_document_is_this_one() {
    let committed = expect_file!["../../../../docs/openapi.json"];
    let text = text() + "\n";
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        committed.assert_eq(&text);
        return;
    }
    // The difference of two long documents takes minutes to find; the first line is as good.
    let mut lines = text.lines().zip(committed.data().lines().map(str::to_owned).collect::<Vec<_>>()).zip(1..);
    if let Some(((made, committed), line)) = lines.find(|((made, committed), _)| made != committed) {
        panic!("docs/openapi.json:{line} is {committed:?} and should be {made:?}; UPDATE_EXPECT=1 writes it anew");
    }
    assert_eq!(text.len(), committed.data().len(), "docs/openapi.json ends early or late");
}

#[test]
fn every_route_is_described_and_every_description_is_a_route() {
    let described: BTreeSet<(String, String)> = operations().map(|(method, path, _)| (method, path)).collect();
    let is_page = |path: &str| path.starts_with("/docs") || path.starts_with("/api-doc");
    let routes: BTreeSet<(String, String)> = table()
        .into_iter()
        .filter(|route| !is_page(&route.path))
        .map(|route| (route.method.as_str().to_lowercase(), described_path(&route)))
        .collect();
    assert_eq!(described, routes);
}

#[test]
fn operations_have_names_of_their_own_and_say_whether_they_need_a_key() {
    let mut names = BTreeSet::new();
    for (method, path, operation) in operations() {
        assert!(names.insert(operation["operationId"].as_str().unwrap().to_owned()), "{method} {path}");
        let route = table()
            .into_iter()
            .find(|route| described_path(route) == path && route.method.as_str().to_lowercase() == method);
        let is_open = operation.get("security") == Some(&json!([]));
        assert_eq!(is_open, route.unwrap().access == Access::Open, "{method} {path}");
        assert_eq!(operation["responses"].get("401").is_none(), is_open, "{method} {path}");
    }
}

/// TGI's operations. Code generators name functions after them.
const TGI: &[(&str, &str, &str)] = &[
    ("post", "/", "compat_generate"),
    ("post", "/chat_tokenize", "get_chat_tokenize"),
    ("post", "/generate", "generate"),
    ("post", "/generate_stream", "generate_stream"),
    ("get", "/health", "health"),
    ("get", "/info", "get_model_info"),
    ("post", "/invocations", "sagemaker_compatibility"),
    ("get", "/metrics", "metrics"),
    ("post", "/tokenize", "tokenize"),
    ("post", "/v1/chat/completions", "chat_completions"),
    ("post", "/v1/completions", "completions"),
    ("get", "/v1/models", "openai_get_model_info"),
];

/// TGI's schemas of those operations, as far as they are described.
const TGI_SCHEMAS: &str = "BestOfSequence ChatRequest ChatTokenizeResponse CompatGenerateRequest CompletionRequest Details \
    ErrorResponse FinishReason GenerateParameters GenerateRequest GenerateResponse Info ModelInfo PrefillToken \
    SagemakerRequest SimpleToken StreamDetails StreamResponse Token TokenizeResponse";

#[test]
fn names_are_tgis() {
    for (method, path, name) in TGI {
        assert_eq!(DOCUMENT["paths"][path][method]["operationId"], *name, "{method} {path}");
    }
    for name in TGI_SCHEMAS.split_whitespace() {
        assert!(DOCUMENT["components"]["schemas"].get(name).is_some(), "{name}");
    }
}

#[test]
fn every_reference_has_its_schema() {
    let text = text();
    let names = text.split("\"#/components/schemas/").skip(1).map(|rest| rest.split('"').next().unwrap());
    for name in names.collect::<BTreeSet<_>>() {
        assert!(DOCUMENT["components"]["schemas"].get(name).is_some(), "{name}");
    }
}

#[test]
fn every_field_of_every_request_has_a_bound() {
    let mut walk = Walk::default();
    for (method, path, operation) in operations() {
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            walk.schema(&format!("{method} {path}?{}", parameter["name"]), &parameter["schema"]);
        }
        for (_, content) in operation["requestBody"]["content"].as_object().into_iter().flatten() {
            walk.schema(&format!("{method} {path}"), &content["schema"]);
        }
    }
    assert!(walk.unbounded.is_empty(), "without a bound:\n{}", walk.unbounded.join("\n"));
    assert!(walk.leaves > 40, "the walk has seen {} fields only", walk.leaves);
}

#[test]
fn the_walk_finds_what_has_no_bound() {
    let unbounded = |schema: Value| {
        let mut walk = Walk::default();
        walk.schema("x", &schema);
        walk.unbounded.len()
    };
    for schema in [
        json!({"type": "string"}),
        json!({"type": ["string", "null"]}),
        json!({"type": "integer", "minimum": 0}),
        json!({"type": "integer", "maximum": 0}),
        json!({"type": "array", "items": {"type": "boolean"}}),
        json!({"type": "array", "maxItems": 1, "items": {"type": "string"}}),
        json!({"type": "object"}),
        json!({"type": "object", "properties": {"a": {"type": "string"}}}),
        json!({"type": "object", "maxProperties": 1, "additionalProperties": {"type": "string"}}),
        json!({"oneOf": [{"type": "null"}, {"type": "string"}]}),
        json!({"type": "string", "x-limit": "no such limit"}),
        json!({}),
    ] {
        assert_eq!(unbounded(schema.clone()), 1, "{schema}");
    }
    for schema in [
        json!({"type": "string", "maxLength": 1}),
        json!({"type": "string", "enum": ["a"]}),
        json!({"type": "string", "x-limit": "payload_limit"}),
        json!({"type": "integer", "minimum": 0, "maximum": 1}),
        json!({"type": "array", "maxItems": 1, "items": {"type": "number"}}),
        json!({"type": "object", "maxProperties": 1, "additionalProperties": {"type": "boolean"}}),
    ] {
        assert_eq!(unbounded(schema.clone()), 0, "{schema}");
    }
}

#[test]
fn a_stream_is_events_with_json_in_their_data() {
    let content = &DOCUMENT["paths"]["/generate_stream"]["post"]["responses"]["200"]["content"];
    let data = &content["text/event-stream"]["schema"]["properties"]["data"];
    assert_eq!(
        (&data["type"], &data["contentSchema"]["$ref"]),
        (&json!("string"), &json!("#/components/schemas/StreamEvent"))
    );
}

#[test]
fn limits_of_flags_become_numbers() {
    let mut schema = json!({"a": {"type": ["array", "null"], "x-limit": "one"}, "b": [{"type": "string", "x-limit": "two"}],
        "c": {"type": "integer", "x-limit": "one"}});
    bounds::fill(&mut schema, &|limit| Some(if limit == "one" { 1 } else { 2 }));
    assert_eq!((&schema["a"]["maxItems"], &schema["b"][0]["maxLength"]), (&json!(1), &json!(2)));
    assert_eq!(schema["c"]["maximum"], 1);
}

/// A route's path as OpenAPI writes it, which has no sign for the rest of a path.
fn described_path(route: &Route) -> String {
    route.path.replace("{*", "{")
}

/// (method, path, operation)
fn operations() -> impl Iterator<Item = (String, String, &'static Value)> {
    let paths = DOCUMENT["paths"].as_object().unwrap();
    paths.iter().flat_map(|(path, operations)| {
        let operations = operations.as_object().unwrap().iter();
        operations.map(move |(method, operation)| (method.clone(), path.clone(), operation))
    })
}

#[derive(Default)]
struct Walk {
    /// Schemas that have been walked through or are being.
    seen: BTreeSet<String>,
    unbounded: Vec<String>,
    leaves: usize,
}

impl Walk {
    fn schema(&mut self, place: &str, schema: &Value) {
        if let Some(reference) = schema["$ref"].as_str() {
            let name = reference.rsplit('/').next().unwrap();
            if self.seen.insert(name.to_owned()) {
                self.schema(&format!("{place} {name}"), &DOCUMENT["components"]["schemas"][name]);
            }
            return;
        }
        let alternatives = ["oneOf", "anyOf", "allOf"].iter().filter_map(|keyword| schema[keyword].as_array());
        let alternatives: Vec<&Value> = alternatives.flatten().collect();
        if !alternatives.is_empty() {
            alternatives.iter().for_each(|alternative| self.schema(place, alternative));
            return;
        }
        self.leaves += 1;
        let types: Vec<&str> = match &schema["type"] {
            Value::Array(types) => types.iter().filter_map(Value::as_str).collect(),
            kind => kind.as_str().into_iter().collect(),
        };
        if types.is_empty() || !types.iter().all(|kind| self.is_bounded(place, kind, schema)) {
            self.unbounded.push(format!("{place}: {schema}"));
        }
    }

    fn is_bounded(&mut self, place: &str, kind: &str, schema: &Value) -> bool {
        let has = |keywords: &[&str]| keywords.iter().any(|keyword| schema.get(keyword).is_some());
        let is_limited = schema[bounds::X_LIMIT].as_str().is_some_and(|limit| bounds::LIMITS.contains(&limit));
        match kind {
            "null" | "boolean" | "number" => true,
            "string" => is_limited || has(&["maxLength", "enum", "const"]),
            "integer" => has(&["minimum", "exclusiveMinimum"]) && (is_limited || has(&["maximum", "exclusiveMaximum"])),
            "array" => {
                self.schema(&format!("{place}[]"), &schema["items"]);
                is_limited || has(&["maxItems"])
            }
            "object" => {
                for (name, property) in schema["properties"].as_object().into_iter().flatten() {
                    self.schema(&format!("{place}.{name}"), property);
                }
                if schema["additionalProperties"].is_object() {
                    self.schema(&format!("{place}.*"), &schema["additionalProperties"]);
                }
                has(&["properties"]) || is_limited || has(&["maxProperties"])
            }
            _ => false,
        }
    }
}
