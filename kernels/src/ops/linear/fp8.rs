//! Weights as FP8 E4M3 with a scale per output: absmax / 448.
//!
//! Without E4M3's subnormals: what is nearer to zero than to 2^-6 is zero. The dot products of bf16 flush subnormals, and against
//! the largest weight of an output, 448, the difference is below 2 · 10^-5.
//!
//! Two arms, as for bf16 weights: pairs of inputs rounded to bf16 where the machine has their dot products, else f32. The groups are
//! summed by themselves, as in the other quantised formats (`grouped.rs`).

#[cfg(target_arch = "x86_64")]
use bytemuck::{Pod, Zeroable};

use super::grouped::{self, Arm, GROUP, Line, V, absmax, floats, for_each_row, scale_and_inverse};
use super::interleave::{LaneRows, interleave};
use super::{Outputs, PanelRows};
use crate::fp8::Fp8Lanes;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx512Bf16, PackPairs, Pair, PairKernel};
use crate::simd::{Kernel, LANES, Lanes, Simd};
use crate::{Cpu, LinearWeight};

/// Lines of a group: four inputs each.
const LINES: usize = GROUP / 4;

/// The largest number.
pub(crate) const LARGEST: f32 = 448.0;

/// How a line holds four inputs of sixteen outputs.
#[derive(Clone, Copy)]
pub(crate) enum Order {
    /// `[4 inputs][16 outputs]`.
    Vectors,
    /// `[16 outputs][4 inputs]`, the second and third input swapped: the lower bytes of the two words of an output are one
    /// pair, the upper bytes the next.
    #[cfg(target_arch = "x86_64")]
    Pairs(Avx512Bf16),
}

impl Order {
    /// The codes of four inputs, as they follow each other in a line.
    fn arrange(self, [a, b, c, d]: [u8; 4]) -> [u8; 4] {
        match self {
            Order::Vectors => [a, b, c, d],
            #[cfg(target_arch = "x86_64")]
            Order::Pairs(_) => [a, c, b, d],
        }
    }

    fn interleave(self, lines: &mut [u8], rows: &LaneRows<'_>) {
        match self {
            Order::Vectors => interleave::<1>(lines, rows),
            #[cfg(target_arch = "x86_64")]
            Order::Pairs(_) => interleave::<4>(lines, rows),
        }
    }
}

/// A panel is `[ceil(K / 64) · 16]` lines, then the sixteen scales in f32.
pub(super) fn panel_bytes(k: usize) -> usize {
    (k.div_ceil(GROUP) * LINES + 1) * size_of::<Line>()
}

pub(super) fn pack_panel(panel: &mut [u8], rows: &PanelRows<'_>, order: Order) {
    let (mut codes, mut scales) = <([Vec<u8>; LANES], Lanes)>::default();
    for_each_row(rows, |lane, values| {
        let (scale, inverse) = scale_and_inverse(absmax(values), LARGEST);
        scales[lane] = scale;
        codes[lane] = values.iter().map(|value| encode(value * inverse)).collect();
    });
    write_panel(panel, codes, &scales, order);
}

/// The same, of numbers that were rounded beforehand.
pub(crate) fn pack_codes(panel: &mut [u8], rows: &Fp8Lanes<'_>, order: Order) {
    let (mut codes, mut scales) = <([Vec<u8>; LANES], Lanes)>::default();
    for (lane, row) in rows.iter().enumerate() {
        let Some(row) = row else { break };
        scales[lane] = row.scale;
        codes[lane] = row.codes().collect();
        codes[lane].resize(codes[lane].len().next_multiple_of(GROUP), 0);
    }
    write_panel(panel, codes, &scales, order);
}

/// `codes`: of whole groups, none of an output that does not exist.
fn write_panel(panel: &mut [u8], mut codes: [Vec<u8>; LANES], scales: &Lanes, order: Order) {
    let Some((lines, last)) = panel.split_last_chunk_mut::<{ size_of::<Line>() }>() else { return };
    last.as_chunks_mut().0.iter_mut().zip(scales).for_each(|(bytes, scale)| *bytes = scale.to_ne_bytes());
    for codes in &mut codes {
        codes.as_chunks_mut().0.iter_mut().for_each(|four| *four = order.arrange(*four));
    }
    order.interleave(lines, &codes.each_ref().map(Vec::as_slice));
}

