//! Qwen3: Llama with normalised queries and keys, and an explicit head width (arXiv:2505.09388; transformers
//! `Qwen3ForCausalLM`).

use super::Family;
use super::llama::NAMES;
use super::qwen2::windows;
use crate::config::{ConfigFile, DecoderSpec, ModelOptions};
use crate::error::Result;

pub(super) const FAMILY: Family = Family { model_type: "qwen3", architecture: "Qwen3ForCausalLM", spec, names: &NAMES };

/// The head width of a configuration that does not mention one: a constant, unlike in other families.
const DEFAULT_HEAD_DIM: usize = 128;

fn spec(config: &ConfigFile, options: &ModelOptions) -> Result<DecoderSpec> {
    let config = &config.with_default("head_dim", DEFAULT_HEAD_DIM);
    let attention_bias = config.flag("attention_bias", false)?;
    let spec = DecoderSpec::from_config(config, options)?;
    Ok(DecoderSpec {
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        qk_norm: true,
        windows: windows(config, spec.num_layers)?,
        ..spec
    })
}
