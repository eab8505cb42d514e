//! The linear layer: activations times a packed weight.
//!
//! Every output element is one chain of fused multiply-adds over k = 0..K, and the bias is added last. Lanes run over N, tiles
//! over M and N, blocks over K pause a chain in memory without rounding: so neither the number of rows, nor threads, nor
//! the instruction set changes a bit.
//!
//! Few rows read the panels as they are: decode is bound by memory, and several panels at once hide the latency of the chains.
//! Many rows first widen a block of panels to f32 in the second-level cache, then run register tiles over it.

use std::cell::RefCell;
use std::ops::Range;

use crate::contract::{expect_f32, expect_len, expect_matrix, expect_memory};
use crate::pool::SendPtr;
use crate::simd::{Element, Kernel, LANES, Lanes, Simd, with_element};
use crate::{Cpu, Device, Error, LinearWeight, Result, Tensor};

/// `out = x · wᵀ (+ bias)`.
///
/// # Shapes
/// `out`: `[T, N]`; `x`: `[T, K]`; `w`: N × K of any dtype; `bias`: `[N]`. All but `w` are f32.
/// # Errors
/// [`Error::Shape`], [`Error::DType`], [`Error::UnsupportedDevice`].
pub fn linear(out: &mut Tensor, x: &Tensor, w: &LinearWeight, bias: Option<&Tensor>) -> Result<()> {
    expect_f32("linear", &[("out", out), ("x", x)])?;
    expect_matrix("linear", "x", x, out.rows(), w.k())?;
    expect_matrix("linear", "out", out, x.rows(), w.n())?;
    if let Some(bias) = bias {
        expect_f32("linear", &[("bias", bias)])?;
        expect_len("linear", "bias", bias, w.n())?;
    }
    match out.device().clone() {
        Device::Cpu(cpu) => {
            expect_memory("linear", &[("x", x), ("bias", bias.unwrap_or(x))])?;
            if w.device().is_plan() {
                return Err(Error::UnsupportedDevice { op: "linear", arg: "w", device: w.device().describe() });
            }
            with_element!(w.dtype(), T => cpu_arm::<T>(&cpu, out, x, w, bias));
        }
        Device::Plan(ledger) => {
            ledger.count("linear", out.bytes() + x.bytes() + w.bytes(), 2 * x.rows() * w.n() * w.k());
        }
    }
    Ok(())
}

fn cpu_arm<T: Element>(cpu: &Cpu, out: &mut Tensor, x: &Tensor, w: &LinearWeight, bias: Option<&Tensor>) {
    let bias = bias.map(|bias| bias.as_f32());
    let (x, panels) = (x.as_f32(), w.vectors::<T>());
    let mut values = out.as_f32_mut();
    let out = SendPtr(values.as_mut_ptr());
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
    // One visit is a vector of weights or of multiply-adds.
    cpu.split(n.div_ceil(LANES), k * (1 + m), |range| {
        cpu.isa.run(Stripe { x: &x, m, k, panels, range, out: &out, n, bias: bias.as_deref() });
    });
}

/// The outputs of some neighbouring panels, for all rows.
struct Stripe<'a, T> {
    x: &'a [f32],
    m: usize,
    k: usize,
    /// `[ceil(N / 16)][K]` vectors.
    panels: &'a [[T; LANES]],
    range: Range<usize>,
    out: &'a SendPtr<f32>,
    n: usize,
    bias: Option<&'a [f32]>,
}

/// Rows up to which the panels are read as they are. Beyond, widening once for all rows is cheaper than once per row tile.
const FEW_ROWS: usize = 4;

/// Steps over k of one widened block: with three panels 96 KiB, a tenth of the second-level cache of a server core, and
/// within that of a laptop. 128 steps, which fit into the first level, were slower: chains go through memory four times as
/// often.
const K_BLOCK: usize = 512;

/// Panels of one widened block at most.
const MAX_TILE_PANELS: usize = 3;

impl<T: Element> Kernel for Stripe<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        if self.m <= FEW_ROWS && S::ACCUMULATORS < 24 {
            match self.m {
                1 => self.few::<S, 1, 4>(simd),
                2 => self.few::<S, 2, 2>(simd),
                3 => self.few::<S, 3, 1>(simd),
                _ => self.few::<S, 4, 1>(simd),
            }
        } else if self.m <= FEW_ROWS {
            match self.m {
                1 => self.few::<S, 1, 8>(simd),
                2 => self.few::<S, 2, 4>(simd),
                3 => self.few::<S, 3, 4>(simd),
                _ => self.few::<S, 4, 4>(simd),
            }
        } else if S::ACCUMULATORS >= 24 {
            self.many::<S, 8, MAX_TILE_PANELS>(simd);
        } else {
            self.many::<S, 6, 1>(simd);
        }
    }
}

