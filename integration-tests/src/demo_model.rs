//! The embedded demo model, as a folder.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

/// `<|system|>`: in the vocabulary, but never written by the model.
const NEVER_WRITTEN: u32 = 2;

/// A copy of the demo model whose configuration names another end token.
///
/// The model ends its answers after a sentence, and TGI's API has no way to forbid that. With this copy the weights and the
/// work per token are the same, and every stream is exactly as long as asked for.
pub fn endless_demo_model() -> TempDir {
    let dir = TempDir::new().expect("a folder for temporary files can be made");
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../launcher/demo-model");
    for name in ["tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        fs::copy(demo.join(name), dir.path().join(name)).expect("the demo model is complete");
    }
    for name in ["config.json", "generation_config.json"] {
        let text = fs::read(demo.join(name)).expect("the demo model is complete");
        let mut config: Value = serde_json::from_slice(&text).expect("a configuration is JSON");
        config["eos_token_id"] = json!(NEVER_WRITTEN);
        fs::write(dir.path().join(name), config.to_string()).expect("the copy is writable");
    }
    dir
}
