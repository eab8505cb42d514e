//! AVX512-VNNI: dot products of four bytes, unsigned weights times signed inputs.

use std::arch::x86_64::*;

use super::avx512::Avx512;
use super::byte_dots::{ByteDots, CODE_BIAS, StepCodes};
use super::{Kernel, Simd};

/// Proof that the machine has AVX512-VNNI beside what [`Avx512`] proves.
#[derive(Clone, Copy)]
pub(crate) struct Avx512Vnni(Avx512);

#[target_feature(enable = "avx512vnni,avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
fn compiled<K: Kernel>(simd: Avx512, kernel: K) -> K::Output {
    if cfg!(all(test, lacks_avx512_vnni)) {
        unreachable!("the machine that built these tests lacks it (build.rs)");
    }
    kernel.run(simd)
}

impl Avx512Vnni {
    pub(super) fn detect() -> Option<Avx512Vnni> {
        let plain = Avx512::detect()?;
        is_x86_feature_detected!("avx512vnni").then_some(Avx512Vnni(plain))
    }
}

/// Calls an intrinsic.
macro_rules! vnni {
    ($call:expr) => {
        // SAFETY: `self` proves the instruction set, see `Avx512Vnni::detect`; loads are unaligned ones through references to
        // whole arrays.
        unsafe { $call }
    };
}

impl ByteDots for Avx512Vnni {
    type Lanes = Avx512;
    type Codes = __m512i;
    type Sums = __m512i;

    #[inline(always)]
    fn lanes(self) -> Avx512 {
        self.0
    }

    #[inline]
    fn vectorize_dots<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: `self` proves avx512vnni and avx512f/bw/vl; every machine with those has avx2, fma and f16c.
        unsafe { compiled(self.0, kernel) }
    }

    #[inline(always)]
    fn load(self, codes: &StepCodes) -> __m512i {
        vnni!(_mm512_loadu_si512(codes.as_ptr().cast()))
    }

    #[inline(always)]
    fn look_up(self, levels: &[i8; 16], nibbles: &StepCodes) -> [__m512i; 2] {
        vnni!({
            let bias = _mm512_set1_epi8(CODE_BIAS as i8);
            let levels = _mm512_broadcast_i32x4(_mm_loadu_si128(levels.as_ptr().cast()));
            let levels = _mm512_xor_si512(levels, bias);
            let (nibbles, low) = (self.load(nibbles), _mm512_set1_epi8(15));
            let high = _mm512_srli_epi16::<4>(nibbles);
            [
                _mm512_shuffle_epi8(levels, _mm512_and_si512(nibbles, low)),
                _mm512_shuffle_epi8(levels, _mm512_and_si512(high, low)),
            ]
        })
    }

    #[inline(always)]
    fn store_biased(self, codes: __m512i, out: &mut StepCodes) {
        vnni!(_mm512_storeu_si512(out.as_mut_ptr().cast(), codes));
    }

    #[inline(always)]
    fn start(self, offset: i32) -> __m512i {
        vnni!(_mm512_set1_epi32(offset))
    }

    #[inline(always)]
    fn dot(self, sums: __m512i, x: u32, w: __m512i) -> __m512i {
        vnni!(_mm512_dpbusd_epi32(sums, w, _mm512_set1_epi32(x.cast_signed())))
    }

    #[inline(always)]
    fn to_f32(self, sums: __m512i) -> <Avx512 as Simd>::V {
        vnni!(_mm512_cvtepi32_ps(sums))
    }
}