impl<T: Element> Stripe<'_, T> {
    /// All `M` rows against the panels as stored, `P` panels at a time, then fewer.
    #[inline(always)]
    fn few<S: Simd, const M: usize, const P: usize>(&self, simd: S) {
        let mut panel = self.range.start;
        let end = self.range.end;
        while panel + P <= end {
            self.few_tile::<S, M, P>(simd, panel);
            panel += P;
        }
        if P > 4 && panel + 4 <= end {
            self.few_tile::<S, M, 4>(simd, panel);
            panel += 4;
        }
        if P > 2 && panel + 2 <= end {
            self.few_tile::<S, M, 2>(simd, panel);
            panel += 2;
        }
        if P > 1 && panel < end {
            self.few_tile::<S, M, 1>(simd, panel);
        }
    }

    #[inline(always)]
    fn few_tile<S: Simd, const M: usize, const P: usize>(&self, simd: S, panel: usize) {
        let k = self.k;
        let panels: [&[[T; LANES]]; P] = std::array::from_fn(|p| &self.panels[(panel + p) * k..][..k]);
        let x: [&[f32]; M] = std::array::from_fn(|m| &self.x[m * k..][..k]);
        let mut sums = [[simd.splat(0.0); P]; M];
        for step in 0..k {
            let mut weights = [simd.splat(0.0); P];
            for p in 0..P {
                weights[p] = T::load(simd, &panels[p][step]);
            }
            for m in 0..M {
                let x = simd.splat(x[m][step]);
                for p in 0..P {
                    sums[m][p] = simd.fma(x, weights[p], sums[m][p]);
                }
            }
        }
        let mut done = [[[0.0; LANES]; P]; M];
        for m in 0..M {
            for p in 0..P {
                simd.store(sums[m][p], &mut done[m][p]);
            }
        }
        self.write(0, panel, &done, true);
    }

    /// All rows, `P` panels at a time in tiles of `M` rows.
    #[inline(always)]
    fn many<S: Simd, const M: usize, const P: usize>(&self, simd: S) {
        // Taken out rather than borrowed in a closure: a closure is a function without this instruction set.
        let mut widened = WIDENED.take();
        widened.resize(K_BLOCK * MAX_TILE_PANELS, Aligned([0.0; LANES]));
        let mut panel = self.range.start;
        while panel < self.range.end {
            match P.min(self.range.end - panel) {
                3 => self.many_tiles::<S, M, 3>(simd, panel, &mut widened),
                2 => self.many_tiles::<S, M, 2>(simd, panel, &mut widened),
                _ => self.many_tiles::<S, M, 1>(simd, panel, &mut widened),
            }
            panel += P;
        }
        WIDENED.set(widened);
    }

    #[inline(always)]
    fn many_tiles<S: Simd, const M: usize, const P: usize>(&self, simd: S, panel: usize, widened: &mut [Aligned]) {
        for first_k in (0..self.k).step_by(K_BLOCK) {
            let ks = first_k..self.k.min(first_k + K_BLOCK);
            let block = &mut widened[..ks.len() * P];
            for p in 0..P {
                let source = &self.panels[(panel + p) * self.k..][ks.clone()];
                for (vectors, weights) in block.chunks_exact_mut(P).zip(source) {
                    simd.store(T::load(simd, weights), &mut vectors[p].0);
                }
            }
            let block = block.as_chunks::<P>().0;
            let mut row = 0;
            while row + M <= self.m {
                self.tile::<S, M, P>(simd, row, panel, &ks, block);
                row += M;
            }
            if row + 4 <= self.m {
                self.tile::<S, 4, P>(simd, row, panel, &ks, block);
                row += 4;
            }
            if row + 2 <= self.m {
                self.tile::<S, 2, P>(simd, row, panel, &ks, block);
                row += 2;
            }
            if row < self.m {
                self.tile::<S, 1, P>(simd, row, panel, &ks, block);
            }
        }
    }

    /// `M` rows × `P` panels over one block of k: the chains stay in registers.
    #[inline(always)]
    fn tile<S: Simd, const M: usize, const P: usize>(
        &self,
        simd: S,
        row: usize,
        panel: usize,
        ks: &Range<usize>,
        block: &[[Aligned; P]],
    ) {
        let x: [&[f32]; M] = std::array::from_fn(|m| &self.x[(row + m) * self.k + ks.start..][..block.len()]);
        // Registers move through `done`, with loops so plain that they unroll: an array of registers that some loop indexes at
        // run time would live in memory, and every step would store it.
        let mut done = [[[0.0; LANES]; P]; M];
        if ks.start > 0 {
            self.read(row, panel, &mut done);
        }
        let mut sums = [[simd.splat(0.0); P]; M];
        for m in 0..M {
            for p in 0..P {
                sums[m][p] = simd.load(&done[m][p]);
            }
        }
        for (step, weights) in block.iter().enumerate() {
            let mut loaded = [simd.splat(0.0); P];
            for p in 0..P {
                loaded[p] = simd.load(&weights[p].0);
            }
            for m in 0..M {
                let x = simd.splat(x[m][step]);
                for p in 0..P {
                    sums[m][p] = simd.fma(x, loaded[p], sums[m][p]);
                }
            }
        }
        for m in 0..M {
            for p in 0..P {
                simd.store(sums[m][p], &mut done[m][p]);
            }
        }
        self.write(row, panel, &done, ks.end == self.k);
    }

    /// Writes a tile; with the bias if its chains are complete.
    fn write<const M: usize, const P: usize>(&self, row: usize, panel: usize, tile: &[[Lanes; P]; M], complete: bool) {
        for (m, vectors) in tile.iter().enumerate() {
            for (p, vector) in vectors.iter().enumerate() {
                let out = self.out_part(row + m, panel + p);
                match self.bias {
                    Some(bias) if complete => {
                        let bias = &bias[(panel + p) * LANES..];
                        out.iter_mut().zip(vector).zip(bias).for_each(|((out, sum), bias)| *out = sum + bias);
                    }
                    _ => out.iter_mut().zip(vector).for_each(|(out, sum)| *out = *sum),
                }
            }
        }
    }

    /// Reads a tile of unfinished chains.
    fn read<const M: usize, const P: usize>(&self, row: usize, panel: usize, tile: &mut [[Lanes; P]; M]) {
        for (m, vectors) in tile.iter_mut().enumerate() {
            for (p, vector) in vectors.iter_mut().enumerate() {
                let out = self.out_part(row + m, panel + p);
                vector.iter_mut().zip(out).for_each(|(sum, out)| *sum = *out);
            }
        }
    }

    /// The up to sixteen outputs of a row in a panel.
    #[inline(always)]
    #[allow(clippy::mut_from_ref, reason = "the elements belong to this stripe alone, see SAFETY")]
    fn out_part(&self, row: usize, panel: usize) -> &mut [f32] {
        let first = panel * LANES;
        let len = LANES.min(self.n - first);
        debug_assert!(row < self.m && self.range.contains(&panel));
        // SAFETY: `out` holds m · n elements; row < m and first + len <= n, so the part lies inside. Stripes have disjoint
        // panels, and a stripe uses one part at a time, within one expression of its callers.
        unsafe { std::slice::from_raw_parts_mut(self.out.get().add(row * self.n + first), len) }
    }
}

