//! The functions and filters that transformers gives to chat templates.

use std::io;

use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, Value};
use serde::Serialize;
use serde_json::ser::Formatter;

/// Adds the functions to `environment`; `now` is the clock of `strftime_now`.
pub(super) fn register(environment: &mut Environment<'static>, now: fn() -> jiff::Zoned) {
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", move |format: &str| strftime(format, &now()));
    environment.add_filter("tojson", tojson);
}

/// The template refuses the conversation; the client gets its words.
fn raise_exception(message: String) -> Result<Value, Error> {
    // TGI reports it as a syntax error, and clients see that text.
    Err(Error::new(ErrorKind::SyntaxError, message))
}

fn strftime(format: &str, now: &jiff::Zoned) -> Result<String, Error> {
    jiff::fmt::strtime::format(format, now)
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {error}")))
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`: a space after `:` and `,`, no HTML escapes.
fn tojson(value: Value, indent: Option<usize>, options: Kwargs) -> Result<Value, Error> {
    let indent = match indent {
        None => options.get::<Option<usize>>("indent")?,
        given => given,
    };
    // `ensure_ascii`, `sort_keys` and `separators` are Python's; templates set them only to the values used here.
    let _ = options.get::<Option<Value>>("ensure_ascii");
    let _ = options.get::<Option<Value>>("sort_keys");
    let _ = options.get::<Option<Value>>("separators");
    options.assert_all_used()?;
    let mut json = Vec::new();
    let written = match indent {
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, PythonFormatter)),
        Some(width) => {
            let pad = vec![b' '; width.min(16)];
            let formatter = serde_json::ser::PrettyFormatter::with_indent(&pad);
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, formatter))
        }
    };
    written.map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    let json = String::from_utf8(json).map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    Ok(Value::from_safe_string(json))
}

/// `json.dumps` with its default separators.
struct PythonFormatter;

impl Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The clock of the goldens.
    pub(crate) fn noon() -> jiff::Zoned {
        let time = jiff::civil::date(2024, 7, 26).at(12, 34, 56, 0);
        time.to_zoned(jiff::tz::TimeZone::UTC).expect("UTC has no gaps")
    }

    #[test]
    fn dates_are_formatted_and_wrong_formats_are_errors() {
        let now = noon();
        assert_eq!(strftime("%d %b %Y", &now).unwrap(), "26 Jul 2024");
        assert!(strftime("%!", &now).is_err());
    }

    #[test]
    fn json_is_pythons() {
        let value = Value::from(minijinja::value::Serde(serde_json::json!({"a": [1, "<é>"], "b": null})));
        let kwargs = || Kwargs::from_iter(Vec::<(String, Value)>::new());
        assert_eq!(tojson(value.clone(), None, kwargs()).unwrap().to_string(), r#"{"a": [1, "<é>"], "b": null}"#);
        assert_eq!(
            tojson(value, Some(2), kwargs()).unwrap().to_string(),
            "{\n  \"a\": [\n    1,\n    \"<é>\"\n  ],\n  \"b\": null\n}"
        );
    }
}
