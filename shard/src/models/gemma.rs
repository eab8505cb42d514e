//! Gemma: Llama with gates of GELU, scaled embeddings and norms that multiply by one more than their weight (arXiv:2403.08295;
//! transformers `GemmaForCausalLM`).

use kernels::ops::Activation;

use super::Family;
use super::llama::NAMES;
use crate::config::{ConfigFile, DecoderSpec, ModelOptions, NormKind, NormSpec, RopeSpec, activation};
use crate::error::Result;

pub(super) const FAMILY: Family = Family { model_type: "gemma", architecture: "GemmaForCausalLM", spec, names: &NAMES };

/// The head width of a configuration that does not mention one.
const DEFAULT_HEAD_DIM: usize = 256;

fn spec(config: &ConfigFile, options: &ModelOptions) -> Result<DecoderSpec> {
    let rope = |positions| RopeSpec::from_config(config, positions, options.rope_scaling);
    let spec = common(config, options, rope)?;
    // The first checkpoints say "gelu" and mean the one of a tangent.
    let activation = match config.text("hidden_act")? {
        Some("gelu") => Activation::GeluTanh,
        _ => activation(config, "hidden_act", Activation::GeluTanh)?,
    };
    Ok(DecoderSpec { activation, ..spec })
}

/// What all Gemmas have in common.
pub(super) fn common(
    config: &ConfigFile,
    options: &ModelOptions,
    rope: impl FnOnce(usize) -> Result<RopeSpec>,
) -> Result<DecoderSpec> {
    if config.flag("use_bidirectional_attention", false)? {
        return Err(config.unsupported("use_bidirectional_attention", "false"));
    }
    let config = &config.with_default("head_dim", DEFAULT_HEAD_DIM).with_default("tie_word_embeddings", true);
    let attention_bias = config.flag("attention_bias", false)?;
    let spec = DecoderSpec::with_rope(config, options, rope)?;
    Ok(DecoderSpec {
        norm: NormSpec { kind: NormKind::RmsPlusOne, ..spec.norm },
        activation: activation(config, "hidden_activation", Activation::GeluTanh)?,
        scales_embeddings: true,
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        ..spec
    })
}
