//! Where a model keeps its chat templates, in transformers' order: `chat_template.jinja` with the folders of named ones,
//! `chat_template.json`, `tokenizer_config.json`, `processor_config.json`. The first that has a template wins.
//!
//! TGI does not read the first one, which is where new checkpoints keep it. A tokenizer config given on the command line
//! wins over all files, since the operator named it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value as Json};

use crate::limits::{MAX_NAMED_TEMPLATES, MODEL_TEXT_FILE_BYTES};

/// The texts of a model's templates and the special tokens they may print.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TemplateSource {
    /// By name; the usual one is `default`, and `tool_use` is for requests with tools.
    pub(crate) templates: BTreeMap<String, String>,
    /// `bos_token` and its like: texts, or a list of texts.
    pub(crate) special_tokens: Map<String, Json>,
}

/// A model file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    #[error("{}: {reason}", path.display())]
    Unreadable { path: PathBuf, reason: String },
    #[error("{} has {bytes} bytes, limit {limit}", path.display())]
    TooLarge { path: PathBuf, bytes: u64, limit: u64 },
    #[error("{} has more than {limit} templates", path.display())]
    TooMany { path: PathBuf, limit: usize },
}

/// The part of a configuration file that matters here. Other fields may be special tokens.
#[derive(Default, Deserialize)]
struct Config {
    chat_template: Option<Templates>,
    #[serde(flatten)]
    fields: Map<String, Json>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<NamedTemplate>),
    Map(BTreeMap<String, String>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

/// Folders of named templates: transformers' name, and the one it had at first.
const FOLDERS: [&str; 2] = ["additional_chat_templates", "chat_templates"];

impl TemplateSource {
    /// Looks for the templates of the model in `model_dir`; `override_path` is `--tokenizer-config-path`. `None` if the
    /// model has none: then it has no chat.
    ///
    /// # Errors
    /// [`SourceError`] if a file is there but cannot be used: going on without it would change every answer.
    pub(crate) fn find(model_dir: &Path, override_path: Option<&Path>) -> Result<Option<Self>, SourceError> {
        let given = override_path.map(|path| parse::<Config>(path, &read_required(path)?)).transpose()?;
        let own = config(model_dir, "tokenizer_config.json")?;
        let mut special_tokens = Map::new();
        let token_map = config(model_dir, "special_tokens_map.json")?;
        for config in [given.as_ref(), Some(&own), Some(&token_map)].into_iter().flatten() {
            add_special_tokens(&mut special_tokens, &config.fields);
        }
        let mut templates = given.map(Config::templates).unwrap_or_default();
        if templates.is_empty() {
            templates = template_files(model_dir)?;
        }
        if templates.is_empty() {
            templates = config(model_dir, "chat_template.json")?.templates();
        }
        if templates.is_empty() {
            templates = own.templates();
        }
        if templates.is_empty() {
            templates = config(model_dir, "processor_config.json")?.templates();
        }
        if templates.len() > MAX_NAMED_TEMPLATES {
            return Err(SourceError::TooMany { path: model_dir.to_owned(), limit: MAX_NAMED_TEMPLATES });
        }
        Ok((!templates.is_empty()).then_some(Self { templates, special_tokens }))
    }
}

impl Config {
    fn templates(self) -> BTreeMap<String, String> {
        match self.chat_template {
            None => BTreeMap::new(),
            Some(Templates::One(template)) => BTreeMap::from([("default".to_owned(), template)]),
            Some(Templates::Named(list)) => list.into_iter().map(|entry| (entry.name, entry.template)).collect(),
            Some(Templates::Map(map)) => map,
        }
    }
}

/// The templates in files of their own, named after the files.
fn template_files(model_dir: &Path) -> Result<BTreeMap<String, String>, SourceError> {
    let mut templates = BTreeMap::new();
    for folder in FOLDERS.map(|name| model_dir.join(name)) {
        let unreadable =
            |error: std::io::Error| SourceError::Unreadable { path: folder.clone(), reason: error.to_string() };
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(unreadable(error)),
        };
        for entry in entries {
            let path = entry.map_err(unreadable)?.path();
            let name = path.file_stem().and_then(|name| name.to_str());
            let Some(name) = name.filter(|_| path.extension().is_some_and(|extension| extension == "jinja")) else {
                continue;
            };
            if templates.len() >= MAX_NAMED_TEMPLATES {
                return Err(SourceError::TooMany { path: folder, limit: MAX_NAMED_TEMPLATES });
            }
            templates.insert(name.to_owned(), read_required(&path)?);
        }
    }
    if let Some(template) = read(&model_dir.join("chat_template.jinja"))? {
        templates.insert("default".to_owned(), template);
    }
    Ok(templates)
}

