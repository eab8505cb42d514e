//! Looks token ids up in the embedding table, of which a rank may hold only a part.

use crate::contract::{expect_entries, expect_f32, expect_matrix, expect_memory};
use crate::simd::{Element, Kernel, LANES, Simd, store_partial, with_element};
use crate::{Cpu, Device, Result, Tensor};

/// Row `ids[t] - first_id` of `table`, or zeros where the id lies outside of the table: summed over the ranks of a
/// vocabulary-parallel table, each row comes from exactly one of them.
///
/// # Shapes
/// `out`: `[T, E]` f32; `ids`: T; `table`: `[V', E]` of any dtype, the ids `first_id..first_id + V'`.
/// # Errors
/// [`Error::Shape`](crate::Error::Shape), [`Error::DType`](crate::Error::DType).
pub fn embedding(out: &mut Tensor, ids: &[u32], table: &Tensor, first_id: u32) -> Result<()> {
    expect_f32("embedding", &[("out", out)])?;
    expect_entries("embedding", "ids", ids.len(), out.rows())?;
    expect_matrix("embedding", "out", out, ids.len(), table.cols())?;
    match out.device().clone() {
        Device::Cpu(cpu) => {
            expect_memory("embedding", &[("table", table)])?;
            with_element!(table.dtype(), T => cpu_arm::<T>(&cpu, out, ids, table, first_id));
        }
        Device::Plan(ledger) => {
            ledger.count("embedding", out.bytes() + out.len() * table.dtype().size_bytes(), 0);
        }
    }
    Ok(())
}

fn cpu_arm<T: Element>(cpu: &Cpu, out: &mut Tensor, ids: &[u32], table: &Tensor, first_id: u32) {
    let (cols, num_rows) = (table.cols(), table.rows());
    let table = table.as_elements::<T>();
    cpu.for_rows(&mut out.as_f32_mut(), cols, cols, |first, part| {
        for (out, id) in part.chunks_exact_mut(cols).zip(&ids[first..]) {
            match id.checked_sub(first_id).map(|row| row as usize) {
                Some(row) if row < num_rows => cpu.isa.run(Widen { out, x: &table[row * cols..][..cols] }),
                _ => out.fill(0.0),
            }
        }
    });
}

struct Widen<'a, T> {
    out: &'a mut [f32],
    x: &'a [T],
}

impl<T: Element> Kernel for Widen<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (vectors, tail) = self.x.as_chunks::<LANES>();
        let (out, out_tail) = self.out.split_at_mut(vectors.len() * LANES);
        for (out, x) in out.chunks_exact_mut(LANES).zip(vectors) {
            store_partial(simd, T::load(simd, x), out);
        }
        let mut last = [T::zeroed(); LANES];
        last[..tail.len()].copy_from_slice(tail);
        store_partial(simd, T::load(simd, &last), out_tail);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{cpus, random, random_tensor};
    use crate::{DType, MatrixView};

    #[test]
    fn ids_of_other_ranks_are_zero_and_dtypes_widen_exactly() {
        let ids = [9, 10, 14, 15, 0, u32::MAX, 12];
        for device in cpus() {
            for cols in [1, 15, 64, 1001] {
                // Multiples of 1/128 in -1..1: exact in all three types.
                let values: Vec<f32> = random(3, 5 * cols).iter().map(|x| (x * 128.0).round() / 128.0).collect();
                for dtype in [DType::F32, DType::F16, DType::Bf16] {
                    let source = MatrixView::dense(bytemuck::cast_slice(&values), DType::F32, 5, cols);
                    let table = Tensor::from_matrix(&device, &source, dtype).unwrap();
                    let mut out = random_tensor(&device, 4, &[ids.len(), cols]);
                    embedding(&mut out, &ids, &table, 10).unwrap();
                    let row = |id: u32| match id {
                        10..15 => values[(id as usize - 10) * cols..][..cols].to_vec(),
                        _ => vec![0.0; cols],
                    };
                    let expected: Vec<f32> = ids.into_iter().flat_map(row).collect();
                    assert_eq!(*out.as_f32(), expected, "{} {dtype} {cols}", device.describe());
                }
            }
        }
    }
}