/// The E4M3 number nearest to `value`, of two as near the even one, without subnormals; `value` is at most [`LARGEST`] and a hair,
/// or not a number, for which any code does. Without branches, so that many are computed at once.
pub(crate) fn encode(value: f32) -> u8 {
    const DROPPED: i32 = 23 - 3;
    const BIAS_DIFFERENCE: i32 = 127 - 7;
    const SMALLEST: f32 = 1.0 / 64.0;
    // Positive numbers are in the order of their bits.
    let (sign, magnitude) = ((value.to_bits() >> 24) as u8 & 0x80, value.abs().to_bits().cast_signed());
    let within = magnitude.max(SMALLEST.to_bits().cast_signed()).min(LARGEST.to_bits().cast_signed());
    let rounded = (within + (1 << (DROPPED - 1)) - 1 + (within >> DROPPED & 1)) >> DROPPED;
    let is_zero = magnitude <= (SMALLEST / 2.0).to_bits().cast_signed();
    if is_zero { 0 } else { sign | (rounded - (BIAS_DIFFERENCE << 3)) as u8 }
}

pub(super) fn run(cpu: &Cpu, x: &[f32], w: &LinearWeight, order: Order, out: Outputs<'_>) {
    match order {
        Order::Vectors => cpu.isa.run(Run { cpu, x, w, out }),
        #[cfg(target_arch = "x86_64")]
        Order::Pairs(simd) => {
            grouped::with_inputs(Pairs(simd), cpu, x, w.k(), |x| grouped::run(Pairs(simd), cpu, x, w, out));
        }
    }
}

struct Run<'a> {
    cpu: &'a Cpu,
    x: &'a [f32],
    w: &'a LinearWeight,
    out: Outputs<'a>,
}

impl Kernel for Run<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Run { cpu, x, w, out } = self;
        grouped::with_inputs(Vectors(simd), cpu, x, w.k(), |x| grouped::run(Vectors(simd), cpu, x, w, out));
    }
}

/// f32 inputs, weights widened to f32.
#[derive(Clone, Copy)]
struct Vectors<S>(S);

impl<S: Simd> Arm for Vectors<S> {
    type Lanes = S;
    type Inputs = [f32; GROUP];
    type Block = [Line; LINES];
    type Weights = S::V;
    type Loaded = [S::V; 4];
    type Sums = S::V;
    const LOADS: usize = LINES;
    const STEPS_PER_LOAD: usize = 4;
    const LINES_OF_TWO: usize = 2 * LINES;
    const UNPACKS: bool = true;

    #[inline(always)]
    fn lanes(self) -> S {
        self.0
    }

    #[inline(always)]
    fn vectorize<K: Kernel<Output = ()>>(self, kernel: K) {
        self.0.vectorize(kernel);
    }

    #[inline(always)]
    fn prepare(self, x: &[f32], inputs: &mut [f32; GROUP]) {
        inputs[..x.len()].copy_from_slice(x);
        inputs[x.len()..].fill(0.0);
    }

    #[inline(always)]
    fn block(panel: &[Line], group: usize) -> &[Line; LINES] {
        &panel.as_chunks().0[group]
    }

    #[inline(always)]
    fn load(self, block: &[Line; LINES], at: usize) -> [S::V; 4] {
        let (parts, simd) = (block[at].as_chunks::<LANES>().0, self.0);
        [simd.load_e4m3(&parts[0]), simd.load_e4m3(&parts[1]), simd.load_e4m3(&parts[2]), simd.load_e4m3(&parts[3])]
    }

    #[inline(always)]
    fn step(loaded: &[S::V; 4], at: usize) -> S::V {
        loaded[at]
    }

    #[inline(always)]
    fn start(self, _inputs: &[f32; GROUP]) -> S::V {
        self.0.splat(0.0)
    }

