//! The activation of an MLP: alone, or of one half of a row as the gate of the other.

use crate::contract::{expect_activations, expect_device, expect_matrix, expect_vectors};
use crate::cuda::{Argument, KernelName};
use crate::limits::MAX_CUDA_GRID_Y;
use crate::simd::{Kernel, LANES, Simd, gelu, gelu_tanh, load_partial, silu, store_partial};
use crate::{Device, Result, Tensor};

/// What an MLP applies between its two products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + e^-x)` (arXiv:1702.03118).
    Silu,
    /// `x / 2 · (1 + erf(x / √2))` (arXiv:1606.08415).
    Gelu,
    /// `x / 2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))`, which is nearly the same.
    GeluTanh,
}

/// `out[t, i] = f(x[t, i])`, or where `x` has twice as many columns `f(x[t, i]) * x[t, I + i]`: then the gate comes first.
///
/// # Shapes
/// `out`: `[T, I]`; `x`: `[T, I]` or `[T, 2·I]`.
/// # Errors
/// [`Error::Shape`](crate::Error::Shape), [`Error::DType`](crate::Error::DType).
///
/// Source: arXiv:2002.05202 (gates); transformers `LlamaMLP`, `GemmaMLP`, `Starcoder2MLP`.
pub fn activate(out: &mut Tensor, x: &Tensor, activation: Activation) -> Result<()> {
    const OP: &str = "activate";
    expect_activations(OP, &[("out", out), ("x", x)])?;
    let cols = out.cols();
    let is_gated = x.cols() != cols;
    expect_matrix(OP, "x", x, out.rows(), if is_gated { 2 * cols } else { cols })?;
    match out.device().clone() {
        Device::Cpu(cpu) => {
            expect_device(OP, out.device(), &[("x", x)])?;
            let (x, row) = (x.as_f32(), x.cols());
            // An exponential costs about eight visits.
            cpu.for_rows(&mut out.as_f32_mut(), cols, 8 * cols, |first, part| {
                let x = &x[first * row..][..part.len() / cols.max(1) * row];
                cpu.isa.run(Activate { out: part, x, cols, activation });
            });
        }
        Device::Cuda(cuda) => {
            expect_device(OP, out.device(), &[("x", x)])?;
            expect_vectors(OP, cols)?;
            let name = match (activation, is_gated) {
                (Activation::Silu, false) => "silu",
                (Activation::Silu, true) => "silu_mul",
                (Activation::Gelu, false) => "gelu",
                (Activation::Gelu, true) => "gelu_mul",
                (Activation::GeluTanh, false) => "gelu_tanh",
                (Activation::GeluTanh, true) => "gelu_tanh_mul",
            };
            // Of experts there may be more rows than a grid has blocks along its second extent.
            for first in (0..out.rows()).step_by(MAX_CUDA_GRID_Y) {
                let rows = MAX_CUDA_GRID_Y.min(out.rows() - first);
                let [to, from] = [(out.address(), cols), (x.address(), x.cols())]
                    .map(|(start, cols)| start + (first * cols * out.dtype().size_bytes()) as u64)
                    .map(Argument::Pointer);
                let grid = [cols.div_ceil(8 * CUDA_THREADS), rows, 1];
                let arguments = [to, from, Argument::count(cols)];
                // SAFETY: activation.cu: rows of `cols` whole vectors, with a gate twice as many in `x` (checked above); tensors live as
                // long as their stream's work.
                unsafe { cuda.launch(KernelName::of(name, out.dtype()), grid, CUDA_THREADS, &arguments)? };
            }
        }
        Device::Plan(ledger) => ledger.count(OP, out.bytes() + x.bytes(), 4 * out.len()),
    }
    Ok(())
}

/// Threads of a block, as `activation.cu` has them, each with a vector.
const CUDA_THREADS: usize = 128;

struct Activate<'a> {
    out: &'a mut [f32],
    x: &'a [f32],
    cols: usize,
    activation: Activation,
}

