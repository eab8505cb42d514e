//! Dot products of bytes, four at a time, in 32-bit integers.
//!
//! Integer sums have no rounding and so no order: every instruction set gives the same bits.

use super::{Kernel, LANES, Portable, Simd};

/// Weights or inputs of one step: four inputs for each of sixteen outputs. As they lie in memory, a weight `w` in -127..=127 is
/// the byte `w + 128`: the instruction multiplies unsigned bytes with signed ones.
pub(crate) type StepCodes = [u8; 4 * LANES];

/// What is added to a weight where it lies in memory.
pub(crate) const CODE_BIAS: i32 = 128;

/// An instruction set with dot products of bytes, beside its [`Simd`] lanes.
pub(crate) trait ByteDots: Copy + Send + Sync + 'static {
    /// Its f32 lanes.
    type Lanes: Simd;
    /// The weights of a step in registers.
    type Codes: Copy;
    /// Sixteen sums.
    type Sums: Copy;

    fn lanes(self) -> Self::Lanes;
    /// Runs `kernel` compiled for this instruction set.
    fn vectorize_dots<K: Kernel>(self, kernel: K) -> K::Output;
    fn load(self, codes: &StepCodes) -> Self::Codes;
    /// Two steps: `levels[low nibble]` of each byte, then `levels[high nibble]`.
    fn look_up(self, levels: &[i8; 16], nibbles: &StepCodes) -> [Self::Codes; 2];
    /// Stores weights as they lie in memory where a format has one byte for each.
    fn store_biased(self, codes: Self::Codes, out: &mut StepCodes);
    /// The sums before the first step of inputs whose biased weights add `-offset`.
    fn start(self, offset: i32) -> Self::Sums;
    /// Adds four inputs (signed bytes, the first lowest) times their weights to each sum.
    fn dot(self, sums: Self::Sums, x: u32, w: Self::Codes) -> Self::Sums;
    /// Exact below 2^24.
    fn to_f32(self, sums: Self::Sums) -> <Self::Lanes as Simd>::V;
}

/// A computation that chooses nothing but the instruction set of its dot products.
pub(crate) trait ByteCall {
    fn call<S: ByteDots>(self, simd: S);
}

impl ByteDots for Portable {
    type Lanes = Portable;
    type Codes = [i8; 4 * LANES];
    type Sums = [i32; LANES];

    fn lanes(self) -> Portable {
        self
    }

    #[inline]
    fn vectorize_dots<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn load(self, codes: &StepCodes) -> Self::Codes {
        codes.map(|code| code.wrapping_sub(CODE_BIAS as u8).cast_signed())
    }

    #[inline(always)]
    fn look_up(self, levels: &[i8; 16], nibbles: &StepCodes) -> [Self::Codes; 2] {
        [nibbles.map(|byte| levels[usize::from(byte & 15)]), nibbles.map(|byte| levels[usize::from(byte >> 4)])]
    }

    #[inline(always)]
    fn store_biased(self, codes: Self::Codes, out: &mut StepCodes) {
        *out = codes.map(|code| code.cast_unsigned().wrapping_add(CODE_BIAS as u8));
    }

    #[inline(always)]
    fn start(self, _offset: i32) -> Self::Sums {
        [0; LANES]
    }

    #[inline(always)]
    fn dot(self, sums: Self::Sums, x: u32, w: Self::Codes) -> Self::Sums {
        let x = x.to_ne_bytes().map(u8::cast_signed);
        std::array::from_fn(|lane| {
            (0..4).fold(sums[lane], |sum, at| sum + i32::from(x[at]) * i32::from(w[4 * lane + at]))
        })
    }

    #[inline(always)]
    fn to_f32(self, sums: Self::Sums) -> [f32; LANES] {
        sums.map(|sum| sum as f32)
    }
}
