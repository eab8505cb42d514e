//! What the arms of quantised weights share: their tiles, and the order of their sums.
//!
//! Every output element is a sum over groups of 64 inputs, each summed by itself (in integers or in f32, as the arm says), then
//! scaled and added to the groups before it by one fused multiply-add; at the end the total is scaled by the output's own factor, and
//! the bias is added last. Tiles run over M and N, blocks over K pause a sum between two groups in memory without
//! rounding; so, as in the arms of floats, neither the number of rows nor threads change a bit.
//!
//! Few rows read the panels as they are. Many rows share the work of unpacking a block of panels, where that is work.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::PoisonError;

use bytemuck::Pod;

use super::grid::{Ahead, Grid, PanelTile, PanelTiles, RowTiles};
use super::{Outputs, PanelRows};
use crate::simd::{Kernel, LANES, Lanes, Simd, StepCodes, prefetch_line};
use crate::{Cpu, LinearWeight};

/// Inputs of a group. 64: the block of NF4, a tile of 64-byte rows on machines that have them, and a divisor of the usual sizes, so
/// that no padding is read. Inputs that do not exist are zeros.
pub(super) const GROUP: usize = 64;

/// A line of a panel: 64 bytes. Every panel is a whole number of them.
pub(super) type Line = StepCodes;

/// A format of quantised weights on an instruction set.
pub(super) trait Arm: Copy + Send + Sync {
    /// The lanes in which groups are added up.
    type Lanes: Simd;
    /// A group of a row's inputs, as the dot products take them.
    type Inputs: Pod + Send + Sync;
    /// The weights of a group and sixteen outputs, as they lie in a panel.
    type Block;
    /// The weights of sixteen outputs for one step, in registers: 64 bytes.
    type Weights: Copy;
    /// What one load gives: the weights of [`STEPS_PER_LOAD`](Arm::STEPS_PER_LOAD) steps.
    type Loaded: Copy;
    /// Sixteen sums of a group.
    type Sums: Copy;
    /// Loads of a group.
    const LOADS: usize;
    /// Steps of a load.
    const STEPS_PER_LOAD: usize;
    /// Lines of two groups: their weights, and what lies between.
    const LINES_OF_TWO: usize;
    /// Whether loading takes more than reading, so that many rows should share it.
    const UNPACKS: bool;

    fn lanes(self) -> Self::Lanes;
    /// Runs `kernel` compiled for the arm's instruction set.
    fn vectorize<K: Kernel<Output = ()>>(self, kernel: K);
    /// Converts up to [`GROUP`] inputs.
    fn prepare(self, x: &[f32], inputs: &mut Self::Inputs);
    /// The weights of a group in a panel.
    fn block(panel: &[Line], group: usize) -> &Self::Block;
    /// Load number `at` of a group.
    fn load(self, block: &Self::Block, at: usize) -> Self::Loaded;
    /// Step number `at` of a load.
    fn step(loaded: &Self::Loaded, at: usize) -> Self::Weights;
    fn start(self, inputs: &Self::Inputs) -> Self::Sums;
    /// Adds the inputs of a step times their weights.
    fn dot(self, sums: Self::Sums, inputs: &Self::Inputs, step: usize, weights: Self::Weights) -> Self::Sums;
    /// Adds a group to the groups before it.
    fn add(self, total: V<Self>, sums: Self::Sums, inputs: &Self::Inputs, panel: &[Line], group: usize) -> V<Self>;
    /// The output's own factor.
    fn finish(self, total: V<Self>, panel: &[Line]) -> V<Self>;
}

/// The f32 vectors of an arm.
pub(super) type V<A> = <<A as Arm>::Lanes as Simd>::V;

