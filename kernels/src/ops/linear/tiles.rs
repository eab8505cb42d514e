//! The arm of machines with AMX-BF16: bf16 weights times activations rounded to bf16, in products of tiles.
//!
//! Every output element is a chain over blocks of 32 inputs, k = 0..32, 32..64, …, each added as the product of tiles adds it
//! ([`Tiles::dot`]); the bias is added last. One row is a tile of one row, so its order of additions is that of many; tiles
//! run over M and N and blocks over K pause a chain in memory without rounding: neither the number of rows nor threads change
//! a bit.
//!
//! Two tiles of rows times two panels are computed at a time: each tile that is loaded serves two products.

use std::ops::Range;
use std::sync::PoisonError;

use super::grid::{Ahead, Grid, RowTiles};
use super::{Outputs, PanelRows, pairs};
use crate::simd::{
    Amx, Avx512Bf16, LANES, Lanes, Pair, PairKernel, TILE_PAIRS, TILE_ROWS, TileKernel, TileRow, Tiles, prefetch_line,
    round_pair,
};
use crate::{Cpu, DType, LinearWeight};

/// A panel is `[ceil(K / 32)]` tiles of sixteen rows, a pair of inputs each, for sixteen outputs: the panel of `pairs`, filled
/// up with zeros to whole tiles.
pub(super) fn panel_bytes(k: usize) -> usize {
    num_steps(k) * TILE_PAIRS * size_of::<TileRow>()
}

pub(super) fn pack_panel(panel: &mut [u8], rows: &PanelRows<'_>) {
    let k = rows.matrices.first().map_or(0, |matrix| matrix.cols);
    rows.write(&mut panel[..pairs::panel_bytes(k)], DType::Bf16, 2);
}

/// Products of tiles along `k` inputs.
fn num_steps(k: usize) -> usize {
    k.div_ceil(2 * TILE_PAIRS)
}

pub(super) fn run(cpu: &Cpu, x: &[f32], w: &LinearWeight, amx: Amx, out: Outputs<'_>) {
    let (row_len, steps) = (w.k(), num_steps(w.k()));
    let tiles = RowTiles { m: out.m, most: TILE_ROWS };
    // Rounded once for all panels. Another caller of the same device waits here.
    let mut pairs = cpu.packed.lock().unwrap_or_else(PoisonError::into_inner);
    let tile_len = tiles.largest() * steps * TILE_PAIRS;
    let pairs = pairs.at_least(tiles.count() * tile_len);
    cpu.for_rows(pairs, tile_len, tile_len, |first, parts| {
        for (at, tile) in parts.chunks_exact_mut(tile_len).enumerate() {
            let rows = tiles.rows(first + at);
            let x = &x[rows.start * row_len..rows.end * row_len];
            let pack = PackTile { x, row_len, rows: rows.len(), tile: tile.as_chunks_mut().0 };
            match amx.pairs() {
                Some(simd) => simd.vectorize(pack),
                None => pack.with(round_portably),
            }
        }
    });
    let (x, weights) = (pairs.as_chunks().0, w.panels::<Pair>().as_chunks().0);
    let panels = (out.n.div_ceil(LANES), panel_bytes(row_len));
    let grid = Grid::new(cpu.pool.threads(), tiles, PIECE_TILES, panels, TILE_PANELS);
    cpu.pool.run(grid.pieces(), |piece| {
        let (tiles_of_piece, panels_of_piece) = grid.piece(piece);
        amx.run(Stripe { x, tiles, steps, weights, tiles_of_piece, panels_of_piece, out });
    });
}

/// Row tiles of a piece at most. Eight tiles of sixteen rows of a block of activations are 512 KiB: they stay in the second-level
/// cache of 2 MiB together with this block of weights and the next.
const PIECE_TILES: usize = 8;

/// Panels that are computed together.
const TILE_PANELS: usize = 2;

/// Products along K of one block: with two panels 128 KiB.
const K_BLOCK: usize = 64;

/// How many products ahead a single pair of row tiles asks for its weights: with two panels 8 KiB, as `pairs` does.
const AHEAD: usize = 4;

