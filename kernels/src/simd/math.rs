//! Elementary functions on vectors.

use super::Simd;

/// e^x with a relative error below 2e-7; 0 below -87.33 (where the result would be subnormal), e^88.3 above 88.3.
///
/// x = n·ln 2 + r with |r| <= ln(2)/2; e^r by its Taylor polynomial of degree 7, whose remainder is r^8/8! < 6e-9.
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::V) -> S::V {
    const SMALLEST: f32 = -87.33;
    const LARGEST: f32 = 88.3;
    // ln 2 in two parts: the first has 9 trailing zero bits, so n times it is exact for |n| <= 127.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    const TAYLOR: [f32; 8] = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];

    // min and max return their second operand if one is NaN, so a NaN of x comes through to the sum.
    let clamped = simd.max(simd.splat(SMALLEST), simd.min(simd.splat(LARGEST), x));
    let n = simd.round(simd.mul(clamped, simd.splat(std::f32::consts::LOG2_E)));
    let r = simd.fma(n, simd.splat(-LN_2_HIGH), clamped);
    let r = simd.fma(n, simd.splat(-LN_2_LOW), r);
    let mut sum = simd.splat(TAYLOR[0]);
    for coefficient in &TAYLOR[1..] {
        sum = simd.fma(sum, r, simd.splat(*coefficient));
    }
    let value = simd.mul(sum, simd.exp2_integral(n));
    simd.zero_if_lt(x, simd.splat(SMALLEST), value)
}

/// x / (1 + e^-x).
#[inline(always)]
pub(crate) fn silu<S: Simd>(simd: S, x: S::V) -> S::V {
    let negated = simd.sub(simd.splat(0.0), x);
    simd.div(x, simd.add(simd.splat(1.0), exp(simd, negated)))
}

#[cfg(test)]
mod tests {
    use super::super::{Isa, Kernel, LANES, Lanes};
    use super::*;

    struct Exp(Lanes);

    impl Kernel for Exp {
        type Output = Lanes;

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Lanes {
            simd.to_array(exp(simd, simd.load(&self.0)))
        }
    }

    #[test]
    fn exp_is_accurate_and_alike_on_every_instruction_set() {
        let mut worst = 0.0f64;
        for step in 0..200_000 {
            let x: Lanes = std::array::from_fn(|lane| -87.3 + (step * LANES + lane) as f32 * (175.0 / 3_200_000.0));
            let values = Isa::available().into_iter().map(|isa| isa.run(Exp(x)).map(f32::to_bits)).collect::<Vec<_>>();
            assert!(values.iter().all(|v| *v == values[0]), "instruction sets disagree at {x:?}");
            for lane in 0..LANES {
                let exact = (x[lane] as f64).exp();
                worst = worst.max((f32::from_bits(values[0][lane]) as f64 / exact - 1.0).abs());
            }
        }
        assert!(worst < 2e-7, "relative error {worst:e}");
    }

    #[test]
    fn exp_at_its_ends() {
        let mut x = [0.0; LANES];
        x[..6].copy_from_slice(&[f32::NEG_INFINITY, -88.0, -0.0, 89.0, f32::INFINITY, f32::NAN]);
        for isa in Isa::available() {
            let y = isa.run(Exp(x));
            assert_eq!((y[0], y[1], y[2]), (0.0, 0.0, 1.0), "{}", isa.name());
            assert!(y[3] > 2e38 && y[4] > 2e38 && y[3].is_finite() && y[5].is_nan(), "{}: {y:?}", isa.name());
        }
    }
}
