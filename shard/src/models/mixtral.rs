//! Mixtral: Mistral whose MLP is eight experts, of which a row goes through two (arXiv:2401.04088; transformers
//! `MixtralForCausalLM`).

use super::Family;
use super::decoder::{ExpertTemplates, TensorNames};
use super::llama;
use crate::config::{ConfigFile, DecoderSpec, ExpertsSpec, ModelOptions};
use crate::error::Result;
use crate::limits::MAX_POSITIONS;

pub(super) const FAMILY: Family =
    Family { model_type: "mixtral", architecture: "MixtralForCausalLM", spec, names: &NAMES };

const NAMES: TensorNames = TensorNames {
    experts: Some(ExpertTemplates {
        gate: "model.layers.{}.block_sparse_moe.gate",
        gate_proj: "model.layers.{}.block_sparse_moe.experts.{}.w1",
        up_proj: "model.layers.{}.block_sparse_moe.experts.{}.w3",
        down_proj: "model.layers.{}.block_sparse_moe.experts.{}.w2",
    }),
    ..llama::NAMES
};

/// The base of RoPE of a configuration that does not mention one.
const DEFAULT_ROPE_THETA: f64 = 1e6;

fn spec(config: &ConfigFile, options: &ModelOptions) -> Result<DecoderSpec> {
    let config = &config.with_default("rope_theta", DEFAULT_ROPE_THETA);
    let window = config.optional_size("sliding_window", MAX_POSITIONS)?;
    let spec = DecoderSpec::from_config(config, options)?;
    // `intermediate_size` is that of an expert: there is no other MLP.
    let experts = ExpertsSpec::from_config(config, "intermediate_size", spec.num_layers)?;
    Ok(DecoderSpec { experts: Some(experts), windows: vec![window; spec.num_layers], ..spec })
}
