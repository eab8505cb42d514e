//! The linear layer: activations times a packed weight.
//!
//! One arm per [`Format`] of the weight, a file each. Every arm has one order of additions per output element, whatever the
//! number of rows and threads.

#[cfg(target_arch = "x86_64")]
mod byte_tiles;
mod bytes;
mod format;
pub(crate) mod fp8;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only arms of x86-64 divide products into grids"))]
mod grid;
mod grouped;
pub(crate) mod int4;
mod int8;
mod interleave;
mod nf4;
#[cfg(target_arch = "x86_64")]
mod pairs;
#[cfg(test)]
mod quantized_tests;
pub(crate) mod squares;
#[cfg(target_arch = "x86_64")]
mod tiles;
mod vectors;

pub(crate) use format::{Format, PanelRows};

use self::grid::PanelTile;
use crate::contract::{expect_activations, expect_device, expect_f32, expect_len, expect_matrix, expect_on};
use crate::pool::SendPtr;
use crate::simd::{LANES, Lanes};
use crate::{Cpu, DType, Device, LinearWeight, Result, Tensor};

/// `out = x · wᵀ (+ bias)`.
///
/// # Shapes
/// `out`: `[T, N]`; `x`: `[T, K]`; `w`: N × K of any dtype; `bias`: `[N]` f32. On a GPU `x` is of the type of `w`, and `out`
/// that or f32.
/// # Errors
/// [`Error::Shape`], [`Error::DType`], [`Error::UnsupportedDevice`].
pub fn linear(out: &mut Tensor, x: &Tensor, w: &LinearWeight, bias: Option<&Tensor>) -> Result<()> {
    match out.dtype() {
        // Logits: rounded nowhere, on whatever device.
        DType::F32 => expect_activations("linear", &[("x", x)])?,
        _ => expect_activations("linear", &[("out", out), ("x", x)])?,
    }
    expect_matrix("linear", "x", x, out.rows(), w.k())?;
    expect_matrix("linear", "out", out, x.rows(), w.n())?;
    if let Some(bias) = bias {
        expect_f32("linear", &[("bias", bias)])?;
        expect_len("linear", "bias", bias, w.n())?;
    }
    match out.device().clone() {
        Device::Cpu(cpu) => {
            expect_device("linear", out.device(), &[("x", x), ("bias", bias.unwrap_or(x))])?;
            expect_on("linear", out.device(), "w", w.device())?;
            cpu_arm(&cpu, out, x, w, bias);
        }
        Device::Cuda(cuda) => squares::run(&cuda, out, x, w, bias)?,
        Device::Plan(ledger) => {
            ledger.count("linear", out.bytes() + x.bytes() + w.bytes(), 2 * x.rows() * w.n() * w.k());
        }
    }
    Ok(())
}

fn cpu_arm(cpu: &Cpu, out: &mut Tensor, x: &Tensor, w: &LinearWeight, bias: Option<&Tensor>) {
    let bias = bias.map(|bias| bias.as_f32());
    let x = x.as_f32();
    let mut values = out.as_f32_mut();
    let (m, n, k) = (x.len().checked_div(w.k()).unwrap_or(0), w.n(), w.k());
    if m == 0 || k == 0 {
        // An empty sum: nothing but the bias, and `x` cannot say how many rows there are.
        for row in values.chunks_exact_mut(n.max(1)) {
            match &bias {
                Some(bias) => row.copy_from_slice(bias),
                None => row.fill(0.0),
            }
        }
        return;
    }
    let base = SendPtr(values.as_mut_ptr());
    w.format().run(cpu, &x, w, Outputs { base: &base, m, n, bias: bias.as_deref() });
}

/// Where an arm writes: `[M][N]`, in tiles of rows × panels that no other stripe touches.
#[derive(Clone, Copy)]
struct Outputs<'a> {
    base: &'a SendPtr<f32>,
    m: usize,
    n: usize,
    bias: Option<&'a [f32]>,
}

