//! Reads arguments that are written one by one as text between marks, and translates them into a JSON object.

use std::sync::Arc;

use serde::de::IgnoredAny;
use serde_json::Value;

use super::section::{Match, compare};
use crate::limits::{MAX_NAME_BYTES, MAX_TYPE_REFERENCES};

/// Reads `<parameter=KEY>VALUE</parameter>` and the like.
#[derive(Debug)]
pub(super) struct ParametersReader {
    open: &'static str,
    key_end: &'static [&'static str],
    close: &'static str,
    /// The schema of the arguments.
    schema: Arc<Value>,
    /// How many were read.
    count: usize,
    value: Option<Reading>,
}

/// The value that is being read.
#[derive(Clone, Copy, Debug)]
struct Reading {
    kind: Kind,
    /// The opening quote of a string is given out.
    is_begun: bool,
    /// Bytes that do not hold the begin of the closing mark.
    searched: usize,
}

/// What the text of a value means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A string: the text itself.
    Text,
    /// A string, or `null` if the text says so.
    TextOrNull,
    /// Something else, as JSON.
    Json,
    /// The schema does not say: JSON if it is some, otherwise a string.
    Any,
}

impl ParametersReader {
    pub(super) fn new(
        open: &'static str,
        key_end: &'static [&'static str],
        close: &'static str,
        schema: Arc<Value>,
    ) -> Self {
        Self { open, key_end, close, schema, count: 0, value: None }
    }

    /// Reads `text`: how many bytes were taken, the JSON text that they make, and whether one of `ends` follows. A value
    /// that is a string is given out as it comes.
    pub(super) fn run(&mut self, text: &str, ends: &[&str]) -> (usize, String, Match) {
        let (mut taken, mut json) = (0, String::new());
        loop {
            let rest = &text[taken..];
            let step = match self.value {
                None => self.key(rest, ends, &mut json),
                Some(Reading { kind: Kind::Text, .. }) => self.string(rest, &mut json),
                Some(reading) => self.other(rest, reading, &mut json),
            };
            match step {
                Step::Taken(bytes) => taken += bytes,
                Step::Stop(bytes, outcome) => return (taken + bytes, json, outcome),
            }
        }
    }

    fn key(&mut self, rest: &str, ends: &[&str], json: &mut String) -> Step {
        let end = ends.iter().map(|end| compare(rest, end)).find(|outcome| *outcome != Match::No);
        if let Some(Match::Full(_)) = end {
            json.push_str(if self.count == 0 { "{}" } else { "}" });
            return Step::Stop(0, Match::Full(0));
        }
        let begin = match compare(rest, self.open) {
            Match::Full(bytes) => bytes,
            Match::Partial => return Step::Stop(0, Match::Partial),
            Match::No => return Step::Stop(0, end.unwrap_or(Match::No)),
        };
        let mark = self.key_end[0].trim();
        let length = match rest[begin..].find(mark) {
            Some(length) if length <= MAX_NAME_BYTES => length,
            None if rest.len() - begin < MAX_NAME_BYTES + mark.len() => return Step::Stop(0, Match::Partial),
            Some(_) | None => return Step::Stop(0, Match::No),
        };
        let key = rest[begin..begin + length].trim();
        let mut at = begin + length + mark.len();
        for literal in &self.key_end[1..] {
            match compare(&rest[at..], literal) {
                Match::Full(bytes) => at += bytes,
                outcome => return Step::Stop(0, outcome),
            }
        }
        json.push_str(if self.count == 0 { "{" } else { ", " });
        json.push_str(&quoted(key));
        json.push_str(": ");
        self.count += 1;
        self.value = Some(Reading { kind: kind(&self.schema, key), is_begun: false, searched: 0 });
        Step::Taken(at)
    }

    /// A string goes on, or ends.
    fn string(&mut self, rest: &str, json: &mut String) -> Step {
        let reading = self.value.as_mut().expect("a value is being read");
        let is_framed = self.close.starts_with('\n');
        if !reading.is_begun {
            if rest.is_empty() {
                return Step::Stop(0, Match::Partial);
            }
            reading.is_begun = true;
            json.push('"');
            return Step::Taken(usize::from(is_framed && rest.starts_with('\n')));
        }
        let mark = self.close.trim();
        if let Some(at) = rest.find(mark) {
            let body = &rest[..at];
            let body = if is_framed { body.strip_suffix('\n').unwrap_or(body) } else { body };
            push_escaped(json, body);
            json.push('"');
            self.value = None;
            return Step::Taken(at + mark.len());
        }
        let may_close = |from: &usize| {
            let tail = &rest[*from..];
            mark.starts_with(tail) || (is_framed && tail.strip_prefix('\n').is_some_and(|tail| mark.starts_with(tail)))
        };
        let near_end = rest.len().saturating_sub(mark.len());
        let keep = (near_end..rest.len()).filter(|from| rest.is_char_boundary(*from)).find(may_close);
        let given = keep.unwrap_or(rest.len());
        push_escaped(json, &rest[..given]);
        Step::Stop(given, Match::Partial)
    }

    /// A value that is translated once it is complete.
    fn other(&mut self, rest: &str, reading: Reading, json: &mut String) -> Step {
        let mark = self.close.trim();
        let Some(at) = rest[reading.searched..].find(mark).map(|at| at + reading.searched) else {
            let mut searched = rest.len().saturating_sub(mark.len());
            while !rest.is_char_boundary(searched) {
                searched -= 1;
            }
            self.value = Some(Reading { searched, ..reading });
            return Step::Stop(0, Match::Partial);
        };
        let mut text = &rest[..at];
        if self.close.starts_with('\n') {
            text = text.strip_prefix('\n').unwrap_or(text);
            text = text.strip_suffix('\n').unwrap_or(text);
        }
        json.push_str(&translate(reading.kind, text));
        self.value = None;
        Step::Taken(at + mark.len())
    }
}

