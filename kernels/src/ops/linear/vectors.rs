//! The arm of vectors: f32 activations times weights of any type, widened to f32 lane by lane.
//!
//! Every output element is one chain of fused multiply-adds over k = 0..K, and the bias is added last. Lanes run over N, tiles
//! over M and N, blocks over K pause a chain in memory without rounding: so neither the number of rows, nor threads, nor
//! the instruction set changes a bit.
//!
//! Rows are worked on in tiles, as equal as they can be, and their activations are packed in the order in which the tile reads
//! them: rows in place, a power of two of bytes apart, would share one set of the first-level cache. A single tile reads the
//! panels as they are: decode is bound by memory, and several panels at once hide the latency of the chains. Several tiles
//! work on a block of panels, which is widened to f32 once where that is dear, while the block after it is asked for; their
//! activations stay in the second-level cache while the blocks pass by.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::PoisonError;

use super::grid::{Ahead, Grid, PanelTile, PanelTiles, RowTiles};
use super::{Outputs, PanelRows};
use crate::simd::{Element, Kernel, LANES, Lanes, Simd, prefetch_line, with_element};
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
    let TileSize { rows, panels: tile_panels } = cpu.isa.run(TileSizeFor { m });
    let tiles = RowTiles { m, most: rows };
    let multiply = |x: &[f32]| {
        let all_panels = (out.n.div_ceil(LANES), k * size_of::<[T; LANES]>());
        let grid = Grid::new(cpu.pool.threads(), tiles, PIECE_TILES, all_panels, tile_panels);
        cpu.pool.run(grid.pieces(), |piece| {
            let (tiles_of_piece, panels_of_piece) = grid.piece(piece);
            cpu.isa.run(Stripe { x, tiles, k, panels, tile_panels, tiles_of_piece, panels_of_piece, out });
        });
    };
    if m == 1 {
        return multiply(x);
    }
    // Packed once for all panels. Another caller of the same device waits here.
    let mut packed = cpu.packed.lock().unwrap_or_else(PoisonError::into_inner);
    let tile_len = tiles.largest() * k;
    let packed: &mut [f32] = bytemuck::cast_slice_mut(packed.at_least(tiles.count() * tile_len));
    cpu.for_rows(packed, tile_len, tile_len, |first, parts| {
        for (at, packed) in parts.chunks_exact_mut(tile_len).enumerate() {
            let rows = tiles.rows(first + at);
            pack_rows(&x[rows.start * k..rows.end * k], rows.len(), packed);
        }
    });
    multiply(packed);
}

/// `[rows][K]` to `[K][rows]`.
fn pack_rows(x: &[f32], rows: usize, packed: &mut [f32]) {
    match rows {
        1 => pack_some::<1>(x, packed),
        2 => pack_some::<2>(x, packed),
        3 => pack_some::<3>(x, packed),
        4 => pack_some::<4>(x, packed),
        5 => pack_some::<5>(x, packed),
        6 => pack_some::<6>(x, packed),
        7 => pack_some::<7>(x, packed),
        _ => pack_some::<8>(x, packed),
    }
}

fn pack_some<const M: usize>(x: &[f32], packed: &mut [f32]) {
    let k = x.len() / M;
    let rows: [&[f32]; M] = std::array::from_fn(|m| &x[m * k..][..k]);
    for (step, packed) in packed.as_chunks_mut::<M>().0[..k].iter_mut().enumerate() {
        for m in 0..M {
            packed[m] = rows[m][step];
        }
    }
}

/// What the registers hold: chains of `rows` × `panels` vectors.
struct TileSize {
    rows: usize,
    panels: usize,
}

/// [`TileSize`] for `m` rows.
struct TileSizeFor {
    m: usize,
}

/// Rows of a tile at most where a vector is one of 32 registers: with three panels 24 chains.
const WIDE_ROWS: usize = 8;

/// The same where it is two of sixteen: with one panel twelve chains, which leaves registers for their operands.
const NARROW_ROWS: usize = 6;

impl Kernel for TileSizeFor {
    type Output = TileSize;

    /// Few rows take more panels, or their chains would not hide their latency. One row does not take more than four: that many
    /// streams through memory were faster than eight.
    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) -> TileSize {
        let size = |rows, panels| TileSize { rows, panels };
        match self.m {
            1..=6 if S::ACCUMULATORS >= 24 => size(WIDE_ROWS, 4),
            _ if S::ACCUMULATORS >= 24 => size(WIDE_ROWS, 3),
            1 => size(NARROW_ROWS, 4),
            2 => size(NARROW_ROWS, 2),
            _ => size(NARROW_ROWS, 1),
        }
    }
}

