//! How a tile multiplies: one step of a sum at a time with fused multiply-adds in f32 ([`Vectors`]), or two with dot products of
//! bf16 pairs ([`Pairs`]). The cache lies as its arm reads it.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::__m512bh;
use std::marker::PhantomData;

use bytemuck::Pod;

use crate::limits::KV_SPLIT;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx512Bf16, PackPairs, Pair, PairElement, PairKernel};
use crate::simd::{Element, LANES, Lanes, Simd, exp};

/// The arithmetic of a tile. Scores are logarithms of weights, in the base that [`exp`](Arm::exp) raises.
pub(super) trait Arm: Copy {
    type Simd: Simd;
    /// Sixteen lanes of the cache: a step of sixteen keys, or of sixteen dimensions of values.
    type Vector: Pod + Sync;
    /// A [`Vector`](Arm::Vector) in registers, or a [`Scalar`](Arm::Scalar) in every lane of one.
    type Operand: Copy;
    /// A step of a query or of a row of weights, in four bytes.
    type Scalar: Pod;
    /// The weights of one split.
    type Weights: Pod + AsRef<[Self::Scalar]> + AsMut<[Self::Scalar]>;
    /// Dimensions of a key, or positions of values, that one step adds.
    const STEP: usize;
    /// e^x = base^(x · this).
    const LOG_BASE_OF_E: f32;

    fn simd(self) -> Self::Simd;
    fn load(self, x: &Self::Vector) -> Self::Operand;
    /// Of a step of two, the first alone.
    fn load_first(self, x: &Self::Vector) -> Self::Operand;
    /// Of a step of two, the second alone.
    fn load_second(self, x: &Self::Vector) -> Self::Operand;
    fn splat(self, x: Self::Scalar) -> Self::Operand;
    /// `sum + a · b`.
    fn multiply_add(self, a: Self::Operand, b: Self::Operand, sum: V<Self>) -> V<Self>;
    /// A query as steps; what is left of the last one is zero.
    fn pack(self, x: &[f32], steps: &mut [Self::Scalar]);
    /// base^x for x <= 0: 1 at 0, 0 at -∞, NaN at NaN.
    fn exp(self, x: V<Self>) -> V<Self>;
    /// Turns scores into `exp(score - max)`, in steps. Returns their sum.
    fn weights(self, scores: &[Lanes], max: f32, steps: &mut [Self::Scalar]) -> f32;
}

/// A vector of f32.
pub(super) type V<A> = <<A as Arm>::Simd as Simd>::V;

/// Keys and values widened to f32.
pub(super) struct Vectors<S, T> {
    simd: S,
    element: PhantomData<T>,
}

impl<S, T> Vectors<S, T> {
    pub(super) fn new(simd: S) -> Vectors<S, T> {
        Vectors { simd, element: PhantomData }
    }
}

impl<S: Copy, T> Clone for Vectors<S, T> {
    fn clone(&self) -> Vectors<S, T> {
        *self
    }
}

impl<S: Copy, T> Copy for Vectors<S, T> {}

impl<S: Simd, T: Element> Arm for Vectors<S, T> {
    type Simd = S;
    type Vector = [T; LANES];
    type Operand = S::V;
    type Scalar = f32;
    type Weights = [f32; KV_SPLIT];
    const STEP: usize = 1;
    const LOG_BASE_OF_E: f32 = 1.0;

    #[inline(always)]
    fn simd(self) -> S {
        self.simd
    }

    #[inline(always)]
    fn load(self, x: &[T; LANES]) -> S::V {
        T::load(self.simd, x)
    }

    #[inline(always)]
    fn load_first(self, _x: &[T; LANES]) -> S::V {
        unreachable!("a step is one position")
    }

    #[inline(always)]
    fn load_second(self, _x: &[T; LANES]) -> S::V {
        unreachable!("a step is one position")
    }

    #[inline(always)]
    fn splat(self, x: f32) -> S::V {
        self.simd.splat(x)
    }

    #[inline(always)]
    fn multiply_add(self, a: S::V, b: S::V, sum: S::V) -> S::V {
        self.simd.fma(a, b, sum)
    }

