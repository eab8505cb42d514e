//! Many rows of int8, NF4 and 4-bit integer weights on machines with AMX-INT8: a group of 64 inputs is one product of tiles.
//!
//! The products are sums of integers, which are exact, and what follows them is computed as `grouped.rs` does: so the bits are
//! those of the other arms, and few rows, whose tiles would be nearly empty, are left to those.
//!
//! Two tiles of rows times two panels are computed at a time: each tile that is loaded serves two products.

use std::ops::Range;
use std::sync::PoisonError;

use super::Outputs;
use super::bytes::ByteInputs;
use super::grid::RowTiles;
use super::grouped::{Arm, GROUP, Line, V};
use crate::simd::{Amx, LANES, Lanes, Simd, TILE_PAIRS, TILE_ROWS, TileKernel, TileRow, Tiles};
use crate::{Cpu, LinearWeight};

/// Rows from which tiles are full enough to be faster than dot products.
pub(super) const MIN_ROWS: usize = 9;

/// The weights of a group: a row for every four inputs.
pub(super) type Tile = [TileRow; GROUP / 4];

/// What products of tiles need of a format whose inputs are bytes.
pub(super) trait ByteArm: Arm<Inputs = ByteInputs> {
    /// The biased weights of a group in a panel, as they lie there or written to `unpacked`.
    fn tile<'a>(self, panel: &'a [Line], group: usize, unpacked: &'a mut Tile) -> &'a Tile;
    /// Adds the sums of a group to the groups before it, as [`Arm::add`] does.
    fn add_sums(self, total: V<Self>, sums: V<Self>, inputs: &ByteInputs, panel: &[Line], group: usize) -> V<Self>;
}

/// `out = x · wᵀ (+ bias)`; `x`: `[M][ceil(K / 64)]`.
pub(super) fn run<A: ByteArm>(amx: Amx, arm: A, cpu: &Cpu, x: &[ByteInputs], w: &LinearWeight, out: Outputs<'_>) {
    let groups = w.k().div_ceil(GROUP);
    let tiles = RowTiles { m: out.m, most: TILE_ROWS };
    // Another caller of the same device waits here.
    let mut pairs = cpu.packed.lock().unwrap_or_else(PoisonError::into_inner);
    let tile_len = tiles.largest() * groups * TILE_PAIRS;
    let pairs = pairs.at_least(tiles.count() * tile_len);
    cpu.for_rows(pairs, tile_len, tile_len, |first, parts| {
        for (at, tile) in parts.chunks_exact_mut(tile_len).enumerate() {
            let rows = tiles.rows(first + at);
            let tile: &mut [TileRow] = tile.as_chunks_mut().0;
            for (at, inputs) in x[rows.start * groups..rows.end * groups].chunks_exact(groups).enumerate() {
                let places = tile[at..].iter_mut().step_by(rows.len());
                places.zip(inputs).for_each(|(place, inputs)| *place = inputs.tile_row());
            }
        }
    });
    let tile_rows = pairs.as_chunks().0;
    let (inputs, panels) = (x, w.panels::<Line>());
    let panel_lines = w.panel_bytes() / size_of::<Line>();
    let all_panels = out.n.div_ceil(LANES);
    // One visit is a row of a tile of sums.
    cpu.split(all_panels.div_ceil(2), 2 * groups * (TILE_ROWS + out.m), |pairs_of_panels| {
        let range = 2 * pairs_of_panels.start..all_panels.min(2 * pairs_of_panels.end);
        amx.run(Stripe { arm, inputs, tile_rows, tiles, groups, panels, panel_lines, range, out });
    });
}

/// The outputs of some neighbouring panels, for all rows.
struct Stripe<'a, A: Arm> {
    arm: A,
    /// `[M][groups]`.
    inputs: &'a [ByteInputs],
    /// Per tile of R rows, as far apart as the largest is long, `[groups][R]`.
    tile_rows: &'a [TileRow],
    tiles: RowTiles,
    groups: usize,
    panels: &'a [Line],
    panel_lines: usize,
    range: Range<usize>,
    out: Outputs<'a>,
}

impl<A: ByteArm> TileKernel for Stripe<'_, A> {
    #[inline(always)]
    fn run(self, tiles: &mut impl Tiles) {
        for panel in self.range.clone().step_by(2) {
            let both = panel + 1 < self.range.end;
            for upper in (0..self.tiles.count()).step_by(2) {
                let lower = upper + 1 < self.tiles.count();
                match (lower, both) {
                    (true, true) => self.block::<true, true>(tiles, upper, panel),
                    (true, false) => self.block::<true, false>(tiles, upper, panel),
                    (false, true) => self.block::<false, true>(tiles, upper, panel),
                    (false, false) => self.block::<false, false>(tiles, upper, panel),
                }
            }
        }
    }
}

