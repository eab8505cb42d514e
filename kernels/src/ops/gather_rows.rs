//! Picks rows: the last row of every prompt before the output layer, so that only sampled rows pay for the vocabulary.

use crate::contract::{expect_activations, expect_below, expect_device, expect_entries, expect_matrix, expect_vectors};
use crate::cuda::{Argument, Cuda, KernelName};
use crate::{Cpu, Device, Indices, Result, Tensor};

/// Copies row `rows[s]` of `x` to row `s` of `out`.
///
/// # Shapes
/// `out`: `[S, E]`; `x`: `[T, E]`; `rows`: S indices below T.
/// # Errors
/// [`Error::Shape`](crate::Error::Shape), [`Error::DType`](crate::Error::DType), [`Error::Index`](crate::Error::Index).
pub fn gather_rows<'a>(out: &mut Tensor, x: &Tensor, rows: impl Into<Indices<'a>>) -> Result<()> {
    let indices = rows.into();
    let rows = indices.host();
    expect_activations("gather_rows", &[("out", out), ("x", x)])?;
    expect_entries("gather_rows", "rows", rows.len(), out.rows())?;
    expect_matrix("gather_rows", "out", out, rows.len(), x.cols())?;
    expect_below("gather_rows", "rows", rows, x.rows())?;
    match out.device().clone() {
        Device::Cpu(cpu) => {
            expect_device("gather_rows", out.device(), &[("x", x)])?;
            cpu_arm(&cpu, out, x, rows);
        }
        Device::Cuda(cuda) => {
            expect_device("gather_rows", out.device(), &[("x", x)])?;
            let rows = indices.address("gather_rows", "rows")?;
            // SAFETY: as many rows as `out` has, below those of `x` (checked above).
            unsafe { cuda_arm(&cuda, out, x, rows)? };
        }
        Device::Plan(ledger) => ledger.count("gather_rows", 2 * out.bytes(), 0),
    }
    Ok(())
}

/// Shapes were checked, and that rows lie below those of `x`.
pub(super) fn cpu_arm(cpu: &Cpu, out: &mut Tensor, x: &Tensor, rows: &[u32]) {
    let (x, cols) = (x.as_f32(), x.cols());
    cpu.for_rows(&mut out.as_f32_mut(), cols, cols, |first, part| {
        for (out, row) in part.chunks_exact_mut(cols).zip(&rows[first..]) {
            out.copy_from_slice(&x[*row as usize * cols..][..cols]);
        }
    });
}

/// Of tensors of one type and width.
///
/// # Safety
/// At `rows` are as many numbers as `out` has rows, below the number of rows of `x`, when the stream comes to it.
pub(super) unsafe fn cuda_arm(cuda: &Cuda, out: &mut Tensor, x: &Tensor, rows: u64) -> Result<()> {
    expect_vectors("gather_rows", x.cols())?;
    let arguments = [out.address(), x.address(), rows].map(Argument::Pointer);
    let arguments = [&arguments[..], &[Argument::count(x.cols())]].concat();
    // SAFETY: gather_rows.cu: a block per row of `out`, columns alike and whole vectors (checked above), rows of `x` (the caller's
    // obligation); tensors live as long as their stream's work.
    unsafe { cuda.launch(KernelName::of("gather_rows", x.dtype()), [out.rows(), 1, 1], CUDA_THREADS, &arguments) }
}

/// Threads of a block, as `gather_rows.cu` has them.
const CUDA_THREADS: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
    use crate::ops::testing::{cpus, random, random_tensor};

    #[test]
    fn rows_are_copied_in_order() {
        for device in cpus() {
            for (cols, rows) in [(3, vec![]), (1, vec![4]), (700, vec![4, 0, 0, 3, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 4, 1])]
            {
                let x = random_tensor(&device, 7, &[5, cols]);
                let mut out = random_tensor(&device, 8, &[rows.len(), cols]);
                gather_rows(&mut out, &x, &rows).unwrap();
                let source = random(7, 5 * cols);
                let expected: Vec<f32> =
                    rows.iter().flat_map(|row| source[*row as usize * cols..][..cols].to_vec()).collect();
                assert_eq!(*out.as_f32(), expected, "{}", device.describe());
            }
        }
    }

    #[test]
    fn a_row_beyond_the_end_is_refused() {
        let device = &cpus()[0];
        let (x, mut out) = (random_tensor(device, 1, &[2, 3]), random_tensor(device, 2, &[1, 3]));
        let error = gather_rows(&mut out, &x, &[2]).unwrap_err();
        assert_eq!(error, Error::Index { op: "gather_rows", arg: "rows", index: 2, limit: 2 });
    }
}
