//! RMSNorm, alone, in place, per head, and fused with the residual addition before it.

use std::ops::Range;

use crate::contract::{expect_activations, expect_device, expect_f32, expect_len, expect_matrix, expect_vectors};
use crate::cuda::{Argument, Cuda, KernelName};
use crate::simd::{Kernel, LANES, Simd, load_partial, store_partial};
use crate::{Device, Error, Result, Tensor};

/// What a norm scales by.
#[derive(Clone, Copy)]
pub struct RmsScale<'a> {
    /// `[E]` f32.
    pub weight: &'a Tensor,
    /// The constant inside the root.
    pub eps: f32,
    /// Whether what is normalised is rounded to the type of activations before it is multiplied by the weight, as transformers'
    /// `LlamaRMSNorm` does, or once only, as `GemmaRMSNorm`. On the processor, whose activations are f32, that is the same.
    pub rounds_first: bool,
}

impl RmsScale<'_> {
    /// Those of a kernel behind its pointers, over rows of `cols`.
    pub(crate) fn arguments(&self, cols: usize) -> [Argument; 3] {
        [Argument::F32(self.eps), Argument::U32(u32::from(self.rounds_first)), Argument::count(cols)]
    }
}

/// Scales each row of `x` to unit root-mean-square, then by a weight:
/// `out[t, e] = x[t, e] / sqrt(mean(x[t, :]²) + eps) * weight[e]`.
///
/// # Shapes
/// `out`, `x`: `[T, E]`; the weight: `[E]` f32.
/// # Errors
/// [`Error::Shape`], [`Error::DType`].
///
/// Source: arXiv:1910.07467; transformers `LlamaRMSNorm`.
pub fn rms_norm(out: &mut Tensor, x: &Tensor, scale: RmsScale<'_>) -> Result<()> {
    let RmsScale { weight, eps, .. } = scale;
    expect_activations("rms_norm", &[("out", out), ("x", x)])?;
    expect_f32("rms_norm", &[("weight", weight)])?;
    expect_matrix("rms_norm", "x", x, out.rows(), out.cols())?;
    expect_len("rms_norm", "weight", weight, out.cols())?;
    let cols = out.cols();
    match out.device().clone() {
        Device::Cpu(cpu) => {
            expect_device("rms_norm", out.device(), &[("x", x), ("weight", weight)])?;
            let (x, weight) = (x.as_f32(), &*weight.as_f32());
            cpu.for_rows(&mut out.as_f32_mut(), cols, 2 * cols, |first, out| {
                cpu.isa.run(Norm { x: &x[first * cols..][..out.len()], weight, eps, out });
            });
        }
        Device::Cuda(cuda) => {
            expect_device("rms_norm", out.device(), &[("x", x), ("weight", weight)])?;
            expect_vectors("rms_norm", cols)?;
            // SAFETY: shapes are alike (checked above).
            unsafe { launch_rows(&cuda, out, x.address(), scale)? };
        }
        Device::Plan(ledger) => ledger.count("rms_norm", out.bytes() + x.bytes() + weight.bytes(), 4 * x.len()),
    }
    Ok(())
}

/// The kernel of whole rows, of what lies at `x`, which may be `out` itself.
///
/// # Safety
/// `x` has the shape of `out`, and the weight a row's.
unsafe fn launch_rows(cuda: &Cuda, out: &mut Tensor, x: u64, scale: RmsScale<'_>) -> Result<()> {
    let pointers = [out.address(), x, scale.weight.address()].map(Argument::Pointer);
    let arguments = [&pointers[..], &scale.arguments(out.cols())].concat();
    let (name, grid) = (KernelName::of("rms_norm", out.dtype()), [out.rows(), 1, 1]);
    // SAFETY: rms_norm.cu: a block per row of whole vectors, of which a thread reads no more behind its first write than what it wrote
    // itself; shapes are alike (the caller's obligation); tensors live as long as their stream's work.
    unsafe { cuda.launch(name, grid, CUDA_ROW_THREADS, &arguments) }
}

