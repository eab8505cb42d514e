//! What a decoder-only model is, as far as its forward pass is concerned.

use std::path::Path;

use kernels::ops::Activation;
use kernels::{DType, KvDType};

use super::{ConfigFile, ExpertsSpec, ModelOptions, Quantization, QuantizedCheckpoint, RopeSpec, activation};
use crate::error::Result;
use crate::limits::{MAX_DIMENSION, MAX_LAYERS, MAX_POSITIONS};

/// The facts from which `models/decoder.rs` builds a model. Sizes are those of the whole model, not of a rank.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderSpec {
    /// The family: "llama".
    pub model_type: String,
    /// Element type of embeddings, KV cache and linear weights that are not quantised; `None`: whatever the checkpoint's embeddings have.
    pub dtype: Option<DType>,
    /// The element type of the KV cache; `None`: that of the weights.
    pub kv_dtype: Option<KvDType>,
    /// How linear weights are quantised while they are loaded.
    pub quantization: Option<Quantization>,
    /// How they were quantised beforehand.
    pub quantized_checkpoint: Option<QuantizedCheckpoint>,
    /// Token ids.
    pub vocab_size: usize,
    /// Width of the residual stream, E.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_layers: usize,
    /// Query heads, H.
    pub num_heads: usize,
    /// Key-value heads, K; a divisor of H.
    pub num_kv_heads: usize,
    /// Width of a head, D. Need not be E / H.
    pub head_dim: usize,
    /// Positions that the model can represent.
    pub max_position_embeddings: usize,
    /// The norms of the residual stream.
    pub norm: NormSpec,
    /// What the MLP applies between its products.
    pub activation: Activation,
    /// Whether embeddings are multiplied by the root of the hidden size.
    pub scales_embeddings: bool,
    /// Rotary position embedding.
    pub rope: RopeSpec,
    /// That of layers with a window, if it is another.
    pub window_rope: Option<RopeSpec>,
    /// Multiplies products of queries and keys.
    pub attention_scale: f32,
    /// Where these scores level off.
    pub attention_softcap: Option<f32>,
    /// Where logits level off.
    pub logit_softcap: Option<f32>,
    /// Whether q, k and v have a bias.
    pub qkv_bias: bool,
    /// Whether o has one.
    pub o_bias: bool,
    /// Whether gate, up and down have one.
    pub mlp_bias: bool,
    /// Whether queries and keys are normalised per head before RoPE.
    pub qk_norm: bool,
    /// What some layers have in place of the MLP.
    pub experts: Option<ExpertsSpec>,
    /// Whether the output head is the embedding matrix.
    pub tie_word_embeddings: bool,
    /// Per layer: the most recent positions that a row attends to, itself included; `None`: all.
    pub windows: Vec<Option<usize>>,
    /// Tokens that end a generation: generation_config.json's, else config.json's. May be empty.
    pub eos_token_ids: Vec<u32>,
}

/// How the residual stream is normalised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormSpec {
    /// By what.
    pub kind: NormKind,
    /// The constant inside the root.
    pub eps: f32,
}

/// Kinds of norms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// RMSNorm (arXiv:1910.07467).
    Rms,
    /// RMSNorm that multiplies by its weight and one more.
    RmsPlusOne,
    /// LayerNorm with a bias (arXiv:1607.06450).
    Layer,
}

impl DecoderSpec {
    /// What all families spell alike: RMSNorm, SiLU, no biases, no QK-norm, no experts, no window, nothing that scales or levels off. A
    /// family changes what differs.
    ///
    /// # Errors
    /// A field that is missing, malformed or unsupported.
    pub fn from_config(config: &ConfigFile, options: &ModelOptions) -> Result<DecoderSpec> {
        let rope = |positions| RopeSpec::from_config(config, positions, options.rope_scaling);
        DecoderSpec::with_rope(config, options, rope)
    }

