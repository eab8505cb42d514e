//! Weights as 4-bit integers with a zero point (`kernels/src/int4.rs`): scale · (code − zero), as checkpoints of AWQ and GPTQ have them.
//!
//! Codes are bytes 0 to 15, and what multiplies them is what multiplies int8 weights (`int8.rs`): inputs as bytes, sums in integers.
//! The zero is the same for all inputs of a group, so it is taken from the group's sum: less the zero times the sum of the
//! inputs' bytes. All of these are whole numbers below 2^24, so f32 holds them exactly, and the bits are the same on all
//! instruction sets. The panel takes 4.5 bits a weight.

use half::{bf16, f16};

use super::Outputs;
#[cfg(target_arch = "x86_64")]
use super::byte_tiles::{self, ByteArm, Tile};
use super::bytes::ByteInputs;
use super::grouped::{self, Arm, GROUP, Line, V};
use super::interleave::interleave;
use crate::int4::{self, Int4Lanes};
use crate::simd::{ByteCall, ByteDots, Kernel, LANES, Simd};
use crate::{Cpu, LinearWeight};

const _: () = assert!(int4::GROUP == GROUP, "groups of inputs have one scale and one zero");

/// What a code is.
const CODES: [i8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// Loads of a group: eight inputs each, four in the lower nibbles and the next four in the upper ones.
const LOADS: usize = GROUP / 8;

/// Lines of two groups: their scales, their zeros, then their weights. Two, because the sixteen scales of one are half a line.
const LINES_OF_TWO: usize = 2 + 2 * LOADS;

/// A panel is, for every two groups, `[2][16]` scales in f16, `[2][16]` zeros in bf16 and `[2][8][16 outputs][4]` bytes; the last group
/// may be alone.
pub(super) fn panel_bytes(k: usize) -> usize {
    let groups = k.div_ceil(GROUP);
    (groups.div_ceil(2) * 2 + groups * LOADS) * size_of::<Line>()
}

/// The line of a group's scales, and in it the first of the sixteen. The zeros have the same place in the next line.
fn scales_at(group: usize) -> (usize, usize) {
    (group / 2 * LINES_OF_TWO, group % 2 * LANES)
}

/// The first line of a group's weights.
fn weights_at(group: usize) -> usize {
    group / 2 * LINES_OF_TWO + 2 + group % 2 * LOADS
}

/// Fills a panel, which is all zeros.
pub(crate) fn pack_panel(panel: &mut [u8], lanes: &Int4Lanes<'_>) {
    let (lines, _) = panel.as_chunks_mut::<{ size_of::<Line>() }>();
    let mut codes: [Vec<u8>; LANES] = Default::default();
    for (lane, row) in lanes.iter().enumerate() {
        let Some(row) = row else { continue };
        for (group, (scale, zero)) in row.scales.iter().zip(row.zeros).enumerate() {
            let (line, first) = scales_at(group);
            lines[line].as_chunks_mut::<2>().0[first + lane] = scale.to_ne_bytes();
            lines[line + 1].as_chunks_mut::<2>().0[first + lane] = bf16::from_f32(f32::from(*zero)).to_ne_bytes();
        }
        codes[lane] = vec![0; row.codes.len()];
        for (packed, eight) in codes[lane].as_chunks_mut::<4>().0.iter_mut().zip(row.codes.as_chunks::<4>().0) {
            *packed = halves_beside(*eight);
        }
    }
    for (two, lines) in lines.chunks_mut(LINES_OF_TWO).enumerate() {
        let weights = lines[2..].as_flattened_mut();
        let (start, len) = (two * GROUP, weights.len() / LANES);
        interleave::<4>(weights, &codes.each_ref().map(|codes| codes.get(start..start + len).unwrap_or(&[])));
    }
}

/// Eight inputs in four bytes, neighbours in one: the first four in the lower nibbles, the next four in the upper ones.
fn halves_beside(eight: [u8; 4]) -> [u8; 4] {
    // Four nibbles become four bytes.
    let spread = |nibbles: u32| {
        let pairs = (nibbles | nibbles << 8) & 0x00ff_00ff;
        (pairs | pairs << 4) & 0x0f0f_0f0f
    };
    let eight = u32::from_le_bytes(eight);
    (spread(eight & 0xffff) | spread(eight >> 16) << 4).to_le_bytes()
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
        grouped::with_inputs(Int4(simd), cpu, x, w.k(), |x| {
            #[cfg(target_arch = "x86_64")]
            if let Some(amx) = cpu.isa.tiles()
                && out.m >= byte_tiles::MIN_ROWS
            {
                return byte_tiles::run(amx, Int4(simd), cpu, x, w, out);
            }
            grouped::run(Int4(simd), cpu, x, w, out);
        });
    }
}

