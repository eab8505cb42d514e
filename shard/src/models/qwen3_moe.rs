//! Qwen3-MoE: Qwen3 with many small experts in all layers or some of them (arXiv:2505.09388; transformers `Qwen3MoeForCausalLM`).

use super::Family;
use super::decoder::{ExpertTemplates, TensorNames};
use super::llama;
use crate::config::{ConfigFile, DecoderSpec, ExpertsSpec, ModelOptions};
use crate::error::Result;
use crate::limits::{MAX_LAYERS, MAX_POSITIONS};

pub(super) const FAMILY: Family =
    Family { model_type: "qwen3_moe", architecture: "Qwen3MoeForCausalLM", spec, names: &NAMES };

const NAMES: TensorNames = TensorNames {
    experts: Some(ExpertTemplates {
        gate: "model.layers.{}.mlp.gate",
        gate_proj: "model.layers.{}.mlp.experts.{}.gate_proj",
        up_proj: "model.layers.{}.mlp.experts.{}.up_proj",
        down_proj: "model.layers.{}.mlp.experts.{}.down_proj",
    }),
    ..llama::NAMES
};

fn spec(config: &ConfigFile, options: &ModelOptions) -> Result<DecoderSpec> {
    let attention_bias = config.flag("attention_bias", false)?;
    let spec = DecoderSpec::from_config(config, options)?;
    let window = match config.flag("use_sliding_window", false)? {
        true => config.optional_size("sliding_window", MAX_POSITIONS)?,
        false => None,
    };
    let experts = ExpertsSpec {
        normalise: config.flag("norm_topk_prob", false)?,
        layers: layers_with_experts(config, spec.num_layers)?,
        ..ExpertsSpec::from_config(config, "moe_intermediate_size", spec.num_layers)?
    };
    Ok(DecoderSpec {
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        qk_norm: true,
        experts: Some(experts),
        // Unlike in Qwen3, of all layers.
        windows: vec![window; spec.num_layers],
        ..spec
    })
}

/// Every `decoder_sparse_step`-th layer, but for those that `mlp_only_layers` lists.
fn layers_with_experts(config: &ConfigFile, num_layers: usize) -> Result<Vec<bool>> {
    let step = config.optional_size("decoder_sparse_step", MAX_LAYERS)?.unwrap_or(1);
    let dense = config.layers("mlp_only_layers", num_layers)?.unwrap_or_default();
    Ok((0..num_layers).map(|layer| (layer + 1).is_multiple_of(step) && !dense.contains(&layer)).collect())
}
