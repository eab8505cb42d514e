//! Element types of tensors.

use std::fmt;

/// An element type. `Display` gives the names that configurations use: `float32`, `float16`, `bfloat16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
}

impl DType {
    /// Bytes of one element.
    pub const fn size_bytes(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F16 | DType::Bf16 => 2,
        }
    }

    /// Reads the little-endian element at the start of `bytes`.
    pub(crate) fn decode(self, bytes: &[u8]) -> f32 {
        match self {
            DType::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            DType::F16 => half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            DType::Bf16 => half::bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        }
    }

    /// Appends all elements of `bytes` to `values`.
    pub(crate) fn decode_all(self, bytes: &[u8], values: &mut Vec<f32>) {
        let pairs = || bytes.as_chunks::<2>().0.iter();
        match self {
            DType::F32 => values.extend(bytes.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x))),
            DType::F16 => values.extend(pairs().map(|x| half::f16::from_le_bytes(*x).to_f32())),
            DType::Bf16 => values.extend(pairs().map(|x| half::bf16::from_le_bytes(*x).to_f32())),
        }
    }

    /// The bits of `value` rounded to this 16-bit type, to nearest, ties to even.
    pub(crate) fn encode16(self, value: f32) -> u16 {
        match self {
            DType::F32 => unreachable!("callers handle 32-bit elements themselves"),
            DType::F16 => half::f16::from_f32(value).to_bits(),
            DType::Bf16 => half::bf16::from_f32(value).to_bits(),
        }
    }

    /// Writes `value` as element number `at` of `bytes`.
    pub(crate) fn encode_at(self, bytes: &mut [u8], at: usize, value: f32) {
        match self {
            DType::F32 => bytes[at * 4..at * 4 + 4].copy_from_slice(&value.to_le_bytes()),
            _ => bytes[at * 2..at * 2 + 2].copy_from_slice(&self.encode16(value).to_le_bytes()),
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "float32",
            DType::F16 => "float16",
            DType::Bf16 => "bfloat16",
        })
    }
}
