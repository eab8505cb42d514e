//! The arm of machines with dot products of bf16 pairs: bf16 weights times activations rounded to bf16, summed in f32.
//!
//! Every output element is one chain of dot products over pairs of inputs, k = (0, 1), (2, 3), …, and the bias is added last.
//! Tiles run over M and N, blocks over K pause a chain in memory without rounding; so, as in the other arm, neither the number
//! of rows nor threads change a bit. The weights are read as they are stored: there is nothing to widen.
//!
//! Rows are worked on in tiles of up to eight, as equal as they can be, and their activations are packed in the order in which
//! the tile reads them: eight rows in place, a power of two of bytes apart, would share one set of the first-level cache. Up to
//! eight rows, the weights stream through once. With more, a block of activations stays in the second-level cache while
//! the weights pass by, asked for a block ahead.

use std::ops::Range;
use std::sync::PoisonError;

use super::grid::{Ahead, Grid, PanelTile, RowTiles};
use super::{Outputs, PanelRows};
use crate::simd::{Avx512Bf16, LANES, PackPairs, Pair, PairKernel, Simd, prefetch_line};
use crate::{Cpu, DType, LinearWeight};

/// A panel is `[ceil(K / 2)][16]` pairs.
pub(super) fn panel_bytes(k: usize) -> usize {
    k.div_ceil(2) * LANES * size_of::<Pair>()
}

pub(super) fn pack_panel(panel: &mut [u8], rows: &PanelRows<'_>) {
    rows.write(panel, DType::Bf16, 2);
}

pub(super) fn run(cpu: &Cpu, x: &[f32], w: &LinearWeight, simd: Avx512Bf16, out: Outputs<'_>) {
    let (row_len, k) = (w.k(), w.k().div_ceil(2));
    let tiles = RowTiles { m: out.m, most: TILE_ROWS };
    // Rounded once for all panels. Another caller of the same device waits here.
    let mut pairs = cpu.packed.lock().unwrap_or_else(PoisonError::into_inner);
    let tile_len = tiles.largest() * k;
    let pairs = pairs.at_least(tiles.count() * tile_len);
    cpu.for_rows(pairs, tile_len, tile_len, |first, parts| {
        for (at, pairs) in parts.chunks_exact_mut(tile_len).enumerate() {
            let rows = tiles.rows(first + at);
            let x = &x[rows.start * row_len..rows.end * row_len];
            simd.vectorize(PackPairs { x, row_len, rows: rows.len(), pairs: &mut pairs[..rows.len() * k] });
        }
    });
    let (x, panels) = (&*pairs, w.panels::<Pair>().as_chunks().0);
    let all_panels = (out.n.div_ceil(LANES), panel_bytes(row_len));
    let grid = Grid::new(cpu.pool.threads(), tiles, PIECE_TILES, all_panels, tile_panels(tiles));
    cpu.pool.run(grid.pieces(), |piece| {
        let (tiles_of_piece, panels_of_piece) = grid.piece(piece);
        let stripe = Stripe { x, tiles, k, panels, tiles_of_piece, panels_of_piece, out };
        simd.vectorize(stripe);
    });
}

/// Rows of a tile at most: with three panels 24 chains, which leaves registers for their operands.
const TILE_ROWS: usize = 8;

/// Row tiles of a piece at most. 16 tiles of 8 rows of a block of activations are 256 KiB: they stay in the second-level
/// cache together with this block of weights and the next.
const PIECE_TILES: usize = 16;

/// Steps over pairs of one block: with three panels 96 KiB, which the row tiles read from the second-level cache.
const K_BLOCK: usize = 512;

/// Panels of a tile: eight for one row, whose chains would not hide their latency with fewer; four for some; with seven rows and
/// eight, three panels are what fits.
fn tile_panels(tiles: RowTiles) -> usize {
    match tiles.m {
        1 => 8,
        2..=6 => 4,
        _ => MANY_ROWS_PANELS,
    }
}

const MANY_ROWS_PANELS: usize = 3;

