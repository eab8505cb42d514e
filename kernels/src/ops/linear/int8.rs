//! Weights as 8-bit integers with a scale per output (EETQ's, and LLM.int8()'s without its outliers): absmax / 127, symmetric.
//!
//! The inputs are bytes too (`bytes.rs`), their products summed in integers, which are exact: so all instruction sets give the
//! same bits.

use super::bytes::ByteInputs;
use super::grouped::{self, Arm, GROUP, Line, V, absmax, floats, for_each_row, scale_and_inverse};
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
    let (lines, _) = panel.as_chunks_mut::<{ size_of::<Line>() }>();
    let Some((scales, lines)) = lines.split_last_mut() else { return };
    for_each_row(rows, |lane, values| {
        let (scale, inverse) = scale_and_inverse(absmax(values), 127.0);
        scales.as_chunks_mut::<4>().0[lane] = scale.to_ne_bytes();
        for (line, values) in lines.iter_mut().zip(values.as_chunks::<4>().0) {
            let code = |value: f32| ((value * inverse).round_ties_even() as i32 + CODE_BIAS) as u8;
            line.as_chunks_mut::<4>().0[lane] = values.map(code);
        }
    });
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
        grouped::run(Int8(simd), self.cpu, self.x, self.w, self.out);
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
        let lanes = self.lanes();
        lanes.fma(self.0.to_f32(sums), lanes.splat(inputs.scale), total)
    }

    #[inline(always)]
    fn finish(self, total: V<Self>, panel: &[Line]) -> V<Self> {
        let lanes = self.lanes();
        lanes.mul(total, lanes.load(&floats(&panel[panel.len() - 1])))
    }
}

const _: () = assert!(LANES * 4 == size_of::<Line>());
