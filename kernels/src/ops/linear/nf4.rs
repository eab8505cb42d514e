//! Weights as 4-bit NormalFloat (QLoRA, arXiv:2305.14314; bitsandbytes' `nf4`): sixteen levels, the quantiles of a normal
//! distribution, times the absmax of 64 neighbouring inputs of an output.
//!
//! The levels are rounded to multiples of 1/127, which moves none by more than 0.4 % of the absmax (they are 8 to 30 % apart), and the
//! scale, absmax / 127, is bf16: so a weight is a byte out of a table of sixteen, and what multiplies it is what multiplies
//! int8 weights (`int8.rs`): inputs as bytes, sums in integers, the same bits on all instruction sets. The panel takes 4.25 bits a
//! weight.

use half::bf16;

#[cfg(target_arch = "x86_64")]
use super::byte_tiles::{self, ByteArm, Tile};
use super::bytes::ByteInputs;
use super::grouped::{self, Arm, GROUP, Line, V, absmax, for_each_row, scale_and_inverse};
use super::interleave::interleave;
use super::{Outputs, PanelRows};
use crate::simd::{ByteCall, ByteDots, Kernel, LANES, Simd};
use crate::{Cpu, LinearWeight};

/// The levels in 1/127; the sixteen of bitsandbytes' code book, rounded.
const LEVELS: [i8; 16] = [-127, -88, -67, -50, -36, -23, -12, 0, 10, 20, 31, 43, 56, 71, 92, 127];

/// Loads of a group: eight inputs each, four in the lower nibbles and the next four in the upper ones.
const LOADS: usize = GROUP / 8;

/// Lines of two groups: their scales, then their weights. Two, because the sixteen scales of one are half a line.
const LINES_OF_TWO: usize = 1 + 2 * LOADS;

/// A panel is, for every two groups, `[2][16]` scales in bf16 and `[2][8][16 outputs][4]` bytes; the last group may be alone.
pub(super) fn panel_bytes(k: usize) -> usize {
    let groups = k.div_ceil(GROUP);
    (groups.div_ceil(2) + groups * LOADS) * size_of::<Line>()
}

/// The line of a group's scales, and in it the first of the sixteen.
fn scales_at(group: usize) -> (usize, usize) {
    (group / 2 * LINES_OF_TWO, group % 2 * LANES)
}

/// The first line of a group's weights.
fn weights_at(group: usize) -> usize {
    group / 2 * LINES_OF_TWO + 1 + group % 2 * LOADS
}

pub(super) fn pack_panel(panel: &mut [u8], rows: &PanelRows<'_>) {
    let (lines, _) = panel.as_chunks_mut::<{ size_of::<Line>() }>();
    let mut codes: [Vec<[u8; GROUP / 2]>; LANES] = Default::default();
    for_each_row(rows, |lane, values| {
        codes[lane].reserve_exact(values.len() / GROUP);
        for (group, values) in values.as_chunks::<GROUP>().0.iter().enumerate() {
            let (scale, _) = scale_and_inverse(absmax(values), 127.0);
            let scale = bf16::from_f32(scale);
            let (line, first) = scales_at(group);
            lines[line].as_chunks_mut::<2>().0[first + lane] = scale.to_ne_bytes();
            // The levels nearest to what the rounded scale makes of them.
            let inverse = if scale.to_f32() > 0.0 { 1.0 / scale.to_f32() } else { 0.0 };
            codes[lane].push(pack_group(&values.map(|value| nearest(value * inverse))));
        }
    });
    for (group, lines) in lines.chunks_mut(LINES_OF_TWO).enumerate().map(|(two, lines)| (2 * two, lines)) {
        let weights = lines[1..].as_flattened_mut();
        let len = weights.len() / LANES;
        interleave::<4>(
            weights,
            &codes.each_ref().map(|codes| match codes.get(group..) {
                Some(codes) if !codes.is_empty() => &codes.as_flattened()[..len],
                _ => &[],
            }),
        );
    }
}

/// Eight inputs in four bytes: four in the lower nibbles, the next four in the upper ones.
fn pack_group(codes: &[u8; GROUP]) -> [u8; GROUP / 2] {
    let mut packed = [0; GROUP / 2];
    for (bytes, codes) in packed.as_chunks_mut::<4>().0.iter_mut().zip(codes.as_chunks::<8>().0) {
        *bytes = std::array::from_fn(|at| codes[at] | codes[at + 4] << 4);
    }
    packed
}

/// The number of the level nearest to `value`; of two as near, the lower.
fn nearest(value: f32) -> u8 {
    let is_above = |pair: &[i8; 2]| u8::from(value > f32::from(i16::from(pair[0]) + i16::from(pair[1])) / 2.0);
    LEVELS.array_windows().map(is_above).sum()
}