/// Row tiles from which they share the work of widening weights. With AVX2 it is done beside the multiply-adds, so that two or three
/// tiles are faster without a detour through memory.
const fn sharing_tiles<S: Simd>() -> usize {
    if S::ACCUMULATORS >= 24 { 2 } else { 4 }
}

/// Row tiles of a piece at most. 16 of them of a block of activations are 96 or 256 KiB: they stay in the second-level cache
/// together with this block of weights and the next.
const PIECE_TILES: usize = 16;

/// Steps over k of one block at most, a multiple of [`CHUNK`]: widened, with three panels 96 KiB, a tenth of the second-level cache
/// of a server core, and within that of a laptop. 128 steps, which fit into the first level, were slower: chains go through
/// memory four times as often. One panel of AVX2 is 20 KiB and stays in the first level.
const fn most_steps<S: Simd>() -> usize {
    if S::ACCUMULATORS >= 24 { 512 } else { 320 }
}

/// Steps between two looks ahead.
const CHUNK: usize = 16;

/// How far ahead a single tile asks for its weights, in vectors of all its panels.
const AHEAD: usize = 256;

/// Rows up to which nothing is asked for ahead: there is so little to compute that the loads themselves run far ahead.
const FEW_ROWS: usize = 2;

/// The outputs of some neighbouring panels, for some neighbouring row tiles.
struct Stripe<'a, T> {
    /// Per tile of R rows, as far apart as the largest is long, `[K][R]`.
    x: &'a [f32],
    tiles: RowTiles,
    k: usize,
    /// `[ceil(N / 16)][K]` vectors.
    panels: &'a [[T; LANES]],
    tile_panels: usize,
    tiles_of_piece: Range<usize>,
    panels_of_piece: Range<usize>,
    out: Outputs<'a>,
}

impl<T: Element> Kernel for Stripe<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        // A single tile reads every weight once: no block has to stay.
        let k_block = match self.tiles_of_piece.len() {
            1 => self.k,
            // As long as each other.
            _ => self.k.div_ceil(self.k.div_ceil(most_steps::<S>())).next_multiple_of(CHUNK),
        };
        let panels = self.panels_of_piece.clone();
        let tiles =
            PanelTiles { panels, of_tile: self.tile_panels, streams: S::ACCUMULATORS < 24 && self.tiles.m == 1 };
        // Taken out rather than borrowed in a closure: a closure is a function without this instruction set.
        let mut widened = WIDENED.take();
        for first_k in (0..self.k).step_by(k_block) {
            let ks = first_k..self.k.min(first_k + k_block);
            for at in 0..tiles.count() {
                let next = self.next(tiles.tile(at + 1).first, &ks);
                let block = Block { panels: tiles.tile(at), ks: ks.clone(), next };
                match block.panels.len {
                    1 => self.row_tiles::<S, 1>(simd, &block, &mut widened),
                    2 if S::ACCUMULATORS < 24 => self.row_tiles::<S, 2>(simd, &block, &mut widened),
                    3 if S::ACCUMULATORS >= 24 => self.row_tiles::<S, 3>(simd, &block, &mut widened),
                    _ => self.row_tiles::<S, 4>(simd, &block, &mut widened),
                }
            }
        }
        WIDENED.set(widened);
    }
}

/// Some steps of the panels of a tile.
struct Block {
    panels: PanelTile,
    ks: Range<usize>,
    /// The vector at which the block after it begins.
    next: usize,
}

