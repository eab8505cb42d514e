//! Looks token ids up in the embedding table, of which a rank may hold only a part.

use crate::contract::{
    expect_activations, expect_below, expect_device, expect_entries, expect_matrix, expect_on, expect_vectors,
};
use crate::cuda::{Argument, Cuda, KernelName};
use crate::simd::{Element, Kernel, LANES, Simd, store_partial, with_element};
use crate::{Cpu, DType, Device, Error, Indices, LinearWeight, Result, Tensor};

/// The rows of an embedding.
#[derive(Clone, Copy)]
pub enum EmbeddingTable<'a> {
    /// `[V', E]` of any dtype.
    Dense(&'a Tensor),
    /// The first rows of a packed output head, which the model ties to its embedding. It must be a
    /// [table](LinearWeight::is_table).
    Head {
        /// At least V' × E.
        weight: &'a LinearWeight,
        /// V'.
        rows: usize,
    },
}

/// Row `ids[t] - first_id` of `table` times `scale`, or zeros where the id lies outside of the table: summed over the ranks of a
/// vocabulary-parallel table, each row comes from exactly one of them.
///
/// # Shapes
/// `out`: `[T, E]`; `ids`: T; `table`: V' × E, the ids `first_id..first_id + V'`.
/// # Errors
/// [`Error::Shape`](crate::Error::Shape), [`Error::DType`](crate::Error::DType), [`Error::Index`](crate::Error::Index) if the head
/// has fewer rows.
/// # Panics
/// If the head is no table.
pub fn embedding<'a>(
    out: &mut Tensor,
    ids: impl Into<Indices<'a>>,
    table: EmbeddingTable<'_>,
    first_id: u32,
    scale: f32,
) -> Result<()> {
    let indices = ids.into();
    let ids = indices.host();
    let (cols, dtype) = match table {
        EmbeddingTable::Dense(table) => (table.cols(), table.dtype()),
        EmbeddingTable::Head { weight, rows } => {
            let dtype = weight.format().table_dtype().expect("a head that is no table has a dense table beside it");
            expect_below("embedding", "rows", &[rows as u32], weight.n() + 1)?;
            (weight.k(), dtype)
        }
    };
    expect_activations("embedding", &[("out", out)])?;
    expect_entries("embedding", "ids", ids.len(), out.rows())?;
    expect_matrix("embedding", "out", out, ids.len(), cols)?;
    match out.device().clone() {
        Device::Cpu(cpu) => match table {
            EmbeddingTable::Dense(table) => {
                expect_device("embedding", out.device(), &[("table", table)])?;
                with_element!(dtype, T => of_rows::<T>(&cpu, out, ids, table, first_id, scale));
            }
            EmbeddingTable::Head { weight, rows } => {
                with_element!(dtype, T => of_panels::<T>(&cpu, out, ids, weight, rows, first_id, scale));
            }
        },
        Device::Cuda(cuda) => cuda_arm(&cuda, out, indices, table, first_id, scale, dtype)?,
        Device::Plan(ledger) => {
            ledger.count("embedding", out.bytes() + out.len() * dtype.size_bytes(), 0);
        }
    }
    Ok(())
}

fn of_rows<T: Element>(cpu: &Cpu, out: &mut Tensor, ids: &[u32], table: &Tensor, first_id: u32, scale: f32) {
    let (cols, num_rows) = (table.cols(), table.rows());
    let table = table.as_elements::<T>();
    for_ids(cpu, out, ids, first_id, num_rows, |out, row| {
        cpu.isa.run(Widen { out, x: &table[row * cols..][..cols], scale });
    });
}

/// A row of a panel is every sixteenth group of it: all of the panel passes through the cache, a stream of 16 rows for one. For
/// 2048 columns that is 64 KiB, microseconds beside a step that reads gigabytes.
fn of_panels<T: Element>(
    cpu: &Cpu,
    out: &mut Tensor,
    ids: &[u32],
    head: &LinearWeight,
    num_rows: usize,
    first_id: u32,
    scale: f32,
) {
    let (_, group) = head.format().elements().expect("checked by the caller");
    let line = group * LANES;
    let panel_len = head.panel_bytes() / size_of::<T>();
    let panels = head.panels::<T>();
    for_ids(cpu, out, ids, first_id, num_rows, |out, row| {
        let panel = &panels[row / LANES * panel_len..][..panel_len];
        let lane = row % LANES * group;
        for (out, line) in out.chunks_mut(group).zip(panel.chunks_exact(line)) {
            out.iter_mut().zip(&line[lane..]).for_each(|(out, x)| *out = x.to_f32() * scale);
        }
    });
}

