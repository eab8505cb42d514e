//! AVX512-BF16: dot products of pairs of bf16, summed in f32. Twice the multiply-adds of AVX-512.

use std::arch::x86_64::*;

use bytemuck::Pod;
use half::bf16;

use super::avx512::Avx512;
use super::{E4m3, E5m2, LANES};

/// Proof that the machine has AVX512-BF16 and DQ beside what [`Avx512`] proves.
#[derive(Clone, Copy)]
pub(crate) struct Avx512Bf16(Avx512);

/// Two neighbouring inputs of an activation, or of a weight: the first in the lower half.
pub(crate) type Pair = u32;

/// A computation over pairs. Implementations mark `run` `#[inline(always)]`, so that it is compiled inside
/// [`Avx512Bf16::vectorize`].
pub(crate) trait PairKernel {
    fn run(self, simd: Avx512Bf16);
}

#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn compiled<K: PairKernel>(simd: Avx512Bf16, kernel: K) {
    if cfg!(all(test, lacks_avx512_bf16)) {
        unreachable!("the machine that built these tests lacks it (build.rs)");
    }
    kernel.run(simd);
}

impl Avx512Bf16 {
    pub(super) fn detect() -> Option<Avx512Bf16> {
        let plain = Avx512::detect()?;
        let has = is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512dq");
        has.then_some(Avx512Bf16(plain))
    }

    /// The set of everything that is no dot product.
    pub(crate) fn plain(self) -> Avx512 {
        self.0
    }

    /// Runs `kernel` compiled for this instruction set.
    pub(crate) fn vectorize(self, kernel: impl PairKernel) {
        // SAFETY: `self` proves avx512bf16 and avx512f/bw/dq/vl; every machine with those has avx2, fma and f16c.
        unsafe { compiled(self, kernel) }
    }

    /// `sum[i] + x[i].1 · w[i].1 + x[i].0 · w[i].0` for sixteen outputs, in the order and with the roundings of the instruction.
    #[inline(always)]
    pub(crate) fn dot(self, sum: __m512, x: __m512bh, w: __m512bh) -> __m512 {
        // SAFETY: `self` proves the instruction set.
        unsafe { _mm512_dpbf16_ps(sum, x, w) }
    }

    /// Two pairs of FP8 E4M3 weights for each of sixteen outputs, as 2^-120 of what they are: those in the lower bytes of an
    /// output's two words, then those in the upper ones. Sign, exponent and mantissa move to their places in a bf16.
    #[inline(always)]
    pub(crate) fn load_e4m3(self, w: &[u8; 4 * LANES]) -> [__m512bh; 2] {
        // SAFETY: `self` proves AVX-512F and BW; the load is an unaligned one through a reference to the whole array, and the casts
        // reinterpret 512 bits.
        unsafe {
            let upper = _mm512_loadu_si512(w.as_ptr().cast());
            let lower = _mm512_slli_epi16::<8>(upper);
            let places = _mm512_set1_epi16(0x87f0_u16.cast_signed());
            [
                std::mem::transmute::<__m512i, __m512bh>(_mm512_and_si512(_mm512_srai_epi16::<4>(lower), places)),
                std::mem::transmute::<__m512i, __m512bh>(_mm512_and_si512(_mm512_srai_epi16::<4>(upper), places)),
            ]
        }
    }

