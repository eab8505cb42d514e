//! Gemma 3, text only: Gemma 2 with QK-norm instead of scores that level off, and positions of their own in layers with a window
//! (arXiv:2503.19786; transformers `Gemma3ForCausalLM`).

use super::Family;
use super::gemma;
use super::gemma2::{NAMES, attention_scale, softcap, windows};
use crate::config::{ConfigFile, DecoderSpec, ModelOptions, RopeSpec, layer_types};
use crate::error::Result;
use crate::limits::{MAX_LAYERS, MAX_POSITIONS};

pub(super) const FAMILY: Family =
    Family { model_type: "gemma3_text", architecture: "Gemma3ForCausalLM", spec, names: &NAMES };

/// One layer of so many sees everything.
const DEFAULT_PATTERN: usize = 6;
/// Bases of layers that see everything, and of those that see a window.
const DEFAULT_THETAS: [f64; 2] = [1e6, 1e4];

fn spec(config: &ConfigFile, options: &ModelOptions) -> Result<DecoderSpec> {
    // transformers reads it and does nothing with it.
    if config.get("attn_logit_softcapping").is_some() {
        return Err(config.unsupported("attn_logit_softcapping", "null"));
    }
    let [full, sliding] = [("rope_theta", DEFAULT_THETAS[0]), ("rope_local_base_freq", DEFAULT_THETAS[1])];
    let rope = |positions| RopeSpec::of_layers(config, layer_types::FULL, full, positions, options.rope_scaling);
    let spec = gemma::common(config, options, rope)?;
    let trained_positions = config.size("max_position_embeddings", MAX_POSITIONS)?;
    let pattern = config.optional_size("sliding_window_pattern", MAX_LAYERS)?.unwrap_or(DEFAULT_PATTERN);
    Ok(DecoderSpec {
        qk_norm: true,
        attention_scale: attention_scale(config)?,
        logit_softcap: softcap(config, "final_logit_softcapping", None)?,
        windows: windows(config, spec.num_layers, pattern)?,
        window_rope: Some(RopeSpec::of_layers(config, layer_types::SLIDING, sliding, trained_positions, None)?),
        ..spec
    })
}
