//! LayerNorm, alone and fused with the residual addition before it.

use crate::contract::{expect_activations, expect_device, expect_f32, expect_len, expect_matrix, expect_vectors};
use crate::cuda::{Argument, KernelName};
use crate::simd::{Kernel, LANES, Simd, load_partial, store_partial};
use crate::{Device, Result, Tensor};

/// What a norm scales by and shifts to.
#[derive(Clone, Copy)]
pub struct LayerScale<'a> {
    /// `[E]` f32.
    pub weight: &'a Tensor,
    /// `[E]` f32.
    pub bias: &'a Tensor,
    /// The constant inside the root.
    pub eps: f32,
}

/// Shifts each row of `x` to mean zero and scales it to unit variance, then by a weight, and adds a bias:
/// `out[t, e] = (x[t, e] - mean(x[t, :])) / sqrt(var(x[t, :]) + eps) * weight[e] + bias[e]`.
///
/// # Shapes
/// `out`, `x`: `[T, E]`; weight and bias: `[E]` f32.
/// # Errors
/// [`Error::Shape`](crate::Error::Shape), [`Error::DType`](crate::Error::DType).
///
/// Source: arXiv:1607.06450; torch `LayerNorm`.
pub fn layer_norm(out: &mut Tensor, x: &Tensor, scale: LayerScale<'_>) -> Result<()> {
    const OP: &str = "layer_norm";
    let LayerScale { weight, bias, eps } = scale;
    expect_activations(OP, &[("out", out), ("x", x)])?;
    expect_scale(OP, scale, out.cols())?;
    expect_matrix(OP, "x", x, out.rows(), out.cols())?;
    let cols = out.cols();
    match out.device().clone() {
        Device::Cpu(cpu) => {
            expect_device(OP, out.device(), &[("x", x), ("weight", weight), ("bias", bias)])?;
            let (x, weight, bias) = (x.as_f32(), &*weight.as_f32(), &*bias.as_f32());
            cpu.for_rows(&mut out.as_f32_mut(), cols, 3 * cols, |first, out| {
                cpu.isa.run(Norm { x: &x[first * cols..][..out.len()], weight, bias, eps, out });
            });
        }
        Device::Cuda(cuda) => {
            expect_device(OP, out.device(), &[("x", x), ("weight", weight), ("bias", bias)])?;
            expect_vectors(OP, cols)?;
            let pointers = [out.address(), x.address(), weight.address(), bias.address()].map(Argument::Pointer);
            let arguments = [&pointers[..], &[Argument::F32(eps), Argument::count(cols)]].concat();
            let grid = [out.rows(), 1, 1];
            // SAFETY: layer_norm.cu: a block per row of whole vectors, shapes alike (checked above); tensors live as long as their
            // stream's work.
            unsafe { cuda.launch(KernelName::of(OP, out.dtype()), grid, CUDA_THREADS, &arguments)? };
        }
        Device::Plan(ledger) => {
            ledger.count(OP, out.bytes() + x.bytes() + weight.bytes() + bias.bytes(), 7 * x.len());
        }
    }
    Ok(())
}

