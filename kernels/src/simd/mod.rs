//! Sixteen f32 lanes under one name on every instruction set.
//!
//! A CPU arm is written once, generic over [`Simd`], and compiled for AVX-512, AVX2 and a portable form; the choice falls
//! at run time. All three round alike (every multiply-add is fused, every reduction is the same tree), so the arms agree
//! bit for bit, which the tests of the operations check. Dot products of bf16 pairs stand beside it: they round otherwise, and only
//! linears and attention use them.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_bf16;
#[cfg(target_arch = "x86_64")]
mod avx512_vnni;
mod byte_dots;
mod element;
pub(crate) mod float8;
mod math;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(crate) use amx::{Amx, TILE_PAIRS, TILE_ROWS, TileKernel, TileRow, Tiles};
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512_bf16::{Avx512Bf16, PackPairs, Pair, PairElement, PairKernel, round_pair};
pub(crate) use byte_dots::{ByteCall, ByteDots, CODE_BIAS, StepCodes};
pub(crate) use element::{Element, with_element};
pub(crate) use float8::{E4m3, E5m2};
pub(crate) use math::{exp, gelu, gelu_tanh, silu, tanh};

use half::{bf16, f16};
use portable::Portable;

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// Where sign, exponent and mantissa of an FP8 E4M3 byte lie in an f32 (the byte, sign-extended, 20 to the left).
const E4M3_IN_F32: u32 = 0x87f0_0000;

/// 2^120: the exponents' bias is 127 there and 7 here.
const E4M3_FACTOR: f32 = f32::from_bits((127 + 120) << 23);

/// One vector as it lies in memory.
pub(crate) type Lanes = [f32; LANES];

/// An instruction set. A value of it is the proof that the machine has it: only [`Isa::detect`] and its tests make one.
///
/// Methods are inlined into the function that [`Simd::vectorize`] compiles with the set's instructions enabled.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// Sixteen f32 in registers.
    type V: Copy;
    /// Vectors that fit in the register file beside operands: how large a tile of accumulators may be.
    const ACCUMULATORS: usize;

    /// Runs `kernel` compiled for this instruction set.
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output;

    fn splat(self, x: f32) -> Self::V;
    fn load(self, x: &Lanes) -> Self::V;
    fn load_bf16(self, x: &[bf16; LANES]) -> Self::V;
    fn load_f16(self, x: &[f16; LANES]) -> Self::V;
    /// FP8 E4M3, of which neither NaN nor subnormals occur.
    fn load_e4m3(self, x: &[u8; LANES]) -> Self::V;
    /// FP8 E4M3, every code.
    fn load_e4m3_any(self, x: &[E4m3; LANES]) -> Self::V;
    fn load_e5m2(self, x: &[E5m2; LANES]) -> Self::V;
    fn store(self, x: Self::V, out: &mut Lanes);
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c` with one rounding.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger; `b` if one is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The smaller; `b` if one is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// To the nearest integer, ties to even.
    fn round(self, x: Self::V) -> Self::V;
    /// 2^x for integral x in -126..=127.
    fn exp2_integral(self, x: Self::V) -> Self::V;
    /// 0 where `x < bound`, else `value`.
    fn zero_if_lt(self, x: Self::V, bound: Self::V, value: Self::V) -> Self::V;

    fn to_array(self, x: Self::V) -> Lanes {
        let mut out = [0.0; LANES];
        self.store(x, &mut out);
        out
    }

    /// The sum of the lanes: halves are added until one is left.
    #[inline(always)]
    fn sum(self, x: Self::V) -> f32 {
        reduce(self.to_array(x), |a, b| a + b)
    }

    /// The largest lane.
    #[inline(always)]
    fn largest(self, x: Self::V) -> f32 {
        reduce(self.to_array(x), f32::max)
    }
}

#[inline(always)]
fn reduce(mut x: Lanes, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            x[lane] = f(x[lane], x[lane + half]);
        }
        half /= 2;
    }
    x[0]
}

/// A computation over any instruction set. Implementations mark `run` `#[inline(always)]`, so that it is compiled inside
/// [`Simd::vectorize`].
pub(crate) trait Kernel {
    type Output;
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// The instruction sets by name.
#[derive(Clone, Copy)]
pub(crate) enum Isa {
    /// [`Isa::Avx512Bf16`] with products of tiles, which linears use; all else is the same.
    #[cfg(target_arch = "x86_64")]
    Amx(amx::Amx),
    /// [`Isa::Avx512`] with dot products of bf16 pairs, which linears and attention use; all else is the same.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16(avx512_bf16::Avx512Bf16),
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    Portable(Portable),
}

impl Isa {
    /// The best that the machine has and `TGI_CPU_ISA` allows. An unknown value of the variable is ignored: it is a
    /// debugging aid, not configuration.
    pub(crate) fn detect() -> Isa {
        let wanted = std::env::var("TGI_CPU_ISA").ok();
        let available = Isa::available();
        let allowed = available.iter().find(|isa| wanted.as_deref() == Some(isa.key()));
        *allowed.unwrap_or(&available[0])
    }