#[derive(Clone, Copy)]
struct Int4<S>(S);

impl<S: ByteDots> Arm for Int4<S> {
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
        self.0.look_up(&CODES, &block[at])
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

impl<S: ByteDots> Int4<S> {
    /// Adds the products of a group, of codes and bytes, to the groups before it.
    #[inline(always)]
    fn add_group(self, total: V<Self>, sums: V<Self>, inputs: &ByteInputs, panel: &[Line], group: usize) -> V<Self> {
        let (lanes, (line, first)) = (self.lanes(), scales_at(group));
        let scales: &[f16; 2 * LANES] = bytemuck::cast_ref(&panel[line]);
        let zeros: &[bf16; 2 * LANES] = bytemuck::cast_ref(&panel[line + 1]);
        let scales = lanes.load_f16(scales[first..].first_chunk().expect("sixteen of 32, from 0 or 16"));
        let zeros = lanes.load_bf16(zeros[first..].first_chunk().expect("sixteen of 32, from 0 or 16"));
        // Whole numbers up to 64 · 127 · 16.
        let sums = lanes.fma(zeros, lanes.splat(-inputs.sum()), sums);
        lanes.fma(sums, lanes.mul(scales, lanes.splat(inputs.scale)), total)
    }
}

#[cfg(target_arch = "x86_64")]
impl<S: ByteDots> ByteArm for Int4<S> {
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

#[cfg(test)]
mod tests {
    use super::super::quantized_tests::{rounded_inputs, run};
    use crate::int4::testing::Matrix;
    use crate::ops::testing::{assert_close, bits, cpus_and_models, random};
    use crate::{LinearWeight, WeightType};

    /// Shapes (M, N, K): odd ones, tails of panels, turns and row tiles, single groups and odd ones, more groups than a block.
    const SHAPES: [(usize, usize, usize); 11] = [
        (1, 1, 64),
        (1, 130, 64),
        (2, 49, 128),
        (3, 64, 64),
        (4, 17, 192),
        (5, 16, 576),
        (8, 48, 320),
        (9, 100, 576),
        (13, 40, 1088),
        (1, 33, 1152),
        (40, 70, 192),
    ];

    fn definition(x: &[f32], matrix: &Matrix, bias: Option<&[f32]>) -> Vec<f32> {
        let weights = matrix.weights();
        let rows = x.chunks_exact(matrix.cols).map(|x| rounded_inputs(x, WeightType::Int4, false));
        rows.flat_map(|x| {
            let dot = |w: &[f64]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
            let bias = |j: usize| bias.map_or(0.0, |bias| f64::from(bias[j]));
            let outputs = weights.chunks_exact(matrix.cols).enumerate();
            outputs.map(|(j, w)| (dot(w) + bias(j)) as f32).collect::<Vec<_>>()
        })
        .collect()
    }