/// The outputs of some neighbouring panels, for some neighbouring row tiles.
struct Stripe<'a> {
    /// Per tile of R rows, as far apart as the largest is long, `[ceil(K / 32)][R]`.
    x: &'a [TileRow],
    tiles: RowTiles,
    /// Products along K.
    steps: usize,
    /// `[ceil(N / 16)][ceil(K / 32)][16]`.
    weights: &'a [TileRow],
    tiles_of_piece: Range<usize>,
    panels_of_piece: Range<usize>,
    out: Outputs<'a>,
}

impl TileKernel for Stripe<'_> {
    #[inline(always)]
    fn run(self, tiles: &mut impl Tiles) {
        // A single pair of row tiles reads every weight once: no block has to stay.
        let k_block = if self.tiles_of_piece.len() <= 2 { self.steps } else { K_BLOCK };
        for first in (0..self.steps).step_by(k_block) {
            let ks = first..self.steps.min(first + k_block);
            for panel in self.panels_of_piece.clone().step_by(TILE_PANELS) {
                // Where the weights after these begin. After the last come those of the next piece, most likely this thread's.
                let next = match panel + TILE_PANELS {
                    next if next < self.panels_of_piece.end => next * self.steps + ks.start,
                    _ if ks.end < self.steps => self.panels_of_piece.start * self.steps + ks.end,
                    next => next * self.steps,
                };
                self.row_tiles(tiles, panel, &ks, next);
            }
        }
    }
}

impl Stripe<'_> {
    /// The tiles of the piece, two at a time, over one block of one or two panels.
    #[inline(always)]
    fn row_tiles(&self, tiles: &mut impl Tiles, panel: usize, ks: &Range<usize>, next: usize) {
        let both = panel + 1 < self.panels_of_piece.end;
        let uppers = self.tiles_of_piece.clone().step_by(2);
        let pairs = uppers.len();
        for (at, upper) in uppers.enumerate() {
            let ahead = Ahead::new(at, pairs, ks.len(), AHEAD, 1);
            let block = Block { panel, upper, ks, next, ahead };
            match (upper + 1 < self.tiles_of_piece.end, both) {
                (true, true) => self.block::<true, true>(tiles, &block),
                (true, false) => self.block::<true, false>(tiles, &block),
                (false, true) => self.block::<false, true>(tiles, &block),
                (false, false) => self.block::<false, false>(tiles, &block),
            }
        }
    }

    /// One tile of rows or two (`LOWER`) × one panel or two (`RIGHT`): the sums stay in registers.
    #[inline(always)]
    fn block<const LOWER: bool, const RIGHT: bool>(&self, tiles: &mut impl Tiles, block: &Block<'_>) {
        let upper_rows = self.tiles.rows(block.upper);
        let lower_rows = if LOWER { self.tiles.rows(block.upper + 1) } else { upper_rows.end..upper_rows.end };
        tiles.configure(upper_rows.len(), lower_rows.len());
        self.begin::<0>(tiles, &upper_rows, block.panel, block.ks);
        if RIGHT {
            self.begin::<1>(tiles, &upper_rows, block.panel + 1, block.ks);
        }
        if LOWER {
            self.begin::<2>(tiles, &lower_rows, block.panel, block.ks);
        }
        if LOWER && RIGHT {
            self.begin::<3>(tiles, &lower_rows, block.panel + 1, block.ks);
        }
        let x = |tile: usize, rows: usize, step: usize| {
            &self.x[tile * self.tiles.largest() * self.steps + step * rows..][..rows]
        };
        for step in block.ks.clone() {
            self.ask_for::<RIGHT>(block, step);
            tiles.load::<4>(x(block.upper, upper_rows.len(), step));
            tiles.load::<6>(self.weights(block.panel, step));
            tiles.dot::<0, 4, 6>();
            if RIGHT {
                tiles.load::<7>(self.weights(block.panel + 1, step));
                tiles.dot::<1, 4, 7>();
            }
            if LOWER {
                tiles.load::<5>(x(block.upper + 1, lower_rows.len(), step));
                tiles.dot::<2, 5, 6>();
            }
            if LOWER && RIGHT {
                tiles.dot::<3, 5, 7>();
            }
        }
        self.end::<0>(tiles, &upper_rows, block.panel, block.ks);
        if RIGHT {
            self.end::<1>(tiles, &upper_rows, block.panel + 1, block.ks);
        }
        if LOWER {
            self.end::<2>(tiles, &lower_rows, block.panel, block.ks);
        }
        if LOWER && RIGHT {
            self.end::<3>(tiles, &lower_rows, block.panel + 1, block.ks);
        }
    }

    /// The tile of weights of a panel.
    #[inline(always)]
    fn weights(&self, panel: usize, step: usize) -> &[TileRow] {
        &self.weights[(panel * self.steps + step) * TILE_PAIRS..][..TILE_PAIRS]
    }

    /// Asks for the weights that are needed soon.
    #[inline(always)]
    fn ask_for<const RIGHT: bool>(&self, block: &Block<'_>, step: usize) {
        let (at, steps) = (step - block.ks.start, block.ks.len());
        let first = block.ahead.first + at * block.ahead.count;
        if first >= block.ahead.end {
            return;
        }
        for position in first..first + block.ahead.count {
            let (first_panel, step) = match position < steps {
                true => (block.panel * self.steps, block.ks.start + position),
                false => (block.next, position - steps),
            };
            for panel in 0..if RIGHT { 2 } else { 1 } {
                let tile = (first_panel + panel * self.steps + step) * TILE_PAIRS;
                for row in 0..TILE_PAIRS {
                    prefetch_line(self.weights.as_ptr().wrapping_add(tile + row));
                }
            }
        }
    }

    /// Sets sums to zero, or to where the block before left them.
    #[inline(always)]
    fn begin<const C: usize>(&self, tiles: &mut impl Tiles, rows: &Range<usize>, panel: usize, ks: &Range<usize>) {
        if ks.start == 0 {
            return tiles.zero::<C>();
        }
        let mut sums = Sums([[0.0; LANES]; TILE_ROWS]);
        for (row, sums) in rows.clone().zip(&mut sums.0) {
            self.out.read_row(row, panel, sums);
        }
        tiles.load_sums::<C>(&sums.0);
    }

    #[inline(always)]
    fn end<const C: usize>(&self, tiles: &mut impl Tiles, rows: &Range<usize>, panel: usize, ks: &Range<usize>) {
        let mut sums = Sums([[0.0; LANES]; TILE_ROWS]);
        tiles.store::<C>(&mut sums.0);
        for (row, sums) in rows.clone().zip(&sums.0) {
            self.out.write_row(row, panel, sums, ks.end == self.steps);
        }
    }
}

