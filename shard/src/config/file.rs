//! A JSON object with typed access, whose errors name file and field.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::limits::MAX_JSON_BYTES;

/// config.json, or an object inside it. A field that is `null` counts as absent, as in transformers.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    path: PathBuf,
    /// `rope_parameters.` inside that object; empty at the top.
    prefix: String,
    fields: Map<String, Value>,
}

impl ConfigFile {
    /// Reads the file.
    ///
    /// # Errors
    /// [`Error::File`]; [`Error::Json`] if it is not a JSON object or larger than [`MAX_JSON_BYTES`].
    pub fn read(path: &Path) -> Result<ConfigFile> {
        let not = |reason: String| Error::Json { path: path.to_owned(), reason };
        match serde_json::from_slice(&read_bounded(path)?).map_err(|error| not(error.to_string()))? {
            Value::Object(fields) => Ok(ConfigFile { path: path.to_owned(), prefix: String::new(), fields }),
            _ => Err(not("expected a JSON object".to_owned())),
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of all fields.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.fields.keys().map(String::as_str)
    }

    /// The same with `field` set to `value` where it is absent.
    pub fn with_default(&self, field: &str, value: impl Into<Value>) -> ConfigFile {
        let mut config = self.clone();
        if config.get(field).is_none() {
            config.fields.insert(field.to_owned(), value.into());
        }
        config
    }

    /// A field that is there and not null.
    pub fn get(&self, field: &str) -> Option<&Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    /// An object inside this one.
    ///
    /// # Errors
    /// [`Error::Field`] if it is something else. So for all that follow.
    pub fn object(&self, field: &str) -> Result<Option<ConfigFile>> {
        self.typed(field, "an object", |value| {
            let fields = value.as_object()?.clone();
            Some(ConfigFile { path: self.path.clone(), prefix: format!("{}{field}.", self.prefix), fields })
        })
    }

    /// A whole number from 1 to `max` that has to be there.
    pub fn size(&self, field: &str, max: usize) -> Result<usize> {
        self.optional_size(field, max)?.ok_or_else(|| self.wrong(field, &size_range(max)))
    }

    /// A whole number from 1 to `max`.
    pub fn optional_size(&self, field: &str, max: usize) -> Result<Option<usize>> {
        self.typed(field, &size_range(max), |value| {
            value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=max).contains(n))
        })
    }

    /// A finite number above zero.
    pub fn positive(&self, field: &str) -> Result<Option<f64>> {
        self.typed(field, "a number above 0", |value| value.as_f64().filter(|x| x.is_finite() && *x > 0.0))
    }

    /// A finite number above zero that has to be there.
    pub fn required_positive(&self, field: &str) -> Result<f64> {
        self.positive(field)?.ok_or_else(|| self.wrong(field, "a number above 0"))
    }

    /// `true` or `false`.
    pub fn flag(&self, field: &str, default: bool) -> Result<bool> {
        Ok(self.typed(field, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    /// A string.
    pub fn text(&self, field: &str) -> Result<Option<&str>> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(field, "a string")),
        }
    }

    /// One token id or a list of them.
    pub fn token_ids(&self, field: &str) -> Result<Option<Vec<u32>>> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        self.typed(field, "a token id or a list of them", |value| match value {
            Value::Array(ids) => ids.iter().map(id).collect(),
            one => id(one).map(|id| vec![id]),
        })
    }

    /// A list of strings.
    pub fn texts(&self, field: &str) -> Result<Option<Vec<String>>> {
        self.typed(field, "a list of strings", |value| {
            value.as_array()?.iter().map(|text| Some(text.as_str()?.to_owned())).collect()
        })
    }

    /// A list of numbers of layers, below `num_layers`.
    pub fn layers(&self, field: &str, num_layers: usize) -> Result<Option<Vec<usize>>> {
        let layer = |value: &Value| {
            value.as_u64().and_then(|layer| usize::try_from(layer).ok()).filter(|layer| *layer < num_layers)
        };
        self.typed(field, &format!("a list of numbers of layers, below {num_layers}"), |value| {
            value.as_array()?.iter().map(layer).collect()
        })
    }

    /// The error that `field` is missing or not `expected`.
    pub fn wrong(&self, field: &str, expected: &str) -> Error {
        Error::Field {
            path: self.path.clone(),
            field: self.name(field),
            value: self.get(field).map_or("missing".to_owned(), Value::to_string),
            expected: expected.to_owned(),
        }
    }

    /// The error that `field` has a legal value that this server cannot run.
    pub fn unsupported(&self, field: &str, supported: &str) -> Error {
        Error::Unsupported {
            path: self.path.clone(),
            field: self.name(field),
            value: self.get(field).map_or("missing".to_owned(), Value::to_string),
            supported: supported.to_owned(),
        }
    }

    fn name(&self, field: &str) -> String {
        format!("{}{field}", self.prefix)
    }

    fn typed<T>(&self, field: &str, expected: &str, read: impl FnOnce(&Value) -> Option<T>) -> Result<Option<T>> {
        self.get(field).map(|value| read(value).ok_or_else(|| self.wrong(field, expected))).transpose()
    }
}

fn size_range(max: usize) -> String {
    format!("a whole number from 1 to {max}")
}

/// The contents of a JSON file of the model directory.
///
/// # Errors
/// [`Error::File`]; [`Error::Json`] if it is larger than [`MAX_JSON_BYTES`].
pub(crate) fn read_bounded(path: &Path) -> Result<Vec<u8>> {
    let fail = |source| Error::File { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).map_err(fail)?.take(MAX_JSON_BYTES + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > MAX_JSON_BYTES {
        return Err(Error::Json { path: path.to_owned(), reason: format!("longer than {MAX_JSON_BYTES} bytes") });
    }
    Ok(bytes)
}
