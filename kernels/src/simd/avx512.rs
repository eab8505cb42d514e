//! AVX-512 (F, BW, VL): one register holds a vector.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{E4M3_FACTOR, E4M3_IN_F32, E4m3, E5m2, Kernel, LANES, Lanes, Simd};

/// Proof that the machine has AVX-512 F, BW and VL.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    pub(super) fn detect() -> Option<Avx512> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl");
        has.then_some(Avx512(()))
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
fn compiled<K: Kernel>(simd: Avx512, kernel: K) -> K::Output {
    if cfg!(all(test, lacks_avx512)) {
        unreachable!("the machine that built these tests lacks it (build.rs)");
    }
    kernel.run(simd)
}

/// Calls an intrinsic. Each of them needs AVX-512F alone or with the sets it implies.
macro_rules! avx512 {
    ($call:expr) => {
        // SAFETY: `self` proves the instruction set, see `Avx512::detect`; loads and stores are unaligned ones through
        // references to whole arrays.
        unsafe { $call }
    };
}

impl Simd for Avx512 {
    type V = __m512;
    const ACCUMULATORS: usize = 24;

    #[inline]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: `self` proves avx512f/bw/vl; every machine with those has avx2, fma and f16c.
        unsafe { compiled(self, kernel) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        avx512!(_mm512_set1_ps(x))
    }

    #[inline(always)]
    fn load(self, x: &Lanes) -> __m512 {
        avx512!(_mm512_loadu_ps(x.as_ptr()))
    }

    #[inline(always)]
    fn load_bf16(self, x: &[bf16; LANES]) -> __m512 {
        avx512!(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(
            x.as_ptr().cast()
        )))))
    }

    #[inline(always)]
    fn load_f16(self, x: &[f16; LANES]) -> __m512 {
        avx512!(_mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())))
    }

    #[inline(always)]
    fn load_e4m3(self, x: &[u8; LANES]) -> __m512 {
        avx512!({
            let wide = _mm512_slli_epi32::<20>(_mm512_cvtepi8_epi32(_mm_loadu_si128(x.as_ptr().cast())));
            let bits = _mm512_and_si512(wide, _mm512_set1_epi32(E4M3_IN_F32.cast_signed()));
            _mm512_mul_ps(_mm512_castsi512_ps(bits), _mm512_set1_ps(E4M3_FACTOR))
        })
    }

    #[inline(always)]
    fn load_e4m3_any(self, x: &[E4m3; LANES]) -> __m512 {
        // As f16 with the exponent's bias of f16 every code is its value / 256, subnormal or not, but for NaN: that becomes
        // 480 / 256, beyond the largest number.
        avx512!({
            let codes = _mm256_cvtepu8_epi16(_mm_loadu_si128(x.as_ptr().cast()));
            let sign = _mm256_slli_epi16::<8>(_mm256_and_si256(codes, _mm256_set1_epi16(0x80)));
            let magnitude = _mm256_slli_epi16::<7>(_mm256_and_si256(codes, _mm256_set1_epi16(0x7f)));
            let value = _mm512_mul_ps(_mm512_cvtph_ps(_mm256_or_si256(sign, magnitude)), _mm512_set1_ps(256.0));
            let is_nan = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(_mm512_abs_ps(value), _mm512_set1_ps(448.0));
            _mm512_mask_mov_ps(value, is_nan, _mm512_set1_ps(f32::NAN))
        })
    }

    #[inline(always)]
    fn load_e5m2(self, x: &[E5m2; LANES]) -> __m512 {
        // The upper halves of f16.
        avx512!(_mm512_cvtph_ps(_mm256_slli_epi16::<8>(_mm256_cvtepu8_epi16(_mm_loadu_si128(x.as_ptr().cast())))))
    }

    #[inline(always)]
    fn store(self, x: __m512, out: &mut Lanes) {
        avx512!(_mm512_storeu_ps(out.as_mut_ptr(), x))
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_div_ps(a, b))
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        avx512!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        avx512!(_mm512_min_ps(a, b))
    }

    #[inline(always)]
    fn round(self, x: __m512) -> __m512 {
        avx512!(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x))
    }

    #[inline(always)]
    fn exp2_integral(self, x: __m512) -> __m512 {
        avx512!(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(
            _mm512_cvtps_epi32(x),
            _mm512_set1_epi32(127)
        ))))
    }

    #[inline(always)]
    fn sum(self, x: __m512) -> f32 {
        avx512!({
            let x = _mm256_add_ps(low_half(x), high_half(x));
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
        })
    }

    #[inline(always)]
    fn largest(self, x: __m512) -> f32 {
        avx512!({
            let x = _mm256_max_ps(low_half(x), high_half(x));
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
        })
    }

    #[inline(always)]
    fn zero_if_lt(self, x: __m512, bound: __m512, value: __m512) -> __m512 {
        avx512!(_mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, bound), value))
    }
}

/// The first eight lanes.
///
/// # Safety
/// The machine has AVX-512F.
#[inline(always)]
unsafe fn low_half(x: __m512) -> __m256 {
    // SAFETY: the caller's obligation; the intrinsic touches no memory.
    unsafe { _mm512_castps512_ps256(x) }
}

/// The last eight lanes.
///
/// # Safety
/// The machine has AVX-512F.
#[inline(always)]
unsafe fn high_half(x: __m512) -> __m256 {
    // SAFETY: the caller's obligation; the intrinsics touch no memory.
    unsafe { _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(x))) }
}
