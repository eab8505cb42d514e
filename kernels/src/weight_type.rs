//! What the weights of linear layers are stored as.

use crate::DType;

/// A type of weights: the checkpoint's own, rounded, or quantised while they are packed.
///
/// What is quantised while it is packed is symmetric. A weight that is not finite makes its scale NaN, and so every output that the scale
/// takes part in: as with floats, nonsense in a checkpoint is not hidden.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightType {
    /// Elements of this type, one by one.
    Float(DType),
    /// 8-bit integers, one scale per output (absmax / 127).
    Int8,
    /// FP8 E4M3 without its subnormals, one scale per output (absmax / 448).
    Fp8,
    /// 4-bit NormalFloat, one scale per output and 64 inputs.
    Nf4,
    /// 4-bit integers with a zero point, one scale (f16) per output and 64 inputs, as checkpoints of AWQ and GPTQ have them. Packed from
    /// these only: [`LinearWeight::pack_int4`](crate::LinearWeight::pack_int4).
    Int4,
}
