//! Weights as 8-bit integers with a scale per output (EETQ's, and LLM.int8()'s without its outliers): absmax / 127, symmetric.
//!
//! The inputs are bytes too (`bytes.rs`), their products summed in integers, which are exact: so all instruction sets give the
//! same bits.

#[cfg(target_arch = "x86_64")]
use super::byte_tiles::{self, ByteArm, Tile};
use super::bytes::ByteInputs;
use super::grouped::{self, Arm, GROUP, Line, V, absmax, floats, for_each_row, scale_and_inverse};
use super::interleave::interleave;
use super::{Outputs, PanelRows};
use crate::simd::{ByteCall, ByteDots, CODE_BIAS, Kernel, LANES, Simd};
use crate::{Cpu, LinearWeight};

/// Steps of a group: four inputs each.
const STEPS: usize = GROUP / 4;

/// A panel is `[ceil(K / 64) · 16][16 outputs][4 inputs]` biased bytes, then the sixteen scales in f32.
pub(super) fn panel_bytes(k: usize) -> usize {
    (k.div_ceil(GROUP) * STEPS + 1) * size_of::<Line>()
}

pub(super) fn pack_panel(panel: &mut [u8], rows: &PanelRows<'_>) {
    let Some((lines, scales)) = panel.split_last_chunk_mut::<{ size_of::<Line>() }>() else { return };
    let mut codes: [Vec<u8>; LANES] = Default::default();
    for_each_row(rows, |lane, values| {
        let (scale, inverse) = scale_and_inverse(absmax(values), 127.0);
        scales.as_chunks_mut::<4>().0[lane] = scale.to_ne_bytes();
        codes[lane] = values.iter().map(|value| code(value * inverse)).collect();
    });
    interleave::<4>(lines, &codes.each_ref().map(Vec::as_slice));
}

/// The integer nearest to `value`, of two as near the even one, biased. `value` is -127 to 127; of anything else some byte.
fn code(value: f32) -> u8 {
    // So large that the last bit of a sum with it is one, and its last byte zero. Faster than rounding, which is a call to a
    // function where the instruction set is the least common one.
    const ROUNDER: f32 = 12_582_912.0;
    ((value + ROUNDER).to_bits() as u8).wrapping_add(CODE_BIAS as u8)
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
        grouped::with_inputs(Int8(simd), cpu, x, w.k(), |x| {
            #[cfg(target_arch = "x86_64")]
            if let Some(amx) = cpu.isa.tiles()
                && out.m >= byte_tiles::MIN_ROWS
            {
                return byte_tiles::run(amx, Int8(simd), cpu, x, w, out);
            }
            grouped::run(Int8(simd), cpu, x, w, out);
        });
    }
}

#[derive(Clone, Copy)]
struct Int8<S>(S);

impl<S: ByteDots> Arm for Int8<S> {
    type Lanes = S::Lanes;
    type Inputs = ByteInputs;
    type Block = [Line; STEPS];
    type Weights = S::Codes;
    type Loaded = S::Codes;
    type Sums = S::Sums;
    const LOADS: usize = STEPS;
    const STEPS_PER_LOAD: usize = 1;
    const LINES_OF_TWO: usize = 2 * STEPS;
    const UNPACKS: bool = false;

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
    fn block(panel: &[Line], group: usize) -> &[Line; STEPS] {
        &panel.as_chunks().0[group]
    }

    #[inline(always)]
    fn load(self, block: &[Line; STEPS], at: usize) -> S::Codes {
        self.0.load(&block[at])
    }

    #[inline(always)]
    fn step(loaded: &S::Codes, _at: usize) -> S::Codes {
        *loaded
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
    fn add(self, total: V<Self>, sums: S::Sums, inputs: &ByteInputs, _panel: &[Line], _group: usize) -> V<Self> {
        self.add_group(total, self.0.to_f32(sums), inputs)
    }

    #[inline(always)]
    fn finish(self, total: V<Self>, panel: &[Line]) -> V<Self> {
        let lanes = self.lanes();
        lanes.mul(total, lanes.load(&floats(&panel[panel.len() - 1])))
    }
}

impl<S: ByteDots> Int8<S> {
    /// Adds the sums of a group to the groups before it.
    #[inline(always)]
    fn add_group(self, total: V<Self>, sums: V<Self>, inputs: &ByteInputs) -> V<Self> {
        let lanes = self.lanes();
        lanes.fma(sums, lanes.splat(inputs.scale), total)
    }
}

const _: () = assert!(LANES * 4 == size_of::<Line>());

#[cfg(target_arch = "x86_64")]
impl<S: ByteDots> ByteArm for Int8<S> {
    #[inline(always)]
    fn tile<'a>(self, panel: &'a [Line], group: usize, _unpacked: &'a mut Tile) -> &'a Tile {
        bytemuck::cast_ref(Self::block(panel, group))
    }

    #[inline(always)]
    fn add_sums(self, total: V<Self>, sums: V<Self>, inputs: &ByteInputs, _panel: &[Line], _group: usize) -> V<Self> {
        self.add_group(total, sums, inputs)
    }
}
