//! Jinja2's filters where minijinja's own differ, and its tests.

use minijinja::value::{DynObject, Rest, Tuple, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, State, Value};

use super::arguments::Arguments;
use super::expression::ITERATED;
use super::json::tojson;
use super::methods::{capitalize, center, lines, stripped};
use super::python::{Generator, is_list, to_repr, to_str, type_error, type_name};
use crate::limits::TEMPLATE_INDENT;

/// Filters whose result is a generator in Jinja2. minijinja's own do the work, under another name.
macro_rules! generators {
    ($environment:ident: $($name:ident),*) => {$(
        $environment.add_filter(concat!("eager_", stringify!($name)), minijinja::filters::$name);
        $environment.add_filter(stringify!($name), |state: &mut State, args: Rest<ValueOrKwargs>| {
            let items = state.apply_filter(concat!("eager_", stringify!($name)), &args.into_values())?;
            Generator::value(&items)
        });
    )*};
}

pub(super) fn register(environment: &mut Environment<'static>) {
    generators!(environment: map, select, reject, selectattr, rejectattr, batch, slice, unique);
    environment.add_filter(ITERATED, iterated);
    environment.add_filter("tojson", tojson);
    environment.add_filter("string", to_str);
    environment.add_filter("pprint", to_repr);
    environment.add_filter("upper", |value: &Value| to_str(value).to_uppercase());
    environment.add_filter("lower", |value: &Value| to_str(value).to_lowercase());
    environment.add_filter("capitalize", |value: &Value| capitalize(&to_str(value)));
    environment.add_filter("title", title);
    environment.add_filter("first", |value: &Value| {
        if value.is_undefined() { Ok(Value::UNDEFINED) } else { minijinja::filters::first(value) }
    });
    environment.add_filter("last", |value: Value| {
        if value.is_undefined() { Ok(Value::UNDEFINED) } else { minijinja::filters::last(value) }
    });
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("trim", trim);
    environment.add_filter("replace", replace);
    environment.add_filter("join", join);
    environment.add_filter("indent", indent);
    environment.add_filter("center", |value: &Value, width: Option<i64>| {
        center(&to_str(value), &[Value::from(width.unwrap_or(80))])
    });
    environment.add_filter("wordcount", wordcount);
    environment.add_filter("truncate", truncate);
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment.add_filter("items", items);
    environment.add_filter("reverse", reverse);
    environment.add_filter("escape", escape);
    environment.add_filter("e", escape);
    environment.add_filter("forceescape", |value: &Value| Value::from_safe_string(escaped(value)));

    environment.add_test("iterable", is_iterable);
    environment.add_test("sequence", is_sequence);
    environment.add_test("callable", |value: &Value| {
        matches!(value.kind(), ValueKind::Plain) || value.downcast_object_ref::<Generator>().is_some()
    });
}

/// What a loop iterates over: as it is, or a string's characters.
///
/// # Errors
/// What Python does not iterate over, such as None.
fn iterated(value: &Value) -> Result<Value, Error> {
    match value.kind() {
        // minijinja does not know the last character of a string as the last one.
        ValueKind::String => Ok(value.try_iter()?.collect::<Vec<_>>().into()),
        _ if is_iterable(value) => Ok(value.clone()),
        _ => Err(type_error(format!("'{}' object is not iterable", type_name(value)))),
    }
}

fn is_iterable(value: &Value) -> bool {
    let is_container = matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable);
    is_container || value.is_undefined() || value.kind() == ValueKind::String
}

/// What has a length and `__getitem__`: also strings, dicts and Undefined.
fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Undefined | ValueKind::String | ValueKind::Map) || is_list(value)
}

/// # Errors
/// A value without a length, such as None or a generator.
fn length(value: &Value) -> Result<usize, Error> {
    match value.kind() {
        ValueKind::Undefined => Ok(0),
        _ => value.len().ok_or_else(|| type_error(format!("object of type '{}' has no len()", type_name(value)))),
    }
}

/// Jinja2's `title`, unlike `str.title`, begins a word after white space, `-` and opening brackets only.
fn title(value: &Value) -> String {
    let mut out = String::new();
    let mut is_inside = false;
    for character in to_str(value).chars() {
        if is_inside {
            out.extend(character.to_lowercase());
        } else {
            out.extend(character.to_uppercase());
        }
        is_inside = !(character.is_whitespace() || "-({[<".contains(character));
    }
    out
}

/// `default_value` in place of an undefined value, and with `boolean` in place of a false one.
fn default(value: &Value, arguments: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let mut arguments = Arguments::new(arguments.into_values())?;
    let default = arguments.any("default_value")?.unwrap_or(Value::from(""));
    let boolean = arguments.value("boolean")?.is_some_and(|boolean| boolean.is_true());
    arguments.finish()?;
    Ok(if value.is_undefined() || (boolean && !value.is_true()) { default } else { value.clone() })
}