    #[inline(always)]
    fn pack(self, x: &[f32], steps: &mut [f32]) {
        steps.copy_from_slice(x);
    }

    #[inline(always)]
    fn exp(self, x: S::V) -> S::V {
        exp(self.simd, x)
    }

    #[inline(always)]
    fn weights(self, scores: &[Lanes], max: f32, steps: &mut [f32]) -> f32 {
        let simd = self.simd;
        let (max, mut sum) = (simd.splat(max), simd.splat(0.0));
        for (scores, weights) in scores.iter().zip(steps.as_chunks_mut::<LANES>().0) {
            let weight = exp(simd, simd.sub(simd.load(scores), max));
            sum = simd.add(sum, weight);
            simd.store(weight, weights);
        }
        simd.sum(sum)
    }
}

/// Queries and weights rounded to bf16, keys and values widened to it where they are narrower.
#[cfg(target_arch = "x86_64")]
pub(super) struct Pairs<T> {
    simd: Avx512Bf16,
    element: PhantomData<T>,
}

#[cfg(target_arch = "x86_64")]
impl<T> Pairs<T> {
    pub(super) fn new(simd: Avx512Bf16) -> Pairs<T> {
        Pairs { simd, element: PhantomData }
    }
}

#[cfg(target_arch = "x86_64")]
impl<T> Clone for Pairs<T> {
    fn clone(&self) -> Pairs<T> {
        *self
    }
}

#[cfg(target_arch = "x86_64")]
impl<T> Copy for Pairs<T> {}

#[cfg(target_arch = "x86_64")]
impl<T: PairElement> Arm for Pairs<T> {
    type Simd = crate::simd::Avx512;
    type Vector = [[T; 2]; LANES];
    type Operand = __m512bh;
    type Scalar = Pair;
    type Weights = [Pair; KV_SPLIT / 2];
    const STEP: usize = 2;
    const LOG_BASE_OF_E: f32 = std::f32::consts::LOG2_E;

    #[inline(always)]
    fn simd(self) -> Self::Simd {
        self.simd.plain()
    }

    #[inline(always)]
    fn load(self, x: &Self::Vector) -> __m512bh {
        T::load_pairs(self.simd, x)
    }

    #[inline(always)]
    fn load_first(self, x: &Self::Vector) -> __m512bh {
        self.simd.first_of_pairs(self.load(x))
    }

    #[inline(always)]
    fn load_second(self, x: &Self::Vector) -> __m512bh {
        self.simd.second_of_pairs(self.load(x))
    }

    #[inline(always)]
    fn splat(self, x: Pair) -> __m512bh {
        self.simd.splat(x)
    }

    #[inline(always)]
    fn multiply_add(self, a: __m512bh, b: __m512bh, sum: V<Self>) -> V<Self> {
        self.simd.dot(sum, a, b)
    }

    #[inline(always)]
    fn pack(self, x: &[f32], steps: &mut [Pair]) {
        PackPairs { x, row_len: x.len(), rows: 1, pairs: steps }.run(self.simd);
    }

    #[inline(always)]
    fn exp(self, x: V<Self>) -> V<Self> {
        self.simd.exp2(x)
    }

    /// The sum is that of the rounded weights: then they are shares of exactly one, and rounding shifts no mean.
    #[inline(always)]
    fn weights(self, scores: &[Lanes], max: f32, steps: &mut [Pair]) -> f32 {
        const ONES: Pair = 0x3f80_3f80;
        let simd = self.simd();
        let (max, ones, mut sum) = (simd.splat(max), self.simd.splat(ONES), simd.splat(0.0));
        for ([first, second], pairs) in scores.as_chunks::<2>().0.iter().zip(steps.as_chunks_mut::<LANES>().0) {
            let first = self.simd.exp2(simd.sub(simd.load(first), max));
            let second = self.simd.exp2(simd.sub(simd.load(second), max));
            let weights = self.simd.round_vectors(first, second);
            sum = self.simd.dot(sum, weights, ones);
            self.simd.store(weights, pairs);
        }
        simd.sum(sum)
    }
}
