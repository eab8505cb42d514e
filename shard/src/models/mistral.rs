//! Mistral 7B and its successors: Llama with a sliding window in every layer (arXiv:2310.06825; transformers
//! `MistralForCausalLM`).

use super::Family;
use super::llama::NAMES;
use crate::config::{ConfigFile, DecoderSpec, ModelOptions};
use crate::error::Result;
use crate::limits::MAX_POSITIONS;

pub(super) const FAMILY: Family =
    Family { model_type: "mistral", architecture: "MistralForCausalLM", spec, names: &NAMES };

/// The window of a configuration that does not mention one; `"sliding_window": null` means none.
const DEFAULT_WINDOW: usize = 4096;

fn spec(config: &ConfigFile, options: &ModelOptions) -> Result<DecoderSpec> {
    let window = match config.fields().any(|field| field == "sliding_window") {
        true => config.optional_size("sliding_window", MAX_POSITIONS)?,
        false => Some(DEFAULT_WINDOW),
    };
    let spec = DecoderSpec::from_config(config, options)?;
    Ok(DecoderSpec { windows: vec![window; spec.num_layers], ..spec })
}
