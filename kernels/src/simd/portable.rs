//! Plain arrays, for every other machine: slow where the target has no fused multiply-add, and still the same bits.

use half::{bf16, f16};

use super::{E4M3_FACTOR, E4M3_IN_F32, E4m3, E5m2, Element, Kernel, LANES, Lanes, Simd};

/// No instruction set beyond the target's own.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> Lanes {
    std::array::from_fn(f)
}

impl Simd for Portable {
    type V = Lanes;
    const ACCUMULATORS: usize = 6;

    #[inline]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Lanes {
        [x; LANES]
    }

    #[inline(always)]
    fn load(self, x: &Lanes) -> Lanes {
        *x
    }

    #[inline(always)]
    fn load_bf16(self, x: &[bf16; LANES]) -> Lanes {
        each(|i| x[i].to_f32())
    }

    #[inline(always)]
    fn load_f16(self, x: &[f16; LANES]) -> Lanes {
        each(|i| x[i].to_f32())
    }

    #[inline(always)]
    fn load_e4m3(self, x: &[u8; LANES]) -> Lanes {
        let widened = |byte: u8| i32::from(byte.cast_signed()).cast_unsigned() << 20 & E4M3_IN_F32;
        each(|i| f32::from_bits(widened(x[i])) * E4M3_FACTOR)
    }

    #[inline(always)]
    fn load_e4m3_any(self, x: &[E4m3; LANES]) -> Lanes {
        each(|i| x[i].to_f32())
    }

    #[inline(always)]
    fn load_e5m2(self, x: &[E5m2; LANES]) -> Lanes {
        each(|i| x[i].to_f32())
    }

    #[inline(always)]
    fn store(self, x: Lanes, out: &mut Lanes) {
        *out = x;
    }

    #[inline(always)]
    fn add(self, a: Lanes, b: Lanes) -> Lanes {
        each(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: Lanes, b: Lanes) -> Lanes {
        each(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: Lanes, b: Lanes) -> Lanes {
        each(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn div(self, a: Lanes, b: Lanes) -> Lanes {
        each(|i| a[i] / b[i])
    }

    #[inline(always)]
    fn fma(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        each(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn max(self, a: Lanes, b: Lanes) -> Lanes {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn min(self, a: Lanes, b: Lanes) -> Lanes {
        each(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn round(self, x: Lanes) -> Lanes {
        each(|i| x[i].round_ties_even())
    }

    #[inline(always)]
    fn exp2_integral(self, x: Lanes) -> Lanes {
        each(|i| f32::from_bits(((x[i] as i32 + 127) << 23) as u32))
    }

    #[inline(always)]
    fn zero_if_lt(self, x: Lanes, bound: Lanes, value: Lanes) -> Lanes {
        each(|i| if x[i] < bound[i] { 0.0 } else { value[i] })
    }
}
