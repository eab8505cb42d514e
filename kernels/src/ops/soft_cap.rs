//! Logits that level off.

use crate::contract::expect_f32;
use crate::cuda::{Argument, KernelName};
use crate::simd::{Kernel, LANES, Simd, load_partial, store_partial, tanh};
use crate::{Device, Result, Tensor};

/// `x[i] = cap · tanh(x[i] / cap)`.
///
/// # Shapes
/// `x`: any, f32.
/// # Errors
/// [`Error::DType`](crate::Error::DType).
///
/// Source: arXiv:2408.00118 (logit soft-capping); transformers `Gemma2ForCausalLM`.
pub fn soft_cap(x: &mut Tensor, cap: f32) -> Result<()> {
    const OP: &str = "soft_cap";
    expect_f32(OP, &[("x", x)])?;
    match x.device().clone() {
        Device::Cpu(cpu) => {
            // A tangent costs about ten visits.
            cpu.for_rows(&mut x.as_f32_mut(), 1, 10, |_, x| cpu.isa.run(SoftCap { x, cap }));
        }
        Device::Cuda(cuda) => {
            let arguments = [Argument::Pointer(x.address()), Argument::F32(cap), Argument::count(x.len())];
            let grid = [x.len().div_ceil(CUDA_THREADS), 1, 1];
            // SAFETY: soft_cap.cu: `len` numbers; the tensor lives as long as its stream's work.
            unsafe { cuda.launch(KernelName::plain(OP), grid, CUDA_THREADS, &arguments)? };
        }
        Device::Plan(ledger) => ledger.count(OP, 2 * x.bytes(), 10 * x.len()),
    }
    Ok(())
}

/// Threads of a block, as `soft_cap.cu` has them.
const CUDA_THREADS: usize = 256;

struct SoftCap<'a> {
    x: &'a mut [f32],
    cap: f32,
}

impl Kernel for SoftCap<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let cap = simd.splat(self.cap);
        for x in self.x.chunks_mut(LANES) {
            let share = simd.div(load_partial(simd, x, 0.0), cap);
            store_partial(simd, simd.mul(cap, tanh(simd, share)), x);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_close, bits, cpus, random};

    #[test]
    fn arms_match_the_definition_and_each_other() {
        const CAP: f32 = 30.0;
        for shape in [[0, 5], [1, 1], [3, 517]] {
            let values: Vec<f32> = random(7, shape[0] * shape[1]).iter().map(|x| x * 200.0).collect();
            let define = |x: &f32| (f64::from(CAP) * (f64::from(*x) / f64::from(CAP)).tanh()) as f32;
            let expected: Vec<f32> = values.iter().map(define).collect();
            let mut first: Option<Vec<u32>> = None;
            for device in cpus() {
                let mut x = Tensor::from_slice(&device, &shape, &values).unwrap();
                soft_cap(&mut x, CAP).unwrap();
                // The tangent's 4e-7 and a rounding of each division and product.
                assert_close(&x.as_f32(), &expected, 6e-7, &device.describe());
                assert_eq!(*first.get_or_insert_with(|| bits(&x.as_f32())), bits(&x.as_f32()), "{}", device.describe());
            }
        }
    }
}
