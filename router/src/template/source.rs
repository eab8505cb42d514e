//! Where a model keeps its chat template, in order: `chat_template.jinja`, `chat_template.json`, `tokenizer_config.json`.
//!
//! TGI does not read the first one, which is where new checkpoints keep it. A tokenizer config given on the command line
//! wins over all files, since the operator named it.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::limits::MODEL_TEXT_FILE_BYTES;

/// A template's text and the special tokens it may print.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TemplateSource {
    pub(crate) template: String,
    pub(crate) bos_token: Option<String>,
    pub(crate) eos_token: Option<String>,
}

/// A model file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    #[error("{}: {reason}", path.display())]
    Unreadable { path: PathBuf, reason: String },
    #[error("{} has {bytes} bytes, limit {limit}", path.display())]
    TooLarge { path: PathBuf, bytes: u64, limit: u64 },
}

/// The part of `tokenizer_config.json` and `chat_template.json` that matters here.
#[derive(Default, Deserialize)]
struct TokenizerConfig {
    chat_template: Option<Templates>,
    bos_token: Option<Token>,
    eos_token: Option<Token>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Token {
    Text(String),
    Object { content: String },
}

impl TemplateSource {
    /// Looks for the template of the model in `model_dir`; `override_path` is `--tokenizer-config-path`. `None` if the
    /// model has none: then it has no chat.
    ///
    /// # Errors
    /// [`SourceError`] if a file is there but cannot be used: going on without it would change every answer.
    pub(crate) fn find(model_dir: &Path, override_path: Option<&Path>) -> Result<Option<Self>, SourceError> {
        let given = override_path.map(|path| parse::<TokenizerConfig>(path, &read_required(path)?)).transpose()?;
        let own_path = model_dir.join("tokenizer_config.json");
        let own = match read(&own_path)? {
            Some(text) => parse(&own_path, &text)?,
            None => TokenizerConfig::default(),
        };
        let config = given.unwrap_or_default();
        let template = match config.chat_template.and_then(Templates::default_template) {
            Some(template) => Some(template),
            None => match separate_file(model_dir)? {
                Some(template) => Some(template),
                None => own.chat_template.and_then(Templates::default_template),
            },
        };
        Ok(template.map(|template| Self {
            template,
            bos_token: config.bos_token.or(own.bos_token).map(Token::text),
            eos_token: config.eos_token.or(own.eos_token).map(Token::text),
        }))
    }
}

/// The template in a file of its own.
fn separate_file(model_dir: &Path) -> Result<Option<String>, SourceError> {
    if let Some(template) = read(&model_dir.join("chat_template.jinja"))? {
        return Ok(Some(template));
    }
    let path = model_dir.join("chat_template.json");
    match read(&path)? {
        Some(text) => Ok(parse::<TokenizerConfig>(&path, &text)?.chat_template.and_then(Templates::default_template)),
        None => Ok(None),
    }
}

fn parse<T: for<'de> Deserialize<'de>>(path: &Path, text: &str) -> Result<T, SourceError> {
    serde_json::from_str(text)
        .map_err(|error| SourceError::Unreadable { path: path.to_owned(), reason: error.to_string() })
}

fn read_required(path: &Path) -> Result<String, SourceError> {
    read(path)?.ok_or_else(|| SourceError::Unreadable { path: path.to_owned(), reason: "no such file".to_owned() })
}

/// The text of a file; `None` if it is not there.
fn read(path: &Path) -> Result<Option<String>, SourceError> {
    let unreadable =
        |error: std::io::Error| SourceError::Unreadable { path: path.to_owned(), reason: error.to_string() };
    let bytes = match std::fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    if bytes > MODEL_TEXT_FILE_BYTES {
        return Err(SourceError::TooLarge { path: path.to_owned(), bytes, limit: MODEL_TEXT_FILE_BYTES });
    }
    std::fs::read_to_string(path).map(Some).map_err(unreadable)
}

impl Templates {
    fn default_template(self) -> Option<String> {
        match self {
            Templates::One(template) => Some(template),
            Templates::Named(list) => {
                list.into_iter().find(|entry| entry.name == "default").map(|entry| entry.template)
            }
        }
    }
}

impl Token {
    fn text(self) -> String {
        match self {
            Token::Text(text) | Token::Object { content: text } => text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The template found in a folder of `files`, with bos token; "none" if there is none.
    #[track_caller]
    fn check(files: &[(&str, &str)], expected: &str) {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("router-template-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        for (name, text) in files {
            std::fs::write(folder.join(name), text).unwrap();
        }
        let given = folder.join("given.json");
        let found = TemplateSource::find(&folder, given.exists().then_some(given.as_path()));
        std::fs::remove_dir_all(&folder).unwrap();
        let text = match found {
            Ok(Some(source)) => format!("{} {}", source.template, source.bos_token.unwrap_or_default()),
            Ok(None) => "none".to_owned(),
            Err(error) => error.to_string().replace(&folder.display().to_string(), ""),
        };
        assert_eq!(text, expected);
    }

    #[test]
    fn the_order_is_jinja_json_config_and_a_given_config_wins() {
        let config = ("tokenizer_config.json", r#"{"chat_template": "c", "bos_token": {"content": "<s>"}}"#);
        let json = ("chat_template.json", r#"{"chat_template": "j"}"#);
        let jinja = ("chat_template.jinja", "f");
        check(&[], "none");
        check(&[config], "c <s>");
        check(&[config, json], "j <s>");
        check(&[config, json, jinja], "f <s>");
        check(&[config, json, jinja, ("given.json", r#"{"chat_template": "g", "bos_token": "<b>"}"#)], "g <b>");
        check(&[config, ("given.json", "{}")], "c <s>");
    }

    #[test]
    fn of_named_templates_the_default_counts() {
        check(
            &[(
                "tokenizer_config.json",
                r#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}"#,
            )],
            "d ",
        );
        check(&[("tokenizer_config.json", r#"{"chat_template": [{"name": "rag", "template": "t"}]}"#)], "none");
    }

    #[test]
    fn a_broken_file_is_an_error_not_a_missing_template() {
        check(
            &[("tokenizer_config.json", "{")],
            "/tokenizer_config.json: EOF while parsing an object at line 1 column 1",
        );
    }
}