    /// One pair of inputs for sixteen outputs.
    #[inline(always)]
    pub(crate) fn splat(self, x: Pair) -> __m512bh {
        // SAFETY: `self` proves AVX-512F. The cast reinterprets 512 bits: both types are plain vectors.
        unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(x.cast_signed())) }
    }

    /// Rounds 32 neighbouring inputs to pairs, to nearest, ties to even.
    #[inline(always)]
    pub(crate) fn round_to(self, x: &[f32; 2 * LANES], pairs: &mut [Pair; LANES]) {
        // SAFETY: `self` proves AVX-512F; unaligned loads of the halves of an array of 32.
        let (low, high) = unsafe { (_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x[LANES..].as_ptr())) };
        self.store(self.round_vectors(low, high), pairs);
    }

    /// The weights of sixteen outputs for one pair of inputs.
    #[inline(always)]
    pub(crate) fn load(self, w: &[Pair; LANES]) -> __m512bh {
        // SAFETY: `self` proves AVX-512F; the load is an unaligned one through a reference to the whole array, and the cast
        // reinterprets 512 bits.
        unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(w.as_ptr().cast())) }
    }

    /// The first elements of sixteen pairs, the second ones zero.
    #[inline(always)]
    pub(crate) fn first_of_pairs(self, x: __m512bh) -> __m512bh {
        self.masked(x, 0x0000_ffff)
    }

    /// The second elements of sixteen pairs, the first ones zero.
    #[inline(always)]
    pub(crate) fn second_of_pairs(self, x: __m512bh) -> __m512bh {
        self.masked(x, 0xffff_0000)
    }

    #[inline(always)]
    fn masked(self, x: __m512bh, mask: u32) -> __m512bh {
        // SAFETY: `self` proves AVX-512F. The casts reinterpret 512 bits.
        unsafe {
            let x = std::mem::transmute::<__m512bh, __m512i>(x);
            let x = _mm512_and_si512(x, _mm512_set1_epi32(mask.cast_signed()));
            std::mem::transmute::<__m512i, __m512bh>(x)
        }
    }

    /// Sixteen pairs of the 32 neighbours in `low` and `high`, rounded to nearest, ties to even.
    #[inline(always)]
    pub(crate) fn round_vectors(self, low: __m512, high: __m512) -> __m512bh {
        // SAFETY: `self` proves the instruction set.
        unsafe { _mm512_cvtne2ps_pbh(high, low) }
    }

    #[inline(always)]
    pub(crate) fn store(self, x: __m512bh, out: &mut [Pair; LANES]) {
        // SAFETY: `self` proves AVX-512F; the store is an unaligned one to a whole array, and the cast reinterprets 512 bits.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), std::mem::transmute::<__m512bh, __m512i>(x)) }
    }

    /// 2^x with a relative error below 4e-6, 2^-18: far below the rounding to bf16 that follows. 1 at 0, 0 at -∞, NaN at NaN.
    ///
    /// 2^(x - floor x) by the polynomial of degree 4 that is 1 at 0 and has the least relative error in 0..1 (2.9e-6, found by
    /// Remez' algorithm), scaled by 2^(floor x): the instructions round down on their own.
    #[inline(always)]
    pub(crate) fn exp2(self, x: __m512) -> __m512 {
        const COEFFICIENTS: [f32; 4] = [0.013_426_684, 0.052_242_473, 0.241_280_2, 0.693_044_84];
        // SAFETY: `self` proves AVX-512F and DQ.
        unsafe {
            let fraction = _mm512_reduce_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(x);
            let mut sum = _mm512_set1_ps(COEFFICIENTS[0]);
            for coefficient in &COEFFICIENTS[1..] {
                sum = _mm512_fmadd_ps(sum, fraction, _mm512_set1_ps(*coefficient));
            }
            _mm512_scalef_ps(_mm512_fmadd_ps(sum, fraction, _mm512_set1_ps(1.0)), x)
        }
    }
}

/// What is stored in pairs and widens to bf16 exactly.
pub(crate) trait PairElement: Pod + Send + Sync {
    fn load_pairs(simd: Avx512Bf16, x: &[[Self; 2]; LANES]) -> __m512bh;
}

impl PairElement for bf16 {
    #[inline(always)]
    fn load_pairs(simd: Avx512Bf16, x: &[[bf16; 2]; LANES]) -> __m512bh {
        simd.load(bytemuck::cast_ref(x))
    }
}

impl PairElement for E4m3 {
    #[inline(always)]
    fn load_pairs(simd: Avx512Bf16, x: &[[E4m3; 2]; LANES]) -> __m512bh {
        simd.look_up(bytemuck::cast_ref(x), &E4m3::BF16)
    }
}

impl PairElement for E5m2 {
    #[inline(always)]
    fn load_pairs(simd: Avx512Bf16, x: &[[E5m2; 2]; LANES]) -> __m512bh {
        simd.look_up(bytemuck::cast_ref(x), &E5m2::BF16)
    }
}