/// Converts the inputs of a product once for all panels, `[M][K]` to `[M][ceil(K / 64)]`, and calls `multiply` with them.
pub(super) fn with_inputs<A: Arm>(arm: A, cpu: &Cpu, x: &[f32], k: usize, multiply: impl FnOnce(&[A::Inputs])) {
    let (m, groups) = (x.len() / k, k.div_ceil(GROUP));
    // Another caller of the same device waits here.
    let mut words = cpu.inputs.lock().unwrap_or_else(PoisonError::into_inner);
    let row_words = groups * size_of::<A::Inputs>() / size_of::<u32>();
    let longest = words.len().max(m * row_words);
    words.resize(longest, 0);
    let words = &mut words[..m * row_words];
    cpu.for_rows(words, row_words, k, |first, rows| {
        for (x, inputs) in x[first * k..].chunks(k).zip(rows.chunks_exact_mut(row_words)) {
            arm.vectorize(Prepare { arm, x, inputs: bytemuck::cast_slice_mut(inputs) });
        }
    });
    multiply(bytemuck::cast_slice(words));
}

/// `out = x · wᵀ (+ bias)`; `x`: `[M][ceil(K / 64)]`.
pub(super) fn run<A: Arm>(arm: A, cpu: &Cpu, x: &[A::Inputs], w: &LinearWeight, out: Outputs<'_>) {
    let (m, groups, panels) = (out.m, w.k().div_ceil(GROUP), w.panels::<Line>());
    let panel_lines = w.panel_bytes() / size_of::<Line>();
    let tiles = RowTiles { m, most: tile_rows::<A>() };
    let tile_panels = tile_panels::<A>(m);
    let all_panels = (out.n.div_ceil(LANES), w.panel_bytes());
    let grid = Grid::new(cpu.pool.threads(), tiles, PIECE_ROWS / tiles.most, all_panels, tile_panels);
    cpu.pool.run(grid.pieces(), |piece| {
        let (tiles_of_piece, panels_of_piece) = grid.piece(piece);
        let panel_tiles = PanelTiles { panels: panels_of_piece, of_tile: tile_panels, streams: streams::<A>(m) };
        arm.vectorize(Stripe { arm, x, tiles, groups, panels, panel_lines, tiles_of_piece, panel_tiles, out });
    });
}

/// Converts a row of inputs.
struct Prepare<'a, A: Arm> {
    arm: A,
    x: &'a [f32],
    inputs: &'a mut [A::Inputs],
}

impl<A: Arm> Kernel for Prepare<'_, A> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        for (x, inputs) in self.x.chunks(GROUP).zip(self.inputs) {
            self.arm.prepare(x, inputs);
        }
    }
}

/// The outputs of some neighbouring panels, for some neighbouring row tiles.
struct Stripe<'a, A: Arm> {
    arm: A,
    /// `[M][groups]`.
    x: &'a [A::Inputs],
    tiles: RowTiles,
    groups: usize,
    panels: &'a [Line],
    panel_lines: usize,
    tiles_of_piece: Range<usize>,
    panel_tiles: PanelTiles,
    out: Outputs<'a>,
}

/// Panels of a tile where the registers hold that many, or one row leaves them free: one stream through memory was a fifth slower
/// than three.
const TILE_PANELS: usize = 3;

/// Panels of a tile of `m` rows or several.
const fn tile_panels<A: Arm>(m: usize) -> usize {
    if A::Lanes::ACCUMULATORS >= 24 || m == 1 { TILE_PANELS } else { 1 }
}

/// Whether the panels of a tile are [streams](PanelTiles::streams), which nothing is asked of ahead: that took a fifth. Where one
/// register holds a vector, neighbours with a look at what comes next keep up with memory.
const fn streams<A: Arm>(m: usize) -> bool {
    A::Lanes::ACCUMULATORS < 24 && m == 1
}

/// Rows of a piece at most. Their inputs of a block of groups, 74 KiB of bytes or 256 KiB of f32, stay in the second-level cache
/// while the weights pass by.
const PIECE_ROWS: usize = 64;

/// Groups of one block if there are several row tiles: with three panels 48 KiB of bytes or 96 KiB of bf16, which the row tiles
/// read from the second-level cache.
const BLOCK_GROUPS: usize = 16;

