//! The arm of machines with dot products of bf16 pairs: bf16 weights times activations rounded to bf16, summed in f32.
//!
//! Every output element is one chain of dot products over pairs of inputs, k = (0, 1), (2, 3), …, and the bias is added last.
//! Tiles run over M and N, blocks over K pause a chain in memory without rounding; so, as in the other arm, neither the number
//! of rows nor threads change a bit. The weights are read as they are stored: there is nothing to widen.

use std::ops::Range;
use std::sync::PoisonError;

use super::{Outputs, PanelRows};
use crate::simd::{Avx512Bf16, LANES, Pair, PairKernel, RoundToPairs, Simd};
use crate::{Cpu, DType, LinearWeight};

/// A panel is `[ceil(K / 2)][16]` pairs.
pub(super) fn panel_bytes(k: usize) -> usize {
    k.div_ceil(2) * LANES * size_of::<Pair>()
}

pub(super) fn pack_panel(panel: &mut [u8], rows: &PanelRows<'_>) {
    rows.write(panel, DType::Bf16, |k, lane| (k / 2 * LANES + lane) * 2 + k % 2);
}

pub(super) fn run(cpu: &Cpu, x: &[f32], w: &LinearWeight, simd: Avx512Bf16, out: Outputs<'_>) {
    let (m, row_len, k) = (out.m, w.k(), w.k().div_ceil(2));
    // Rounded once for all panels. Another caller of the same device waits here.
    let mut pairs = cpu.pairs.lock().unwrap_or_else(PoisonError::into_inner);
    pairs.resize(m * k, 0);
    cpu.for_rows(&mut pairs, k, k, |first, rows| {
        for (x, pairs) in x[first * row_len..].chunks(row_len).zip(rows.chunks_exact_mut(k)) {
            simd.vectorize(RoundToPairs { x, pairs });
        }
    });
    let (x, panels) = (&pairs[..], w.panels::<Pair>().as_chunks().0);
    // One visit is a vector of weights or of dot products.
    cpu.split(out.n.div_ceil(LANES), k * (1 + m), |range| {
        simd.vectorize(Stripe { x, m, k, panels, range, out });
    });
}

/// The outputs of some neighbouring panels, for all rows.
struct Stripe<'a> {
    /// `[M][K / 2]`.
    x: &'a [Pair],
    m: usize,
    /// Pairs of inputs.
    k: usize,
    /// `[ceil(N / 16)][K / 2]`.
    panels: &'a [[Pair; LANES]],
    range: Range<usize>,
    out: Outputs<'a>,
}

/// Steps over pairs of one block: with three panels 96 KiB, which several row tiles read from the second-level cache.
const K_BLOCK: usize = 512;

/// Panels of one block at most.
const TILE_PANELS: usize = 3;

impl PairKernel for Stripe<'_> {
    #[inline(always)]
    fn run(self, simd: Avx512Bf16) {
        match self.m {
            // Few rows are bound by memory: several panels at once hide the latency of the chains.
            1 => self.few::<1, 8>(simd),
            2 => self.few::<2, 4>(simd),
            3 => self.few::<3, 4>(simd),
            4 => self.few::<4, 4>(simd),
            _ => self.many(simd),
        }
    }
}

impl Stripe<'_> {
    /// All `M` rows, `P` panels at a time, then fewer.
    #[inline(always)]
    fn few<const M: usize, const P: usize>(&self, simd: Avx512Bf16) {
        let (mut panel, end) = (self.range.start, self.range.end);
        while panel + P <= end {
            self.tile::<M, P>(simd, 0, panel, &(0..self.k));
            panel += P;
        }
        if P > 4 && panel + 4 <= end {
            self.tile::<M, 4>(simd, 0, panel, &(0..self.k));
            panel += 4;
        }
        if panel + 2 <= end {
            self.tile::<M, 2>(simd, 0, panel, &(0..self.k));
            panel += 2;
        }
        if panel < end {
            self.tile::<M, 1>(simd, 0, panel, &(0..self.k));
        }
    }

    /// All rows, in tiles of eight and fewer, over blocks of three panels and fewer.
    #[inline(always)]
    fn many(&self, simd: Avx512Bf16) {
        for panel in self.range.clone().step_by(TILE_PANELS) {
            for first_k in (0..self.k).step_by(K_BLOCK) {
                let ks = first_k..self.k.min(first_k + K_BLOCK);
                match TILE_PANELS.min(self.range.end - panel) {
                    3 => self.row_tiles::<3>(simd, panel, &ks),
                    2 => self.row_tiles::<2>(simd, panel, &ks),
                    _ => self.row_tiles::<1>(simd, panel, &ks),
                }
            }
        }
    }

    #[inline(always)]
    fn row_tiles<const P: usize>(&self, simd: Avx512Bf16, panel: usize, ks: &Range<usize>) {
        let mut row = 0;
        while row + 8 <= self.m {
            self.tile::<8, P>(simd, row, panel, ks);
            row += 8;
        }
        if row + 4 <= self.m {
            self.tile::<4, P>(simd, row, panel, ks);
            row += 4;
        }
        if row + 2 <= self.m {
            self.tile::<2, P>(simd, row, panel, ks);
            row += 2;
        }
        if row < self.m {
            self.tile::<1, P>(simd, row, panel, ks);
        }
    }

    /// `M` rows × `P` panels over one block of pairs: the chains stay in registers.
    #[inline(always)]
    fn tile<const M: usize, const P: usize>(&self, simd: Avx512Bf16, row: usize, panel: usize, ks: &Range<usize>) {
        let x: [&[Pair]; M] = std::array::from_fn(|m| &self.x[(row + m) * self.k..][ks.clone()]);
        let panels: [&[[Pair; LANES]]; P] = std::array::from_fn(|p| &self.panels[(panel + p) * self.k..][ks.clone()]);
        // Registers move through `done`, with loops so plain that they unroll: an array of registers that some loop indexes
        // at run time would live in memory, and every step would store it.
        let mut done = [[[0.0; LANES]; P]; M];
        if ks.start > 0 {
            self.out.read(row, panel, &mut done);
        }
        let lanes = simd.plain();
        let mut sums = [[lanes.splat(0.0); P]; M];
        for m in 0..M {
            for p in 0..P {
                sums[m][p] = lanes.load(&done[m][p]);
            }
        }
        for step in 0..ks.len() {
            let w: [_; P] = std::array::from_fn(|p| simd.load(&panels[p][step]));
            for m in 0..M {
                let x = simd.splat(x[m][step]);
                for p in 0..P {
                    sums[m][p] = simd.dot(sums[m][p], x, w[p]);
                }
            }
        }
        for m in 0..M {
            for p in 0..P {
                lanes.store(sums[m][p], &mut done[m][p]);
            }
        }
        self.out.write(row, panel, &done, ks.end == self.k);
    }
}
