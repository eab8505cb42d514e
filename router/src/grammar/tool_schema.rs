//! What the schemas of tools may demand.
//!
//! Inside a grammar of calls they are llguidance's to enforce (`%json`). It refuses most of what it cannot, without saying
//! where, and passes over keywords that the schema's draft does not know. Here nothing is passed over.

use serde_json::{Map, Value};

use super::error::GrammarError;
use super::json::subschemas;

/// Keywords that restrict documents in some draft, and that llguidance does not enforce.
const NOT_ENFORCED: [&str; 20] = [
    "not",
    "if",
    "then",
    "else",
    "contains",
    "minContains",
    "maxContains",
    "uniqueItems",
    "propertyNames",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "unevaluatedItems",
    "unevaluatedProperties",
    "$dynamicRef",
    "$dynamicAnchor",
    "$recursiveRef",
    "$recursiveAnchor",
    "extends",
    "disallow",
];

/// The formats of strings that it enforces.
const FORMATS: [&str; 10] =
    ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"];

/// Checks the schema of the arguments of `tool`, whose nesting is within [`crate::limits::MAX_SCHEMA_DEPTH`].
///
/// # Errors
/// [`GrammarError::UnsupportedTool`] with the first keyword that could not be enforced.
pub(super) fn check(tool: &str, schema: &Value) -> Result<(), GrammarError> {
    let mut open = vec![(String::new(), schema)];
    while let Some((path, value)) = open.pop() {
        let Value::Object(object) = value else { continue };
        let unsupported = |keyword: &str, reason: String| GrammarError::UnsupportedTool {
            tool: tool.to_owned(),
            keyword: keyword.to_owned(),
            path: format!("#{path}"),
            reason,
        };
        if let Some(keyword) = NOT_ENFORCED.iter().find(|keyword| object.contains_key(**keyword)) {
            return Err(unsupported(keyword, "the arguments of calls cannot obey it".to_owned()));
        }
        if let Some(format) = unknown_format(object) {
            let reason = format!("`{format}` is none of {}", FORMATS.join(", "));
            return Err(unsupported("format", reason));
        }
        open.extend(subschemas(object, &path));
    }
    Ok(())
}

/// A format of strings that is not enforced. Those of other types (`int32`) are annotations.
fn unknown_format(object: &Map<String, Value>) -> Option<&str> {
    let format = object.get("format")?.as_str()?;
    let is_for_strings = match object.get("type") {
        Some(Value::String(name)) => name == "string",
        Some(Value::Array(names)) => names.iter().any(|name| name == "string"),
        _ => true,
    };
    (is_for_strings && !FORMATS.contains(&format)).then_some(format)
}