/// Rows of a tile at most: with three panels 24 sums of a group where the registers hold that many.
const fn tile_rows<A: Arm>() -> usize {
    if A::Lanes::ACCUMULATORS >= 24 { 8 } else { 4 }
}

/// How far ahead a single tile asks for its weights, in groups: with three panels 24 KiB of bytes.
const AHEAD: usize = 8;

/// Rows up to which, if nothing has to be unpacked, the processor reads a panel faster when it is left alone.
const FEW_ROWS: usize = 3;

impl<A: Arm> Kernel for Stripe<'_, A> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        // A single tile unpacks what it reads on the way.
        let shares = A::UNPACKS && self.tiles_of_piece.len() > 1;
        // Taken out rather than borrowed in a closure: a closure is a function without this instruction set.
        let mut unpacked = UNPACKED.take();
        if shares {
            unpacked.resize(BLOCK_GROUPS * TILE_PANELS * A::LOADS * A::STEPS_PER_LOAD, Aligned([0; size_of::<Line>()]));
        }
        // It also reads every weight once: no block has to stay.
        let block_groups = if self.tiles_of_piece.len() == 1 { self.groups } else { BLOCK_GROUPS };
        for first in (0..self.groups).step_by(block_groups) {
            let groups = first..self.groups.min(first + block_groups);
            for at in 0..self.panel_tiles.count() {
                let next = match self.panel_tiles.tile(at + 1).first {
                    panel if panel >= self.panel_tiles.panels.end && groups.end < self.groups => {
                        (self.panel_tiles.panels.start, groups.end)
                    }
                    panel => (panel, first),
                };
                let panels = self.panel_tiles.tile(at);
                match panels.len {
                    1 => self.block::<1>(panels, &groups, next, shares, &mut unpacked),
                    _ => self.block::<TILE_PANELS>(panels, &groups, next, shares, &mut unpacked),
                }
            }
        }
        UNPACKED.set(unpacked);
    }
}