    #[test]
    fn all_instruction_sets_have_the_bits_of_one_and_what_int4_means() {
        for (m, n, k) in SHAPES {
            // Shifted, so that the sums of inputs that zeros are multiplied with are not small.
            let x: Vec<f32> = random(1, m * k).iter().map(|x| x + 0.25).collect();
            let (matrix, bias) = (Matrix::random(2, n, k), random(3, n));
            for bias in [None, Some(&bias[..])] {
                let expected = definition(&x, &matrix, bias);
                assert!(n * m < 100 || expected.iter().any(|x| *x < 0.0) && expected.iter().any(|x| *x > 0.0));
                let mut first: Option<Vec<u32>> = None;
                for device in cpus_and_models() {
                    let context = format!("{} {m}x{n}x{k}", device.describe());
                    let weight = LinearWeight::pack_int4(&device, &[&matrix]).unwrap();
                    let out = run(&device, &x, &weight, bias);
                    // As for the other quantised weights.
                    let tolerance = 6e-8 * k as f32 * (k as f32).sqrt() / 4.0 + 2e-6;
                    assert_close(&out, &expected, tolerance.min(2e-4), &context);
                    assert_eq!(*first.get_or_insert_with(|| bits(&out)), bits(&out), "{context}");
                }
            }
        }
    }

    #[test]
    fn a_row_does_not_see_the_rows_beside_it() {
        let (m, n, k) = (23, 83, 1088);
        let (x, matrix) = (random(1, m * k), Matrix::random(2, n, k));
        for device in cpus_and_models() {
            let weight = LinearWeight::pack_int4(&device, &[&matrix]).unwrap();
            let all = run(&device, &x, &weight, None);
            for (start, len) in [(0, 1), (22, 1), (7, 2), (3, 3), (5, 4), (1, 9), (0, 22)] {
                let part = run(&device, &x[start * k..][..len * k], &weight, None);
                let context = format!("{} rows {start}+{len}", device.describe());
                assert_eq!(bits(&part), bits(&all[start * n..][..len * n]), "{context}");
            }
        }
    }

    /// One-hot inputs read the weights back.
    #[test]
    fn every_weight_is_its_own() {
        let (n, k) = (37, 192);
        // Stacked within a panel.
        let matrices = [9, 28].map(|rows| Matrix::random(rows as u64, rows, k));
        let expected = Matrix::stack(&matrices.each_ref()).weights();
        assert!(expected.contains(&0.0) && expected.iter().any(|w| *w < -0.5) && expected.iter().any(|w| *w > 0.5));
        let mut identity = vec![0.0; k * k];
        (0..k).for_each(|at| identity[at * k + at] = 1.0);
        for device in cpus_and_models() {
            let weight = LinearWeight::pack_int4(&device, &[&matrices[0], &matrices[1]]).unwrap();
            let read = run(&device, &identity, &weight, None);
            for (at, read) in read.iter().enumerate() {
                let (input, output) = (at / n, at % n);
                let exact = expected[output * k + input];
                // An input is 127 times its scale, rounded, which the weight's scale is multiplied with.
                let distance = (f64::from(*read) - exact).abs();
                assert!(distance <= 4.0 * 6e-8 * exact.abs(), "[{output}, {input}]: {read} for {exact}");
            }
        }
    }

    #[test]
    fn what_is_not_finite_is_not_hidden() {
        let (n, k) = (18, 128);
        for device in cpus_and_models() {
            let mut matrix = Matrix::random(2, n, k);
            let weight = LinearWeight::pack_int4(&device, &[&matrix]).unwrap();
            let mut x = random(1, 2 * k);
            x[k + 66] = f32::INFINITY;
            let out = run(&device, &x, &weight, None);
            assert!(out[..n].iter().all(|x| x.is_finite()) && out[n..].iter().all(|x| x.is_nan()));
            matrix.scales[5 * k / 64] = half::f16::NAN;
            let weight = LinearWeight::pack_int4(&device, &[&matrix]).unwrap();
            let out = run(&device, &x[..k], &weight, None);
            let nan: Vec<usize> = (0..n).filter(|at| out[*at].is_nan()).collect();
            assert_eq!(nan, [5], "{}", device.describe());
        }
    }
}
