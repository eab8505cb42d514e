//! The methods of Python's `str`, `dict`, `list` and `float`, as far as they read and do not change the value.

use minijinja::value::{DynObject, Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

use super::arguments::Arguments;
use super::python::{View, is_list, is_space, type_error, type_name};
use crate::limits::TEMPLATE_PADDING_BYTES;

/// The attributes of `dict` that a template can meet as `dict.name`.
pub(super) const DICT: &[&str] = &["get", "items", "keys", "values", "copy", "pop", "update", "clear", "setdefault"];

/// Methods that change the value; transformers' sandbox refuses them.
const CHANGING: &[&str] = &[
    "append",
    "extend",
    "insert",
    "remove",
    "pop",
    "popitem",
    "clear",
    "sort",
    "reverse",
    "update",
    "setdefault",
    "add",
];

/// Calls `value.method(*args)`.
///
/// # Errors
/// [`ErrorKind::UnknownMethod`] if Python has no such method, or it would change the value; Python's own errors.
pub(super) fn call(state: &mut State<'_, '_>, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let outcome = match value.kind() {
        ValueKind::String => str_method(value.as_str().unwrap_or_default(), method, args),
        ValueKind::Map => dict_method(value, method, args),
        ValueKind::Number => number_method(value, method, args),
        _ if is_list(value) => list_method(value, method, args),
        _ => None,
    };
    match outcome {
        Some(outcome) => outcome,
        None if CHANGING.contains(&method) && (value.kind() == ValueKind::Map || is_list(value)) => {
            let message = format!("{}.{method}() changes the value, which templates must not", type_name(value));
            Err(Error::new(ErrorKind::InvalidOperation, message))
        }
        None => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
    }
}

/// A method of `str`; `None` leaves it to minijinja's own list.
fn str_method(text: &str, method: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    Some(match method {
        "strip" => strip(text, args, true, true),
        "lstrip" => strip(text, args, true, false),
        "rstrip" => strip(text, args, false, true),
        "split" => split(text, args, false),
        "rsplit" => split(text, args, true),
        "splitlines" => splitlines(text, args),
        "partition" => from_args::<(&str,)>(args)
            .and_then(|(separator,)| partition(separator, text.find(separator), text, (text, "", ""))),
        "rpartition" => from_args::<(&str,)>(args)
            .and_then(|(separator,)| partition(separator, text.rfind(separator), text, ("", "", text))),
        "removeprefix" => {
            from_args::<(&str,)>(args).map(|(prefix,)| Value::from(text.strip_prefix(prefix).unwrap_or(text)))
        }
        "removesuffix" => {
            from_args::<(&str,)>(args).map(|(suffix,)| Value::from(text.strip_suffix(suffix).unwrap_or(text)))
        }
        "title" => from_args::<()>(args).map(|()| Value::from(title(text))),
        "capitalize" => from_args::<()>(args).map(|()| Value::from(capitalize(text))),
        "casefold" => from_args::<()>(args).map(|()| Value::from(text.to_lowercase().replace('ß', "ss"))),
        "swapcase" => from_args::<()>(args).map(|()| Value::from(text.chars().map(swap_case).collect::<String>())),
        "isspace" => from_args::<()>(args).map(|()| Value::from(!text.is_empty() && text.chars().all(is_space))),
        "isdecimal" => from_args::<()>(args)
            .map(|()| Value::from(!text.is_empty() && text.chars().all(|character| character.is_ascii_digit()))),
        "isidentifier" => from_args::<()>(args).map(|()| Value::from(is_identifier(text))),
        "count" => window(text, args).map(|(what, part, _)| {
            Value::from(if what.is_empty() { part.chars().count() + 1 } else { part.matches(&*what).count() })
        }),
        "find" | "index" => window(text, args).and_then(|(what, part, skipped)| {
            position(part.find(&*what).map(|at| skipped + part[..at].chars().count()), method)
        }),
        "rfind" | "rindex" => window(text, args).and_then(|(what, part, skipped)| {
            position(part.rfind(&*what).map(|at| skipped + part[..at].chars().count()), method)
        }),
        "ljust" => pad(text, args, |missing| (0, missing)),
        "rjust" => pad(text, args, |missing| (missing, 0)),
        "center" => center(text, args),
        "zfill" => zfill(text, args),
        "join" => join(text, args),
        _ => return None,
    })
}

fn strip(text: &str, args: &[Value], start: bool, end: bool) -> Result<Value, Error> {
    let (characters,) = from_args::<(Option<&str>,)>(args)?;
    Ok(Value::from(stripped(text, characters, start, end)))
}

/// `str.strip` of either side: of these characters, or of white space.
pub(super) fn stripped<'a>(text: &'a str, characters: Option<&str>, start: bool, end: bool) -> &'a str {
    let is_cut = |character: char| characters.map_or_else(|| is_space(character), |list| list.contains(character));
    let text = if start { text.trim_start_matches(is_cut) } else { text };
    if end { text.trim_end_matches(is_cut) } else { text }
}

