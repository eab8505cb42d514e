//! Inputs as bytes, for the formats whose weights are integers: every group of 64 inputs of a row is rounded to -127..=127 times a
//! scale of its own (absmax / 127). A scale per group costs one multiplication in 64, and an input that is far larger than the others
//! of its row, as language models have them, takes precision from its own group only.

use bytemuck::{Pod, Zeroable};

use super::grouped::{GROUP, absmax, scale_and_inverse};
use crate::simd::CODE_BIAS;
#[cfg(target_arch = "x86_64")]
use crate::simd::TileRow;

/// A group of a row's inputs.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(4))]
pub(super) struct ByteInputs {
    /// Signed bytes.
    codes: [u8; GROUP],
    /// Minus what the bias of the weights adds to their sums.
    pub(super) offset: i32,
    /// What a code stands for.
    pub(super) scale: f32,
}

impl ByteInputs {
    /// Rounds to nearest, ties to even. A group with an input that is not finite has the scale NaN.
    #[inline(always)]
    pub(super) fn round(&mut self, x: &[f32]) {
        let mut padded = [0.0; GROUP];
        padded[..x.len()].copy_from_slice(x);
        let (scale, inverse) = scale_and_inverse(absmax(&padded), 127.0);
        // 1.5 · 2^23: a sum with it has the rounded integer in its lowest bits. As 32-bit integers, because sums of bytes would be
        // computed one by one.
        const ROUNDER: f32 = 12_582_912.0;
        let mut sum = 0i32;
        for (code, x) in self.codes.iter_mut().zip(padded) {
            let rounded = (x * inverse + ROUNDER).to_bits().wrapping_sub(ROUNDER.to_bits()).cast_signed();
            sum = sum.wrapping_add(rounded);
            *code = rounded as u8;
        }
        // Wrapping, because inputs that are not finite give any sum: their scale makes NaN of it.
        (self.offset, self.scale) = (sum.wrapping_mul(-CODE_BIAS), scale);
    }

    /// The sum of the codes, for weights whose zero is a number of their group: exact. Of inputs that are not finite any number.
    #[inline(always)]
    pub(super) fn sum(&self) -> f32 {
        (self.offset / -CODE_BIAS) as f32
    }

    /// All inputs, as a row of a tile of them.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn tile_row(&self) -> TileRow {
        bytemuck::cast(self.codes)
    }

    /// Four inputs, the first in the lowest byte.
    #[inline(always)]
    pub(super) fn step(&self, step: usize) -> u32 {
        u32::from_ne_bytes(self.codes.as_chunks().0[step])
    }
}