/// A part of the product that is computed at once.
struct Block<'a> {
    panel: usize,
    /// The upper row tile; the lower is the next.
    upper: usize,
    ks: &'a Range<usize>,
    /// The first tile of weights of the next block's first panel.
    next: usize,
    ahead: Ahead,
}

/// A tile of sums in memory, no row of it on two cache lines.
#[repr(align(64))]
struct Sums([Lanes; TILE_ROWS]);

/// Rounds a tile of rows of activations to pairs, to nearest, ties to even, filled up with zeros to whole tiles.
struct PackTile<'a> {
    /// `[rows][row_len]`.
    x: &'a [f32],
    row_len: usize,
    rows: usize,
    /// `[ceil(row_len / 32)][rows]`.
    tile: &'a mut [TileRow],
}

impl PackTile<'_> {
    #[inline(always)]
    fn with(self, round: impl Fn(&[f32; 2 * TILE_PAIRS], &mut TileRow)) {
        for (at, row) in self.x.chunks_exact(self.row_len).enumerate() {
            let mut places = self.tile[at..].iter_mut().step_by(self.rows);
            let (whole, rest) = row.as_chunks();
            whole.iter().zip(places.by_ref()).for_each(|(x, place)| round(x, place));
            if let (Some(place), false) = (places.next(), rest.is_empty()) {
                let mut filled = [0.0; 2 * TILE_PAIRS];
                filled[..rest.len()].copy_from_slice(rest);
                round(&filled, place);
            }
        }
    }
}

impl PairKernel for PackTile<'_> {
    #[inline(always)]
    fn run(self, simd: Avx512Bf16) {
        self.with(|x, pairs| simd.round_to(x, pairs));
    }
}

fn round_portably(x: &[f32; 2 * TILE_PAIRS], pairs: &mut TileRow) {
    pairs.iter_mut().zip(x.chunks_exact(2)).for_each(|(pair, x)| *pair = round_pair(x));
}
