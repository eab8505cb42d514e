//! `tojson`: Python's `json.dumps` with the defaults of transformers.

use std::fmt::Write;

use minijinja::value::{DynObject, Rest, ValueKind, ValueOrKwargs};
use minijinja::{Error, ErrorKind, Value};

use super::arguments::Arguments;
use super::python::{float_repr, is_list, type_error, type_name};
use crate::limits::TEMPLATE_VALUE_DEPTH;

/// The options of `json.dumps`.
struct Options {
    ensure_ascii: bool,
    /// What one level of depth is indented by; `None`: everything on one line.
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

/// `value | tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
///
/// # Errors
/// A value that JSON does not know, among them Undefined and generators, or an unknown option.
pub(super) fn tojson(value: &Value, arguments: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let options = Options::new(Arguments::new(arguments.into_values())?)?;
    let mut out = String::new();
    options.write(&mut out, value, 0)?;
    Ok(out)
}

impl Options {
    fn new(mut arguments: Arguments) -> Result<Self, Error> {
        let ensure_ascii = arguments.value("ensure_ascii")?;
        let indent = arguments.value("indent")?;
        let separators = arguments.value("separators")?;
        let sort_keys = arguments.value("sort_keys")?;
        arguments.finish()?;
        let indent = match indent {
            None => None,
            Some(indent) => Some(match indent.as_str() {
                Some(text) => text.to_owned(),
                // Wider is never seen; a template must not make memory of one number.
                None => " ".repeat(i64::try_from(indent)?.clamp(0, 64) as usize),
            }),
        };
        let (item_separator, key_separator) = match separators {
            None => ((if indent.is_some() { "," } else { ", " }).to_owned(), ": ".to_owned()),
            Some(pair) => {
                let pair: Vec<Value> = pair.try_iter()?.collect();
                match pair.iter().map(Value::as_str).collect::<Vec<_>>()[..] {
                    [Some(item), Some(key)] => (item.to_owned(), key.to_owned()),
                    _ => return Err(type_error("tojson: `separators` must be a pair of strings".to_owned())),
                }
            }
        };
        let is_true = |value: Option<Value>| value.is_some_and(|value| value.is_true());
        Ok(Self {
            ensure_ascii: is_true(ensure_ascii),
            indent,
            item_separator,
            key_separator,
            sort_keys: is_true(sort_keys),
        })
    }

    fn write(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > TEMPLATE_VALUE_DEPTH {
            return Err(Error::new(
                ErrorKind::BadSerialization,
                format!("tojson: nested deeper than {TEMPLATE_VALUE_DEPTH}"),
            ));
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value)),
            ValueKind::String => self.write_string(out, value.as_str().unwrap_or_default()),
            ValueKind::Map => self.write_map(out, value, depth)?,
            _ if is_list(value) => {
                let mut is_empty = true;
                for item in value.try_iter()?.checked() {
                    self.write_gap(out, if is_empty { "[" } else { &self.item_separator }, depth + 1);
                    self.write(out, &item?, depth + 1)?;
                    is_empty = false;
                }
                self.write_end(out, is_empty, ["[]", "]"], depth);
            }
            _ => return Err(not_serializable(value)),
        }
        Ok(())
    }

    fn write_map(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        let mut pairs = value
            .as_object()
            .and_then(DynObject::try_iter_pairs)
            .into_iter()
            .flatten()
            .map(|(key, value)| Ok((key_text(&key)?, value)))
            .collect::<Result<Vec<(String, Value)>, Error>>()?;
        if self.sort_keys {
            pairs.sort_by(|left, right| left.0.cmp(&right.0));
        }
        let is_empty = pairs.is_empty();
        for (index, (key, value)) in pairs.iter().enumerate() {
            self.write_gap(out, if index == 0 { "{" } else { &self.item_separator }, depth + 1);
            self.write_string(out, key);
            out.push_str(&self.key_separator);
            self.write(out, value, depth + 1)?;
        }
        self.write_end(out, is_empty, ["{}", "}"], depth);
        Ok(())
    }

    /// What stands before an item: `before`, and the line break and indent if there are any.
    fn write_gap(&self, out: &mut String, before: &str, depth: usize) {
        out.push_str(before);
        if let Some(indent) = &self.indent {
            out.push('\n');
            (0..depth).for_each(|_| out.push_str(indent));
        }
    }

    fn write_end(&self, out: &mut String, is_empty: bool, [empty, end]: [&str; 2], depth: usize) {
        if is_empty {
            out.push_str(empty);
        } else {
            self.write_gap(out, "", depth);
            out.push_str(end);
        }
    }

    fn write_string(&self, out: &mut String, text: &str) {
        out.push('"');
        for character in text.chars() {
            match character {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\x08' => out.push_str("\\b"),
                '\x0c' => out.push_str("\\f"),
                ' '..='~' => out.push(character),
                '\x7f'.. if !self.ensure_ascii => out.push(character),
                _ => {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        write!(out, "\\u{unit:04x}").expect("a String takes everything");
                    }
                }
            }
        }
        out.push('"');
    }
}

fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(number) if !value.is_integer() => match number {
            number if number.is_nan() => "NaN".to_owned(),
            f64::INFINITY => "Infinity".to_owned(),
            f64::NEG_INFINITY => "-Infinity".to_owned(),
            number => float_repr(number),
        },
        _ => value.to_string(),
    }
}

fn key_text(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_owned()),
        ValueKind::None => Ok("null".to_owned()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.to_owned()),
        ValueKind::Number => Ok(number(key)),
        _ => Err(type_error(format!("tojson: keys must be str, int, float, bool or None, not {}", type_name(key)))),
    }
}

fn not_serializable(value: &Value) -> Error {
    let message = format!("tojson: Object of type {} is not JSON serializable", type_name(value));
    Error::new(ErrorKind::BadSerialization, message)
}