/// Adds `x` to `residual`, then normalises the sum into `out`.
///
/// # Shapes
/// `out`, `residual`, `x`: `[T, E]`; weight and bias: `[E]` f32.
/// # Errors
/// As [`layer_norm`].
pub fn add_layer_norm(out: &mut Tensor, residual: &mut Tensor, x: &Tensor, scale: LayerScale<'_>) -> Result<()> {
    const OP: &str = "add_layer_norm";
    let LayerScale { weight, bias, eps } = scale;
    expect_activations(OP, &[("out", out), ("residual", residual), ("x", x)])?;
    expect_scale(OP, scale, out.cols())?;
    expect_matrix(OP, "residual", residual, out.rows(), out.cols())?;
    expect_matrix(OP, "x", x, out.rows(), out.cols())?;
    let cols = out.cols();
    match out.device().clone() {
        Device::Cpu(cpu) => {
            let inputs: [(&str, &Tensor); 4] = [("residual", residual), ("x", x), ("weight", weight), ("bias", bias)];
            expect_device(OP, out.device(), &inputs)?;
            let (x, weight, bias) = (x.as_f32(), &*weight.as_f32(), &*bias.as_f32());
            let mut residual = residual.as_f32_mut();
            // Both outputs are cut into the same rows: each piece of the sum is normalised by the thread that made it.
            cpu.for_rows_of_two(&mut residual, &mut out.as_f32_mut(), cols, 4 * cols, |first, residual, out| {
                let x = &x[first * cols..][..out.len()];
                cpu.isa.run(AddNorm { residual, x, weight, bias, eps, out });
            });
        }
        Device::Cuda(cuda) => {
            let inputs: [(&str, &Tensor); 4] = [("residual", residual), ("x", x), ("weight", weight), ("bias", bias)];
            expect_device(OP, out.device(), &inputs)?;
            expect_vectors(OP, cols)?;
            let pointers = [out.address(), residual.address(), x.address(), weight.address(), bias.address()];
            let numbers = [Argument::F32(eps), Argument::count(cols)];
            let arguments = [&pointers.map(Argument::Pointer)[..], &numbers].concat();
            let grid = [out.rows(), 1, 1];
            // SAFETY: layer_norm.cu: a block per row of whole vectors, shapes alike (checked above); tensors live as long as their
            // stream's work.
            unsafe { cuda.launch(KernelName::of(OP, out.dtype()), grid, CUDA_THREADS, &arguments)? };
        }
        Device::Plan(ledger) => ledger.count(OP, 4 * out.bytes() + weight.bytes() + bias.bytes(), 8 * x.len()),
    }
    Ok(())
}

fn expect_scale(op: &'static str, scale: LayerScale<'_>, cols: usize) -> Result<()> {
    expect_f32(op, &[("weight", scale.weight), ("bias", scale.bias)])?;
    expect_len(op, "weight", scale.weight, cols)?;
    expect_len(op, "bias", scale.bias, cols)
}

/// Threads of a row, as `layer_norm.cu` has them.
const CUDA_THREADS: usize = 256;

struct Norm<'a> {
    out: &'a mut [f32],
    x: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    eps: f32,
}

impl Kernel for Norm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let cols = self.weight.len();
        for (out, x) in self.out.chunks_exact_mut(cols).zip(self.x.chunks_exact(cols)) {
            norm_row(simd, out, x, self.weight, self.bias, self.eps);
        }
    }
}

struct AddNorm<'a> {
    out: &'a mut [f32],
    residual: &'a mut [f32],
    x: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    eps: f32,
}

impl Kernel for AddNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let cols = self.weight.len();
        let rows = self.out.chunks_exact_mut(cols).zip(self.residual.chunks_exact_mut(cols));
        for ((out, residual), x) in rows.zip(self.x.chunks_exact(cols)) {
            for (residual, x) in residual.chunks_mut(LANES).zip(x.chunks(LANES)) {
                let sum = simd.add(load_partial(simd, residual, 0.0), load_partial(simd, x, 0.0));
                store_partial(simd, sum, residual);
            }
            norm_row(simd, out, residual, self.weight, self.bias, self.eps);
        }
    }
}