pub(super) fn run(cpu: &Cpu, x: &[f32], w: &LinearWeight, out: Outputs<'_>) {
    cpu.isa.with_byte_dots(Run { cpu, x, w, out });
}

struct Run<'a> {
    cpu: &'a Cpu,
    x: &'a [f32],
    w: &'a LinearWeight,
    out: Outputs<'a>,
}

impl ByteCall for Run<'_> {
    fn call<S: ByteDots>(self, simd: S) {
        let Run { cpu, x, w, out } = self;
        grouped::with_inputs(Nf4(simd), cpu, x, w.k(), |x| {
            #[cfg(target_arch = "x86_64")]
            if let Some(amx) = cpu.isa.tiles()
                && out.m >= byte_tiles::MIN_ROWS
            {
                return byte_tiles::run(amx, Nf4(simd), cpu, x, w, out);
            }
            grouped::run(Nf4(simd), cpu, x, w, out);
        });
    }
}

#[derive(Clone, Copy)]
struct Nf4<S>(S);

impl<S: ByteDots> Arm for Nf4<S> {
    type Lanes = S::Lanes;
    type Inputs = ByteInputs;
    type Block = [Line; LOADS];
    type Weights = S::Codes;
    type Loaded = [S::Codes; 2];
    type Sums = S::Sums;
    const LOADS: usize = LOADS;
    const STEPS_PER_LOAD: usize = 2;
    const LINES_OF_TWO: usize = LINES_OF_TWO;
    const UNPACKS: bool = true;

    #[inline(always)]
    fn lanes(self) -> S::Lanes {
        self.0.lanes()
    }

    #[inline(always)]
    fn vectorize<K: Kernel<Output = ()>>(self, kernel: K) {
        self.0.vectorize_dots(kernel);
    }

    #[inline(always)]
    fn prepare(self, x: &[f32], inputs: &mut ByteInputs) {
        inputs.round(x);
    }

    #[inline(always)]
    fn block(panel: &[Line], group: usize) -> &[Line; LOADS] {
        panel[weights_at(group)..].first_chunk().expect("a panel holds all groups")
    }

    #[inline(always)]
    fn load(self, block: &[Line; LOADS], at: usize) -> [S::Codes; 2] {
        self.0.look_up(&LEVELS, &block[at])
    }

    #[inline(always)]
    fn step(loaded: &[S::Codes; 2], at: usize) -> S::Codes {
        loaded[at]
    }

    #[inline(always)]
    fn start(self, inputs: &ByteInputs) -> S::Sums {
        self.0.start(inputs.offset)
    }

    #[inline(always)]
    fn dot(self, sums: S::Sums, inputs: &ByteInputs, step: usize, weights: S::Codes) -> S::Sums {
        self.0.dot(sums, inputs.step(step), weights)
    }

    #[inline(always)]
    fn add(self, total: V<Self>, sums: S::Sums, inputs: &ByteInputs, panel: &[Line], group: usize) -> V<Self> {
        self.add_group(total, self.0.to_f32(sums), inputs, panel, group)
    }

    #[inline(always)]
    fn finish(self, total: V<Self>, _panel: &[Line]) -> V<Self> {
        total
    }
}

impl<S: ByteDots> Nf4<S> {
    /// Adds the sums of a group to the groups before it, times the scales of weights and inputs.
    #[inline(always)]
    fn add_group(self, total: V<Self>, sums: V<Self>, inputs: &ByteInputs, panel: &[Line], group: usize) -> V<Self> {
        let (lanes, (line, first)) = (self.lanes(), scales_at(group));
        let scales: &[bf16; 2 * LANES] = bytemuck::cast_ref(&panel[line]);
        let scales = lanes.load_bf16(scales[first..].first_chunk().expect("sixteen of 32, from 0 or 16"));
        lanes.fma(sums, lanes.mul(scales, lanes.splat(inputs.scale)), total)
    }
}

#[cfg(target_arch = "x86_64")]
impl<S: ByteDots> ByteArm for Nf4<S> {
    #[inline(always)]
    fn tile<'a>(self, panel: &'a [Line], group: usize, unpacked: &'a mut Tile) -> &'a Tile {
        let block = Self::block(panel, group);
        for (at, rows) in unpacked.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            let [low, high] = self.load(block, at);
            self.0.store_biased(low, bytemuck::cast_mut(&mut rows[0]));
            self.0.store_biased(high, bytemuck::cast_mut(&mut rows[1]));
        }
        unpacked
    }

    #[inline(always)]
    fn add_sums(self, total: V<Self>, sums: V<Self>, inputs: &ByteInputs, panel: &[Line], group: usize) -> V<Self> {
        self.add_group(total, sums, inputs, panel, group)
    }
}