/// The outputs of some neighbouring panels, for some neighbouring row tiles.
struct Stripe<'a> {
    /// Per tile of R rows, as far apart as the largest is long, `[K / 2][R]`.
    x: &'a [Pair],
    tiles: RowTiles,
    /// Pairs of inputs.
    k: usize,
    /// `[ceil(N / 16)][K / 2]`.
    panels: &'a [[Pair; LANES]],
    tiles_of_piece: Range<usize>,
    panels_of_piece: Range<usize>,
    out: Outputs<'a>,
}

impl PairKernel for Stripe<'_> {
    #[inline(always)]
    fn run(self, simd: Avx512Bf16) {
        let most = tile_panels(self.tiles);
        // A single tile reads every weight once: no block has to stay.
        let k_block = if self.tiles_of_piece.len() == 1 { self.k } else { K_BLOCK };
        for first_k in (0..self.k).step_by(k_block) {
            let ks = first_k..self.k.min(first_k + k_block);
            let mut panel = self.panels_of_piece.start;
            while panel < self.panels_of_piece.end {
                let (left, next) = (most.min(self.panels_of_piece.end - panel), self.next(panel + most, &ks));
                panel += match left {
                    8 => {
                        self.tile::<1, 8>(simd, self.x, 0, panel, &ks, next, &Ahead::NONE);
                        8
                    }
                    4.. => self.row_tiles::<4>(simd, panel, &ks, next),
                    3 => self.row_tiles::<3>(simd, panel, &ks, next),
                    2 => self.row_tiles::<2>(simd, panel, &ks, next),
                    _ => self.row_tiles::<1>(simd, panel, &ks, next),
                };
            }
        }
    }
}

/// Steps between two looks ahead. Sixteen, which are cheaper, ask for too many lines at once.
const CHUNK: usize = 4;

/// Rows up to which nothing is asked for ahead: there is so little to compute that the loads themselves run far ahead. One row was
/// 1.2 times as slow with looks ahead.
const FEW_ROWS: usize = 3;

/// How far ahead a single tile asks for its weights, in vectors of all its panels: 8 KiB. Half and twice as much were slower.
const AHEAD: usize = 128;

