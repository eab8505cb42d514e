//! Puts matrices beside each other: the logits of all ranks, each of which has computed those of its tokens.

use crate::contract::{expect_device, expect_f32, expect_matrix};
use crate::cuda::{Argument, KernelName};
use crate::{Device, Error, Result, Tensor};

/// Column c of `out` becomes column `c % stride` of part `c / stride`; what the parts have beyond them is dropped.
///
/// # Shapes
/// `out`: `[S, V]`; `parts`: `[P, S, stride]` with P · stride ≥ V; f32.
/// # Errors
/// [`Error::Shape`], [`Error::DType`], [`Error::UnsupportedDevice`].
pub fn concat_columns(out: &mut Tensor, parts: &Tensor) -> Result<()> {
    const OP: &str = "concat_columns";
    expect_f32(OP, &[("out", out), ("parts", parts)])?;
    let (rows, cols) = (out.rows(), out.cols());
    let &[num_parts, _, stride] = parts.shape() else {
        return Err(Error::Shape {
            op: OP,
            arg: "parts",
            expected: vec![1, rows, cols],
            actual: parts.shape().to_vec(),
        });
    };
    expect_matrix(OP, "parts", parts, num_parts * rows, stride)?;
    if num_parts * stride < cols {
        let expected = vec![cols.div_ceil(stride.max(1)), rows, stride];
        return Err(Error::Shape { op: OP, arg: "parts", expected, actual: parts.shape().to_vec() });
    }
    match out.device().clone() {
        Device::Cpu(cpu) => {
            expect_device(OP, out.device(), &[("parts", parts)])?;
            let parts = parts.as_f32();
            cpu.for_rows(&mut out.as_f32_mut(), cols, cols, |first, part| {
                for (row, out) in (first..).zip(part.chunks_exact_mut(cols)) {
                    for (index, columns) in out.chunks_mut(stride).enumerate() {
                        columns.copy_from_slice(&parts[(index * rows + row) * stride..][..columns.len()]);
                    }
                }
            });
        }
        Device::Cuda(cuda) => {
            expect_device(OP, out.device(), &[("parts", parts)])?;
            let pointers = [out.address(), parts.address()].map(Argument::Pointer);
            let arguments = [&pointers[..], &[rows, cols, stride].map(Argument::count)].concat();
            let grid = [cols.div_ceil(CUDA_THREADS), rows.min(MAX_GRID_ROWS), 1];
            // SAFETY: ranks.cu: parts for all columns of `out`, of as many rows (checked above); tensors live as long as
            // their stream's work.
            unsafe { cuda.launch(KernelName::plain(OP), grid, CUDA_THREADS, &arguments)? };
        }
        Device::Plan(ledger) => ledger.count(OP, 2 * out.bytes(), 0),
    }
    Ok(())
}

/// Threads of a block, as `ranks.cu` has them.
const CUDA_THREADS: usize = 256;

/// Blocks along the rows: enough to fill a GPU with the columns of any vocabulary.
const MAX_GRID_ROWS: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::cpus;

    #[test]
    fn parts_lie_beside_each_other() {
        for device in cpus() {
            for (rows, cols, stride) in [(1, 5, 5), (3, 7, 4), (2, 300, 128), (2, 3, 2), (0, 4, 2)] {
                // One more than are needed: a rank without a token.
                let num_parts = usize::div_ceil(cols, stride) + 1;
                let value = |row: usize, col: usize| (row * 1000 + col) as f32;
                let of_part = |part: usize| {
                    (0..rows).flat_map(move |row| (0..stride).map(move |col| value(row, part * stride + col)))
                };
                let values: Vec<f32> = (0..num_parts).flat_map(of_part).collect();
                let parts = Tensor::from_slice(&device, &[num_parts, rows, stride], &values).unwrap();
                let mut out = Tensor::from_slice(&device, &[rows, cols], &vec![f32::NAN; rows * cols]).unwrap();
                concat_columns(&mut out, &parts).unwrap();
                let expected: Vec<f32> = (0..rows).flat_map(|row| (0..cols).map(move |col| value(row, col))).collect();
                assert_eq!(*out.as_f32(), expected, "{}", device.describe());
            }
        }
    }

    #[test]
    fn parts_that_are_too_few_are_refused() {
        let device = &cpus()[0];
        let parts = Tensor::zeros(device, &[1, 1, 3], crate::DType::F32).unwrap();
        let mut out = Tensor::zeros(device, &[1, 4], crate::DType::F32).unwrap();
        let error = concat_columns(&mut out, &parts).unwrap_err();
        let (expected, actual) = (vec![2, 1, 3], vec![1, 1, 3]);
        assert_eq!(error, Error::Shape { op: "concat_columns", arg: "parts", expected, actual });
    }
}