/// [`rms_norm`] of `x` into itself.
///
/// # Errors
/// As [`rms_norm`].
pub fn rms_norm_in_place(x: &mut Tensor, scale: RmsScale<'_>) -> Result<()> {
    let cols = x.cols();
    in_place("rms_norm_in_place", x, 0..1, cols, scale)
}

/// Normalises some heads of a packed row, each by itself: QK-norm on the output of the packed projection. Heads
/// `0..H` are the queries and `H..H + K` the keys of a `[T, (H + 2·K)·D]` tensor.
///
/// # Shapes
/// `x`: `[T, heads·D]`; `heads` the ones to normalise; the weight: `[D]` f32.
/// # Errors
/// As [`rms_norm`]; [`Error::Index`] if a row has fewer heads.
///
/// Source: transformers `Qwen3Attention` (q_norm, k_norm).
pub fn head_rms_norm(x: &mut Tensor, heads: Range<usize>, scale: RmsScale<'_>) -> Result<()> {
    in_place("head_rms_norm", x, heads, scale.weight.len(), scale)
}

fn in_place(op: &'static str, x: &mut Tensor, heads: Range<usize>, dim: usize, scale: RmsScale<'_>) -> Result<()> {
    let RmsScale { weight, eps, .. } = scale;
    expect_activations(op, &[("x", x)])?;
    expect_f32(op, &[("weight", weight)])?;
    expect_len(op, "weight", weight, dim)?;
    let cols = x.cols();
    if heads.end * dim > cols {
        return Err(Error::Index { op, arg: "heads", index: heads.end, limit: cols / dim.max(1) + 1 });
    }
    let columns = heads.start * dim..heads.end * dim;
    match x.device().clone() {
        Device::Cpu(cpu) => {
            expect_device(op, x.device(), &[("weight", weight)])?;
            let weight = &*weight.as_f32();
            cpu.for_rows(&mut x.as_f32_mut(), cols, 2 * columns.len(), |_, part| {
                for row in part.chunks_exact_mut(cols) {
                    cpu.isa.run(NormInPlace { x: &mut row[columns.clone()], weight, eps });
                }
            });
        }
        Device::Cuda(cuda) => {
            expect_device(op, x.device(), &[("weight", weight)])?;
            expect_vectors(op, dim)?;
            expect_vectors(op, cols)?;
            if dim == cols {
                let address = x.address();
                // SAFETY: it is `x` itself, and the weight is as long as a row (checked above).
                return unsafe { launch_rows(&cuda, x, address, scale) };
            }
            let pointers = [x.address(), weight.address()].map(Argument::Pointer);
            let counts = [heads.start, dim].map(Argument::count);
            let arguments = [&pointers[..], &scale.arguments(cols), &counts].concat();
            let grid = [x.rows(), heads.len(), 1];
            // SAFETY: rms_norm.cu: a warp per row and head, heads inside of a row, whole vectors (checked above); tensors live as long
            // as their stream's work.
            unsafe { cuda.launch(KernelName::of("head_rms_norm", x.dtype()), grid, CUDA_HEAD_THREADS, &arguments)? };
        }
        Device::Plan(ledger) => {
            let elements = x.rows() * columns.len();
            ledger.count(op, 2 * x.dtype().size_bytes() * elements + weight.bytes(), 4 * elements);
        }
    }
    Ok(())
}