/// What one step of the reader did.
enum Step {
    /// It took that many bytes; the next step follows.
    Taken(usize),
    /// It took that many bytes, and this is all for now.
    Stop(usize, Match),
}

/// The JSON text of a value.
fn translate(kind: Kind, text: &str) -> String {
    let trimmed = text.trim();
    match (kind, trimmed) {
        (Kind::TextOrNull | Kind::Json | Kind::Any, "null" | "None") => "null".to_owned(),
        (Kind::Text | Kind::TextOrNull, _) => quoted(text),
        (_, "True") => "true".to_owned(),
        (_, "False") => "false".to_owned(),
        _ if serde_json::from_str::<IgnoredAny>(trimmed).is_ok() => trimmed.to_owned(),
        _ => quoted(text),
    }
}

/// What the schema of the arguments says about the text of the parameter `key`.
pub(super) fn kind(schema: &Value, key: &str) -> Kind {
    let mut types = Vec::new();
    if let Some(property) = schema.get("properties").and_then(|properties| properties.get(key)) {
        add_types(schema, property, MAX_TYPE_REFERENCES, &mut types);
    }
    match (types.contains(&"string"), types.contains(&"null")) {
        (true, true) => Kind::TextOrNull,
        (true, false) => Kind::Text,
        (false, _) if types.is_empty() => Kind::Any,
        (false, _) => Kind::Json,
    }
}

/// The JSON types that a property may have.
fn add_types<'schema>(schema: &'schema Value, property: &'schema Value, depth: u32, types: &mut Vec<&'schema str>) {
    if depth == 0 {
        return;
    }
    match property.get("type") {
        Some(Value::String(name)) => types.push(name),
        Some(Value::Array(names)) => types.extend(names.iter().filter_map(Value::as_str)),
        _ => {
            let listed = property.get("enum").and_then(Value::as_array).into_iter().flatten();
            types.extend(property.get("const").into_iter().chain(listed).map(|value| type_of(value)));
        }
    }
    let reference = property.get("$ref").and_then(Value::as_str).and_then(|path| path.strip_prefix('#'));
    if let Some(target) = reference.and_then(|pointer| schema.pointer(pointer)) {
        add_types(schema, target, depth - 1, types);
    }
    for keyword in ["anyOf", "oneOf"] {
        for alternative in property.get(keyword).and_then(Value::as_array).into_iter().flatten() {
            add_types(schema, alternative, depth - 1, types);
        }
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

pub(super) fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

pub(super) fn push_escaped(json: &mut String, text: &str) {
    let quoted = quoted(text);
    json.push_str(&quoted[1..quoted.len() - 1]);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(property: &Value, text: &str, expected: &Value) {
        let schema = json!({"properties": {"x": property}, "$defs": {"n": {"type": "integer"}}});
        let mut reader = ParametersReader::new("<p=", &[">"], "\n</p>\n", Arc::new(schema));
        let text = format!("<p=x>\n{text}\n</p>\n</f>");
        let (_, json, outcome) = reader.run(&text, &["</f>"]);
        assert_eq!(outcome, Match::Full(0));
        assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), json!({"x": expected}), "{property} {text}");
    }

    #[test]
    fn the_schema_says_what_a_text_means() {
        check(&json!({"type": "string"}), "12", &json!("12"));
        check(&json!({"type": "string"}), "\"a\"\n <b>", &json!("\"a\"\n <b>"));
        check(&json!({"type": "integer"}), "12", &json!(12));
        check(&json!({"type": ["integer", "null"]}), "None", &json!(null));
        check(&json!({"anyOf": [{"type": "string"}, {"type": "null"}]}), "null", &json!(null));
        check(&json!({"anyOf": [{"type": "string"}, {"type": "null"}]}), "5", &json!("5"));
        check(&json!({"$ref": "#/$defs/n"}), "5", &json!(5));
        check(&json!({"enum": ["1", "2"]}), "1", &json!("1"));
        check(&json!({"type": "boolean"}), "True", &json!(true));
        check(&json!({"type": "array"}), "[1, {\"a\": 2}]", &json!([1, {"a": 2}]));
        check(&json!({}), "five", &json!("five"));
        check(&json!({}), "5", &json!(5));
    }
}
