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

    /// The number of this type that is nearest to `value`, of two as near the even one.
    pub fn rounded(self, value: f32) -> f32 {
        match self {
            DType::F32 => value,
            DType::F16 | DType::Bf16 => self.decode(&self.encode16(value).to_le_bytes()),
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

    /// Converts little-endian elements to another type, to nearest, ties to even. `out` holds as many elements as `source`.
    pub fn convert(self, source: &[u8], to: DType, out: &mut [u8]) {
        match (self.size_bytes(), to.size_bytes()) {
            _ if self == to => out.copy_from_slice(source),
            (4, _) => convert(source.as_chunks::<4>().0, out.as_chunks_mut::<2>().0, |x| {
                to.encode16(f32::from_le_bytes(*x)).to_le_bytes()
            }),
            (_, 4) => convert(source.as_chunks::<2>().0, out.as_chunks_mut::<4>().0, |x| self.decode(x).to_le_bytes()),
            _ => convert(source.as_chunks::<2>().0, out.as_chunks_mut::<2>().0, |x| {
                to.encode16(self.decode(x)).to_le_bytes()
            }),
        }
    }
}

fn convert<const A: usize, const B: usize>(source: &[[u8; A]], out: &mut [[u8; B]], f: impl Fn(&[u8; A]) -> [u8; B]) {
    out.iter_mut().zip(source).for_each(|(out, x)| *out = f(x));
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
