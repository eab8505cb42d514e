//! The element types of kernels and of caches: numbers that they hold, their bytes, and how near a result has to be.

use half::{bf16, f16};
use kernels::{DType, Device, Tensor};

use crate::in_square;

/// An element type of kernels: half of the distance between two neighbours is `unit` of the larger at most.
pub(crate) struct Element {
    pub(crate) name: &'static str,
    pub(crate) dtype: DType,
    pub(crate) unit: f32,
}

pub(crate) const ELEMENTS: [Element; 2] = [
    Element { name: "bf16", dtype: DType::Bf16, unit: 1.0 / 256.0 },
    Element { name: "f16", dtype: DType::F16, unit: 1.0 / 2048.0 },
];

impl Element {
    pub(crate) fn bytes(&self, values: &[f32]) -> Vec<u8> {
        match self.dtype {
            DType::Bf16 => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
        }
    }

    pub(crate) fn values(&self, bytes: &[u8]) -> Vec<f32> {
        let pairs = bytes.as_chunks::<2>().0.iter();
        match self.dtype {
            DType::Bf16 => pairs.map(|bytes| bf16::from_le_bytes(*bytes).to_f32()).collect(),
            _ => pairs.map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect(),
        }
    }

    pub(crate) fn rounded(&self, values: &[f32]) -> Vec<f32> {
        self.values(&self.bytes(values))
    }

    /// Numbers between -1 and 1 that the type holds.
    pub(crate) fn random(&self, seed: u64, len: usize) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        let values: Vec<f32> = (0..len).map(|_| next()).collect();
        self.rounded(&values)
    }

    /// Each within so many roundings of what is expected.
    pub(crate) fn assert_close(&self, actual: &[u8], expected: &[f32], roundings: f32, context: &str) {
        let actual = self.values(actual);
        assert_eq!(actual.len(), expected.len(), "{context}");
        for (at, (actual, expected)) in actual.iter().zip(expected).enumerate() {
            // 1e-6: differences of f32 sums where the result is nearly zero.
            let bound = roundings * self.unit * expected.abs() + 1e-6;
            let is_same = actual == expected || (actual.is_nan() && expected.is_nan());
            let is_close = is_same || (actual - expected).abs() <= bound;
            assert!(is_close, "{context}, element {at}: {actual} instead of {expected}");
        }
    }
}

/// What a cache stores.
#[derive(Clone, Copy)]
pub(crate) enum Stored {
    /// Elements of the kernel's own type.
    Same,
    /// Numbers of eight bits.
    Fp8(&'static Fp8),
}

/// Floating point of eight bits (arXiv:2209.05433).
pub(crate) struct Fp8 {
    pub(crate) name: &'static str,
    pub(crate) mantissa_bits: u32,
    bias: i32,
    /// The code of the largest finite number.
    pub(crate) largest: u8,
    /// What the kernels of attention widen it with to bf16 and to f16: `Widening` of fp8.cuh.
    widening: [[usize; 4]; 2],
}

pub(crate) static E4M3: Fp8 = Fp8 {
    name: "e4m3",
    mantissa_bits: 3,
    bias: 7,
    largest: 0x7e,
    // 2^120 and 1.1015625 · 2^119; 2^8 and 141.25.
    widening: [[1 << 4, 0x87f0_87f0, 0x7b80_7b80, 0x7b0d_7b0d], [1 << 7, 0xbf80_bf80, 0x5c00_5c00, 0x586a_586a]],
};

pub(crate) static E5M2: Fp8 = Fp8 {
    name: "e5m2",
    mantissa_bits: 2,
    bias: 15,
    largest: 0x7b,
    // 2^112 and 1.0703125 · 2^112; 1 and 1.0664.
    widening: [[1 << 5, 0x8fe0_8fe0, 0x7780_7780, 0x7789_7789], [1 << 8, 0xff00_ff00, 0x3c00_3c00, 0x3c44_3c44]],
};

impl Fp8 {
    /// The number that a code is; beyond the largest finite one, NaN.
    pub(crate) fn value(&self, code: u8) -> f32 {
        let (magnitude, sign) = (code & 0x7f, if code & 0x80 == 0 { 1.0 } else { -1.0 });
        if magnitude > self.largest {
            return f32::NAN;
        }
        let (exponent, mantissa) =
            (i32::from(magnitude >> self.mantissa_bits), magnitude & ((1 << self.mantissa_bits) - 1));
        let fraction = f32::from(mantissa) / 2f32.powi(self.mantissa_bits as i32);
        match exponent {
            0 => sign * fraction * 2f32.powi(1 - self.bias),
            _ => sign * (1.0 + fraction) * 2f32.powi(exponent - self.bias),
        }
    }

