//! How a product is divided: rows into tiles of registers, rows and panels into pieces for threads.

use std::ops::Range;

use crate::limits::{MIN_WORK_PER_THREAD, PIECES_PER_THREAD};
use crate::pool::share;

/// How `m` rows are divided into tiles of at most `most` rows: as equal as they can be.
#[derive(Clone, Copy)]
pub(super) struct RowTiles {
    pub(super) m: usize,
    pub(super) most: usize,
}

impl RowTiles {
    pub(super) fn count(self) -> usize {
        self.m.div_ceil(self.most)
    }

    pub(super) fn rows(self, tile: usize) -> Range<usize> {
        share(self.m, self.count(), tile)
    }

    /// Rows of the largest tile.
    pub(super) fn largest(self) -> usize {
        self.m.div_ceil(self.count())
    }
}

/// Pieces: blocks of row tiles × ranges of panels.
pub(super) struct Grid {
    tiles: RowTiles,
    panels: usize,
    tile_panels: usize,
    row_blocks: usize,
    panel_ranges: usize,
}

/// What a cache line of weights costs by itself, in visits: it comes from memory. With less, the linears of a small model would
/// not be divided when there is one row; int8 was a tenth slower.
const LINE_VISITS: usize = 12;

/// Bytes of weights of a piece at most, if there are several pieces along the rows: they take them from the third-level cache.
const PIECE_BYTES: usize = 4 << 20;

impl Grid {
    /// The pieces of a product with `panels` panels of `panel_bytes` bytes, which are computed `tile_panels` at a time; at most
    /// `piece_tiles` row tiles a piece.
    pub(super) fn new(
        threads: usize,
        tiles: RowTiles,
        piece_tiles: usize,
        (panels, panel_bytes): (usize, usize),
        tile_panels: usize,
    ) -> Grid {
        let (row_blocks, groups) = (tiles.count().div_ceil(piece_tiles), panels.div_ceil(tile_panels));
        // One visit is a vector of products with a cache line of weights.
        let visits = panels * (panel_bytes / CACHE_LINE_BYTES) * (LINE_VISITS + tiles.m);
        let most = (visits / MIN_WORK_PER_THREAD).max(1);
        let several = most.min(threads * PIECES_PER_THREAD).div_ceil(row_blocks);
        let for_cache = if row_blocks > 1 { (panels * panel_bytes).div_ceil(PIECE_BYTES) } else { 1 };
        let ranges = several.max(for_cache);
        // As many for each.
        let ranges = if ranges >= threads { ranges.next_multiple_of(threads) } else { ranges };
        Grid { tiles, panels, tile_panels, row_blocks, panel_ranges: ranges.min(groups) }
    }

    pub(super) fn pieces(&self) -> usize {
        self.row_blocks * self.panel_ranges
    }

    /// The tiles and panels of a piece: neighbours share their weights.
    pub(super) fn piece(&self, piece: usize) -> (Range<usize>, Range<usize>) {
        let tiles = share(self.tiles.count(), self.row_blocks, piece % self.row_blocks);
        let groups = share(self.panels.div_ceil(self.tile_panels), self.panel_ranges, piece / self.row_blocks);
        (tiles, groups.start * self.tile_panels..self.panels.min(groups.end * self.tile_panels))
    }
}

/// The panels of a piece, in tiles of `of_tile` of them; those that fill none come last, one by one.
///
/// The panels of a tile are read at the same time. If nothing stays in a cache from one tile to the next, because there is one row,
/// they are `streams`: each tile continues where the one before it ended, in as many places of the piece, and the processor sees
/// long streams coming. A product of few inputs, with panels of some kilobytes, was a tenth faster than with neighbours.
pub(super) struct PanelTiles {
    pub(super) panels: Range<usize>,
    pub(super) of_tile: usize,
    pub(super) streams: bool,
}

/// The panels that a tile reads: `first`, and every `apart`-th after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PanelTile {
    pub(super) first: usize,
    pub(super) apart: usize,
    pub(super) len: usize,
}

impl PanelTiles {
    pub(super) fn count(&self) -> usize {
        self.full() + self.panels.len() % self.of_tile
    }

    /// Tile number `at`. Behind the last, where it would be if the piece went on.
    pub(super) fn tile(&self, at: usize) -> PanelTile {
        let (full, of_tile, start) = (self.full(), self.of_tile, self.panels.start);
        match at {
            at if at >= full => PanelTile::neighbours(start + full * of_tile + (at - full), 1),
            at if self.streams => PanelTile { first: start + at, apart: full, len: of_tile },
            at => PanelTile::neighbours(start + at * of_tile, of_tile),
        }
    }

