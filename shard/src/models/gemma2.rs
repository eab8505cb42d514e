//! Gemma 2: Gemma with norms behind attention and MLP, scores and logits that level off, and a window in every other layer
//! (arXiv:2408.00118; transformers `Gemma2ForCausalLM`).

use super::Family;
use super::decoder::TensorNames;
use super::{gemma, llama};
use crate::config::layer_types::sliding_layers;
use crate::config::{ConfigFile, DecoderSpec, ModelOptions, RopeSpec};
use crate::error::Result;
use crate::limits::MAX_POSITIONS;

pub(super) const FAMILY: Family =
    Family { model_type: "gemma2", architecture: "Gemma2ForCausalLM", spec, names: &NAMES };

/// Llama's, but what Llama calls the norm after attention stands before the MLP.
pub(super) const NAMES: TensorNames = TensorNames {
    norm_after_attention: Some("model.layers.{}.post_attention_layernorm"),
    mlp_norm: "model.layers.{}.pre_feedforward_layernorm",
    norm_after_mlp: Some("model.layers.{}.post_feedforward_layernorm"),
    ..llama::NAMES
};

const DEFAULT_QUERY_SCALAR: f64 = 256.0;
const DEFAULT_ATTENTION_SOFTCAP: f64 = 50.0;
const DEFAULT_LOGIT_SOFTCAP: f64 = 30.0;

fn spec(config: &ConfigFile, options: &ModelOptions) -> Result<DecoderSpec> {
    let rope = |positions| RopeSpec::from_config(config, positions, options.rope_scaling);
    let spec = gemma::common(config, options, rope)?;
    Ok(DecoderSpec {
        attention_scale: attention_scale(config)?,
        attention_softcap: softcap(config, "attn_logit_softcapping", Some(DEFAULT_ATTENTION_SOFTCAP))?,
        logit_softcap: softcap(config, "final_logit_softcapping", Some(DEFAULT_LOGIT_SOFTCAP))?,
        windows: windows(config, spec.num_layers, 2)?,
        ..spec
    })
}

/// The root of `query_pre_attn_scalar`, inverted. Gemma 3 spells it alike.
pub(super) fn attention_scale(config: &ConfigFile) -> Result<f32> {
    Ok(config.positive("query_pre_attn_scalar")?.unwrap_or(DEFAULT_QUERY_SCALAR).powf(-0.5) as f32)
}

/// What `field` says, or `default` where it is absent; `null` is nowhere. Gemma 3 spells it alike.
pub(super) fn softcap(config: &ConfigFile, field: &str, default: Option<f64>) -> Result<Option<f32>> {
    let default = default.filter(|_| !config.fields().any(|known| known == field));
    Ok(config.positive(field)?.or(default).map(|cap| cap as f32))
}

/// The window of each layer: of every `pattern`-th none, unless `layer_types` says otherwise. Gemma 3 spells it alike.
pub(super) fn windows(config: &ConfigFile, num_layers: usize, pattern: usize) -> Result<Vec<Option<usize>>> {
    let is_sliding = sliding_layers(config, num_layers, |layer| (layer + 1) % pattern != 0)?;
    let window = match is_sliding.contains(&true) {
        true => Some(config.with_default("sliding_window", 4096).size("sliding_window", MAX_POSITIONS)?),
        false => None,
    };
    Ok(is_sliding.into_iter().map(|is_sliding| window.filter(|_| is_sliding)).collect())
}
