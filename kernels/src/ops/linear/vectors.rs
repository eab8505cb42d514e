//! The arm of vectors: f32 activations times weights of any type, widened to f32 lane by lane.
//!
//! Every output element is one chain of fused multiply-adds over k = 0..K, and the bias is added last. Lanes run over N, tiles
//! over M and N, blocks over K pause a chain in memory without rounding: so neither the number of rows, nor threads, nor
//! the instruction set changes a bit.
//!
//! Few rows read the panels as they are: decode is bound by memory, and several panels at once hide the latency of the chains.
//! Many rows first widen a block of panels to f32 in the second-level cache, then run register tiles over it.

use std::cell::RefCell;
use std::ops::Range;

use super::{Outputs, PanelRows};
use crate::simd::{Element, Kernel, LANES, Lanes, Simd, with_element};
use crate::{Cpu, DType, LinearWeight};

/// A panel is `[K][16]` elements: a step over k reads sixteen neighbouring outputs as one vector.
pub(super) fn panel_bytes(dtype: DType, k: usize) -> usize {
    k * LANES * dtype.size_bytes()
}

pub(super) fn pack_panel(panel: &mut [u8], rows: &PanelRows<'_>, dtype: DType) {
    rows.write(panel, dtype, 1);
}

pub(super) fn run(cpu: &Cpu, x: &[f32], w: &LinearWeight, dtype: DType, out: Outputs<'_>) {
    with_element!(dtype, T => run_as::<T>(cpu, x, w, out))
}

fn run_as<T: Element>(cpu: &Cpu, x: &[f32], w: &LinearWeight, out: Outputs<'_>) {
    let (m, k, panels) = (out.m, w.k(), w.panels::<T>().as_chunks().0);
    // One visit is a vector of weights or of multiply-adds.
    cpu.split(w.n().div_ceil(LANES), k * (1 + m), |range| {
        cpu.isa.run(Stripe { x, m, k, panels, range, out });
    });
}

/// The outputs of some neighbouring panels, for all rows.
struct Stripe<'a, T> {
    /// `[M][K]`.
    x: &'a [f32],
    m: usize,
    k: usize,
    /// `[ceil(N / 16)][K]` vectors.
    panels: &'a [[T; LANES]],
    range: Range<usize>,
    out: Outputs<'a>,
}

/// Rows up to which the panels are read as they are. Beyond, widening once for all rows is cheaper than once per row tile.
const FEW_ROWS: usize = 4;

/// The same with registers for four rows of four panels: the second four rows find the panels in the second-level cache.
const FEW_ROWS_OF_WIDE_TILES: usize = 8;

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
        } else if self.m <= FEW_ROWS_OF_WIDE_TILES && S::ACCUMULATORS >= 24 {
            self.fours(simd);
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
            self.few_tile::<S, M, P>(simd, 0, panel);
            panel += P;
        }
        if P > 2 && panel + 2 <= end {
            self.few_tile::<S, M, 2>(simd, 0, panel);
            panel += 2;
        }
        if P > 1 && panel < end {
            self.few_tile::<S, M, 1>(simd, 0, panel);
        }
    }

    /// Four rows and fewer against four panels and fewer, as stored. Four streams through memory were faster than eight.
    #[inline(always)]
    fn fours<S: Simd>(&self, simd: S) {
        for panel in self.range.clone().step_by(4) {
            match self.range.end - panel {
                1 => self.rows_by_four::<S, 1>(simd, panel),
                2 => self.rows_by_four::<S, 2>(simd, panel),
                3 => self.rows_by_four::<S, 3>(simd, panel),
                _ => self.rows_by_four::<S, 4>(simd, panel),
            }
        }
    }

    #[inline(always)]
    fn rows_by_four<S: Simd, const P: usize>(&self, simd: S, panel: usize) {
        for row in (0..self.m).step_by(4) {
            match self.m - row {
                1 => self.few_tile::<S, 1, P>(simd, row, panel),
                2 => self.few_tile::<S, 2, P>(simd, row, panel),
                3 => self.few_tile::<S, 3, P>(simd, row, panel),
                _ => self.few_tile::<S, 4, P>(simd, row, panel),
            }
        }
    }

    #[inline(always)]
    fn few_tile<S: Simd, const M: usize, const P: usize>(&self, simd: S, row: usize, panel: usize) {
        let k = self.k;
        let panels: [&[[T; LANES]]; P] = std::array::from_fn(|p| &self.panels[(panel + p) * k..][..k]);
        let x: [&[f32]; M] = std::array::from_fn(|m| &self.x[(row + m) * k..][..k]);
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
        self.out.write(row, panel, &done, true);
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
            self.out.read(row, panel, &mut done);
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
        self.out.write(row, panel, &done, ks.end == self.k);
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
