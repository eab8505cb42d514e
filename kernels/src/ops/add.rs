//! Elementwise addition, for residuals.

use crate::contract::{expect_activations, expect_device, expect_matrix, expect_vectors};
use crate::cuda::{Argument, KernelName};
use crate::simd::{Kernel, LANES, Simd, load_partial, store_partial};
use crate::{Device, Result, Tensor};

/// Adds `x` to `inout`.
///
/// # Shapes
/// `inout`, `x`: `[T, E]`.
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if they disagree, [`Error::DType`](crate::Error::DType) if their types do.
pub fn add(inout: &mut Tensor, x: &Tensor) -> Result<()> {
    expect_activations("add", &[("inout", inout), ("x", x)])?;
    expect_matrix("add", "x", x, inout.rows(), inout.cols())?;
    match inout.device().clone() {
        Device::Cpu(cpu) => {
            expect_device("add", inout.device(), &[("x", x)])?;
            let x = x.as_f32();
            cpu.for_rows(&mut inout.as_f32_mut(), 1, 1, |first, out| {
                cpu.isa.run(Add { x: &x[first..first + out.len()], out });
            });
        }
        Device::Cuda(cuda) => {
            expect_device("add", inout.device(), &[("x", x)])?;
            expect_vectors("add", x.len())?;
            let arguments =
                [Argument::Pointer(inout.address()), Argument::Pointer(x.address()), Argument::count(x.len())];
            let grid = [x.len().div_ceil(8 * CUDA_THREADS), 1, 1];
            // SAFETY: add.cu: `len` elements of both (shapes checked above), whole vectors; tensors live as long as their stream's work.
            unsafe { cuda.launch(KernelName::of("add", x.dtype()), grid, CUDA_THREADS, &arguments)? };
        }
        Device::Plan(ledger) => ledger.count("add", 3 * x.bytes(), x.len()),
    }
    Ok(())
}

/// Threads of a block, as `add.cu` has them, each with a vector.
const CUDA_THREADS: usize = 256;

struct Add<'a> {
    out: &'a mut [f32],
    x: &'a [f32],
}

impl Kernel for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (out, x) in self.out.chunks_mut(LANES).zip(self.x.chunks(LANES)) {
            let sum = simd.add(load_partial(simd, out, 0.0), load_partial(simd, x, 0.0));
            store_partial(simd, sum, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{cpus, random, random_tensor};

    #[test]
    fn adds() {
        for device in cpus() {
            for shape in [[0, 5], [1, 1], [3, 17], [40, 511]] {
                let x = random_tensor(&device, 1, &shape);
                let mut inout = random_tensor(&device, 2, &shape);
                add(&mut inout, &x).unwrap();
                let len = shape[0] * shape[1];
                let expected: Vec<f32> = random(1, len).iter().zip(random(2, len)).map(|(a, b)| a + b).collect();
                assert_eq!(*inout.as_f32(), expected, "{} {shape:?}", device.describe());
            }
        }
    }
}
