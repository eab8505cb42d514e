//! Qwen2 and Qwen2.5: Llama with a bias on q, k and v, and a sliding window in some layers (arXiv:2407.10671; transformers
//! `Qwen2ForCausalLM`).

use super::Family;
use super::llama::NAMES;
use crate::config::layer_types::sliding_layers;
use crate::config::{ConfigFile, DecoderSpec, ModelOptions};
use crate::error::Result;
use crate::limits::{MAX_LAYERS, MAX_POSITIONS};

pub(super) const FAMILY: Family = Family { model_type: "qwen2", architecture: "Qwen2ForCausalLM", spec, names: &NAMES };

fn spec(config: &ConfigFile, options: &ModelOptions) -> Result<DecoderSpec> {
    let spec = DecoderSpec::from_config(config, options)?;
    Ok(DecoderSpec { qkv_bias: true, windows: windows(config, spec.num_layers)?, ..spec })
}

/// The window of each layer: of those that `layer_types` calls "sliding_attention", or without that list those from
/// `max_window_layers` on; of none unless `use_sliding_window`. Qwen3 spells it alike.
pub(super) fn windows(config: &ConfigFile, num_layers: usize) -> Result<Vec<Option<usize>>> {
    if !config.flag("use_sliding_window", false)? {
        return Ok(vec![None; num_layers]);
    }
    let window = config.optional_size("sliding_window", MAX_POSITIONS)?;
    let first = config.optional_size("max_window_layers", MAX_LAYERS)?.unwrap_or(28);
    let is_sliding = sliding_layers(config, num_layers, |layer| layer >= first)?;
    Ok(is_sliding.into_iter().map(|is_sliding| window.filter(|_| is_sliding)).collect())
}
