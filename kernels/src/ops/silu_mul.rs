//! The gate of a gated MLP: SiLU of one half of a row times the other.

use crate::contract::{expect_activations, expect_device, expect_matrix, expect_vectors};
use crate::cuda::{Argument, KernelName};
use crate::simd::{Kernel, LANES, Simd, load_partial, silu, store_partial};
use crate::{Device, Result, Tensor};

/// `out[t, i] = silu(gate_up[t, i]) * gate_up[t, I + i]` with `silu(x) = x / (1 + e^-x)`.
///
/// # Shapes
/// `out`: `[T, I]`; `gate_up`: `[T, 2·I]`, the gate first.
/// # Errors
/// [`Error::Shape`](crate::Error::Shape), [`Error::DType`](crate::Error::DType).
///
/// Source: arXiv:2002.05202 (SwiGLU); transformers `LlamaMLP`.
pub fn silu_mul(out: &mut Tensor, gate_up: &Tensor) -> Result<()> {
    expect_activations("silu_mul", &[("out", out), ("gate_up", gate_up)])?;
    expect_matrix("silu_mul", "gate_up", gate_up, out.rows(), 2 * out.cols())?;
    let cols = out.cols();
    match out.device().clone() {
        Device::Cpu(cpu) => {
            expect_device("silu_mul", out.device(), &[("gate_up", gate_up)])?;
            let gate_up = gate_up.as_f32();
            // An exponential costs about eight visits.
            cpu.for_rows(&mut out.as_f32_mut(), cols, 8 * cols, |first, part| {
                let gate_up = &gate_up[first * 2 * cols..][..2 * part.len()];
                cpu.isa.run(SiluMul { out: part, gate_up, cols });
            });
        }
        Device::Cuda(cuda) => {
            expect_device("silu_mul", out.device(), &[("gate_up", gate_up)])?;
            expect_vectors("silu_mul", cols)?;
            let arguments =
                [Argument::Pointer(out.address()), Argument::Pointer(gate_up.address()), Argument::count(cols)];
            let grid = [cols.div_ceil(8 * CUDA_THREADS), out.rows(), 1];
            // SAFETY: silu_mul.cu: rows of `cols` whole vectors, twice as many in `gate_up` (checked above); tensors live as long as
            // their stream's work.
            unsafe { cuda.launch(KernelName::of("silu_mul", out.dtype()), grid, CUDA_THREADS, &arguments)? };
        }
        Device::Plan(ledger) => ledger.count("silu_mul", out.bytes() + gate_up.bytes(), 4 * out.len()),
    }
    Ok(())
}

/// Threads of a block, as `silu_mul.cu` has them, each with a vector.
const CUDA_THREADS: usize = 128;

struct SiluMul<'a> {
    out: &'a mut [f32],
    gate_up: &'a [f32],
    cols: usize,
}

impl Kernel for SiluMul<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (out, gate_up) in self.out.chunks_exact_mut(self.cols).zip(self.gate_up.chunks_exact(2 * self.cols)) {
            let (gate, up) = gate_up.split_at(self.cols);
            for ((out, gate), up) in out.chunks_mut(LANES).zip(gate.chunks(LANES)).zip(up.chunks(LANES)) {
                let gate = silu(simd, load_partial(simd, gate, 0.0));
                store_partial(simd, simd.mul(gate, load_partial(simd, up, 0.0)), out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::ops::testing::{assert_close, bits, cpus, random};

    fn definition(gate_up: &[f32], cols: usize) -> Vec<f32> {
        let row = |row: &[f32]| {
            let row: Vec<f64> = row.iter().map(|x| *x as f64).collect();
            (0..cols).map(|i| (row[i] / (1.0 + (-row[i]).exp()) * row[cols + i]) as f32).collect::<Vec<_>>()
        };
        gate_up.chunks_exact(2 * cols).flat_map(row).collect()
    }

    #[test]
    fn arms_match_the_definition_and_each_other() {
        for (rows, cols) in [(0, 3), (1, 1), (2, 16), (5, 33), (33, 517)] {
            let values: Vec<f32> = random(5, rows * 2 * cols).iter().map(|x| x * 20.0).collect();
            let expected = definition(&values, cols);
            let mut first: Option<Vec<u32>> = None;
            for device in cpus() {
                let gate_up = Tensor::from_slice(&device, &[rows, 2 * cols], &values).unwrap();
                let mut out = Tensor::zeros(&device, &[rows, cols], DType::F32).unwrap();
                silu_mul(&mut out, &gate_up).unwrap();
                let context = format!("{} [{rows}, {cols}]", device.describe());
                // Three roundings of 6e-8 and the exponential's 2e-7.
                assert_close(&out.as_f32(), &expected, 5e-7, &context);
                assert_eq!(*first.get_or_insert_with(|| bits(&out.as_f32())), bits(&out.as_f32()), "{context}");
            }
        }
    }
}
