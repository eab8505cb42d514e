//! One line of a child's output, understood: children log one JSON object per line; everything else (a panic, a message
//! of the C library) is passed on as it is.

use serde_json::{Map, Value};

/// Severity, in the order of severity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// Something failed.
    Error,
    /// Something is not as it should be.
    Warn,
    /// What an operator wants to see.
    Info,
    /// What a developer wants to see.
    Debug,
    /// Everything.
    Trace,
}

impl Level {
    /// The level called `name`, in any case.
    pub(crate) fn parse(name: &str) -> Option<Level> {
        Some(match name.to_ascii_lowercase().as_str() {
            "error" => Level::Error,
            "warn" | "warning" => Level::Warn,
            "info" => Level::Info,
            "debug" => Level::Debug,
            "trace" => Level::Trace,
            _ => return None,
        })
    }

    /// Upper case, as tracing writes it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Level::Error => "ERROR",
            Level::Warn => "WARN",
            Level::Info => "INFO",
            Level::Debug => "DEBUG",
            Level::Trace => "TRACE",
        }
    }
}

/// What a child said.
#[derive(Debug, PartialEq)]
pub(crate) struct LogLine {
    /// The child's own time stamp, if it gave one.
    pub(crate) timestamp: Option<String>,
    /// How bad it is.
    pub(crate) level: Level,
    /// The sentence.
    pub(crate) message: String,
    /// Further fields, in the child's order.
    pub(crate) fields: Map<String, Value>,
}

/// Keys of a JSON log line that say where it comes from rather than what happened.
const METADATA: &[&str] =
    &["timestamp", "level", "target", "message", "fields", "span", "spans", "filename", "line_number"];

impl LogLine {
    /// Understands a line in either of tracing's JSON layouts (fields flattened or in `fields`). `None` if it is neither.
    pub(crate) fn parse(line: &str) -> Option<LogLine> {
        let Value::Object(mut object) = serde_json::from_str(line).ok()? else { return None };
        let level = Level::parse(object.get("level")?.as_str()?)?;
        let timestamp = object.get("timestamp").and_then(Value::as_str).map(str::to_owned);
        let mut fields = match object.shift_remove("fields") {
            Some(Value::Object(fields)) => fields,
            _ => Map::new(),
        };
        let message = fields.shift_remove("message").or_else(|| object.shift_remove("message"));
        let message = message.map(|message| message.as_str().map_or_else(|| message.to_string(), str::to_owned));
        fields.extend(object.into_iter().filter(|(key, _)| !METADATA.contains(&key.as_str())));
        Some(LogLine { timestamp, level, message: message.unwrap_or_default(), fields })
    }

    /// A line that is no JSON log line. Children log on stdout, so what comes on stderr is trouble.
    pub(crate) fn raw(line: &str, level: Level) -> LogLine {
        LogLine { timestamp: None, level, message: line.trim_end().to_owned(), fields: Map::new() }
    }

    /// Message and fields as one line of text: `message key=value …`.
    pub(crate) fn text(&self) -> String {
        let mut text = self.message.clone();
        for (key, value) in &self.fields {
            if !text.is_empty() {
                text.push(' ');
            }
            match value {
                Value::String(value) if !value.contains([' ', '"', '=']) => text.push_str(&format!("{key}={value}")),
                value => text.push_str(&format!("{key}={value}")),
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_layouts_of_tracing_are_understood() {
        let nested = r#"{"timestamp":"T","level":"WARN","fields":{"message":"low","free":3},"target":"shard"}"#;
        let flat = r#"{"timestamp":"T","level":"WARN","message":"low","free":3,"target":"shard","line_number":7}"#;
        let line = LogLine::parse(nested).unwrap();
        assert_eq!(line.text(), "low free=3");
        assert_eq!((line.level, line.timestamp.as_deref()), (Level::Warn, Some("T")));
        assert_eq!(LogLine::parse(flat).unwrap(), line);
    }

    #[test]
    fn everything_else_is_raw() {
        for line in ["thread 'main' panicked at src/main.rs:1:1:", "{", "[1]", r#"{"level":"nonsense"}"#, "17"] {
            assert_eq!(LogLine::parse(line), None, "{line}");
        }
    }

    #[test]
    fn strings_are_quoted_where_they_would_be_ambiguous() {
        let line = LogLine::parse(r#"{"level":"INFO","message":"m","a":"plain","b":"two words"}"#).unwrap();
        assert_eq!(line.text(), r#"m a=plain b="two words""#);
    }
}
