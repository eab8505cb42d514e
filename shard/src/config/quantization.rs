//! Quantisation while loading: what each mode makes of the matrices of a model.

use kernels::{DType, WeightType};

/// How linear layers are stored. Embeddings, norms, biases and the KV cache keep the model's element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantization {
    /// `eetq`: 8-bit integers, a scale per output.
    Int8,
    /// `fp8`: E4M3, a scale per output.
    Fp8,
    /// `bitsandbytes-nf4`: 4-bit NormalFloat, a scale per output and 64 inputs.
    Nf4,
}

impl Quantization {
    /// All of them.
    pub const ALL: [Quantization; 3] = [Quantization::Int8, Quantization::Fp8, Quantization::Nf4];

    /// TGI's name of the mode.
    pub fn name(self) -> &'static str {
        match self {
            Quantization::Int8 => "eetq",
            Quantization::Fp8 => "fp8",
            Quantization::Nf4 => "bitsandbytes-nf4",
        }
    }

    /// The weights of the decoder layers.
    pub fn linear(self) -> WeightType {
        match self {
            Quantization::Int8 => WeightType::Int8,
            Quantization::Fp8 => WeightType::Fp8,
            Quantization::Nf4 => WeightType::Nf4,
        }
    }

    /// The weights of the output head. Never of 4 bits: its errors reach the logits directly, no later layer evens them out.
    pub fn head(self) -> WeightType {
        match self {
            Quantization::Nf4 => WeightType::Int8,
            other => other.linear(),
        }
    }
}

/// The weight types of (linear layers, output head) of a model.
pub fn weight_types(dtype: DType, quantization: Option<Quantization>) -> (WeightType, WeightType) {
    let float = WeightType::Float(dtype);
    quantization.map_or((float, float), |mode| (mode.linear(), mode.head()))
}