    /// The code that is nearest to a number, of two as near the even one; beyond the largest finite one, that one.
    pub(crate) fn nearest(&self, x: f32) -> u8 {
        let sign = if x.is_sign_negative() { 0x80 } else { 0 };
        if x.is_nan() {
            return sign | 0x7f;
        }
        let distance = |code: &u8| (f64::from(x.abs().min(1e9)) - f64::from(self.value(*code))).abs();
        let nearer = |a: &u8, b: &u8| distance(a).total_cmp(&distance(b)).then((a % 2).cmp(&(b % 2)));
        sign | (0..=self.largest).min_by(nearer).unwrap()
    }

    /// The numbers that kernels of attention take for it.
    pub(crate) fn widening(&self, element: &Element) -> [usize; 4] {
        self.widening[usize::from(element.dtype == DType::F16)]
    }
}

impl Stored {
    /// How names of kernels end.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Stored::Same => "",
            Stored::Fp8(_) => "_fp8",
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Stored::Same => "itself",
            Stored::Fp8(fp8) => fp8.name,
        }
    }

    /// What a kernel of `element` stores of its elements.
    pub(crate) fn bytes(self, element: &Element, values: &[f32]) -> Vec<u8> {
        match self {
            Stored::Same => element.bytes(values),
            Stored::Fp8(fp8) => element.rounded(values).into_iter().map(|x| fp8.nearest(x)).collect(),
        }
    }

    /// What it reads where that was stored.
    pub(crate) fn rounded(self, x: f32) -> f32 {
        match self {
            Stored::Same => x,
            Stored::Fp8(fp8) => fp8.value(fp8.nearest(x)),
        }
    }

    /// Where an element of a square lies among the `dim` / 16 squares of a head: as the matrix instruction's operand of 16 rows, but
    /// of a lane's four pairs the two of a row are neighbours. Squares of eight bits lie in pairs, of which every lane has its
    /// elements beside each other.
    pub(crate) fn in_squares(self, square: usize, row: usize, col: usize, dim: usize) -> usize {
        let of_operand = in_square(row, col);
        let at = of_operand / 8 * 8 + [0, 2, 1, 3][of_operand % 8 / 2] * 2 + of_operand % 2;
        match self {
            Stored::Fp8(_) if square % 2 == 1 || square + 1 < dim / 16 => {
                square / 2 * 512 + at / 8 * 16 + square % 2 * 8 + at % 8
            }
            _ => square * 256 + at,
        }
    }
}

pub(crate) fn f32_bytes(values: &[f32]) -> Vec<u8> {
    bytemuck::cast_slice(values).to_vec()
}

pub(crate) fn u32_bytes(values: &[u32]) -> Vec<u8> {
    bytemuck::cast_slice(values).to_vec()
}

pub(crate) fn tensor(shape: [usize; 2], values: &[f32]) -> Tensor {
    Tensor::from_slice(&Device::cpu(1), &shape, values).unwrap()
}

pub(crate) fn weight(values: &[f32]) -> Tensor {
    Tensor::from_slice(&Device::cpu(1), &[values.len()], values).unwrap()
}
