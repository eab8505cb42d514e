//! What a row's experts made of it, weighted and summed.

use super::{ExpertRoutes, with_words};
use crate::contract::{expect_activations, expect_device, expect_matrix, expect_vectors};
use crate::cuda::{Argument, KernelName};
use crate::{Device, Result, Tensor};

/// `out[t] = sum of weights[t, j] · x[places[t, j]]` over the row's experts by ascending number, in f32, rounded once.
///
/// # Shapes
/// `out`: `[T, E]`; `x`: `[T · k, E]`, sorted as [`gather`](super::gather()) does.
/// # Errors
/// [`Error::Shape`](crate::Error::Shape), [`Error::DType`](crate::Error::DType).
///
/// Source: transformers `MixtralExperts`, which adds in the same order, in the model's type.
pub fn combine(out: &mut Tensor, x: &Tensor, routes: &ExpertRoutes) -> Result<()> {
    const OP: &str = "combine";
    expect_activations(OP, &[("out", out), ("x", x)])?;
    expect_matrix(OP, "out", out, routes.experts.rows(), x.cols())?;
    expect_matrix(OP, "x", x, routes.pairs(), out.cols())?;
    let (cols, per_row) = (out.cols(), routes.experts_per_row());
    let lists = [("x", x), ("routes", &routes.places)];
    match out.device().clone() {
        Device::Cpu(cpu) => {
            expect_device(OP, out.device(), &lists)?;
            let (x, weights) = (&*x.as_f32(), &*routes.weights.as_f32());
            with_words(&routes.places, |places: &[u32]| {
                cpu.for_rows(&mut out.as_f32_mut(), cols, per_row * cols, |first, part| {
                    for (row, out) in (first..).zip(part.chunks_exact_mut(cols)) {
                        let pairs = row * per_row..(row + 1) * per_row;
                        out.fill(0.0);
                        for (weight, place) in weights[pairs.clone()].iter().zip(&places[pairs]) {
                            let x = &x[*place as usize * cols..][..cols];
                            out.iter_mut().zip(x).for_each(|(out, x)| *out += weight * x);
                        }
                    }
                });
            });
        }
        Device::Cuda(cuda) => {
            expect_device(OP, out.device(), &lists)?;
            expect_vectors(OP, cols)?;
            let pointers = [out.address(), x.address(), routes.weights.address(), routes.places.address()];
            let arguments = [&pointers.map(Argument::Pointer)[..], &[per_row, cols].map(Argument::count)[..]].concat();
            let name = KernelName::of("combine_experts", out.dtype());
            // SAFETY: experts.cu: a block per row of `out`, lists of `per_row` places that are rows of `x`, whole vectors (checked above
            // and made by `route`); tensors live as long as their stream's work.
            unsafe { cuda.launch(name, [out.rows(), 1, 1], CUDA_THREADS, &arguments)? };
        }
        Device::Plan(ledger) => {
            let list_bytes = routes.weights.bytes() + routes.places.bytes();
            ledger.count(OP, out.bytes() + x.bytes() + list_bytes, 2 * x.len());
        }
    }
    Ok(())
}

/// Threads of a block, as `experts.cu` has them.
const CUDA_THREADS: usize = 128;