/// Adds `x` to `residual`, then normalises the sum into `out`.
///
/// # Shapes
/// `out`, `residual`, `x`: `[T, E]`; the weight: `[E]` f32.
/// # Errors
/// As [`rms_norm`].
pub fn add_rms_norm(out: &mut Tensor, residual: &mut Tensor, x: &Tensor, scale: RmsScale<'_>) -> Result<()> {
    let RmsScale { weight, eps, .. } = scale;
    expect_activations("add_rms_norm", &[("out", out), ("residual", residual), ("x", x)])?;
    expect_f32("add_rms_norm", &[("weight", weight)])?;
    expect_matrix("add_rms_norm", "residual", residual, out.rows(), out.cols())?;
    expect_matrix("add_rms_norm", "x", x, out.rows(), out.cols())?;
    expect_len("add_rms_norm", "weight", weight, out.cols())?;
    let cols = out.cols();
    match out.device().clone() {
        Device::Cpu(cpu) => {
            expect_device("add_rms_norm", out.device(), &[("residual", residual), ("x", x), ("weight", weight)])?;
            let (x, weight) = (x.as_f32(), &*weight.as_f32());
            let mut residual = residual.as_f32_mut();
            // Both outputs are cut into the same rows: each piece of the sum is normalised by the thread that made it.
            cpu.for_rows_of_two(&mut residual, &mut out.as_f32_mut(), cols, 3 * cols, |first, residual, out| {
                let x = &x[first * cols..][..out.len()];
                cpu.isa.run(AddNorm { residual, x, weight, eps, out });
            });
        }
        Device::Cuda(cuda) => {
            let inputs: [(&str, &Tensor); 3] = [("residual", residual), ("x", x), ("weight", weight)];
            expect_device("add_rms_norm", out.device(), &inputs)?;
            expect_vectors("add_rms_norm", cols)?;
            let addresses = [out.address(), residual.address(), x.address(), weight.address()].map(Argument::Pointer);
            let arguments = [&addresses[..], &scale.arguments(cols)].concat();
            let grid = [out.rows(), 1, 1];
            // SAFETY: rms_norm.cu: a block per row of whole vectors, shapes alike (checked above); tensors live as long as their
            // stream's work.
            unsafe { cuda.launch(KernelName::of("add_rms_norm", out.dtype()), grid, CUDA_ROW_THREADS, &arguments)? };
        }
        Device::Plan(ledger) => ledger.count("add_rms_norm", 4 * out.bytes() + weight.bytes(), 5 * x.len()),
    }
    Ok(())
}

/// Threads of a row and of a head, as `rms_norm.cu` has them.
const CUDA_ROW_THREADS: usize = 256;
const CUDA_HEAD_THREADS: usize = 32;

struct Norm<'a> {
    out: &'a mut [f32],
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
}

impl Kernel for Norm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let cols = self.weight.len();
        for (out, x) in self.out.chunks_exact_mut(cols).zip(self.x.chunks_exact(cols)) {
            norm_row(simd, out, x, self.weight, self.eps);
        }
    }
}

struct NormInPlace<'a> {
    x: &'a mut [f32],
    weight: &'a [f32],
    eps: f32,
}

impl Kernel for NormInPlace<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for x in self.x.chunks_exact_mut(self.weight.len()) {
            let scale = simd.splat(inverse_rms(simd, x, self.eps));
            for (x, weight) in x.chunks_mut(LANES).zip(self.weight.chunks(LANES)) {
                let scaled = simd.mul(load_partial(simd, x, 0.0), scale);
                store_partial(simd, simd.mul(scaled, load_partial(simd, weight, 0.0)), x);
            }
        }
    }
}

struct AddNorm<'a> {
    out: &'a mut [f32],
    residual: &'a mut [f32],
    x: &'a [f32],
    weight: &'a [f32],
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
            norm_row(simd, out, residual, self.weight, self.eps);
        }
    }
}

#[inline(always)]
fn norm_row<S: Simd>(simd: S, out: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
    let scale = simd.splat(inverse_rms(simd, x, eps));
    for ((out, x), weight) in out.chunks_mut(LANES).zip(x.chunks(LANES)).zip(weight.chunks(LANES)) {
        let scaled = simd.mul(load_partial(simd, x, 0.0), scale);
        store_partial(simd, simd.mul(scaled, load_partial(simd, weight, 0.0)), out);
    }
}

/// The order of additions depends on the length of the row alone: one chain per lane, then the lanes as a tree.
#[inline(always)]
fn inverse_rms<S: Simd>(simd: S, x: &[f32], eps: f32) -> f32 {
    let mut squares = simd.splat(0.0);
    for x in x.chunks(LANES) {
        let x = load_partial(simd, x, 0.0);
        squares = simd.fma(x, x, squares);
    }
    1.0 / (simd.sum(squares) / x.len() as f32 + eps).sqrt()
}