    #[inline(always)]
    fn dot(self, sums: S::V, inputs: &[f32; GROUP], step: usize, weights: S::V) -> S::V {
        self.0.fma(self.0.splat(inputs[step]), weights, sums)
    }

    #[inline(always)]
    fn add(self, total: S::V, sums: S::V, _inputs: &[f32; GROUP], _panel: &[Line], _group: usize) -> S::V {
        self.0.add(total, sums)
    }

    #[inline(always)]
    fn finish(self, total: S::V, panel: &[Line]) -> S::V {
        self.0.mul(total, self.0.load(&floats(&panel[panel.len() - 1])))
    }
}

/// Inputs in pairs of bf16, weights widened to bf16 by moving their bits, which makes them 2^-120 of what they are. The inputs
/// are multiplied by 2^60, and the totals again, so that nothing comes near to the subnormals.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
struct Pairs(Avx512Bf16);

/// 2^60.
#[cfg(target_arch = "x86_64")]
const HALF_FACTOR: f32 = (1u64 << 60) as f32;

/// A group of inputs, rounded.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(transparent)]
struct PairInputs([Pair; GROUP / 2]);

#[cfg(target_arch = "x86_64")]
impl Arm for Pairs {
    type Lanes = crate::simd::Avx512;
    type Inputs = PairInputs;
    type Block = [Line; LINES];
    type Weights = std::arch::x86_64::__m512bh;
    type Loaded = [std::arch::x86_64::__m512bh; 2];
    type Sums = std::arch::x86_64::__m512;
    const LOADS: usize = LINES;
    const STEPS_PER_LOAD: usize = 2;
    const LINES_OF_TWO: usize = 2 * LINES;
    const UNPACKS: bool = true;

    #[inline(always)]
    fn lanes(self) -> Self::Lanes {
        self.0.plain()
    }

    #[inline(always)]
    fn vectorize<K: Kernel<Output = ()>>(self, kernel: K) {
        self.0.vectorize(WithPairs(kernel));
    }

    #[inline(always)]
    fn prepare(self, x: &[f32], inputs: &mut PairInputs) {
        let mut scaled = [0.0; GROUP];
        scaled.iter_mut().zip(x).for_each(|(scaled, x)| *scaled = x * HALF_FACTOR);
        PackPairs { x: &scaled, row_len: GROUP, rows: 1, pairs: &mut inputs.0 }.run(self.0);
    }

    #[inline(always)]
    fn block(panel: &[Line], group: usize) -> &[Line; LINES] {
        &panel.as_chunks().0[group]
    }

    #[inline(always)]
    fn load(self, block: &[Line; LINES], at: usize) -> Self::Loaded {
        self.0.load_e4m3(&block[at])
    }

    #[inline(always)]
    fn step(loaded: &Self::Loaded, at: usize) -> Self::Weights {
        loaded[at]
    }

    #[inline(always)]
    fn start(self, _inputs: &PairInputs) -> Self::Sums {
        self.lanes().splat(0.0)
    }

    #[inline(always)]
    fn dot(self, sums: Self::Sums, inputs: &PairInputs, step: usize, weights: Self::Weights) -> Self::Sums {
        self.0.dot(sums, self.0.splat(inputs.0[step]), weights)
    }

    #[inline(always)]
    fn add(self, total: V<Self>, sums: Self::Sums, _inputs: &PairInputs, _panel: &[Line], _group: usize) -> V<Self> {
        self.lanes().add(total, sums)
    }

    #[inline(always)]
    fn finish(self, total: V<Self>, panel: &[Line]) -> V<Self> {
        let lanes = self.lanes();
        let scale = lanes.load(&floats(&panel[panel.len() - 1]));
        lanes.mul(lanes.mul(total, lanes.splat(HALF_FACTOR)), scale)
    }
}

/// A kernel compiled with the dot products of pairs.
#[cfg(target_arch = "x86_64")]
struct WithPairs<K>(K);

#[cfg(target_arch = "x86_64")]
impl<K: Kernel<Output = ()>> PairKernel for WithPairs<K> {
    #[inline(always)]
    fn run(self, simd: Avx512Bf16) {
        self.0.run(simd.plain());
    }
}
