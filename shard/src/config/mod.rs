//! config.json and generation_config.json: reading them, and what a decoder's configuration comes to.
//!
//! Both spellings are read: `rope_parameters` and `dtype` of transformers 5, `rope_theta`, `rope_scaling` and `torch_dtype` of
//! everything before. Whatever this server cannot run is an error that names field, value and alternatives.

mod activation;
mod decoder_spec;
mod experts_spec;
mod file;
mod fp8_checkpoint;
pub mod layer_types;
mod quantization;
mod quantized_checkpoint;
mod rope;

pub use activation::activation;
pub use decoder_spec::{DecoderSpec, NormKind, NormSpec};
pub use experts_spec::ExpertsSpec;
pub use file::ConfigFile;
pub use fp8_checkpoint::Fp8Checkpoint;
pub use quantization::{Quantization, weight_types};
pub use quantized_checkpoint::{PackedIntegers, PackedLayout, QuantMethod, QuantizedCheckpoint};
pub use rope::{RopeKind, RopeOverride, RopeScaling, RopeSpec};

use std::path::PathBuf;

use kernels::{DType, KvDType};

/// What the command line may change about a model.
#[derive(Clone, Debug, Default)]
pub struct ModelOptions {
    /// Element type of the weights; `None`: that of the checkpoint.
    pub dtype: Option<DType>,
    /// Element type of the KV cache; `None`: that of the weights (before they are quantised).
    pub kv_dtype: Option<KvDType>,
    /// How linear weights are quantised while they are loaded; `None`: not at all.
    pub quantization: Option<Quantization>,
    /// What the checkpoint must have been quantised with; `None`: whatever its configuration says.
    pub quant_method: Option<QuantMethod>,
    /// RoPE scaling in place of the model's own.
    pub rope_scaling: Option<RopeOverride>,
    /// Folder that keeps packed weights from one start to the next; `None`: they are packed every time.
    pub packed_weights_cache: Option<PathBuf>,
}