    /// All that the machine has, best first.
    pub(crate) fn available() -> Vec<Isa> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(amx::Amx::detect().map(Isa::Amx));
            all.extend(avx512_bf16::Avx512Bf16::detect().map(Isa::Avx512Bf16));
            all.extend(avx512::Avx512::detect().map(Isa::Avx512));
            all.extend(avx2::Avx2::detect().map(Isa::Avx2));
        }
        all.push(Isa::Portable(Portable));
        all
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx(_) => "AMX-BF16",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16(_) => "AVX512-BF16",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(_) => "AVX-512",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) => "AVX2",
            Isa::Portable(_) => "portable",
        }
    }

    fn key(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx(_) => "amx",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16(_) => "avx512-bf16",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) => "avx2",
            Isa::Portable(_) => "portable",
        }
    }

    /// The dot products of bf16 pairs, if it has them.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn bf16_dots(self) -> Option<Avx512Bf16> {
        match self {
            Isa::Amx(amx) => amx.pairs(),
            Isa::Avx512Bf16(simd) => Some(simd),
            _ => None,
        }
    }

    /// The products of tiles, if it has them.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn tiles(self) -> Option<Amx> {
        match self {
            Isa::Amx(amx) => Some(amx),
            _ => None,
        }
    }

    /// Why the machine's best is not used although it is there.
    pub(crate) fn refusal() -> Option<&'static str> {
        #[cfg(target_arch = "x86_64")]
        return amx::refusal();
        #[cfg(not(target_arch = "x86_64"))]
        None
    }

    /// Calls `call` with the best dot products of bytes that this set allows. Whichever they are, the bits are the same.
    pub(crate) fn with_byte_dots(self, call: impl ByteCall) {
        #[cfg(target_arch = "x86_64")]
        {
            if !matches!(self, Isa::Avx2(_) | Isa::Portable(_))
                && let Some(simd) = avx512_vnni::Avx512Vnni::detect()
            {
                return call.call(simd);
            }
            if !matches!(self, Isa::Portable(_))
                && let Some(simd) = avx2::Avx2::detect()
            {
                return call.call(simd);
            }
        }
        call.call(Portable)
    }

    /// Runs `kernel` compiled for this instruction set.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx(amx) => match amx.pairs() {
                Some(simd) => simd.plain().vectorize(kernel),
                None => portable::Portable.vectorize(kernel),
            },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16(simd) => simd.plain().vectorize(kernel),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(simd) => simd.vectorize(kernel),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(simd) => simd.vectorize(kernel),
            Isa::Portable(simd) => simd.vectorize(kernel),
        }
    }
}

/// Asks for the cache lines of `x` ahead of their use. Where the language has no stable way to say so, nothing happens.
#[inline(always)]
pub(crate) fn prefetch<T>(x: &[T]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        const LINE_BYTES: usize = 64;
        for offset in (0..size_of_val(x)).step_by(LINE_BYTES) {
            let line = x.as_ptr().cast::<i8>().wrapping_add(offset);
            // SAFETY: a prefetch faults on no address, and the instruction is part of SSE, which every x86-64 machine has.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = x;
}

/// Asks for the cache line at `address`, which may be any, ahead of its use, in the second-level cache.
#[inline(always)]
pub(crate) fn prefetch_line<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a prefetch faults on no address, and the instruction is part of SSE, which every x86-64 machine has.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Loads up to sixteen elements into the first lanes, `fill` into the others.
#[inline(always)]
pub(crate) fn load_partial<S: Simd>(simd: S, x: &[f32], fill: f32) -> S::V {
    match <&Lanes>::try_from(x) {
        Ok(full) => simd.load(full),
        Err(_) => {
            let mut lanes = [fill; LANES];
            lanes[..x.len()].copy_from_slice(x);
            simd.load(&lanes)
        }
    }
}

/// Stores the first lanes into up to sixteen elements.
#[inline(always)]
pub(crate) fn store_partial<S: Simd>(simd: S, x: S::V, out: &mut [f32]) {
    match <&mut Lanes>::try_from(&mut *out) {
        Ok(full) => simd.store(x, full),
        Err(_) => {
            let lanes = simd.to_array(x);
            let len = out.len();
            out.copy_from_slice(&lanes[..len]);
        }
    }
}
