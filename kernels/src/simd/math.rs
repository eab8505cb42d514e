//! Elementary functions on vectors.

use super::Simd;

/// e^x with a relative error below 2e-7; 0 below -87.33 (where the result would be subnormal), e^88.3 above 88.3.
///
/// x = n·ln 2 + r with |r| <= ln(2)/2; e^r = 1 + r · p(r) by its Taylor polynomial of degree 7, whose remainder is r^8/8! < 6e-9.
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::V) -> S::V {
    const SMALLEST: f32 = -87.33;
    const LARGEST: f32 = 88.3;

    // min and max return their second operand if one is NaN, so a NaN of x comes through to the sum.
    let clamped = simd.max(simd.splat(SMALLEST), simd.min(simd.splat(LARGEST), x));
    let (n, r) = in_halvings(simd, clamped);
    let sum = simd.fma(polynomial(simd, &EXP, r), r, simd.splat(1.0));
    let value = simd.mul(sum, simd.exp2_integral(n));
    simd.zero_if_lt(x, simd.splat(SMALLEST), value)
}

/// Of p in e^r = 1 + r · p(r), the highest power first.
const EXP: [f32; 7] = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0];

/// n and r of x = n·ln 2 + r, |x| < 88.3.
#[inline(always)]
fn in_halvings<S: Simd>(simd: S, x: S::V) -> (S::V, S::V) {
    // ln 2 in two parts: the first has 9 trailing zero bits, so n times it is exact for |n| <= 127.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let n = simd.round(simd.mul(x, simd.splat(std::f32::consts::LOG2_E)));
    let r = simd.fma(n, simd.splat(-LN_2_HIGH), x);
    (n, simd.fma(n, simd.splat(-LN_2_LOW), r))
}

/// The highest power's coefficient comes first.
#[inline(always)]
fn polynomial<S: Simd>(simd: S, coefficients: &[f32], x: S::V) -> S::V {
    let mut sum = simd.splat(coefficients[0]);
    for coefficient in &coefficients[1..] {
        sum = simd.fma(sum, x, simd.splat(*coefficient));
    }
    sum
}

/// The hyperbolic tangent with a relative error below 4e-7.
///
/// (e^2x - 1) / (e^2x + 1), with e^2x - 1 = 2^n · (e^r - 1) + (2^n - 1): where x is small, n is 0, and nothing cancels.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(simd: S, x: S::V) -> S::V {
    // From here on the result is 1 in f32.
    const LARGEST: f32 = 20.0;
    let doubled = simd.max(simd.splat(-LARGEST), simd.min(simd.splat(LARGEST), simd.add(x, x)));
    let (n, r) = in_halvings(simd, doubled);
    let power = simd.exp2_integral(n);
    let less_one = simd.mul(polynomial(simd, &EXP, r), r);
    let less_one = simd.fma(less_one, power, simd.sub(power, simd.splat(1.0)));
    simd.div(less_one, simd.add(less_one, simd.splat(2.0)))
}

/// x / (1 + e^-x).
#[inline(always)]
pub(crate) fn silu<S: Simd>(simd: S, x: S::V) -> S::V {
    let negated = simd.sub(simd.splat(0.0), x);
    simd.div(x, simd.add(simd.splat(1.0), exp(simd, negated)))
}

/// x · Φ(x), Φ the distribution function of the normal distribution: x / 2 · (1 + erf(x / √2)). 0 at -∞, its limit.
///
/// max(x, 0) - |x| / 2 · erfc(|x| / √2): what is subtracted has a relative error below 4e-7 of its own, so nothing cancels on the side
/// where the result is small. erfc(z) · e^z² is t times a polynomial of t = 1 / (1 + 0.3 z), fitted to 2.5e-8 for z up to 9.6.
#[inline(always)]
pub(crate) fn gelu<S: Simd>(simd: S, x: S::V) -> S::V {
    // Beyond this the exponential is 0.
    const LARGEST: f32 = 13.5;
    const SCALED_ERFC: [f32; 9] = [
        -0.130_559_98,
        0.490_904_72,
        -0.524_018_1,
        0.562_070_2,
        -0.105_296_28,
        0.219_823_15,
        0.146_977_81,
        0.170_923_96,
        0.169_174_5,
    ];
    let zero = simd.splat(0.0);
    let above = simd.max(zero, x);
    let magnitude = simd.min(simd.splat(LARGEST), simd.max(simd.sub(zero, x), x));
    let t = simd.fma(magnitude, simd.splat(0.3 * std::f32::consts::FRAC_1_SQRT_2), simd.splat(1.0));
    let t = simd.div(simd.splat(1.0), t);
    let half = simd.mul(magnitude, simd.splat(0.5));
    let tail = simd.mul(simd.mul(half, t), polynomial(simd, &SCALED_ERFC, t));
    let below = simd.mul(tail, exp(simd, simd.sub(zero, simd.mul(half, magnitude))));
    simd.sub(above, below)
}

/// x / 2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))), which is x / (1 + e^-2u) with u what the tangent is taken of.
#[inline(always)]
pub(crate) fn gelu_tanh<S: Simd>(simd: S, x: S::V) -> S::V {
    // 2 · √(2/π).
    const SCALE: f32 = 1.595_769;
    let inner = simd.fma(simd.mul(x, x), simd.splat(-SCALE * 0.044_715), simd.splat(-SCALE));
    simd.div(x, simd.add(simd.splat(1.0), exp(simd, simd.mul(x, inner))))
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

    struct Tanh(Lanes);

    impl Kernel for Tanh {
        type Output = Lanes;

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Lanes {
            simd.to_array(tanh(simd, simd.load(&self.0)))
        }
    }

    #[test]
    fn tanh_is_accurate_and_alike_on_every_instruction_set() {
        let mut worst = 0.0f64;
        for step in 0..40_000 {
            // From 1e-6 on, by steps of a fortieth of a thousandth.
            let magnitude = |lane: usize| 1e-6 * 1.000_027f32.powf((step * LANES + lane) as f32);
            let x: Lanes = std::array::from_fn(|lane| if lane % 2 == 0 { magnitude(lane) } else { -magnitude(lane) });
            let values = Isa::available().into_iter().map(|isa| isa.run(Tanh(x)).map(f32::to_bits)).collect::<Vec<_>>();
            assert!(values.iter().all(|v| *v == values[0]), "instruction sets disagree at {x:?}");
            for lane in 0..LANES {
                let exact = (x[lane] as f64).tanh();
                worst = worst.max((f32::from_bits(values[0][lane]) as f64 / exact - 1.0).abs());
            }
        }
        assert!(worst < 4e-7, "relative error {worst:e}");
        let mut ends = [0.0; LANES];
        ends[..4].copy_from_slice(&[f32::NEG_INFINITY, f32::INFINITY, 0.0, f32::NAN]);
        for isa in Isa::available() {
            let y = isa.run(Tanh(ends));
            assert!(y[..3] == [-1.0, 1.0, 0.0] && y[3].is_nan(), "{}: {y:?}", isa.name());
        }
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