fn split(text: &str, args: &[Value], from_right: bool) -> Result<Value, Error> {
    let mut arguments = Arguments::new(args.to_vec())?;
    let separator = arguments.text("sep")?;
    let max_split = arguments.next::<i64>("maxsplit")?;
    arguments.finish()?;
    let limit = max_split.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
    let mut parts: Vec<&str> = match (separator.as_deref(), from_right) {
        (Some(""), _) => return Err(type_error("split: empty separator".to_owned())),
        (Some(separator), false) => text.splitn(limit.saturating_add(1), separator).collect(),
        (Some(separator), true) => text.rsplitn(limit.saturating_add(1), separator).collect(),
        (None, false) => words(text, limit),
        (None, true) => words_from_right(text, limit),
    };
    if from_right {
        parts.reverse();
    }
    Ok(parts.into_iter().map(Value::from).collect())
}

/// `text.split(None, limit)`.
fn words(text: &str, limit: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while !rest.is_empty() {
        let end = if parts.len() == limit { rest.len() } else { rest.find(is_space).unwrap_or(rest.len()) };
        parts.push(&rest[..end]);
        rest = rest[end..].trim_start_matches(is_space);
    }
    parts
}

/// `text.rsplit(None, limit)`, last word first.
fn words_from_right(text: &str, limit: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim_end_matches(is_space);
    while !rest.is_empty() {
        let word = if parts.len() == limit { rest } else { rest.rsplit(is_space).next().unwrap_or(rest) };
        parts.push(word);
        rest = rest[..rest.len() - word.len()].trim_end_matches(is_space);
    }
    parts
}

fn splitlines(text: &str, args: &[Value]) -> Result<Value, Error> {
    let mut arguments = Arguments::new(args.to_vec())?;
    let keep_ends = arguments.next::<bool>("keepends")?.unwrap_or(false);
    arguments.finish()?;
    Ok(lines(text)
        .map(|(line, end)| Value::from(if keep_ends { [line, end].concat() } else { line.to_owned() }))
        .collect())
}

/// The lines of `text` as `str.splitlines` sees them, each with its end.
pub(super) fn lines(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let is_end = |character: char| {
        matches!(character, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}')
    };
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let at = rest.find(is_end).unwrap_or(rest.len());
        let end_len = match rest[at..].strip_prefix("\r\n") {
            Some(_) => 2,
            None => rest[at..].chars().next().map_or(0, char::len_utf8),
        };
        let (line, end) = (&rest[..at], &rest[at..at + end_len]);
        rest = &rest[at + end_len..];
        Some((line, end))
    })
}

fn partition(separator: &str, at: Option<usize>, text: &str, missing: (&str, &str, &str)) -> Result<Value, Error> {
    if separator.is_empty() {
        return Err(type_error("partition: empty separator".to_owned()));
    }
    let (before, middle, after) = match at {
        Some(at) => (&text[..at], separator, &text[at + separator.len()..]),
        None => missing,
    };
    Ok(Value::from(Tuple::from([before, middle, after].map(Value::from))))
}

/// `str.title`: a word begins after everything that is no letter, also after an apostrophe.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut is_inside = false;
    for character in text.chars() {
        if is_inside {
            out.extend(character.to_lowercase());
        } else {
            out.extend(character.to_uppercase());
        }
        is_inside = character.is_alphabetic();
    }
    out
}

/// `str.capitalize`: the first character in upper case, all others in lower case.
pub(super) fn capitalize(text: &str) -> String {
    let mut characters = text.chars();
    match characters.next() {
        Some(first) => first.to_uppercase().chain(characters.as_str().to_lowercase().chars()).collect(),
        None => String::new(),
    }
}

fn swap_case(character: char) -> String {
    if character.is_uppercase() { character.to_lowercase().collect() } else { character.to_uppercase().collect() }
}

fn is_identifier(text: &str) -> bool {
    let is_start = |character: char| character == '_' || character.is_alphabetic();
    text.starts_with(is_start) && text.chars().all(|character| is_start(character) || character.is_numeric())
}