/// A vector on a cache line of its own: an unaligned one costs two lines per load.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Aligned(Lanes);

thread_local! {
    /// The widened block of a thread, allocated at its first use.
    static WIDENED: RefCell<Vec<Aligned>> = const { RefCell::new(Vec::new()) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_close, bits, cpus, random, random_tensor};
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
        LinearWeight::pack_as(device, &[view], dtype).unwrap()
    }

    #[test]
    fn arms_match_the_definition_and_each_other() {
        for (m, n, k) in [(0, 3, 5), (1, 1, 1), (1, 130, 64), (2, 49, 7), (3, 64, 33), (4, 17, 100), (5, 16, 513)]
            .into_iter()
            .chain([(8, 48, 40), (13, 200, 1030), (64, 100, 96)])
        {
            let (x, w, bias) = (random(1, m * k), exact(2, n * k), random(3, n));
            for dtype in [DType::F32, DType::F16, DType::Bf16] {
                for with_bias in [false, true] {
                    let expected = definition(&x, &w, with_bias.then_some(&bias[..]), n, k);
                    let mut first: Option<Vec<u32>> = None;
                    for device in cpus() {
                        let context = format!("{} {m}x{n}x{k} {dtype} bias {with_bias}", device.describe());
                        let weight = pack(&device, &w, n, k, dtype);
                        let bias = random_tensor(&device, 3, &[n]);
                        let x = random_tensor(&device, 1, &[m, k]);
                        let mut out = random_tensor(&device, 4, &[m, n]);
                        linear(&mut out, &x, &weight, with_bias.then_some(&bias)).unwrap();
                        // A chain of K roundings of at most 6e-8 of the running sum, which stays below sqrt(K).
                        let tolerance = 6e-8 * k as f32 * (k as f32).sqrt().max(1.0) / 4.0 + 1e-6;
                        assert_close(&out.as_f32(), &expected, tolerance.min(2e-4), &context);
                        assert_eq!(*first.get_or_insert_with(|| bits(&out.as_f32())), bits(&out.as_f32()), "{context}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_does_not_see_the_rows_beside_it() {
        let (n, k) = (83, 700);
        let w = exact(2, n * k);
        for device in cpus() {
            for dtype in [DType::F32, DType::Bf16] {
                let weight = pack(&device, &w, n, k, dtype);
                let mut all = random_tensor(&device, 4, &[23, n]);
                let x = random_tensor(&device, 1, &[23, k]);
                linear(&mut all, &x, &weight, None).unwrap();
                for (start, len) in [(0, 1), (22, 1), (7, 2), (3, 3), (5, 4), (1, 9), (0, 22)] {
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
