//! Where the model's files are, and whether they can be a model at all, before any process is started.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::demo;
use crate::error::LauncherError;

/// A model folder that holds what a server needs.
#[derive(Debug)]
pub(crate) struct Model {
    /// The folder.
    pub(crate) dir: PathBuf,
    /// Name under which clients see it: what `--model-id` said, or "demo".
    pub(crate) id: String,
    /// Whether it has a chat template, so that the ready line can show the right route.
    pub(crate) is_chat: bool,
}

/// Finds the model that `--model-id` names; the embedded demo model without one.
///
/// # Errors
/// If there is no such folder, or if it lacks a file that every model has.
pub(crate) fn locate(model_id: Option<&str>) -> Result<Model, LauncherError> {
    let (dir, id) = match model_id {
        Some(id) if Path::new(id).is_dir() => {
            // Children get an absolute path, so that their messages can be followed from anywhere.
            (fs::canonicalize(id).unwrap_or_else(|_| PathBuf::from(id)), id)
        }
        None | Some(demo::MODEL_ID) => (demo::unpack()?, demo::MODEL_ID),
        Some(id) => return Err(not_a_folder(id)),
    };
    check_files(&dir)?;
    Ok(Model { is_chat: has_chat_template(&dir), id: id.to_owned(), dir })
}

/// A hub id and a mistyped path need different advice.
fn not_a_folder(id: &str) -> LauncherError {
    let looks_like_path = id.starts_with(['/', '.', '~']) || id.matches('/').count() > 1;
    let reason = if Path::new(id).exists() {
        "this is a file; give the folder that holds config.json, tokenizer.json and *.safetensors".to_owned()
    } else if looks_like_path || id.is_empty() {
        "no such folder".to_owned()
    } else {
        let name = id.rsplit('/').next().unwrap_or(id);
        format!(
            "no such folder, and downloading from a model hub is not part of this version. Fetch the model first, for \
             example with `hf download {id} --local-dir {name}`, then give the folder: `--model-id ./{name}`. Without \
             --model-id an embedded demo model is served"
        )
    };
    LauncherError::ModelNotFound { model_id: id.to_owned(), reason }
}

/// The shards and the router check the contents; here only what would otherwise cost a start of all processes.
fn check_files(dir: &Path) -> Result<(), LauncherError> {
    let fail = |reason: String| LauncherError::ModelFiles { dir: dir.to_owned(), reason };
    let names: Vec<String> = fs::read_dir(dir)
        .map_err(|error| fail(format!("cannot be read: {error}")))?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    let ends_with = |suffix: &str| names.iter().any(|name| name.ends_with(suffix));

    if !ends_with(".safetensors") {
        return Err(fail(if ends_with(".gguf") {
            "holds GGUF weights, which are not supported yet; *.safetensors are".to_owned()
        } else if ends_with(".bin") || ends_with(".pt") || ends_with(".pth") {
            "holds PyTorch weights only; pickle files are never loaded because they can run code. Convert them to \
             *.safetensors first"
                .to_owned()
        } else {
            "no *.safetensors file".to_owned()
        }));
    }
    for name in ["config.json", "tokenizer.json"] {
        let text = fs::read(dir.join(name)).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => fail(format!("no {name}")),
            _ => fail(format!("{name} cannot be read: {error}")),
        })?;
        // The tokenizer is megabytes and the router parses it anyway; a broken config.json is found here.
        if name == "config.json" {
            let config: Value =
                serde_json::from_slice(&text).map_err(|error| fail(format!("{name} is not JSON: {error}")))?;
            if config.get("model_type").and_then(Value::as_str).is_none() {
                return Err(fail(format!("{name} has no `model_type`")));
            }
        }
    }
    Ok(())
}

fn has_chat_template(dir: &Path) -> bool {
    let in_config = || {
        let text = fs::read(dir.join("tokenizer_config.json")).ok()?;
        serde_json::from_slice::<Value>(&text).ok()?.get("chat_template").map(|template| !template.is_null())
    };
    dir.join("chat_template.jinja").is_file() || in_config().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of its own for each test, removed at its end.
    struct Folder(PathBuf);

    impl Folder {
        fn with(name: &str, files: &[(&str, &str)]) -> Folder {
            let dir = std::env::temp_dir().join(format!("launcher-model-{}-{name}", std::process::id()));
            fs::create_dir_all(&dir).unwrap();
            for (name, text) in files {
                fs::write(dir.join(name), text).unwrap();
            }
            Folder(dir)
        }

        fn locate(&self) -> Result<Model, String> {
            locate(Some(self.0.to_str().unwrap())).map_err(|error| error.to_string())
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const CONFIG: (&str, &str) = ("config.json", r#"{"model_type": "llama"}"#);
    const TOKENIZER: (&str, &str) = ("tokenizer.json", "{}");
    const WEIGHTS: (&str, &str) = ("model.safetensors", "");

    #[test]
    fn a_complete_folder_is_a_model() {
        let folder = Folder::with("complete", &[CONFIG, TOKENIZER, WEIGHTS]);
        assert!(!folder.locate().unwrap().is_chat);
        let chat = ("tokenizer_config.json", r#"{"chat_template": "{{ messages }}"}"#);
        let folder = Folder::with("chat", &[CONFIG, TOKENIZER, WEIGHTS, chat]);
        assert!(folder.locate().unwrap().is_chat);
    }

    #[test]
    fn each_missing_file_is_named() {
        for (name, files, text) in [
            ("weights", &[CONFIG, TOKENIZER][..], "no *.safetensors file"),
            ("pickle", &[CONFIG, TOKENIZER, ("pytorch_model.bin", "")], "pickle files are never loaded"),
            ("gguf", &[CONFIG, TOKENIZER, ("model.gguf", "")], "GGUF"),
            ("config", &[TOKENIZER, WEIGHTS], "no config.json"),
            ("tokenizer", &[CONFIG, WEIGHTS], "no tokenizer.json"),
            ("broken", &[("config.json", "{"), TOKENIZER, WEIGHTS], "config.json is not JSON: EOF"),
            ("untyped", &[("config.json", "{}"), TOKENIZER, WEIGHTS], "config.json has no `model_type`"),
        ] {
            let error = Folder::with(name, files).locate().unwrap_err();
            assert!(error.contains(text), "{name}: {error}");
        }
    }

    #[test]
    fn hub_ids_and_wrong_paths_get_different_advice() {
        let text = |id: &str| locate(Some(id)).unwrap_err().to_string();
        assert!(text("some-org/some-model").contains("--local-dir some-model"));
        assert_eq!(text("./nowhere"), "`--model-id ./nowhere`: no such folder");
        assert_eq!(text("/a/b/c"), "`--model-id /a/b/c`: no such folder");
    }
}
