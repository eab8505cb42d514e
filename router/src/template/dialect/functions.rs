//! The functions that Jinja2 and transformers give to chat templates.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use minijinja::value::{DynObject, Object, ObjectRepr, Rest, Tuple, ValueOrKwargs, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::expression::{ADD, SLICE};
use super::filters::escaped;
use super::python::{is_list, to_str, type_error, type_name};

/// Adds the functions to `environment`; `now` is the clock of `strftime_now`.
pub(super) fn register(environment: &mut Environment<'static>, now: fn() -> jiff::Zoned) {
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", move |format: &str| strftime(format, &now()));
    environment.add_function(ADD, add_all);
    environment.add_function(SLICE, slice);
    environment.add_function("namespace", namespace);
    environment.add_function("joiner", |separator: Option<String>| {
        let (separator, used) = (separator.unwrap_or_else(|| ", ".to_owned()), AtomicUsize::new(0));
        Value::from_object(Joiner { separator, used })
    });
    environment.add_function("cycler", |items: Rest<Value>| {
        if items.is_empty() {
            return Err(Error::new(ErrorKind::MissingArgument, "cycler: at least one item has to be provided"));
        }
        Ok(Value::from_object(Cycler { items: items.0, position: AtomicUsize::new(0) }))
    });
}

/// Python's `value[start:stop:step]`.
///
/// # Errors
/// A value that has no slices, a bound that is no whole number, or a step of 0.
fn slice(value: &Value, start: Option<i64>, stop: Option<i64>, step: Option<i64>) -> Result<Value, Error> {
    let step = step.unwrap_or(1);
    if value.is_undefined() {
        return Err(Error::new(ErrorKind::UndefinedError, "an undefined value has no slices"));
    }
    if step == 0 {
        return Err(type_error("slice step cannot be zero".to_owned()));
    }
    if let Some(text) = value.as_str() {
        let characters: Vec<char> = text.chars().collect();
        return Ok(Value::from(
            indices(characters.len(), start, stop, step).map(|at| characters[at]).collect::<String>(),
        ));
    }
    if !is_list(value) {
        return Err(type_error(format!("'{}' object is not subscriptable", type_name(value))));
    }
    let items = value.try_iter()?.checked().collect::<Result<Vec<_>, _>>()?;
    let kept: Vec<Value> = indices(items.len(), start, stop, step).map(|at| items[at].clone()).collect();
    Ok(if value.is_tuple() { Value::from(Tuple::from(kept)) } else { Value::from(kept) })
}

/// The places that a slice of `len` items takes, in order.
fn indices(len: usize, start: Option<i64>, stop: Option<i64>, step: i64) -> impl Iterator<Item = usize> {
    let len = i64::try_from(len).expect("a value in memory is shorter than i64::MAX");
    // Backwards, the places go from the last down to the one before the first.
    let (lowest, highest) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let place = |at: i64| if at < 0 { at.saturating_add(len) } else { at }.clamp(lowest, highest);
    let start = start.map_or(if step > 0 { lowest } else { highest }, place);
    let stop = stop.map_or(if step > 0 { highest } else { lowest }, place);
    std::iter::successors(Some(start), move |at| at.checked_add(step))
        .take_while(move |at| if step > 0 { *at < stop } else { *at > stop })
        .map(|at| usize::try_from(at).expect("both ends are clamped to the items"))
}

/// Python's `+`, from left to right.
fn add_all(values: Rest<Value>) -> Result<Value, Error> {
    let mut values = values.0.into_iter();
    let first = values.next().ok_or_else(|| Error::from(ErrorKind::MissingArgument))?;
    values.try_fold(first, |left, right| add(&left, &right))
}

/// Safe text escapes what is added to it; of two texts that are not safe, the sum is as in minijinja.
fn add(left: &Value, right: &Value) -> Result<Value, Error> {
    let refuse = || {
        let (left, right) = (type_name(left), type_name(right));
        type_error(format!("unsupported operand type(s) for +: '{left}' and '{right}'"))
    };
    let piece = |value: &Value| if value.is_safe() { to_str(value) } else { escaped(value) };
    match (left.as_str(), right.as_str()) {
        (Some(_), Some(_)) if left.is_safe() || right.is_safe() => {
            Ok(Value::from_safe_string(piece(left) + &piece(right)))
        }
        (Some(left), Some(right)) => Ok(Value::from([left, right].concat())),
        (None, None) if is_list(left) && is_list(right) => Ok(left.try_iter()?.chain(right.try_iter()?).collect()),
        (None, None) if left.is_integer() && right.is_integer() => {
            let sum = i64::try_from(left.clone())?.checked_add(i64::try_from(right.clone())?);
            sum.map(Value::from).ok_or_else(refuse)
        }
        (None, None) if left.is_number() && right.is_number() => {
            Ok(Value::from(f64::try_from(left.clone())? + f64::try_from(right.clone())?))
        }
        _ => Err(refuse()),
    }
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

/// `namespace(dict, name=value, ..)`.
fn namespace(parts: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let mut entries = Vec::new();
    for part in parts.into_values() {
        let pairs =
            part.as_object().filter(|object| object.repr() == ObjectRepr::Map).and_then(DynObject::try_iter_pairs);
        entries.extend(pairs.ok_or_else(|| type_error("namespace: takes a dict and named values".to_owned()))?);
    }
    minijinja::functions::namespace(Some(Value::from_pairs(entries).into()))
}

/// Empty at the first call, the separator at all others.
#[derive(Debug)]
struct Joiner {
    separator: String,
    used: AtomicUsize,
}

impl Object for Joiner {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, _state: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        from_args::<()>(args)?;
        let is_first = self.used.swap(1, Ordering::Relaxed) == 0;
        Ok(Value::from(if is_first { "" } else { &self.separator }))
    }
}

/// One item after the other, over and over.
#[derive(Debug)]
struct Cycler {
    items: Vec<Value>,
    position: AtomicUsize,
}

impl Object for Cycler {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let position = self.position.load(Ordering::Relaxed);
        (key.as_str() == Some("current")).then(|| self.items[position % self.items.len()].clone())
    }

    fn call_method(self: &Arc<Self>, _state: &mut State<'_, '_>, method: &str, args: &[Value]) -> Result<Value, Error> {
        from_args::<()>(args)?;
        match method {
            "next" => {
                let position = self.position.fetch_add(1, Ordering::Relaxed);
                Ok(self.items[position % self.items.len()].clone())
            }
            "reset" => {
                self.position.store(0, Ordering::Relaxed);
                Ok(Value::from(()))
            }
            _ => Err(Error::from(ErrorKind::UnknownMethod)),
        }
    }
}

#[cfg(test)]
pub(in crate::template) mod tests {
    use super::*;

    /// The clock of the goldens.
    pub(in crate::template) fn noon() -> jiff::Zoned {
        let time = jiff::civil::date(2024, 7, 26).at(12, 34, 56, 0);
        time.to_zoned(jiff::tz::TimeZone::UTC).expect("UTC has no gaps")
    }

    #[test]
    fn dates_are_formatted_and_wrong_formats_are_errors() {
        let now = noon();
        assert_eq!(strftime("%d %b %Y", &now).unwrap(), "26 Jul 2024");
        assert!(strftime("%!", &now).is_err());
    }
}