impl<A: Arm> Stripe<'_, A> {
    /// The row tiles against one block of `P` panels. `next`: panel and group where the block after it begins.
    #[inline(always)]
    fn block<const P: usize>(
        &self,
        panels: PanelTile,
        groups: &Range<usize>,
        next: (usize, usize),
        shares: bool,
        unpacked: &mut [Aligned],
    ) {
        if A::UNPACKS && shares {
            self.unpack::<P>(panels, groups, unpacked);
            self.row_tiles::<P, true>(panels, groups, next, unpacked);
        } else {
            self.row_tiles::<P, false>(panels, groups, next, &[]);
        }
    }

    /// The row tiles over one block. `SHARED`: it is unpacked.
    #[inline(always)]
    fn row_tiles<const P: usize, const SHARED: bool>(
        &self,
        panels: PanelTile,
        groups: &Range<usize>,
        next: (usize, usize),
        unpacked: &[Aligned],
    ) {
        let tiles = self.tiles_of_piece.len();
        for (at, tile) in self.tiles_of_piece.clone().enumerate() {
            let rows = self.tiles.rows(tile);
            let ahead = match self.tiles.m {
                _ if self.panel_tiles.streams => Ahead::NONE,
                0..=FEW_ROWS if !A::UNPACKS => Ahead::next_block(groups.len(), AHEAD),
                _ => Ahead::new(at, tiles, groups.len(), AHEAD, 1),
            };
            let block = Block { panels, groups: groups.clone(), next, ahead };
            macro_rules! tile_of {
                ($($m:literal)+) => {
                    match rows.len() {
                        $($m => self.tile::<$m, P, SHARED>(rows.start, &block, unpacked),)+
                        _ => unreachable!("rows and panels of a tile are chosen together"),
                    }
                };
            }
            // Not cases of one match: where the condition is a constant, only one of them is compiled.
            if A::Lanes::ACCUMULATORS >= 24 {
                if SHARED { tile_of!(4 5 6 7 8) } else { tile_of!(1 2 3 4 5 6 7 8) }
            } else if P == 1 {
                if SHARED { tile_of!(2 3 4) } else { tile_of!(1 2 3 4) }
            } else {
                tile_of!(1)
            }
        }
    }

    /// Asks for the weights of a group of a block, or, behind its end, of the next block.
    #[inline(always)]
    fn ask<const P: usize>(&self, block: &Block, position: usize) {
        let (panel, group) = match block.groups.start + position {
            group if group < block.groups.end => (block.panels.first, group),
            group => (block.next.0, block.next.1 + group - block.groups.end),
        };
        for p in 0..P {
            let first = (panel + p * block.panels.apart) * self.panel_lines + group * A::LINES_OF_TWO / 2;
            for line in 0..A::LINES_OF_TWO.div_ceil(2) {
                prefetch_line(self.panels.as_ptr().wrapping_add(first + line));
            }
        }
    }

    /// Loads a block once for all row tiles: `[groups][steps][P]`.
    #[inline(always)]
    fn unpack<const P: usize>(&self, panels: PanelTile, groups: &Range<usize>, unpacked: &mut [Aligned]) {
        let loads = unpacked.chunks_exact_mut(A::STEPS_PER_LOAD * P);
        for (load, lines) in loads.take(groups.len() * A::LOADS).enumerate() {
            for p in 0..P {
                let block = A::block(self.panel(panels.panel(p)), groups.start + load / A::LOADS);
                let loaded = self.arm.load(block, load % A::LOADS);
                for step in 0..A::STEPS_PER_LOAD {
                    lines[step * P + p].put(A::step(&loaded, step));
                }
            }
        }
    }

    /// `M` rows × `P` panels over one block of groups. The sums stay in registers.
    #[inline(always)]
    fn tile<const M: usize, const P: usize, const SHARED: bool>(
        &self,
        row: usize,
        block: &Block,
        unpacked: &[Aligned],
    ) {
        let (arm, lanes) = (self.arm, self.arm.lanes());
        let groups = &block.groups;
        let x: [&[A::Inputs]; M] = std::array::from_fn(|m| &self.x[(row + m) * self.groups..][groups.clone()]);
        let panels: [&[Line]; P] = std::array::from_fn(|p| self.panel(block.panels.panel(p)));
        let mut done = [[[0.0; LANES]; P]; M];
        if groups.start > 0 {
            self.out.read(row, block.panels, &mut done);
        }
        let mut totals = [[lanes.splat(0.0); P]; M];
        for m in 0..M {
            for p in 0..P {
                totals[m][p] = lanes.load(&done[m][p]);
            }
        }
        for (at, group) in groups.clone().enumerate() {
            let asked = block.ahead.first + at * block.ahead.count;
            if (block.ahead.start..block.ahead.end).contains(&asked) {
                for position in asked..asked + block.ahead.count {
                    self.ask::<P>(block, position);
                }
            }
            let inputs: [&A::Inputs; M] = std::array::from_fn(|m| &x[m][at]);
            // Plain loops from here on instead of closures: until they are inlined, those are functions without the instruction
            // set, and an array of registers that one of them sees lives in memory.
            let mut sums = [[arm.start(inputs[0]); P]; M];
            for m in 1..M {
                sums[m] = [arm.start(inputs[m]); P];
            }
            if SHARED {
                let steps = A::LOADS * A::STEPS_PER_LOAD;
                let lines = &unpacked.as_chunks::<P>().0[at * steps..][..steps];
                for (step, line) in lines.iter().enumerate() {
                    let mut weights = [line[0].get::<A::Weights>(); P];
                    for p in 1..P {
                        weights[p] = line[p].get::<A::Weights>();
                    }
                    for m in 0..M {
                        for p in 0..P {
                            sums[m][p] = arm.dot(sums[m][p], inputs[m], step, weights[p]);
                        }
                    }
                }
            } else {
                let blocks: [&A::Block; P] = std::array::from_fn(|p| A::block(panels[p], group));
                for load in 0..A::LOADS {
                    let mut loaded = [arm.load(blocks[0], load); P];
                    for p in 1..P {
                        loaded[p] = arm.load(blocks[p], load);
                    }
                    for step in 0..A::STEPS_PER_LOAD {
                        for m in 0..M {
                            for p in 0..P {
                                let weights = A::step(&loaded[p], step);
                                sums[m][p] = arm.dot(sums[m][p], inputs[m], load * A::STEPS_PER_LOAD + step, weights);
                            }
                        }
                    }
                }
            }
            for m in 0..M {
                for p in 0..P {
                    totals[m][p] = arm.add(totals[m][p], sums[m][p], inputs[m], panels[p], group);
                }
            }
        }
        let complete = groups.end == self.groups;
        for m in 0..M {
            for p in 0..P {
                if complete {
                    totals[m][p] = arm.finish(totals[m][p], panels[p]);
                }
                lanes.store(totals[m][p], &mut done[m][p]);
            }
        }
        self.out.write(row, block.panels, &done, complete);
    }

    #[inline(always)]
    fn panel(&self, panel: usize) -> &[Line] {
        &self.panels[panel * self.panel_lines..][..self.panel_lines]
    }
}

