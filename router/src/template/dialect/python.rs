//! Values as Python sees them: how they print, what their type is called, and dicts whose methods win over their keys.

use std::fmt::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use minijinja::value::{DynObject, Enumerator, Object, ObjectRepr, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};
use serde_json::Value as Json;

use super::methods;
use crate::limits::TEMPLATE_VALUE_DEPTH;

/// A JSON value as transformers hands it to templates.
pub(in crate::template) fn from_json(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(value) => Value::from(*value),
        Json::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(value), _, _) => Value::from(value),
            (None, Some(value), _) => Value::from(value),
            (None, None, value) => Value::from(value.unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => items.iter().map(from_json).collect(),
        Json::Object(entries) => {
            let map = Value::from_pairs(entries.iter().map(|(key, value)| (key.as_str(), from_json(value))));
            match map.as_object() {
                Some(map) => Value::from_object(Dict { entries: map.clone() }),
                None => map,
            }
        }
    }
}

/// A dict that came with the request. As in Python, `dict.items` is the method even if there is a key of that name;
/// `dict['items']` is the entry.
#[derive(Debug)]
struct Dict {
    entries: DynObject,
}

impl Object for Dict {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.entries.get_value(key)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        if methods::DICT.contains(&key) {
            let receiver = Value::from_dyn_object(self.clone());
            return Some(Value::from_object(BoundMethod { receiver, name: key.to_owned() }));
        }
        self.entries.get_value_by_str(key)
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        self.entries.enumerate()
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_str(&Value::from_dyn_object(self.clone())))
    }
}

/// `dict.items` without the call.
#[derive(Debug)]
struct BoundMethod {
    receiver: Value,
    name: String,
}

impl Object for BoundMethod {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, state: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        methods::call(state, &self.receiver, &self.name, args)
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<built-in method {} of dict object>", self.name)
    }
}

/// What `dict.keys()`, `.values()` and `.items()` return: it has a length and can be iterated, but it is no list.
#[derive(Debug)]
pub(super) struct View {
    /// `dict_keys` and its like.
    pub(super) name: &'static str,
    pub(super) items: Vec<Value>,
}

impl Object for View {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Iter(Box::new(self.items.clone().into_iter()))
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(self.items.len())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_str(&Value::from_dyn_object(self.clone())))
    }
}

/// What Jinja2's filters `map`, `select` and their like return: it is always true, has no length, and the second time
/// it is empty.
#[derive(Debug)]
pub(super) struct Generator {
    items: Mutex<Vec<Value>>,
}

impl Generator {
    /// # Errors
    /// The fault of an item.
    pub(super) fn value(items: &Value) -> Result<Value, Error> {
        let items = items.try_iter()?.checked().collect::<Result<_, _>>()?;
        Ok(Value::from_object(Self { items: Mutex::new(items) }))
    }
}

impl Object for Generator {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let items = std::mem::take(&mut *self.items.lock().unwrap_or_else(PoisonError::into_inner));
        Enumerator::Iter(Box::new(items.into_iter()))
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        None
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<generator object>")
    }
}

/// How Python's errors call the type.
pub(super) fn type_name(value: &Value) -> &'static str {
    match value.kind() {
        ValueKind::Undefined => "Undefined",
        ValueKind::None => "NoneType",
        ValueKind::Bool => "bool",
        ValueKind::Number if value.is_integer() => "int",
        ValueKind::Number => "float",
        ValueKind::String => "str",
        ValueKind::Bytes => "bytes",
        ValueKind::Map => "dict",
        _ if value.is_tuple() => "tuple",
        _ if is_list(value) => "list",
        ValueKind::Iterable => value.downcast_object_ref::<View>().map_or("generator", |view| view.name),
        _ => "object",
    }
}

/// Whether Python has a list or a tuple here. Slices and sums of lists are lazy iterables in minijinja.
pub(super) fn is_list(value: &Value) -> bool {
    match value.kind() {
        ValueKind::Seq => true,
        ValueKind::Iterable => {
            value.downcast_object_ref::<View>().is_none()
                && value.downcast_object_ref::<Generator>().is_none()
                && value.len().is_some()
        }
        _ => false,
    }
}