/// The order of additions depends on the length of the row alone: one chain per lane, then the lanes as a tree. The variance comes from
/// differences to the mean: of squares alone a large mean would leave nothing.
#[inline(always)]
fn norm_row<S: Simd>(simd: S, out: &mut [f32], x: &[f32], weight: &[f32], bias: &[f32], eps: f32) {
    let mut sum = simd.splat(0.0);
    for x in x.chunks(LANES) {
        sum = simd.add(sum, load_partial(simd, x, 0.0));
    }
    let mean = simd.sum(sum) / x.len() as f32;
    let mut squares = simd.splat(0.0);
    for x in x.chunks(LANES) {
        // What the last vector lacks is no difference.
        let difference = simd.sub(load_partial(simd, x, mean), simd.splat(mean));
        squares = simd.fma(difference, difference, squares);
    }
    let scale = 1.0 / (simd.sum(squares) / x.len() as f32 + eps).sqrt();
    let (mean, scale) = (simd.splat(mean), simd.splat(scale));
    let columns = out.chunks_mut(LANES).zip(x.chunks(LANES)).zip(weight.chunks(LANES)).zip(bias.chunks(LANES));
    for (((out, x), weight), bias) in columns {
        let normal = simd.mul(simd.sub(load_partial(simd, x, 0.0), mean), scale);
        let scaled = simd.fma(normal, load_partial(simd, weight, 0.0), load_partial(simd, bias, 0.0));
        store_partial(simd, scaled, out);
    }
}

/// What the op means: plain loops in f64.
#[cfg(test)]
fn definition(x: &[f32], weight: &[f32], bias: &[f32], eps: f32) -> Vec<f32> {
    let row = |x: &[f32]| {
        let cols = x.len() as f64;
        let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / cols;
        let variance = x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / cols;
        let scale = 1.0 / (variance + f64::from(eps)).sqrt();
        let of = |((x, weight), bias): ((&f32, &f32), &f32)| {
            ((f64::from(*x) - mean) * scale * f64::from(*weight) + f64::from(*bias)) as f32
        };
        x.iter().zip(weight).zip(bias).map(of).collect::<Vec<_>>()
    };
    x.chunks_exact(weight.len()).flat_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_close, bits, cpus, random, random_tensor};

    /// f32 sums of up to 5000 terms in 16 chains, and differences to a mean ten times the deviation, which lose one digit.
    const TOLERANCE: f32 = 5e-6;
    const SHAPES: [[usize; 2]; 6] = [[0, 8], [1, 1], [3, 16], [7, 33], [2, 5000], [64, 256]];
    const EPS: f32 = 1e-5;

    #[test]
    fn arms_match_the_definition_and_each_other() {
        for shape in SHAPES {
            let x: Vec<f32> = random(1, shape[0] * shape[1]).iter().map(|x| 5.0 + x).collect();
            let expected = definition(&x, &random(2, shape[1]), &random(3, shape[1]), EPS);
            let mut first: Option<Vec<u32>> = None;
            for device in cpus() {
                let context = format!("{} {shape:?}", device.describe());
                let [weight, bias] = [2, 3].map(|seed| random_tensor(&device, seed, &[shape[1]]));
                let x = Tensor::from_slice(&device, &shape, &x).unwrap();
                let mut out = random_tensor(&device, 4, &shape);
                layer_norm(&mut out, &x, LayerScale { weight: &weight, bias: &bias, eps: EPS }).unwrap();
                assert_close(&out.as_f32(), &expected, TOLERANCE, &context);
                assert_eq!(*first.get_or_insert_with(|| bits(&out.as_f32())), bits(&out.as_f32()), "{context}");
            }
        }
    }

    #[test]
    fn the_fused_addition_is_an_addition_and_a_norm() {
        for device in cpus() {
            for shape in SHAPES {
                let [weight, bias] = [2, 3].map(|seed| random_tensor(&device, seed, &[shape[1]]));
                let scale = LayerScale { weight: &weight, bias: &bias, eps: EPS };
                let x = random_tensor(&device, 1, &shape);
                let (mut fused, mut plain) = (random_tensor(&device, 5, &shape), random_tensor(&device, 5, &shape));
                let (mut residual, mut sum) = (random_tensor(&device, 4, &shape), random_tensor(&device, 4, &shape));
                add_layer_norm(&mut fused, &mut residual, &x, scale).unwrap();
                crate::ops::add(&mut sum, &x).unwrap();
                layer_norm(&mut plain, &sum, scale).unwrap();
                assert_eq!(bits(&residual.as_f32()), bits(&sum.as_f32()));
                assert_eq!(bits(&fused.as_f32()), bits(&plain.as_f32()));
            }
        }
    }
}
