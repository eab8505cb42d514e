//! StarCoder2: Llama with LayerNorm, an MLP of two products without a gate, biases everywhere and a window (arXiv:2402.19173; transformers
//! `Starcoder2ForCausalLM`).

use kernels::ops::Activation;

use super::Family;
use super::decoder::TensorNames;
use super::llama;
use crate::config::{ConfigFile, DecoderSpec, ModelOptions, NormKind, NormSpec, activation};
use crate::error::Result;
use crate::limits::MAX_POSITIONS;

pub(super) const FAMILY: Family =
    Family { model_type: "starcoder2", architecture: "Starcoder2ForCausalLM", spec, names: &NAMES };

const NAMES: TensorNames = TensorNames {
    gate_proj: None,
    up_proj: "model.layers.{}.mlp.c_fc",
    down_proj: "model.layers.{}.mlp.c_proj",
    ..llama::NAMES
};

const DEFAULT_NORM_EPSILON: f64 = 1e-5;

fn spec(config: &ConfigFile, options: &ModelOptions) -> Result<DecoderSpec> {
    let config = &config.with_default("tie_word_embeddings", true);
    let bias = config.flag("use_bias", true)?;
    let window = config.optional_size("sliding_window", MAX_POSITIONS)?;
    let eps = config.positive("norm_epsilon")?.unwrap_or(DEFAULT_NORM_EPSILON) as f32;
    let spec = DecoderSpec::from_config(config, options)?;
    Ok(DecoderSpec {
        norm: NormSpec { kind: NormKind::Layer, eps },
        activation: activation(config, "hidden_act", Activation::GeluTanh)?,
        qkv_bias: bias,
        o_bias: bias,
        mlp_bias: bias,
        windows: vec![window; spec.num_layers],
        ..spec
    })
}