    /// The same with the rotary position embedding that `rope` reads, which takes `max_position_embeddings`.
    ///
    /// # Errors
    /// As [`from_config`](DecoderSpec::from_config), and as `rope`.
    pub fn with_rope(
        config: &ConfigFile,
        options: &ModelOptions,
        rope: impl FnOnce(usize) -> Result<RopeSpec>,
    ) -> Result<DecoderSpec> {
        if config.positive("partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
            return Err(config.unsupported("partial_rotary_factor", "1.0"));
        }
        let hidden_size = config.size("hidden_size", MAX_DIMENSION)?;
        let num_heads = config.size("num_attention_heads", MAX_DIMENSION)?;
        let num_kv_heads = config.optional_size("num_key_value_heads", MAX_DIMENSION)?.unwrap_or(num_heads);
        if !num_heads.is_multiple_of(num_kv_heads) {
            return Err(config.wrong("num_key_value_heads", &format!("a divisor of num_attention_heads {num_heads}")));
        }
        let head_dim = match config.optional_size("head_dim", MAX_DIMENSION)? {
            Some(head_dim) => head_dim,
            None if hidden_size.is_multiple_of(num_heads) => hidden_size / num_heads,
            None => return Err(config.wrong("num_attention_heads", &format!("a divisor of hidden_size {hidden_size}"))),
        };
        if !head_dim.is_multiple_of(2) {
            return Err(config.wrong("head_dim", "an even number: RoPE rotates pairs"));
        }
        let trained_positions = config.size("max_position_embeddings", MAX_POSITIONS)?;
        let rope = rope(trained_positions)?;
        let num_layers = config.size("num_hidden_layers", MAX_LAYERS)?;
        let quantized_checkpoint = QuantizedCheckpoint::of(config, options)?;
        Ok(DecoderSpec {
            model_type: config.text("model_type")?.unwrap_or_default().to_owned(),
            dtype: options.dtype.or(default_dtype(config, quantized_checkpoint.is_some())?),
            kv_dtype: options.kv_dtype,
            quantization: options.quantization.filter(|_| quantized_checkpoint.is_none()),
            quantized_checkpoint,
            vocab_size: config.size("vocab_size", MAX_DIMENSION)?,
            hidden_size,
            intermediate_size: config.size("intermediate_size", MAX_DIMENSION)?,
            num_layers,
            num_heads,
            num_kv_heads,
            head_dim,
            max_position_embeddings: rope.reachable_positions(trained_positions, options.rope_scaling),
            norm: NormSpec { kind: NormKind::Rms, eps: config.positive("rms_norm_eps")?.unwrap_or(1e-6) as f32 },
            activation: activation(config, "hidden_act", Activation::Silu)?,
            scales_embeddings: false,
            rope,
            window_rope: None,
            attention_scale: (head_dim as f32).sqrt().recip(),
            attention_softcap: None,
            logit_softcap: None,
            qkv_bias: false,
            o_bias: false,
            mlp_bias: false,
            qk_norm: false,
            experts: None,
            tie_word_embeddings: config.flag("tie_word_embeddings", false)?,
            windows: vec![None; num_layers],
            eos_token_ids: eos_token_ids(config)?,
        })
    }

    /// TGI's name of how linear weights are quantised, while loading or beforehand; empty: not at all.
    pub fn quantize(&self) -> &'static str {
        let beforehand = self.quantized_checkpoint.map(|checkpoint| checkpoint.method().name());
        self.quantization.map(Quantization::name).or(beforehand).unwrap_or_default()
    }
}

/// The element type if the command line does not say. Scales of quantised checkpoints have 16 bits, so float32 makes none of their
/// layers more exact.
fn default_dtype(config: &ConfigFile, is_quantized: bool) -> Result<Option<DType>> {
    let dtype = checkpoint_dtype(config)?;
    Ok(match dtype {
        None | Some(DType::F32) if is_quantized => Some(DType::F16),
        _ => dtype,
    })
}

/// What config.json says about the element type. The field only describes, so an unknown one is not an error: the
/// weights themselves are checked when they are read.
fn checkpoint_dtype(config: &ConfigFile) -> Result<Option<DType>> {
    let name = match config.text("dtype")? {
        Some(name) => Some(name),
        None => config.text("torch_dtype")?,
    };
    Ok(match name {
        Some("float32") => Some(DType::F32),
        Some("float16") => Some(DType::F16),
        Some("bfloat16") => Some(DType::Bf16),
        _ => None,
    })
}

/// From generation_config.json beside config.json if it is there and says, else from config.json.
fn eos_token_ids(config: &ConfigFile) -> Result<Vec<u32>> {
    let path = config.path().parent().unwrap_or(Path::new("")).join("generation_config.json");
    let generation = if path.exists() { ConfigFile::read(&path)?.token_ids("eos_token_id")? } else { None };
    Ok(match generation {
        Some(ids) => ids,
        None => config.token_ids("eos_token_id")?.unwrap_or_default(),
    })
}