/// Adds the special tokens among `fields` that are not there yet, as texts.
fn add_special_tokens(tokens: &mut Map<String, Json>, fields: &Map<String, Json>) {
    for (name, value) in fields {
        let text = |value: &Json| value.as_str().or_else(|| value["content"].as_str()).map(Json::from);
        match value {
            // Names and tokens of the model's own, such as `image_token`.
            Json::Object(named) if name == "extra_special_tokens" => {
                for (name, value) in named {
                    if let Some(text) = text(value) {
                        tokens.entry(name).or_insert(text);
                    }
                }
            }
            Json::Array(list) if name == "additional_special_tokens" || name == "extra_special_tokens" => {
                tokens.entry(name).or_insert_with(|| list.iter().filter_map(text).collect());
            }
            _ if name.ends_with("_token") => {
                if let Some(text) = text(value) {
                    tokens.entry(name).or_insert(text);
                }
            }
            _ => {}
        }
    }
}

/// The configuration file `name`; an empty one if it is not there.
fn config(model_dir: &Path, name: &str) -> Result<Config, SourceError> {
    let path = model_dir.join(name);
    read(&path)?.map_or_else(|| Ok(Config::default()), |text| parse(&path, &text))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The templates found in a folder of `files`, and the special tokens; "none" if there are no templates.
    #[track_caller]
    fn check(files: &[(&str, &str)], expected: &str) {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("router-template-{}-{number}", std::process::id()));
        for (name, text) in files {
            let path = folder.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let given = folder.join("given.json");
        let found = TemplateSource::find(&folder, given.exists().then_some(given.as_path()));
        let _ = std::fs::remove_dir_all(&folder);
        let text = match found {
            Ok(Some(source)) => {
                let templates: Vec<String> =
                    source.templates.iter().map(|(name, text)| format!("{name}={text}")).collect();
                format!("{} {}", templates.join(","), Json::Object(source.special_tokens))
            }
            Ok(None) => "none".to_owned(),
            Err(error) => error.to_string().replace(&folder.display().to_string(), ""),
        };
        assert_eq!(text, expected);
    }

    #[test]
    fn the_order_is_jinja_json_config_processor_and_a_given_config_wins() {
        let processor = ("processor_config.json", r#"{"chat_template": "p", "image_seq_len": 1}"#);
        let config = ("tokenizer_config.json", r#"{"chat_template": "c", "bos_token": {"content": "<s>"}}"#);
        let json = ("chat_template.json", r#"{"chat_template": "j"}"#);
        let jinja = ("chat_template.jinja", "f");
        check(&[], "none");
        check(&[processor], "default=p {}");
        check(&[processor, config], r#"default=c {"bos_token":"<s>"}"#);
        check(&[config, json], r#"default=j {"bos_token":"<s>"}"#);
        check(&[config, json, jinja], r#"default=f {"bos_token":"<s>"}"#);
        check(
            &[config, json, jinja, ("given.json", r#"{"chat_template": "g", "bos_token": "<b>"}"#)],
            r#"default=g {"bos_token":"<b>"}"#,
        );
        check(&[config, ("given.json", "{}")], r#"default=c {"bos_token":"<s>"}"#);
    }

    #[test]
    fn templates_have_names() {
        let list =
            r#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}"#;
        check(&[("tokenizer_config.json", list)], "default=d,tool_use=t {}");
        check(&[("tokenizer_config.json", r#"{"chat_template": {"rag": "r"}}"#)], "rag=r {}");
        check(
            &[
                ("tokenizer_config.json", list),
                ("chat_template.jinja", "d2"),
                ("additional_chat_templates/tool_use.jinja", "t2"),
                ("chat_templates/rag.jinja", "r2"),
                ("chat_templates/readme.md", "no"),
            ],
            "default=d2,rag=r2,tool_use=t2 {}",
        );
        let names: Vec<String> =
            (0..=MAX_NAMED_TEMPLATES).map(|number| format!("chat_templates/{number}.jinja")).collect();
        let files: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "x")).collect();
        check(&files, "/chat_templates has more than 32 templates");
    }

    #[test]
    fn all_special_tokens_are_found() {
        check(
            &[
                ("chat_template.jinja", "f"),
                (
                    "tokenizer_config.json",
                    r#"{"bos_token": "<s>", "eos_token": null, "pad_token": {"content": "<p>", "lstrip": false},
                        "add_bos_token": true, "additional_special_tokens": ["<a>", {"content": "<b>"}],
                        "extra_special_tokens": {"image_token": "<i>"}}"#,
                ),
                ("special_tokens_map.json", r#"{"bos_token": "<x>", "eos_token": "</s>"}"#),
            ],
            r#"default=f {"bos_token":"<s>","pad_token":"<p>","additional_special_tokens":["<a>","<b>"],"image_token":"<i>","eos_token":"</s>"}"#,
        );
    }

    #[test]
    fn a_broken_file_is_an_error_not_a_missing_template() {
        check(
            &[("tokenizer_config.json", "{")],
            "/tokenizer_config.json: EOF while parsing an object at line 1 column 1",
        );
    }
}
