//! What the tests of the operations share: the devices to compare, random numbers, and closeness.

use crate::simd::Isa;
use crate::{Device, Tensor};

/// Every instruction set of this machine with one, two and three threads. The first is the fastest set with one thread.
pub(crate) fn cpus() -> Vec<Device> {
    let isas = Isa::available().into_iter();
    isas.flat_map(|isa| [1, 2, 3].map(|threads| Device::cpu_with(isa, threads))).collect()
}

/// [`cpus`], and the models of instructions that this machine may not have: for operations that use them.
pub(crate) fn cpus_and_models() -> Vec<Device> {
    let mut all = cpus();
    #[cfg(target_arch = "x86_64")]
    all.extend([1, 2].map(|threads| Device::cpu_with(Isa::Amx(crate::simd::Amx::Model), threads)));
    all
}

/// Uniform in -1..1, from a splitmix64 sequence.
pub(crate) fn random(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    (0..len).map(|_| (next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect()
}

/// A random f32 tensor.
pub(crate) fn random_tensor(device: &Device, seed: u64, shape: &[usize]) -> Tensor {
    Tensor::from_slice(device, shape, &random(seed, shape.iter().product())).unwrap()
}

/// The values as bits, to compare exactly.
pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// Asserts |actual - expected| <= tolerance * (1 + |expected|) for every element.
#[track_caller]
pub(crate) fn assert_close(actual: &[f32], expected: &[f32], tolerance: f32, context: &str) {
    assert_eq!(actual.len(), expected.len(), "{context}");
    for (at, (a, e)) in actual.iter().zip(expected).enumerate() {
        assert!((a - e).abs() <= tolerance * (1.0 + e.abs()), "{context}: element {at} is {a}, expected {e}");
    }
}
