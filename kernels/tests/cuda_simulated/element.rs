//! The element types of kernels: numbers that they hold, their bytes, and how near a result has to be.

use half::{bf16, f16};
use kernels::{DType, Device, Tensor};

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
            assert!((actual - expected).abs() <= bound, "{context}, element {at}: {actual} instead of {expected}");
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