impl Stripe<'_> {
    /// Where the weights of the block that begins with `panel` are, or of the one that comes instead if that lies beyond the
    /// piece: after the last come those of the next piece, most likely this thread's.
    #[inline(always)]
    fn next(&self, panel: usize, ks: &Range<usize>) -> usize {
        match panel {
            panel if panel < self.panels_of_piece.end => panel * self.k + ks.start,
            _ if ks.end < self.k => self.panels_of_piece.start * self.k + ks.end,
            panel => panel * self.k,
        }
    }

    /// The tiles of the piece over one block of weights. Returns `P`.
    #[inline(always)]
    fn row_tiles<const P: usize>(&self, simd: Avx512Bf16, panel: usize, ks: &Range<usize>, next: usize) -> usize {
        let tiles = self.tiles_of_piece.len();
        for (at, tile) in self.tiles_of_piece.clone().enumerate() {
            let rows = self.tiles.rows(tile);
            let ahead = match self.tiles.m {
                0..=FEW_ROWS => Ahead::NONE,
                _ => Ahead::new(at, tiles, ks.len(), AHEAD / P, CHUNK),
            };
            let x = &self.x[tile * self.tiles.largest() * self.k..];
            // Not cases of one match: where the condition is a constant, only one of them is compiled.
            if P <= MANY_ROWS_PANELS && rows.len() > 6 {
                match rows.len() {
                    7 => self.tile::<7, P>(simd, x, rows.start, panel, ks, next, &ahead),
                    _ => self.tile::<8, P>(simd, x, rows.start, panel, ks, next, &ahead),
                }
            } else {
                match rows.len() {
                    1 => self.tile::<1, P>(simd, x, rows.start, panel, ks, next, &ahead),
                    2 => self.tile::<2, P>(simd, x, rows.start, panel, ks, next, &ahead),
                    3 => self.tile::<3, P>(simd, x, rows.start, panel, ks, next, &ahead),
                    4 => self.tile::<4, P>(simd, x, rows.start, panel, ks, next, &ahead),
                    5 => self.tile::<5, P>(simd, x, rows.start, panel, ks, next, &ahead),
                    _ => self.tile::<6, P>(simd, x, rows.start, panel, ks, next, &ahead),
                }
            }
        }
        P
    }

    /// Asks for the weights of some steps of a block whose panels begin at `first`, or, behind its `steps`, of the block at `next`.
    #[inline(always)]
    fn ask<const P: usize>(&self, first: &[usize; P], steps: usize, next: usize, positions: Range<usize>) {
        for position in positions {
            for (p, first) in first.iter().enumerate() {
                let vector = match position < steps {
                    true => first + position,
                    false => next + p * self.k + position - steps,
                };
                prefetch_line(self.panels.as_ptr().wrapping_add(vector));
            }
        }
    }

    /// `M` rows × `P` panels over one block of pairs: the chains stay in registers.
    #[inline(always)]
    fn tile<const M: usize, const P: usize>(
        &self,
        simd: Avx512Bf16,
        x: &[Pair],
        row: usize,
        panel: usize,
        ks: &Range<usize>,
        next: usize,
        ahead: &Ahead,
    ) {
        let steps = ks.len();
        let x = x[ks.start * M..][..steps * M].as_chunks::<M>().0;
        let first: [usize; P] = std::array::from_fn(|p| (panel + p) * self.k + ks.start);
        let panels: [&[[Pair; LANES]]; P] = first.map(|first| &self.panels[first..][..steps]);
        // Registers move through `done`, with loops so plain that they unroll: an array of registers that some loop indexes
        // at run time would live in memory, and every step would store it.
        let mut done = [[[0.0; LANES]; P]; M];
        if ks.start > 0 {
            self.out.read(row, PanelTile::neighbours(panel, P), &mut done);
        }
        let lanes = simd.plain();
        let mut sums = [[lanes.splat(0.0); P]; M];
        for m in 0..M {
            for p in 0..P {
                sums[m][p] = lanes.load(&done[m][p]);
            }
        }
        // Chunks of a fixed length, so that the steps within one unroll, and looks ahead come between two chunks.
        let (x_chunks, x_rest) = x.as_chunks::<CHUNK>();
        let mut chunks: [&[[[Pair; LANES]; CHUNK]]; P] = [&[]; P];
        let mut rests: [&[[Pair; LANES]]; P] = [&[]; P];
        for p in 0..P {
            let (of_chunks, rest) = panels[p].as_chunks();
            (chunks[p], rests[p]) = (&of_chunks[..x_chunks.len()], &rest[..x_rest.len()]);
        }
        let mut asked = ahead.first;
        for at in 0..x_chunks.len() {
            if asked < ahead.end {
                self.ask::<P>(&first, steps, next, asked..asked + ahead.count);
                asked += ahead.count;
            }
            for step in 0..CHUNK {
                let mut w = [simd.load(&chunks[0][at][step]); P];
                for p in 1..P {
                    w[p] = simd.load(&chunks[p][at][step]);
                }
                for m in 0..M {
                    let x = simd.splat(x_chunks[at][step][m]);
                    for p in 0..P {
                        sums[m][p] = simd.dot(sums[m][p], x, w[p]);
                    }
                }
            }
        }
        for (step, x) in x_rest.iter().enumerate() {
            for p in 0..P {
                let w = simd.load(&rests[p][step]);
                for m in 0..M {
                    sums[m][p] = simd.dot(sums[m][p], simd.splat(x[m]), w);
                }
            }
        }
        for m in 0..M {
            for p in 0..P {
                lanes.store(sums[m][p], &mut done[m][p]);
            }
        }
        self.out.write(row, PanelTile::neighbours(panel, P), &done, ks.end == self.k);
    }
}