/// What is searched, the part `text[start:end]` of `method(what, start, end)`, and the characters before it.
fn window<'a>(text: &'a str, args: &[Value]) -> Result<(String, &'a str, usize), Error> {
    let (what, start, end) = from_args::<(String, Option<i64>, Option<i64>)>(args)?;
    if start.is_none() && end.is_none() {
        return Ok((what, text, 0));
    }
    let len = text.chars().count();
    let index = |at: i64| {
        let from_end = usize::try_from(at.unsigned_abs()).unwrap_or(usize::MAX);
        if at < 0 { len.saturating_sub(from_end) } else { from_end.min(len) }
    };
    let (start, end) = (start.map_or(0, index), end.map_or(len, index));
    let byte = |at: usize| text.char_indices().nth(at).map_or(text.len(), |(byte, _)| byte);
    Ok((what, &text[byte(start)..byte(end.max(start))], start))
}

fn position(at: Option<usize>, method: &str) -> Result<Value, Error> {
    match at {
        Some(at) => Ok(Value::from(at)),
        None if method.ends_with("find") => Ok(Value::from(-1)),
        None => Err(type_error(format!("{method}: substring not found"))),
    }
}

/// `text` in a field of some width; `share` says how many fill characters stand left and right.
fn pad(text: &str, args: &[Value], share: impl Fn(usize) -> (usize, usize)) -> Result<Value, Error> {
    let (width, fill) = from_args::<(i64, Option<&str>)>(args)?;
    let fill = fill.unwrap_or(" ");
    let width = usize::try_from(width).unwrap_or(0);
    if width.saturating_mul(fill.len()) > TEMPLATE_PADDING_BYTES {
        return Err(type_error(format!("a width of {width} is over the limit of {TEMPLATE_PADDING_BYTES} bytes")));
    }
    let (left, right) = share(width.saturating_sub(text.chars().count()));
    Ok(Value::from([&fill.repeat(left), text, &fill.repeat(right)].concat()))
}

/// `str.center`: of an odd remainder, the larger half stands right, unless the width is odd too.
pub(super) fn center(text: &str, args: &[Value]) -> Result<Value, Error> {
    let width = args.first().and_then(Value::as_i64).unwrap_or(0);
    pad(text, args, |missing| {
        let left = missing / 2 + (missing & usize::from(width % 2 != 0) & 1);
        (left, missing - left)
    })
}

fn zfill(text: &str, args: &[Value]) -> Result<Value, Error> {
    let sign = usize::from(text.starts_with(['+', '-']));
    let (width,) = from_args::<(i64,)>(args)?;
    let padded = pad(&text[sign..], &[Value::from(width - sign as i64), Value::from("0")], |missing| (missing, 0))?;
    Ok(Value::from(format!("{}{padded}", &text[..sign])))
}

/// `str.join`, which takes strings only.
fn join(separator: &str, args: &[Value]) -> Result<Value, Error> {
    let (items,) = from_args::<(&Value,)>(args)?;
    let mut out = String::new();
    for (index, item) in items.try_iter()?.checked().enumerate() {
        let item = item?;
        let text = item.as_str().ok_or_else(|| {
            type_error(format!("join: sequence item {index}: expected str instance, {} found", type_name(&item)))
        })?;
        out.push_str(if index > 0 { separator } else { "" });
        out.push_str(text);
    }
    Ok(Value::from(out))
}

fn dict_method(value: &Value, method: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    let pairs = || value.as_object().and_then(DynObject::try_iter_pairs).into_iter().flatten();
    let view = |name, items| Value::from_object(View { name, items });
    Some(match method {
        "keys" => from_args::<()>(args).map(|()| view("dict_keys", pairs().map(|(key, _)| key).collect())),
        "values" => from_args::<()>(args).map(|()| view("dict_values", pairs().map(|(_, value)| value).collect())),
        "items" => from_args::<()>(args)
            .map(|()| view("dict_items", pairs().map(|(key, value)| Value::from(Tuple::from([key, value]))).collect())),
        "copy" => from_args::<()>(args).map(|()| value.clone()),
        _ => return None,
    })
}

fn list_method(value: &Value, method: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    let items = || value.try_iter().into_iter().flatten();
    Some(match method {
        "count" => from_args::<(&Value,)>(args).map(|(what,)| Value::from(items().filter(|item| item == what).count())),
        "index" => from_args::<(&Value,)>(args).and_then(|(what,)| {
            let at = items().position(|item| item == *what);
            at.map(Value::from).ok_or_else(|| type_error("index: the value is not in the list".to_owned()))
        }),
        "copy" => from_args::<()>(args).map(|()| items().collect()),
        _ => return None,
    })
}

fn number_method(value: &Value, method: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    match method {
        "is_integer" => Some(
            from_args::<()>(args)
                .and_then(|()| Ok(Value::from(value.is_integer() || f64::try_from(value.clone())?.fract() == 0.0))),
        ),
        _ => None,
    }
}
