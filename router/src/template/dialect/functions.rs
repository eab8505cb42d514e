//! The functions that Jinja2 and transformers give to chat templates.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use minijinja::value::{Object, ObjectRepr, Rest, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::expression::ADD;
use super::filters::escaped;
use super::python::{is_list, to_str, type_error, type_name};

/// Adds the functions to `environment`; `now` is the clock of `strftime_now`.
pub(super) fn register(environment: &mut Environment<'static>, now: fn() -> jiff::Zoned) {
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", move |format: &str| strftime(format, &now()));
    environment.add_function(ADD, add_all);
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

    fn call_method(
        self: &Arc<Self>,
        _state: &mut State<'_, '_>,
        method: &str,
        args: &[Value],
    ) -> Result<Value, Error> {
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