/// What the op means: plain loops, summed in f64.
#[cfg(test)]
fn definition(out: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
    let cols = weight.len();
    for (out, x) in out.chunks_exact_mut(cols).zip(x.chunks_exact(cols)) {
        let squares: f64 = x.iter().map(|x| *x as f64 * *x as f64).sum();
        let scale = 1.0 / (squares / cols as f64 + eps as f64).sqrt();
        for e in 0..cols {
            out[e] = (x[e] as f64 * scale * weight[e] as f64) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_close, bits, cpus, random, random_tensor};

    /// f32 sums of up to 5000 positive terms in 16 chains (relative error below 313 roundings of 6e-8, in practice far
    /// less), halved by the square root.
    const TOLERANCE: f32 = 2e-6;
    const SHAPES: [[usize; 2]; 6] = [[0, 8], [1, 1], [3, 16], [7, 33], [2, 5000], [64, 256]];
    const EPS: f32 = 1e-5;

    fn scale(weight: &Tensor) -> RmsScale<'_> {
        RmsScale { weight, eps: EPS, rounds_first: true }
    }

    #[test]
    fn arms_match_the_definition_and_each_other() {
        for shape in SHAPES {
            let (x, weight) = (random(1, shape[0] * shape[1]), random(2, shape[1]));
            let mut expected = vec![0.0; x.len()];
            definition(&mut expected, &x, &weight, EPS);
            let mut first: Option<Vec<u32>> = None;
            for device in cpus() {
                let context = format!("{} {shape:?}", device.describe());
                let weight = random_tensor(&device, 2, &[shape[1]]);
                let mut x = random_tensor(&device, 1, &shape);
                let mut out = random_tensor(&device, 3, &shape);
                rms_norm(&mut out, &x, scale(&weight)).unwrap();
                assert_close(&out.as_f32(), &expected, TOLERANCE, &context);
                assert_eq!(*first.get_or_insert_with(|| bits(&out.as_f32())), bits(&out.as_f32()), "{context}");
                rms_norm_in_place(&mut x, scale(&weight)).unwrap();
                assert_eq!(bits(&x.as_f32()), bits(&out.as_f32()), "{context} in place");
            }
        }
    }

    #[test]
    fn the_fused_addition_is_an_addition_and_a_norm() {
        for device in cpus() {
            for shape in SHAPES {
                let (x, weight) = (random_tensor(&device, 1, &shape), random_tensor(&device, 2, &[shape[1]]));
                let (mut fused, mut plain) = (random_tensor(&device, 3, &shape), random_tensor(&device, 3, &shape));
                let (mut residual, mut sum) = (random_tensor(&device, 4, &shape), random_tensor(&device, 4, &shape));
                add_rms_norm(&mut fused, &mut residual, &x, scale(&weight)).unwrap();
                crate::ops::add(&mut sum, &x).unwrap();
                rms_norm(&mut plain, &sum, scale(&weight)).unwrap();
                assert_eq!(bits(&residual.as_f32()), bits(&sum.as_f32()));
                assert_eq!(bits(&fused.as_f32()), bits(&plain.as_f32()));
            }
        }
    }

    #[test]
    fn heads_are_normalised_alone_and_others_left_as_they_are() {
        for device in cpus() {
            for dim in [1, 24, 80] {
                let mut x = random_tensor(&device, 5, &[9, 5 * dim]);
                let weight = random_tensor(&device, 6, &[dim]);
                head_rms_norm(&mut x, 1..4, scale(&weight)).unwrap();
                let mut heads = random_tensor(&device, 5, &[9 * 5, dim]);
                rms_norm_in_place(&mut heads, scale(&weight)).unwrap();
                let (before, after, x_bits) = (random(5, 9 * 5 * dim), heads.as_f32(), bits(&x.as_f32()));
                for head in 0..9 * 5 {
                    let expected = if (1..4).contains(&(head % 5)) { &after[..] } else { &before[..] };
                    assert_eq!(x_bits[head * dim..][..dim], bits(&expected[head * dim..][..dim]));
                }
                assert!(matches!(
                    head_rms_norm(&mut x, 4..6, scale(&weight)),
                    Err(Error::Index { index: 6, limit: 6, .. })
                ));
            }
        }
    }
}