impl Kernel for Activate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.activation {
            Activation::Silu => self.each(simd, silu),
            Activation::Gelu => self.each(simd, gelu),
            Activation::GeluTanh => self.each(simd, gelu_tanh),
        }
    }
}

impl Activate<'_> {
    #[inline(always)]
    fn each<S: Simd>(self, simd: S, f: impl Fn(S, S::V) -> S::V) {
        let Activate { out, x, cols, .. } = self;
        if x.len() == out.len() {
            for (out, x) in out.chunks_mut(LANES).zip(x.chunks(LANES)) {
                store_partial(simd, f(simd, load_partial(simd, x, 0.0)), out);
            }
            return;
        }
        for (out, row) in out.chunks_exact_mut(cols).zip(x.chunks_exact(2 * cols)) {
            let (gate, up) = row.split_at(cols);
            for ((out, gate), up) in out.chunks_mut(LANES).zip(gate.chunks(LANES)).zip(up.chunks(LANES)) {
                let gate = f(simd, load_partial(simd, gate, 0.0));
                store_partial(simd, simd.mul(gate, load_partial(simd, up, 0.0)), out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_close, bits, cpus, random};
    use crate::{DType, Error};

    /// In f64, the error function by the integral of its derivative: Simpson's rule with steps of a thousandth at most.
    fn definition(x: f64, activation: Activation) -> f64 {
        match activation {
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::Gelu => {
                let z = x / 2f64.sqrt();
                let (steps, f) = (20_000, |z: f64| (-z * z).exp());
                let step = z / f64::from(steps);
                let inner: f64 = (1..steps).map(|i| f(f64::from(i) * step) * if i % 2 == 1 { 4.0 } else { 2.0 }).sum();
                let erf = (f(0.0) + inner + f(z)) * step / 3.0 * std::f64::consts::FRAC_2_SQRT_PI;
                x / 2.0 * (1.0 + erf)
            }
            Activation::GeluTanh => {
                x / 2.0 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
            }
        }
    }

    #[test]
    fn arms_match_the_definition_and_each_other() {
        for activation in [Activation::Silu, Activation::Gelu, Activation::GeluTanh] {
            for (rows, cols) in [(0, 3), (1, 1), (2, 16), (5, 33), (3, 517)] {
                let values: Vec<f32> = random(5, rows * 2 * cols).iter().map(|x| x * 14.0).collect();
                let expected: Vec<f64> = values.iter().map(|x| definition(f64::from(*x), activation)).collect();
                let gated: Vec<f32> = (0..rows * cols)
                    .map(|at| {
                        let at = at / cols * 2 * cols + at % cols;
                        (expected[at] * f64::from(values[at + cols])) as f32
                    })
                    .collect();
                let plain: Vec<f32> = expected.iter().map(|x| *x as f32).collect();
                for (out_shape, expected) in [([rows, cols], gated), ([rows, 2 * cols], plain)] {
                    let mut first: Option<Vec<u32>> = None;
                    for device in cpus() {
                        let x = Tensor::from_slice(&device, &[rows, 2 * cols], &values).unwrap();
                        let mut out = Tensor::zeros(&device, &out_shape, DType::F32).unwrap();
                        activate(&mut out, &x, activation).unwrap();
                        let context = format!("{activation:?} {} {out_shape:?}", device.describe());
                        // A few roundings of 6e-8 and the exponential's 2e-7.
                        assert_close(&out.as_f32(), &expected, 6e-7, &context);
                        assert_eq!(*first.get_or_insert_with(|| bits(&out.as_f32())), bits(&out.as_f32()), "{context}");
                    }
                }
            }
        }
        let device = &cpus()[0];
        let [x, mut out] = [9, 4].map(|cols| Tensor::zeros(device, &[2, cols], DType::F32).unwrap());
        let error = activate(&mut out, &x, Activation::Gelu).unwrap_err();
        assert!(matches!(error, Error::Shape { arg: "x", .. }), "{error}");
    }
}
