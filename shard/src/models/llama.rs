//! Llama 1 to 3, and the many models that share its architecture (arXiv:2302.13971; transformers `LlamaForCausalLM`).

use super::Family;
use super::decoder::TensorNames;
use crate::config::{ConfigFile, DecoderSpec, ModelOptions};
use crate::error::Result;

pub(super) const FAMILY: Family = Family { model_type: "llama", architecture: "LlamaForCausalLM", spec, names: &NAMES };

/// The names that most decoder checkpoints have taken over. `{}` is the layer's number.
pub(super) const NAMES: TensorNames = TensorNames {
    embed_tokens: "model.embed_tokens",
    input_norm: "model.layers.{}.input_layernorm",
    q_proj: "model.layers.{}.self_attn.q_proj",
    k_proj: "model.layers.{}.self_attn.k_proj",
    v_proj: "model.layers.{}.self_attn.v_proj",
    q_norm: "model.layers.{}.self_attn.q_norm",
    k_norm: "model.layers.{}.self_attn.k_norm",
    o_proj: "model.layers.{}.self_attn.o_proj",
    norm_after_attention: None,
    mlp_norm: "model.layers.{}.post_attention_layernorm",
    norm_after_mlp: None,
    gate_proj: Some("model.layers.{}.mlp.gate_proj"),
    up_proj: "model.layers.{}.mlp.up_proj",
    down_proj: "model.layers.{}.mlp.down_proj",
    experts: None,
    norm: "model.norm",
    lm_head: "lm_head",
};

fn spec(config: &ConfigFile, options: &ModelOptions) -> Result<DecoderSpec> {
    let attention_bias = config.flag("attention_bias", false)?;
    Ok(DecoderSpec {
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        mlp_bias: config.flag("mlp_bias", false)?,
        ..DecoderSpec::from_config(config, options)?
    })
}
