//! Arguments as Python binds them: by position, then by name; None is the same as nothing.

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, Value};

use super::python::{type_error, type_name};

/// The arguments of a call, taken in the order of the parameters.
pub(super) struct Arguments {
    positional: std::vec::IntoIter<Value>,
    keywords: Kwargs,
}

impl Arguments {
    /// # Errors
    /// Never for what minijinja passes.
    pub(super) fn new(mut values: Vec<Value>) -> Result<Self, Error> {
        let keywords = values.pop_if(|last| last.is_kwargs()).unwrap_or(Value::UNDEFINED);
        Ok(Self { positional: values.into_iter(), keywords: Kwargs::try_from(keywords)? })
    }

    /// The next parameter as it is, also None.
    ///
    /// # Errors
    /// Never for what minijinja passes.
    pub(super) fn any(&mut self, name: &str) -> Result<Option<Value>, Error> {
        match self.positional.next() {
            None if self.keywords.has(name) => self.keywords.get::<Value>(name).map(Some),
            given => Ok(given),
        }
    }

    /// The next parameter.
    ///
    /// # Errors
    /// Never for what minijinja passes.
    pub(super) fn value(&mut self, name: &str) -> Result<Option<Value>, Error> {
        Ok(self.any(name)?.filter(|value| !value.is_none()))
    }

    /// The next parameter.
    ///
    /// # Errors
    /// A value of another type.
    pub(super) fn next<T: TryFrom<Value, Error = Error>>(&mut self, name: &str) -> Result<Option<T>, Error> {
        self.value(name)?.map(T::try_from).transpose()
    }

    /// The next parameter, which is a string.
    ///
    /// # Errors
    /// A value of another type.
    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>, Error> {
        let refuse = |value: &Value| type_error(format!("`{name}` must be a string, not {}", type_name(value)));
        let value = self.value(name)?;
        value.map(|value| value.as_str().map(str::to_owned).ok_or_else(|| refuse(&value))).transpose()
    }

    /// # Errors
    /// Arguments that no parameter took.
    pub(super) fn finish(mut self) -> Result<(), Error> {
        match self.positional.next() {
            Some(_) => Err(Error::from(ErrorKind::TooManyArguments)),
            None => self.keywords.assert_all_used(),
        }
    }
}