impl<T: Element> Stripe<'_, T> {
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

    /// The tiles of the piece over one block of weights.
    #[inline(always)]
    fn row_tiles<S: Simd, const P: usize>(&self, simd: S, block: &Block, widened: &mut Vec<Aligned>) {
        let first: [usize; P] = std::array::from_fn(|p| block.panels.panel(p) * self.k + block.ks.start);
        let steps = block.ks.len();
        let tiles = self.tiles_of_piece.len();
        let stored = Stored { panels: first.map(|first| &self.panels[first..][..steps]) };
        if tiles < sharing_tiles::<S>() {
            for (at, tile) in self.tiles_of_piece.clone().enumerate() {
                let ahead = match self.tiles.m {
                    0..=FEW_ROWS => Ahead::NONE,
                    _ => Ahead::new(at, tiles, steps, AHEAD / P, CHUNK),
                };
                self.row_tile::<S, P, _>(simd, tile, block, &first, stored, &ahead);
            }
        } else if P == 1 || (P == 3 && S::ACCUMULATORS >= 24) {
            widened.resize(widened.len().max(most_steps::<S>() * P), Aligned([0.0; LANES]));
            let vectors = &mut widened.as_chunks_mut::<P>().0[..steps];
            for p in 0..P {
                for (vectors, weights) in vectors.iter_mut().zip(stored.panels[p]) {
                    simd.store(T::load(simd, weights), &mut vectors[p].0);
                }
            }
            for (at, tile) in self.tiles_of_piece.clone().enumerate() {
                let ahead = Ahead::new(at, tiles, steps, 0, CHUNK);
                self.row_tile::<S, P, _>(simd, tile, block, &first, Widened { vectors }, &ahead);
            }
        } else {
            unreachable!("TileSizeFor gives several tiles three panels, or one");
        }
    }

    /// One tile over one block of weights.
    #[inline(always)]
    fn row_tile<S: Simd, const P: usize, W: Weights<P>>(
        &self,
        simd: S,
        tile: usize,
        block: &Block,
        first: &[usize; P],
        weights: W,
        ahead: &Ahead,
    ) {
        let rows = self.tiles.rows(tile);
        let x = &self.x[tile * self.tiles.largest() * self.k..];
        macro_rules! tile_of {
            ($($m:literal)+) => {
                match rows.len() {
                    $($m => self.tile::<S, $m, P, W>(simd, x, rows.start, block, first, weights, ahead),)+
                    _ => unreachable!("TileSizeFor chooses rows and panels together"),
                }
            };
        }
        // Not cases of one match: where the condition is a constant, only one of them is compiled.
        if S::ACCUMULATORS >= 24 {
            if W::SHARED {
                tile_of!(4 5 6 7 8)
            } else if P == 4 {
                tile_of!(1 2 3 4 5 6)
            } else if P == 3 {
                tile_of!(7 8)
            } else {
                tile_of!(1 2 3 4 5 6 7 8)
            }
        } else if W::SHARED {
            tile_of!(4 5 6)
        } else if P == 4 {
            tile_of!(1)
        } else if P == 2 {
            tile_of!(2)
        } else {
            tile_of!(1 2 3 4 5 6)
        }
    }

    /// Asks for the weights of some steps of a block whose panels begin at `first`, or, behind its end, of the block after it.
    #[inline(always)]
    fn ask<const P: usize>(&self, block: &Block, first: &[usize; P], positions: Range<usize>) {
        const LINE_BYTES: usize = 64;
        let per_line = (LINE_BYTES / size_of::<[T; LANES]>()).max(1);
        let steps = block.ks.len();
        for position in positions.step_by(per_line) {
            for (p, first) in first.iter().enumerate() {
                let vector = match position < steps {
                    true => first + position,
                    false => block.next + p * self.k + position - steps,
                };
                prefetch_line(self.panels.as_ptr().wrapping_add(vector));
            }
        }
    }

    /// `M` rows × `P` panels over one block of k: the chains stay in registers.
    #[inline(always)]
    fn tile<S: Simd, const M: usize, const P: usize, W: Weights<P>>(
        &self,
        simd: S,
        x: &[f32],
        row: usize,
        block: &Block,
        first: &[usize; P],
        weights: W,
        ahead: &Ahead,
    ) {
        let ks = &block.ks;
        let x = x[ks.start * M..][..ks.len() * M].as_chunks::<M>().0;
        // Registers move through `done`, with loops so plain that they unroll: an array of registers that some loop indexes at
        // run time would live in memory, and every step would store it.
        let mut done = [[[0.0; LANES]; P]; M];
        if ks.start > 0 {
            self.out.read(row, block.panels, &mut done);
        }
        let mut sums = [[simd.splat(0.0); P]; M];
        for m in 0..M {
            for p in 0..P {
                sums[m][p] = simd.load(&done[m][p]);
            }
        }
        // Chunks of a fixed length, so that the steps within one unroll, and looks ahead come between two chunks.
        let (x_chunks, x_rest) = x.as_chunks::<CHUNK>();
        let (chunks, rest) = weights.split(x_chunks.len(), x_rest.len());
        let mut asked = ahead.first;
        for (at, x) in x_chunks.iter().enumerate() {
            if asked < ahead.end {
                self.ask::<P>(block, first, asked..asked + ahead.count);
                asked += ahead.count;
            }
            for step in 0..CHUNK {
                let weights = W::in_chunk(chunks, simd, at, step);
                for m in 0..M {
                    let x = simd.splat(x[step][m]);
                    for p in 0..P {
                        sums[m][p] = simd.fma(x, weights[p], sums[m][p]);
                    }
                }
            }
        }
        for (step, x) in x_rest.iter().enumerate() {
            let weights = W::in_rest(rest, simd, step);
            for m in 0..M {
                let x = simd.splat(x[m]);
                for p in 0..P {
                    sums[m][p] = simd.fma(x, weights[p], sums[m][p]);
                }
            }
        }
        for m in 0..M {
            for p in 0..P {
                simd.store(sums[m][p], &mut done[m][p]);
            }
        }
        self.out.write(row, block.panels, &done, ks.end == self.k);
    }
}