/// What a tile computes with: some groups of some panels.
struct Block {
    panels: PanelTile,
    groups: Range<usize>,
    /// Panel and group where the block after this begins.
    next: (usize, usize),
    ahead: Ahead,
}

/// An unpacked step: a line of its own, an unaligned one costs two per load.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Aligned(#[allow(dead_code, reason = "read and written through its address")] Line);

impl Aligned {
    #[inline(always)]
    fn put<W: Copy>(&mut self, weights: W) {
        const { assert!(size_of::<W>() == size_of::<Line>() && align_of::<W>() <= 64, "weights of a step are a line") };
        // SAFETY: size and alignment fit (asserted), and any bytes are a line.
        unsafe { std::ptr::from_mut(self).cast::<W>().write(weights) }
    }

    #[inline(always)]
    fn get<W: Copy>(&self) -> W {
        const { assert!(size_of::<W>() == size_of::<Line>() && align_of::<W>() <= 64, "weights of a step are a line") };
        // SAFETY: size and alignment fit (asserted). The line was written by `put` with weights of the same arm in the same call
        // of `many`; and they are vectors or arrays of integers and floats, of which any bytes are valid.
        unsafe { std::ptr::from_ref(self).cast::<W>().read() }
    }
}

thread_local! {
    /// The unpacked block of a thread, allocated at its first use.
    static UNPACKED: RefCell<Vec<Aligned>> = const { RefCell::new(Vec::new()) };
}

/// The scale that maps values up to `absmax` to `-largest..=largest`, and its inverse. Both 0 where all values are zero (or so
/// small, 1e-30, that the inverse could overflow); a scale that is NaN, and 0, where one of them is not finite.
pub(super) fn scale_and_inverse(absmax: f32, largest: f32) -> (f32, f32) {
    match absmax {
        ..1e-30 => (0.0, 0.0),
        ..=f32::MAX => (absmax / largest, largest / absmax),
        _ => (f32::NAN, 0.0),
    }
}

/// The largest absolute value; infinite or NaN if one of them is.
#[inline(always)]
pub(super) fn absmax(values: &[f32]) -> f32 {
    // As integers: the bits of NaN and infinity are above those of all numbers.
    f32::from_bits(values.iter().map(|x| x.to_bits() & (u32::MAX >> 1)).max().unwrap_or(0))
}

/// Calls `pack(lane, row)` with each row of a panel as f32; `[ceil(K / 64) · 64]`, padded with zeros.
pub(super) fn for_each_row(rows: &PanelRows<'_>, mut pack: impl FnMut(usize, &[f32])) {
    let mut values = Vec::new();
    for lane in 0..LANES {
        let Some((dtype, source)) = rows.row(lane) else { return };
        values.clear();
        dtype.decode_all(source, &mut values);
        values.resize(values.len().next_multiple_of(GROUP), 0.0);
        pack(lane, &values);
    }
}

/// Sixteen f32 of a line.
#[inline(always)]
pub(super) fn floats(line: &Line) -> Lanes {
    bytemuck::cast(*line)
}
