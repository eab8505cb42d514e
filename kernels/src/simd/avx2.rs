//! AVX2 with FMA and F16C: two registers hold a vector.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::byte_dots::{ByteDots, CODE_BIAS, StepCodes};
use super::{E4M3_FACTOR, E4M3_IN_F32, E4m3, E5m2, Kernel, LANES, Lanes, Simd};

/// Proof that the machine has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    pub(super) fn detect() -> Option<Avx2> {
        let has =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        has.then_some(Avx2(()))
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn compiled<K: Kernel>(simd: Avx2, kernel: K) -> K::Output {
    kernel.run(simd)
}

/// Calls an intrinsic.
macro_rules! avx2 {
    ($call:expr) => {
        // SAFETY: `self` proves avx2, fma and f16c, see `Avx2::detect`; loads and stores are unaligned ones at offsets 0
        // and 8 of references to arrays of 16.
        unsafe { $call }
    };
}

type V = [__m256; 2];

impl Simd for Avx2 {
    type V = V;
    const ACCUMULATORS: usize = 6;

    #[inline]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: `self` proves the three features.
        unsafe { compiled(self, kernel) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> V {
        [avx2!(_mm256_set1_ps(x)); 2]
    }

    #[inline(always)]
    fn load(self, x: &Lanes) -> V {
        avx2!([_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))])
    }

    #[inline(always)]
    fn load_bf16(self, x: &[bf16; LANES]) -> V {
        avx2!([widen_bf16(_mm_loadu_si128(x.as_ptr().cast())), widen_bf16(_mm_loadu_si128(x.as_ptr().add(8).cast()))])
    }

    #[inline(always)]
    fn load_f16(self, x: &[f16; LANES]) -> V {
        avx2!([
            _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().cast())),
            _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().add(8).cast()))
        ])
    }

    #[inline(always)]
    fn load_e4m3(self, x: &[u8; LANES]) -> V {
        avx2!([widen_e4m3(_mm_loadl_epi64(x.as_ptr().cast())), widen_e4m3(_mm_loadl_epi64(x[8..].as_ptr().cast()))])
    }

    #[inline(always)]
    fn load_e4m3_any(self, x: &[E4m3; LANES]) -> V {
        // As f16 with the exponent's bias of f16 every code is its value / 256, subnormal or not, but for NaN: that becomes
        // 480 / 256, beyond the largest number.
        avx2!({
            let codes = _mm256_cvtepu8_epi16(_mm_loadu_si128(x.as_ptr().cast()));
            let sign = _mm256_slli_epi16::<8>(_mm256_and_si256(codes, _mm256_set1_epi16(0x80)));
            let magnitude = _mm256_slli_epi16::<7>(_mm256_and_si256(codes, _mm256_set1_epi16(0x7f)));
            let small = _mm256_or_si256(sign, magnitude);
            let value = |half: __m128i| {
                let value = _mm256_mul_ps(_mm256_cvtph_ps(half), _mm256_set1_ps(256.0));
                let magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0), value);
                _mm256_or_ps(value, _mm256_cmp_ps::<_CMP_GT_OQ>(magnitude, _mm256_set1_ps(448.0)))
            };
            [value(_mm256_castsi256_si128(small)), value(_mm256_extracti128_si256::<1>(small))]
        })
    }

    #[inline(always)]
    fn load_e5m2(self, x: &[E5m2; LANES]) -> V {
        // The upper halves of f16.
        avx2!({
            let wide = _mm256_slli_epi16::<8>(_mm256_cvtepu8_epi16(_mm_loadu_si128(x.as_ptr().cast())));
            [_mm256_cvtph_ps(_mm256_castsi256_si128(wide)), _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(wide))]
        })
    }

    #[inline(always)]
    fn store(self, x: V, out: &mut Lanes) {
        avx2!({
            _mm256_storeu_ps(out.as_mut_ptr(), x[0]);
            _mm256_storeu_ps(out.as_mut_ptr().add(8), x[1]);
        })
    }

    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        avx2!([_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        avx2!([_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        avx2!([_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn div(self, a: V, b: V) -> V {
        avx2!([_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn fma(self, a: V, b: V, c: V) -> V {
        avx2!([_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])])
    }

    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        avx2!([_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn min(self, a: V, b: V) -> V {
        avx2!([_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn round(self, x: V) -> V {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        avx2!([_mm256_round_ps::<NEAREST>(x[0]), _mm256_round_ps::<NEAREST>(x[1])])
    }

    #[inline(always)]
    fn exp2_integral(self, x: V) -> V {
        // Not a closure, which would be a function without the instruction set, and so would be what it calls.
        avx2!([exp2_of_integers(x[0]), exp2_of_integers(x[1])])
    }

    #[inline(always)]
    fn zero_if_lt(self, x: V, bound: V, value: V) -> V {
        avx2!([
            _mm256_and_ps(_mm256_cmp_ps::<_CMP_NLT_UQ>(x[0], bound[0]), value[0]),
            _mm256_and_ps(_mm256_cmp_ps::<_CMP_NLT_UQ>(x[1], bound[1]), value[1])
        ])
    }
}

impl ByteDots for Avx2 {
    type Lanes = Avx2;
    /// Without the bias: products of unsigned and signed bytes are added in pairs of 16 bits, which 255 · 127 would overflow.
    type Codes = [__m256i; 2];
    type Sums = [__m256i; 2];

    #[inline(always)]
    fn lanes(self) -> Avx2 {
        self
    }

    #[inline]
    fn vectorize_dots<K: Kernel>(self, kernel: K) -> K::Output {
        self.vectorize(kernel)
    }

    #[inline(always)]
    fn load(self, codes: &StepCodes) -> [__m256i; 2] {
        avx2!({
            let bias = _mm256_set1_epi8(CODE_BIAS as i8);
            [
                _mm256_xor_si256(_mm256_loadu_si256(codes.as_ptr().cast()), bias),
                _mm256_xor_si256(_mm256_loadu_si256(codes[32..].as_ptr().cast()), bias),
            ]
        })
    }

    #[inline(always)]
    fn look_up(self, levels: &[i8; 16], nibbles: &StepCodes) -> [[__m256i; 2]; 2] {
        avx2!({
            let levels = _mm256_broadcastsi128_si256(_mm_loadu_si128(levels.as_ptr().cast()));
            let low = _mm256_set1_epi8(15);
            let a = _mm256_loadu_si256(nibbles.as_ptr().cast());
            let b = _mm256_loadu_si256(nibbles[32..].as_ptr().cast());
            let (high_a, high_b) = (_mm256_srli_epi16::<4>(a), _mm256_srli_epi16::<4>(b));
            [
                [
                    _mm256_shuffle_epi8(levels, _mm256_and_si256(a, low)),
                    _mm256_shuffle_epi8(levels, _mm256_and_si256(b, low)),
                ],
                [
                    _mm256_shuffle_epi8(levels, _mm256_and_si256(high_a, low)),
                    _mm256_shuffle_epi8(levels, _mm256_and_si256(high_b, low)),
                ],
            ]
        })
    }

    #[inline(always)]
    fn store_biased(self, codes: [__m256i; 2], out: &mut StepCodes) {
        avx2!({
            let bias = _mm256_set1_epi8(CODE_BIAS as i8);
            _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_xor_si256(codes[0], bias));
            _mm256_storeu_si256(out[32..].as_mut_ptr().cast(), _mm256_xor_si256(codes[1], bias));
        });
    }

    #[inline(always)]
    fn start(self, _offset: i32) -> [__m256i; 2] {
        [avx2!(_mm256_setzero_si256()); 2]
    }

    #[inline(always)]
    fn dot(self, sums: [__m256i; 2], x: u32, w: [__m256i; 2]) -> [__m256i; 2] {
        avx2!({
            let x = _mm256_set1_epi32(x.cast_signed());
            [add_products(sums[0], x, w[0]), add_products(sums[1], x, w[1])]
        })
    }

    #[inline(always)]
    fn to_f32(self, sums: [__m256i; 2]) -> V {
        avx2!([_mm256_cvtepi32_ps(sums[0]), _mm256_cvtepi32_ps(sums[1])])
    }
}

/// Adds the four products of signed bytes -127..=127 in each 32 bits: |w| times x with the sign of w. Two products are at most
/// 32,258, which 16 bits hold.
///
/// # Safety
/// The machine has AVX2.
#[inline(always)]
unsafe fn add_products(sums: __m256i, x: __m256i, w: __m256i) -> __m256i {
    // SAFETY: the caller's obligation; the intrinsics touch no memory.
    unsafe {
        let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
        _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }
}

/// 2^x for integral x in -126..=127.
///
/// # Safety
/// The machine has AVX2.
#[inline(always)]
unsafe fn exp2_of_integers(x: __m256) -> __m256 {
    // SAFETY: the caller's obligation; the intrinsics touch no memory.
    unsafe {
        let exponents = _mm256_add_epi32(_mm256_cvtps_epi32(x), _mm256_set1_epi32(127));
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponents))
    }
}

/// Eight bf16 are the upper halves of eight f32.
///
/// # Safety
/// The machine has AVX2.
#[inline(always)]
unsafe fn widen_bf16(x: __m128i) -> __m256 {
    // SAFETY: the caller's obligation; the intrinsics touch no memory.
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(x))) }
}

/// Eight E4M3 bytes: sign, exponent and mantissa to their places in an f32, then 2^120 for the difference of the biases.
///
/// # Safety
/// The machine has AVX2.
#[inline(always)]
unsafe fn widen_e4m3(x: __m128i) -> __m256 {
    // SAFETY: the caller's obligation; the intrinsics touch no memory.
    unsafe {
        let wide = _mm256_slli_epi32::<20>(_mm256_cvtepi8_epi32(x));
        let bits = _mm256_and_si256(wide, _mm256_set1_epi32(E4M3_IN_F32.cast_signed()));
        _mm256_mul_ps(_mm256_castsi256_ps(bits), _mm256_set1_ps(E4M3_FACTOR))
    }
}