/// The weights of a block of `P` panels, as a tile reads them.
trait Weights<const P: usize>: Copy {
    /// By several tiles.
    const SHARED: bool;
    type Chunks: Copy;
    type Rest: Copy;
    /// So many chunks of [`CHUNK`] steps, and so many steps behind them.
    fn split(self, chunks: usize, rest: usize) -> (Self::Chunks, Self::Rest);
    fn in_chunk<S: Simd>(chunks: Self::Chunks, simd: S, chunk: usize, step: usize) -> [S::V; P];
    fn in_rest<S: Simd>(rest: Self::Rest, simd: S, step: usize) -> [S::V; P];
}

/// As they lie in memory.
#[derive(Clone, Copy)]
struct Stored<'a, T, const P: usize> {
    panels: [&'a [[T; LANES]]; P],
}

impl<'a, T: Element, const P: usize> Weights<P> for Stored<'a, T, P> {
    const SHARED: bool = false;
    type Chunks = [&'a [[[T; LANES]; CHUNK]]; P];
    type Rest = [&'a [[T; LANES]]; P];

    #[inline(always)]
    fn split(self, chunks: usize, rest: usize) -> (Self::Chunks, Self::Rest) {
        let (mut of_chunks, mut of_rest): (Self::Chunks, Self::Rest) = ([&[]; P], [&[]; P]);
        for p in 0..P {
            let (all, left) = self.panels[p].as_chunks();
            (of_chunks[p], of_rest[p]) = (&all[..chunks], &left[..rest]);
        }
        (of_chunks, of_rest)
    }

    #[inline(always)]
    fn in_chunk<S: Simd>(chunks: Self::Chunks, simd: S, chunk: usize, step: usize) -> [S::V; P] {
        let mut weights = [T::load(simd, &chunks[0][chunk][step]); P];
        for p in 1..P {
            weights[p] = T::load(simd, &chunks[p][chunk][step]);
        }
        weights
    }

    #[inline(always)]
    fn in_rest<S: Simd>(rest: Self::Rest, simd: S, step: usize) -> [S::V; P] {
        let mut weights = [T::load(simd, &rest[0][step]); P];
        for p in 1..P {
            weights[p] = T::load(simd, &rest[p][step]);
        }
        weights
    }
}

/// Widened for several tiles.
#[derive(Clone, Copy)]
struct Widened<'a, const P: usize> {
    vectors: &'a [[Aligned; P]],
}

impl<'a, const P: usize> Weights<P> for Widened<'a, P> {
    const SHARED: bool = true;
    type Chunks = &'a [[[Aligned; P]; CHUNK]];
    type Rest = &'a [[Aligned; P]];

    #[inline(always)]
    fn split(self, chunks: usize, rest: usize) -> (Self::Chunks, Self::Rest) {
        let (all, left) = self.vectors.as_chunks();
        (&all[..chunks], &left[..rest])
    }

    #[inline(always)]
    fn in_chunk<S: Simd>(chunks: Self::Chunks, simd: S, chunk: usize, step: usize) -> [S::V; P] {
        Self::in_rest(&chunks[chunk], simd, step)
    }

    #[inline(always)]
    fn in_rest<S: Simd>(rest: Self::Rest, simd: S, step: usize) -> [S::V; P] {
        let mut weights = [simd.load(&rest[step][0].0); P];
        for p in 1..P {
            weights[p] = simd.load(&rest[step][p].0);
        }
        weights
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