/// `f(out, row)` for every row of `out` whose id is in the table; zeros for the others.
fn for_ids(
    cpu: &Cpu,
    out: &mut Tensor,
    ids: &[u32],
    first_id: u32,
    num_rows: usize,
    f: impl Fn(&mut [f32], usize) + Sync,
) {
    let cols = out.cols();
    cpu.for_rows(&mut out.as_f32_mut(), cols, cols, |first, part| {
        for (out, id) in part.chunks_exact_mut(cols).zip(&ids[first..]) {
            match id.checked_sub(first_id).map(|row| row as usize) {
                Some(row) if row < num_rows => f(out, row),
                _ => out.fill(0.0),
            }
        }
    });
}

/// Threads of a row, as `embedding.cu` has them.
const CUDA_THREADS: usize = 128;

fn cuda_arm(
    cuda: &Cuda,
    out: &mut Tensor,
    ids: Indices<'_>,
    table: EmbeddingTable<'_>,
    first_id: u32,
    scale: f32,
    dtype: DType,
) -> Result<()> {
    if dtype != out.dtype() {
        return Err(Error::DType { op: "embedding", arg: "table", expected: out.dtype(), actual: dtype });
    }
    expect_vectors("embedding", out.cols())?;
    let (kernel, address, num_rows) = match table {
        EmbeddingTable::Dense(table) => {
            expect_device("embedding", out.device(), &[("table", table)])?;
            ("embedding", table.address(), table.rows())
        }
        EmbeddingTable::Head { weight, rows } => {
            expect_on("embedding", out.device(), "table", weight.device())?;
            ("embedding_head", weight.address(), rows)
        }
    };
    let arguments = [
        Argument::Pointer(out.address()),
        Argument::Pointer(ids.address("embedding", "ids")?),
        Argument::Pointer(address),
        Argument::U32(first_id),
        Argument::count(num_rows),
        Argument::count(out.cols()),
        Argument::F32(scale),
    ];
    // SAFETY: embedding.cu: a block per row of `out`, an id for each, `num_rows` rows of as many columns in the table (checked by
    // `embedding`); rows are whole vectors; tensors and weights live as long as their stream's work.
    unsafe { cuda.launch(KernelName::of(kernel, dtype), [out.rows(), 1, 1], CUDA_THREADS, &arguments) }
}

struct Widen<'a, T> {
    out: &'a mut [f32],
    x: &'a [T],
    scale: f32,
}

impl<T: Element> Kernel for Widen<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let scale = simd.splat(self.scale);
        let (vectors, tail) = self.x.as_chunks::<LANES>();
        let (out, out_tail) = self.out.split_at_mut(vectors.len() * LANES);
        for (out, x) in out.chunks_exact_mut(LANES).zip(vectors) {
            store_partial(simd, simd.mul(T::load(simd, x), scale), out);
        }
        let mut last = [T::zeroed(); LANES];
        last[..tail.len()].copy_from_slice(tail);
        store_partial(simd, simd.mul(T::load(simd, &last), scale), out_tail);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{cpus_and_models, random, random_tensor};
    use crate::{DType, MatrixView};

    const SCALE: f32 = 5.65;

    #[test]
    fn ids_of_other_ranks_are_zero_and_dtypes_widen_exactly() {
        let ids = [9, 10, 14, 15, 0, u32::MAX, 12];
        for device in cpus_and_models() {
            for cols in [1, 15, 64, 1001] {
                // Multiples of 1/128 in -1..1: exact in all three types.
                let values: Vec<f32> = random(3, 5 * cols).iter().map(|x| (x * 128.0).round() / 128.0).collect();
                for dtype in [DType::F32, DType::F16, DType::Bf16] {
                    let source = MatrixView::dense(bytemuck::cast_slice(&values), DType::F32, 5, cols);
                    let table = Tensor::from_matrix(&device, &source, dtype).unwrap();
                    // Two rows more than the table has: padding of the last rank.
                    let longer = [&values[..], &vec![7.0; 2 * cols]].concat();
                    let source = MatrixView::dense(bytemuck::cast_slice(&longer), DType::F32, 7, cols);
                    let head = LinearWeight::pack_as(&device, &[source], crate::WeightType::Float(dtype)).unwrap();
                    let row = |id: u32| match id {
                        10..15 => values[(id as usize - 10) * cols..][..cols].iter().map(|x| x * SCALE).collect(),
                        _ => vec![0.0; cols],
                    };
                    let expected: Vec<f32> = ids.into_iter().flat_map(row).collect();
                    for table in [EmbeddingTable::Dense(&table), EmbeddingTable::Head { weight: &head, rows: 5 }] {
                        let mut out = random_tensor(&device, 4, &[ids.len(), cols]);
                        embedding(&mut out, &ids, table, 10, SCALE).unwrap();
                        assert_eq!(*out.as_f32(), expected, "{} {dtype} {cols}", device.describe());
                    }
                }
            }
        }
    }
}