    fn full(&self) -> usize {
        self.panels.len() / self.of_tile
    }
}

impl PanelTile {
    pub(super) fn neighbours(first: usize, len: usize) -> PanelTile {
        PanelTile { first, apart: 1, len }
    }

    /// Panel number `p` of the tile.
    pub(super) fn panel(self, p: usize) -> usize {
        self.first + p * self.apart
    }
}

/// Which weights a tile asks for while it computes with a block of them, in steps along K from the beginning of the block; those
/// beyond its end are steps of the next block. A single tile runs a little ahead of itself, several share the next block.
pub(super) struct Ahead {
    /// The step of the first look, at the tile's own first step.
    pub(super) first: usize,
    /// What lies before this step is not asked for: the processor sees it coming.
    pub(super) start: usize,
    /// Nor is what lies from this step on: other tiles do it.
    pub(super) end: usize,
    /// Steps that are asked for at a look: with many more, so many lines would be asked for at once that loads wait behind them.
    pub(super) count: usize,
}

impl Ahead {
    /// For a tile that leaves it to the processor to see the pattern.
    pub(super) const NONE: Ahead = Ahead { first: 0, start: 0, end: 0, count: 0 };

    /// For a single tile that looks at every step `single` steps ahead, but leaves its own block to the processor.
    pub(super) fn next_block(steps: usize, single: usize) -> Ahead {
        Ahead { first: single, start: steps, end: single + steps, count: 1 }
    }

    /// For tile number `tile` of `tiles` that work one after the other on a block of `steps` steps and look ahead every `every` steps;
    /// a single one looks `single` steps ahead.
    pub(super) fn new(tile: usize, tiles: usize, steps: usize, single: usize, every: usize) -> Ahead {
        match tiles {
            1 => Ahead { first: single, start: 0, end: single + steps, count: every },
            _ => Ahead {
                first: steps + tile * steps / tiles,
                start: 0,
                end: steps + (tile + 1) * steps / tiles,
                count: every.div_ceil(tiles),
            },
        }
    }
}

const CACHE_LINE_BYTES: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_meets_every_panel_once() {
        for (m, panels, k, threads) in
            [(1, 1, 1, 1), (1, 36, 288, 2), (9, 7, 40, 3), (130, 60, 288, 2), (2048, 128, 1024, 2), (513, 3, 4096, 5)]
        {
            let tiles = RowTiles { m, most: 8 };
            for tile_panels in [2, 3, 4] {
                let grid = Grid::new(threads, tiles, 16, (panels, k * CACHE_LINE_BYTES), tile_panels);
                let mut visits = vec![0; m * panels];
                for piece in 0..grid.pieces() {
                    let (of_rows, of_panels) = grid.piece(piece);
                    assert!(of_rows.len() <= 16 && of_panels.start % tile_panels == 0);
                    for row in of_rows.flat_map(|tile| tiles.rows(tile)) {
                        of_panels.clone().for_each(|panel| visits[row * panels + panel] += 1);
                    }
                }
                assert!(visits.iter().all(|visits| *visits == 1), "{m} rows, {panels} panels, {threads} threads");
            }
        }
    }

    #[test]
    fn tiles_cover_the_panels_of_a_piece_once() {
        for panels in [3..4, 5..17, 0..36, 7..9] {
            for (of_tile, streams) in [(1, false), (3, false), (3, true), (4, true)] {
                let tiles = PanelTiles { panels: panels.clone(), of_tile, streams };
                let of = |at| (0..tiles.tile(at).len).map(move |p| (at, p)).map(|(at, p)| tiles.tile(at).panel(p));
                let mut all: Vec<usize> = (0..tiles.count()).flat_map(of).collect();
                all.sort_unstable();
                assert!(all.into_iter().eq(panels.clone()), "{panels:?} in tiles of {of_tile}");
            }
        }
        let tiles = PanelTiles { panels: 10..17, of_tile: 3, streams: true };
        let [a, b] = [tiles.tile(0), tiles.tile(1)].map(|tile| [0, 1, 2].map(|p| tile.panel(p)));
        assert_eq!((a, b), ([10, 12, 14], [11, 13, 15]), "each stream goes on");
    }

    #[test]
    fn tiles_differ_by_one_row_at_most() {
        for m in 1..100 {
            let tiles = RowTiles { m, most: 8 };
            let sizes: Vec<usize> = (0..tiles.count()).map(|tile| tiles.rows(tile).len()).collect();
            assert_eq!(sizes.iter().sum::<usize>(), m);
            assert!(sizes.iter().all(|size| [tiles.largest(), tiles.largest() - 1].contains(size)), "{sizes:?}");
            assert!(tiles.largest() <= 8);
        }
    }
}