/// Sums of a tile, as the products leave them.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Products([[i32; LANES]; TILE_ROWS]);

impl<A: ByteArm> Stripe<'_, A> {
    /// One tile of rows or two (`LOWER`) × one panel or two (`RIGHT`) over all groups.
    #[inline(always)]
    fn block<const LOWER: bool, const RIGHT: bool>(&self, tiles: &mut impl Tiles, upper: usize, panel: usize) {
        let upper_rows = self.tiles.rows(upper);
        let lower_rows = if LOWER { self.tiles.rows(upper + 1) } else { upper_rows.end..upper_rows.end };
        tiles.configure(upper_rows.len(), lower_rows.len());
        let mut unpacked = [[0; TILE_PAIRS]; GROUP / 4];
        let mut products = [Products([[0; LANES]; TILE_ROWS]); 4];
        let mut totals = [[[0.0; LANES]; TILE_ROWS]; 4];
        for group in 0..self.groups {
            tiles.load::<4>(self.tile_of_inputs(upper, &upper_rows, group));
            tiles.load::<6>(self.arm.tile(self.panel(panel), group, &mut unpacked));
            tiles.zero::<0>();
            tiles.dot_bytes::<0, 4, 6>();
            tiles.store_integers::<0>(&mut products[0].0);
            if LOWER {
                tiles.load::<5>(self.tile_of_inputs(upper + 1, &lower_rows, group));
                tiles.zero::<2>();
                tiles.dot_bytes::<2, 5, 6>();
                tiles.store_integers::<2>(&mut products[2].0);
            }
            if RIGHT {
                tiles.load::<7>(self.arm.tile(self.panel(panel + 1), group, &mut unpacked));
                tiles.zero::<1>();
                tiles.dot_bytes::<1, 4, 7>();
                tiles.store_integers::<1>(&mut products[1].0);
            }
            if LOWER && RIGHT {
                tiles.zero::<3>();
                tiles.dot_bytes::<3, 5, 7>();
                tiles.store_integers::<3>(&mut products[3].0);
            }
            self.add(&mut totals[0], &products[0], &upper_rows, panel, group);
            if RIGHT {
                self.add(&mut totals[1], &products[1], &upper_rows, panel + 1, group);
            }
            if LOWER {
                self.add(&mut totals[2], &products[2], &lower_rows, panel, group);
            }
            if LOWER && RIGHT {
                self.add(&mut totals[3], &products[3], &lower_rows, panel + 1, group);
            }
        }
        self.finish(&totals[0], &upper_rows, panel);
        if RIGHT {
            self.finish(&totals[1], &upper_rows, panel + 1);
        }
        if LOWER {
            self.finish(&totals[2], &lower_rows, panel);
        }
        if LOWER && RIGHT {
            self.finish(&totals[3], &lower_rows, panel + 1);
        }
    }

    #[inline(always)]
    fn tile_of_inputs(&self, tile: usize, rows: &Range<usize>, group: usize) -> &[TileRow] {
        &self.tile_rows[tile * self.tiles.largest() * self.groups + group * rows.len()..][..rows.len()]
    }

    #[inline(always)]
    fn panel(&self, panel: usize) -> &[Line] {
        &self.panels[panel * self.panel_lines..][..self.panel_lines]
    }

    /// Adds a group to the groups before it.
    #[inline(always)]
    fn add(
        &self,
        totals: &mut [Lanes; TILE_ROWS],
        products: &Products,
        rows: &Range<usize>,
        panel: usize,
        group: usize,
    ) {
        let lanes = self.arm.lanes();
        for (at, row) in rows.clone().enumerate() {
            let inputs = &self.inputs[row * self.groups + group];
            let mut sums = [0.0; LANES];
            for (sum, product) in sums.iter_mut().zip(&products.0[at]) {
                *sum = product.wrapping_add(inputs.offset) as f32;
            }
            let (total, sums) = (lanes.load(&totals[at]), lanes.load(&sums));
            let total = self.arm.add_sums(total, sums, inputs, self.panel(panel), group);
            lanes.store(total, &mut totals[at]);
        }
    }

    #[inline(always)]
    fn finish(&self, totals: &[Lanes; TILE_ROWS], rows: &Range<usize>, panel: usize) {
        let lanes = self.arm.lanes();
        for (total, row) in totals.iter().zip(rows.clone()) {
            let total = self.arm.finish(lanes.load(total), self.panel(panel));
            self.out.write_row(row, panel, &lanes.to_array(total), true);
        }
    }
}