impl Outputs<'_> {
    /// Writes a tile; with the bias if its chains are complete.
    #[inline(always)]
    fn write<const M: usize, const P: usize>(
        &self,
        row: usize,
        panels: PanelTile,
        tile: &[[Lanes; P]; M],
        complete: bool,
    ) {
        for (m, vectors) in tile.iter().enumerate() {
            for (p, vector) in vectors.iter().enumerate() {
                self.write_row(row + m, panels.panel(p), vector, complete);
            }
        }
    }

    /// Reads a tile of unfinished chains.
    #[inline(always)]
    fn read<const M: usize, const P: usize>(&self, row: usize, panels: PanelTile, tile: &mut [[Lanes; P]; M]) {
        for (m, vectors) in tile.iter_mut().enumerate() {
            for (p, vector) in vectors.iter_mut().enumerate() {
                self.read_row(row + m, panels.panel(p), vector);
            }
        }
    }

    /// Writes the outputs of one row in a panel; with the bias if their chains are complete.
    #[inline(always)]
    fn write_row(&self, row: usize, panel: usize, sums: &Lanes, complete: bool) {
        let out = self.out_part(row, panel);
        // Whole panels apart from the last one: with sixteen elements this is a vector, with some of them a call to a function that
        // copies memory.
        match (self.bias, <&mut Lanes>::try_from(&mut *out)) {
            (Some(bias), _) if complete => {
                let bias = &bias[panel * LANES..];
                out.iter_mut().zip(sums).zip(bias).for_each(|((out, sum), bias)| *out = sum + bias);
            }
            (_, Ok(out)) => *out = *sums,
            (_, Err(_)) => out.iter_mut().zip(sums).for_each(|(out, sum)| *out = *sum),
        }
    }

    /// Reads the unfinished chains of one row in a panel.
    #[inline(always)]
    fn read_row(&self, row: usize, panel: usize, sums: &mut Lanes) {
        let out = self.out_part(row, panel);
        match <&Lanes>::try_from(&*out) {
            Ok(out) => *sums = *out,
            Err(_) => sums.iter_mut().zip(out).for_each(|(sum, out)| *sum = *out),
        }
    }

    /// The up to sixteen outputs of a row in a panel.
    #[inline(always)]
    #[allow(clippy::mut_from_ref, reason = "the elements belong to this stripe alone, see SAFETY")]
    fn out_part(&self, row: usize, panel: usize) -> &mut [f32] {
        let first = panel * LANES;
        let len = LANES.min(self.n - first);
        debug_assert!(row < self.m && first < self.n);
        // SAFETY: `base` points to m · n elements; row < m and first + len <= n, so the part lies inside. Stripes have disjoint
        // panels, and a stripe uses one part at a time, within one expression of its callers.
        unsafe { std::slice::from_raw_parts_mut(self.base.get().add(row * self.n + first), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
    use crate::ops::testing::{assert_close, bits, cpus, cpus_and_models, random, random_tensor};
    use crate::{DType, MatrixView};

    /// What the op means, in f64.
    fn definition(x: &[f32], w: &[f32], bias: Option<&[f32]>, n: usize, k: usize) -> Vec<f32> {
        let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(x, w)| *x as f64 * *w as f64).sum::<f64>();
        let element = |x: &[f32], j: usize| (dot(x, &w[j * k..][..k]) + bias.map_or(0.0, |b| b[j] as f64)) as f32;
        x.chunks_exact(k).flat_map(|x| (0..n).map(move |j| element(x, j)).collect::<Vec<_>>()).collect()
    }

    /// Values that bf16 and f16 hold exactly, so that one definition serves all three.
    fn exact(seed: u64, len: usize) -> Vec<f32> {
        random(seed, len).iter().map(|x| (x * 128.0).round() / 128.0).collect()
    }

    fn pack(device: &Device, values: &[f32], n: usize, k: usize, dtype: DType) -> LinearWeight {
        let view = MatrixView::dense(bytemuck::cast_slice(values), DType::F32, n, k);
        LinearWeight::pack_as(device, &[view], crate::WeightType::Float(dtype)).unwrap()
    }

    /// Which bits to expect: each arm has its own, on all instruction sets and threads alike.
    fn arm(weight: &LinearWeight) -> usize {
        match weight.format() {
            Format::Vectors(_) => 0,
            #[cfg(target_arch = "x86_64")]
            Format::Pairs(_) => 1,
            #[cfg(target_arch = "x86_64")]
            Format::Tiles(_) => 2,
            Format::Int8 | Format::Fp8(_) | Format::Nf4 | Format::Int4 | Format::Squares(_) => {
                unreachable!("these tests pack floats for the processor")
            }
        }
    }

    fn rounds_inputs(weight: &LinearWeight) -> bool {
        weight.format().input_dtype() == DType::Bf16
    }

    #[test]
    fn arms_match_the_definition_and_each_other() {
        for (m, n, k) in
            [(0, 3, 5), (1, 1, 1), (1, 130, 64), (2, 49, 7), (3, 64, 33), (4, 17, 100), (5, 16, 513)].into_iter().chain(
                [(6, 70, 64), (7, 50, 31), (8, 48, 40), (13, 200, 1030), (37, 40, 2100), (64, 100, 96), (150, 70, 90)],
            )
        {
            let (x, w, bias) = (random(1, m * k), exact(2, n * k), random(3, n));
            for dtype in [DType::F32, DType::F16, DType::Bf16] {
                for with_bias in [false, true] {
                    let exact = definition(&x, &w, with_bias.then_some(&bias[..]), n, k);
                    let rounded: Vec<f32> = x.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect();
                    let of_rounded = definition(&rounded, &w, with_bias.then_some(&bias[..]), n, k);
                    let mut first: [Option<Vec<u32>>; 3] = [None, None, None];
                    for device in cpus_and_models() {
                        let context = format!("{} {m}x{n}x{k} {dtype} bias {with_bias}", device.describe());
                        let weight = pack(&device, &w, n, k, dtype);
                        let bias = random_tensor(&device, 3, &[n]);
                        let x = random_tensor(&device, 1, &[m, k]);
                        let mut out = random_tensor(&device, 4, &[m, n]);
                        linear(&mut out, &x, &weight, with_bias.then_some(&bias)).unwrap();
                        // A chain of K roundings of at most 6e-8 of the running sum, which stays below sqrt(K).
                        let tolerance = 6e-8 * k as f32 * (k as f32).sqrt().max(1.0) / 4.0 + 1e-6;
                        let expected = if rounds_inputs(&weight) { &of_rounded } else { &exact };
                        assert_close(&out.as_f32(), expected, tolerance.min(2e-4), &context);
                        let first = first[arm(&weight)].get_or_insert_with(|| bits(&out.as_f32()));
                        assert_eq!(*first, bits(&out.as_f32()), "{context}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_does_not_see_the_rows_beside_it() {
        let (n, k) = (83, 700);
        let w = exact(2, n * k);
        for device in cpus_and_models() {
            for dtype in [DType::F32, DType::Bf16] {
                let weight = pack(&device, &w, n, k, dtype);
                let mut all = random_tensor(&device, 4, &[23, n]);
                let x = random_tensor(&device, 1, &[23, k]);
                linear(&mut all, &x, &weight, None).unwrap();
                for (start, len) in
                    [(0, 1), (22, 1), (7, 2), (3, 3), (5, 4), (1, 5), (2, 6), (9, 7), (4, 8), (1, 9), (3, 17), (0, 22)]
                {
                    let mut part = random_tensor(&device, 5, &[len, n]);
                    linear(&mut part, &x.narrow_rows(start, len).unwrap(), &weight, None).unwrap();
                    let expected = all.narrow_rows(start, len).unwrap();
                    assert_eq!(
                        bits(&part.as_f32()),
                        bits(&expected.as_f32()),
                        "{} rows {start}+{len}",
                        device.describe()
                    );
                }
            }
        }
    }

    #[test]
    fn slices_stack_without_a_copy() {
        // Two matrices of 4 x 6; a rank takes columns 2..5 of each.
        let device = &cpus()[0];
        let (a, b) = (exact(1, 24), exact(2, 24));
        let slice = |values| MatrixView {
            data: bytemuck::cast_slice(values),
            dtype: DType::F32,
            rows: 4,
            cols: 3,
            row_stride: 6,
            first_col: 2,
        };
        let weight = LinearWeight::pack(device, &[slice(&a[..]), slice(&b[..])]).unwrap();
        assert_eq!((weight.n(), weight.k(), weight.bytes()), (8, 3, 16 * 3 * 4));
        let mut out = random_tensor(device, 3, &[3, 8]);
        let identity = Tensor::from_slice(device, &[3, 3], &[1., 0., 0., 0., 1., 0., 0., 0., 1.]).unwrap();
        linear(&mut out, &identity, &weight, None).unwrap();
        for col in 0..3 {
            for row in 0..8 {
                let source = if row < 4 { &a } else { &b };
                assert_eq!(out.as_f32()[col * 8 + row], source[row % 4 * 6 + 2 + col]);
            }
        }
        let short = MatrixView { data: &bytemuck::cast_slice(&a)[..95], ..slice(&a[..]) };
        assert!(LinearWeight::pack(device, &[short]).is_ok(), "the last column is not in the slice");
        let short = MatrixView { first_col: 3, ..short };
        assert!(matches!(LinearWeight::pack(device, &[short]), Err(Error::Shape { .. })));
    }
}