impl Avx512Bf16 {
    /// The bf16 of 32 codes, whose lower seven bits number the entries of `magnitudes` and whose highest is the sign.
    #[inline(always)]
    fn look_up(self, codes: &[u8; 2 * LANES], magnitudes: &[u16; 128]) -> __m512bh {
        let quarter = |at: usize| {
            // SAFETY: `self` proves AVX-512F; the unaligned load ends at entry 32 · at + 32 <= 128.
            unsafe { _mm512_loadu_si512(magnitudes[32 * at..].as_ptr().cast()) }
        };
        let quarters = [quarter(0), quarter(1), quarter(2), quarter(3)];
        // SAFETY: `self` proves AVX-512F and BW; the load is an unaligned one of a whole array of 32 bytes.
        unsafe {
            let codes = _mm512_cvtepu8_epi16(_mm256_loadu_si256(codes.as_ptr().cast()));
            let low = _mm512_permutex2var_epi16(quarters[0], codes, quarters[1]);
            let high = _mm512_permutex2var_epi16(quarters[2], codes, quarters[3]);
            let is_high = _mm512_test_epi16_mask(codes, _mm512_set1_epi16(0x40));
            let magnitude = _mm512_mask_blend_epi16(is_high, low, high);
            let sign = _mm512_and_si512(_mm512_slli_epi16::<8>(codes), _mm512_set1_epi16(i16::MIN));
            std::mem::transmute::<__m512i, __m512bh>(_mm512_or_si512(magnitude, sign))
        }
    }
}

/// Rounds a tile of rows of activations to pairs, to nearest, ties to even, and packs them in the order in which the steps over
/// pairs read them. An odd end is paired with zero.
pub(crate) struct PackPairs<'a> {
    /// `[rows][row_len]`.
    pub(crate) x: &'a [f32],
    /// Inputs.
    pub(crate) row_len: usize,
    /// Rows of the tile.
    pub(crate) rows: usize,
    /// `[ceil(row_len / 2)][rows]`.
    pub(crate) pairs: &'a mut [Pair],
}

impl PairKernel for PackPairs<'_> {
    #[inline(always)]
    fn run(self, simd: Avx512Bf16) {
        match self.rows {
            1 => self.pack_one(simd),
            8 => self.pack_eight(simd),
            _ => self.pack_some(simd),
        }
    }
}

impl PackPairs<'_> {
    #[inline(always)]
    fn pack_one(self, simd: Avx512Bf16) {
        let (vectors, rest) = self.x.as_chunks();
        let (whole, last) = self.pairs.as_chunks_mut();
        vectors.iter().zip(whole).for_each(|(x, pairs)| simd.round_to(x, pairs));
        last.iter_mut().zip(rest.chunks(2)).for_each(|(pair, x)| *pair = round_pair(x));
    }

    #[inline(always)]
    fn pack_some(self, simd: Avx512Bf16) {
        let mut rounded = [0; LANES];
        for (at, row) in self.x.chunks_exact(self.row_len).enumerate() {
            let (vectors, rest) = row.as_chunks::<{ 2 * LANES }>();
            let mut places = self.pairs[at..].iter_mut().step_by(self.rows);
            for x in vectors {
                simd.round_to(x, &mut rounded);
                rounded.iter().zip(places.by_ref()).for_each(|(pair, place)| *place = *pair);
            }
            places.zip(rest.chunks(2)).for_each(|(place, x)| *place = round_pair(x));
        }
    }

    /// Eight rows are most of the rows there are: sixteen pairs of each at a time, turned in the first-level cache.
    #[inline(always)]
    fn pack_eight(self, simd: Avx512Bf16) {
        let rows: [&[f32]; 8] = std::array::from_fn(|row| &self.x[row * self.row_len..][..self.row_len]);
        let steps = self.pairs.as_chunks_mut::<8>().0;
        let whole = self.row_len / (2 * LANES);
        let mut rounded = [[0; LANES]; 8];
        for (at, block) in steps.chunks_mut(LANES).enumerate() {
            let first = at * 2 * LANES;
            for (row, rounded) in rows.iter().zip(&mut rounded) {
                match row[first..].first_chunk() {
                    Some(x) if at < whole => simd.round_to(x, rounded),
                    _ => rounded.iter_mut().zip(row[first..].chunks(2)).for_each(|(pair, x)| *pair = round_pair(x)),
                }
            }
            for (step, pairs) in block.iter_mut().enumerate() {
                *pairs = std::array::from_fn(|row| rounded[row][step]);
            }
        }
    }
}

/// Rounds one or two inputs to a pair, to nearest, ties to even.
pub(crate) fn round_pair(x: &[f32]) -> Pair {
    let round = |x: f32| Pair::from(bf16::from_f32(x).to_bits());
    round(x[0]) | x.get(1).map_or(0, |x| round(*x) << 16)
}