fn trim(value: &Value, arguments: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let mut arguments = Arguments::new(arguments.into_values())?;
    let characters = arguments.text("chars")?;
    arguments.finish()?;
    Ok(stripped(&to_str(value), characters.as_deref(), true, true).to_owned())
}

fn replace(value: &Value, old: &Value, new: &Value, arguments: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let mut arguments = Arguments::new(arguments.into_values())?;
    let count = arguments.next::<i64>("count")?.and_then(|count| usize::try_from(count).ok());
    arguments.finish()?;
    let (text, old, new) = (to_str(value), to_str(old), to_str(new));
    Ok(count.map_or_else(|| text.replace(&old, &new), |count| text.replacen(&old, &new, count)))
}

fn join(value: &Value, arguments: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let mut arguments = Arguments::new(arguments.into_values())?;
    let separator = arguments.value("d")?.as_ref().map(to_str).unwrap_or_default();
    let path = arguments.value("attribute")?.as_ref().map(to_str);
    arguments.finish()?;
    if value.is_none() {
        return Err(type_error("join: 'NoneType' object is not iterable".to_owned()));
    }
    let mut out = String::new();
    for (index, item) in value.try_iter()?.checked().enumerate() {
        let mut item = item?;
        for part in path.iter().flat_map(|path| path.split('.')) {
            item = match part.parse::<usize>() {
                Ok(index) => item.get_item_by_index(index)?,
                Err(_) => item.get_item(&Value::from(part))?,
            };
        }
        out.push_str(if index > 0 { &separator } else { "" });
        out.push_str(&to_str(&item));
    }
    Ok(out)
}

/// Indents all lines but the first (`first`) and the empty ones (`blank`).
fn indent(value: &Value, arguments: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let mut arguments = Arguments::new(arguments.into_values())?;
    let width = arguments.value("width")?.unwrap_or(Value::from(4));
    let first = arguments.next::<bool>("first")?.unwrap_or(false);
    let blank = arguments.next::<bool>("blank")?.unwrap_or(false);
    arguments.finish()?;
    let indention = match width.as_str() {
        Some(text) => text.to_owned(),
        None => " ".repeat(usize::try_from(i64::try_from(width)?).unwrap_or(0).min(TEMPLATE_INDENT)),
    };
    // The last line break counts as the begin of an empty line.
    let text = to_str(value) + "\n";
    let mut out = String::with_capacity(text.len());
    for (index, (line, _)) in lines(&text).enumerate() {
        out.push_str(if index > 0 { "\n" } else { "" });
        let is_indented = if index == 0 { first } else { blank || !line.is_empty() };
        out.push_str(if is_indented { &indention } else { "" });
        out.push_str(line);
    }
    Ok(out)
}

/// Runs of letters, digits and underscores.
fn wordcount(value: &Value) -> usize {
    let text = to_str(value);
    text.split(|character: char| !(character.is_alphanumeric() || character == '_'))
        .filter(|word| !word.is_empty())
        .count()
}

/// The first `length` characters, cut at a word, with `end`; text that is at most `leeway` longer stays whole.
fn truncate(value: &Value, arguments: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let mut arguments = Arguments::new(arguments.into_values())?;
    let length = arguments.next::<usize>("length")?.unwrap_or(255);
    let kill_words = arguments.next::<bool>("killwords")?.unwrap_or(false);
    let end = arguments.text("end")?.unwrap_or_else(|| "...".to_owned());
    let leeway = arguments.next::<usize>("leeway")?.unwrap_or(5);
    arguments.finish()?;
    let text = to_str(value);
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text);
    }
    let kept: String = text.chars().take(length.saturating_sub(end.chars().count())).collect();
    let kept = match kept.rsplit_once(' ') {
        Some((words, _)) if !kill_words => words,
        _ => &kept,
    };
    Ok(format!("{kept}{end}"))
}

/// # Errors
/// A value that is no dict.
fn items(value: &Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::Undefined => Generator::value(&Value::from(Vec::<Value>::new())),
        ValueKind::Map => {
            let pairs = value.as_object().and_then(DynObject::try_iter_pairs).into_iter().flatten();
            Generator::value(&pairs.map(|(key, value)| Value::from(Tuple::from([key, value]))).collect())
        }
        _ => Err(type_error(format!("items: can only get item pairs from a mapping, not {}", type_name(value)))),
    }
}

fn reverse(value: &Value) -> Result<Value, Error> {
    let reversed = minijinja::filters::reverse(value)?;
    if value.kind() == ValueKind::String { Ok(reversed) } else { Generator::value(&reversed) }
}

/// Safe text with HTML's five characters escaped; text that is safe already stays as it is.
fn escape(value: &Value) -> Value {
    if value.is_safe() {
        return value.clone();
    }
    Value::from_safe_string(escaped(value))
}

/// What Python's markupsafe makes of a value.
pub(super) fn escaped(value: &Value) -> String {
    let mut out = String::new();
    for character in to_str(value).chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            other => out.push(other),
        }
    }
    out
}