/// The type error of Python's built-in functions and operators.
pub(super) fn type_error(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// Python's `str(value)`.
pub(super) fn to_str(value: &Value) -> String {
    match value.as_str() {
        Some(text) => text.to_owned(),
        None if value.is_undefined() => String::new(),
        None => {
            let mut out = String::new();
            write_repr(&mut out, value, 0);
            out
        }
    }
}

/// Python's `repr(value)`.
pub(super) fn to_repr(value: &Value) -> String {
    let mut out = String::new();
    write_repr(&mut out, value, 0);
    out
}

fn write_repr(out: &mut String, value: &Value, depth: usize) {
    if depth > TEMPLATE_VALUE_DEPTH {
        out.push_str("...");
        return;
    }
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::Number if !value.is_integer() => match f64::try_from(value.clone()) {
            Ok(number) => out.push_str(&float_repr(number)),
            Err(_) => push_display(out, value),
        },
        ValueKind::String => write_str_repr(out, value.as_str().unwrap_or_default()),
        ValueKind::Map => {
            out.push('{');
            let pairs = value.as_object().and_then(DynObject::try_iter_pairs).into_iter().flatten();
            for (index, (key, value)) in pairs.enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                write_repr(out, &key, depth + 1);
                out.push_str(": ");
                write_repr(out, &value, depth + 1);
            }
            out.push('}');
        }
        _ if is_list(value) => {
            let (open, close) = if value.is_tuple() { ('(', ')') } else { ('[', ']') };
            out.push(open);
            write_items(out, value, depth);
            if value.is_tuple() && value.len() == Some(1) {
                out.push(',');
            }
            out.push(close);
        }
        ValueKind::Iterable => match value.downcast_object_ref::<View>() {
            Some(view) => {
                out.push_str(view.name);
                out.push_str("([");
                write_items(out, value, depth);
                out.push_str("])");
            }
            None => out.push_str("<generator object>"),
        },
        _ => push_display(out, value),
    }
}

fn write_items(out: &mut String, value: &Value, depth: usize) {
    for (index, item) in value.try_iter().into_iter().flatten().enumerate() {
        out.push_str(if index > 0 { ", " } else { "" });
        write_repr(out, &item, depth + 1);
    }
}

fn push_display(out: &mut String, value: &Value) {
    write!(out, "{value}").expect("a String takes everything");
}

/// Python's `repr` of a float: the shortest digits that read back, with an exponent below 1e-4 and from 1e16 on.
pub(super) fn float_repr(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let (mantissa, exponent) = scientific.split_once('e').expect("the format has an exponent");
    let exponent: i32 = exponent.parse().expect("the exponent of an f64 has at most four characters");
    if number != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:02}", exponent.abs());
    }
    let plain = number.to_string();
    if plain.contains('.') { plain } else { plain + ".0" }
}

/// Python's `repr` of a string: single quotes, unless only those occur in it.
fn write_str_repr(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if character == quote => out.extend(['\\', quote]),
            _ if is_printable(character) => out.push(character),
            _ => {
                let code = u32::from(character);
                let written = match code {
                    0..=0xff => write!(out, "\\x{code:02x}"),
                    0x100..=0xffff => write!(out, "\\u{code:04x}"),
                    _ => write!(out, "\\U{code:08x}"),
                };
                written.expect("a String takes everything");
            }
        }
    }
    out.push(quote);
}

/// Python's `str.isprintable`. Rust knows it only inside `escape_debug`, which in the middle of a text escapes exactly
/// the quotes, the backslash and what is not printable.
fn is_printable(character: char) -> bool {
    if character.is_ascii() {
        return !character.is_ascii_control();
    }
    let mut text = [b'a'; 5];
    let end = 1 + character.encode_utf8(&mut text[1..]).len();
    let text = std::str::from_utf8(&text[..end]).expect("an ASCII letter and one character");
    text.escape_debug().nth(1) == Some(character)
}

/// Python's `str.isspace` of one character: Unicode's white space and the four ASCII separators.
pub(super) fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\x1c'..='\x1f').contains(&character)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_print_as_in_python() {
        let cases = [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (21.5, "21.5"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e-5, "1.5e-05"),
            (1e-4, "0.0001"),
            (1e300, "1e+300"),
            (f64::NAN, "nan"),
            (f64::NEG_INFINITY, "-inf"),
        ];
        for (number, expected) in cases {
            assert_eq!(float_repr(number), expected);
        }
    }

    #[test]
    fn values_print_as_in_python() {
        let json =
            serde_json::json!({"a": [1, 2.0, null, true], "b'": "it's\n\u{a0}é\u{200b}\u{301}", "c": "\"'", "d": {}});
        assert_eq!(
            to_str(&from_json(&json)),
            "{'a': [1, 2.0, None, True], \"b'\": \"it's\\n\\xa0é\\u200b\u{301}\", 'c': '\"\\'', 'd': {}}"
        );
    }
}
