//! Linear layers with quantised weights: their packing against what the formats mean, every kernel against every other bit by bit, and
//! against sums in f64 of what the weights became.

use half::{bf16, f16};

use crate::element::{ELEMENTS, Element, f32_bytes};
use crate::simulator::Argument::{self, Buffer, Null, U32};
use crate::simulator::{SIMULATORS, Simulator};

/// A format of weights: `ops/linear/int8.rs`, `fp8.rs`, `nf4.rs`, `int4.rs`.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Format {
    Int8,
    Fp8,
    Nf4,
    Int4,
}

impl Format {
    const ALL: [Format; 4] = [Format::Int8, Format::Fp8, Format::Nf4, Format::Int4];

    /// Those that kernels quantise to. 4-bit integers are packed by the host.
    const QUANTISED_TO: [Format; 3] = [Format::Int8, Format::Fp8, Format::Nf4];

    fn name(self) -> &'static str {
        match self {
            Format::Int8 => "int8",
            Format::Fp8 => "fp8",
            Format::Nf4 => "nf4",
            Format::Int4 => "int4",
        }
    }

    /// Whether units have scales of their own.
    fn is_grouped(self) -> bool {
        matches!(self, Format::Nf4 | Format::Int4)
    }

    /// Inputs of a unit, which has 512 bytes for sixteen outputs.
    fn unit(self) -> usize {
        if self.is_grouped() { 64 } else { 32 }
    }

    /// The largest number.
    fn largest(self) -> f32 {
        if self == Format::Fp8 { 448.0 } else { 127.0 }
    }

    /// The kernels of few rows: tiles of eight rows, and outputs of a block.
    fn row_kernels(self) -> [(usize, usize); 4] {
        [(1, 16), (2, 32), (4, 32), (8, if self.is_grouped() { 32 } else { 64 })]
    }

    /// The kernels of many rows: outputs of a block.
    fn tile_kernels(self) -> &'static [usize] {
        if self.is_grouped() { &[128] } else { &[128, 64] }
    }

    /// Rows of their blocks.
    fn block_rows(self) -> usize {
        if self.is_grouped() { 64 } else { 128 }
    }
}

/// The levels of NF4 in 1/127.
const LEVELS: [i8; 16] = [-127, -88, -67, -50, -36, -23, -12, 0, 10, 20, 31, 43, 56, 71, 92, 127];

/// The E4M3 numbers that are neither negative nor subnormal, by ascending codes: (1 + m/8) · 2^(e-7). The first is zero, with code 0,
/// number `at` from 1 on has the code `at + 7`.
fn e4m3_numbers() -> Vec<f32> {
    let normal = |e: i32| (0..8).map(move |m| (1.0 + m as f32 / 8.0) * 2f32.powi(e - 7));
    let mut all: Vec<f32> = std::iter::once(0.0).chain((1..=15).flat_map(normal)).collect();
    all.pop(); // The last pattern is NaN.
    all
}

/// Code and number of the E4M3 number nearest to `value`, of two as near the even one.
fn nearest_e4m3(numbers: &[f32], value: f32) -> (u8, f32) {
    let magnitude = value.abs();
    let above = numbers.partition_point(|number| *number < magnitude).min(numbers.len() - 1);
    let below = above.saturating_sub(1);
    let at = match (magnitude - numbers[below]).total_cmp(&(numbers[above] - magnitude)) {
        std::cmp::Ordering::Less => below,
        std::cmp::Ordering::Greater => above,
        std::cmp::Ordering::Equal if below == 0 || below % 2 == 1 => below,
        std::cmp::Ordering::Equal => above,
    };
    let code = if at == 0 { 0 } else { at as u8 + 7 };
    let sign = if code != 0 && value < 0.0 { 0x80 } else { 0 };
    (sign | code, numbers[at].copysign(value))
}

/// What maps values up to `absmax` to numbers up to `largest`, and back.
fn scaling(values: &[f32], largest: f32) -> (f32, f32) {
    let absmax = values.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    if absmax < 1e-30 { (0.0, 0.0) } else { (absmax / largest, largest / absmax) }
}

/// A layer, and how the sums of its outputs are cut.
struct Layer {
    element: &'static Element,
    format: Format,
    n: usize,
    k: usize,
    parts: usize,
}

/// A weight: its bytes, and `[n][k]` numbers that they mean.
struct Packed {
    bytes: Vec<u8>,
    values: Vec<f64>,
}

impl Layer {
    fn context(&self) -> String {
        let Layer { element, format, n, k, parts } = self;
        format!("{} {} {n} x {k} in {parts} parts", format.name(), element.name)
    }

    /// `[n][k]`: of many magnitudes, with outputs and groups of zeros, and with values as near to one number of the format as to
    /// another.
    fn rows(&self) -> Vec<f32> {
        let random = self.element.random(60, self.n * self.k);
        let value = |(at, value): (usize, f32)| match (at / self.k, at % self.k / 64) {
            (output, _) if output % 11 == 3 => 0.0,
            (output, group) if output % 13 == 5 && group % 2 == 1 => 0.0,
            (output, _) if output % 19 == 2 && at % 64 == 0 => self.format.largest(),
            (output, _) if output % 19 == 2 => (at * 5 % 253) as f32 / 2.0 - 63.0,
            // So small that nothing can be divided by it.
            (output, _) if output % 17 == 6 => value * 1e-36,
            _ => value * 2f32.powi(-((at % 7) as i32)),
        };
        self.element.rounded(&random.into_iter().enumerate().map(value).collect::<Vec<_>>())
    }

    fn bias(&self) -> Vec<f32> {
        self.element.random(61, self.n)
    }

    /// `[m][k]`.
    fn x(&self, m: usize) -> Vec<f32> {
        self.element.random(62, m * self.k)
    }

    /// Bytes of the units, behind which the scales lie.
    fn units_bytes(&self) -> usize {
        self.n.div_ceil(16) * (self.k / self.format.unit()) * 512
    }

    fn bytes(&self) -> usize {
        let tiles = self.n.div_ceil(16);
        let scales = match self.format {
            Format::Int8 | Format::Fp8 => tiles * 64,
            Format::Nf4 => tiles * (self.k / 64) * 32,
            // And zeros.
            Format::Int4 => tiles * (self.k / 64) * 48,
        };
        self.units_bytes() + scales
    }

    /// The byte of an element's code, and how far up in it the code is. Lane 4 r + c has of the outputs r and r + 8 the eight inputs
    /// from 8 c on of a tile of 32; by ascending bits: both outputs, two inputs, then the next two. 4-bit integers: of the four inputs of a
    /// square the first and the third, then the second and the fourth.
    fn place(&self, output: usize, input: usize) -> (usize, usize) {
        let unit = output / 16 * (self.k / self.format.unit()) + input / self.format.unit();
        let lane = output % 8 * 4 + input % 32 / 8;
        let (half, tile) = (output % 16 / 8, input % 64 / 32);
        let code = input % 8 * 2 + half;
        match self.format {
            Format::Nf4 => (unit * 512 + lane * 16 + tile * 8 + code / 2, code % 2 * 4),
            Format::Int4 => {
                let code = input % 8 / 4 * 8 + [0, 4, 2, 6][input % 4] + half;
                (unit * 512 + lane * 16 + tile * 8 + code / 2, code % 2 * 4)
            }
            Format::Int8 | Format::Fp8 => (unit * 512 + lane * 16 + code, 0),
        }
    }

    /// The unit of an input, counted from the first of all, and which of its scales is that of an output.
    fn scale_of(&self, output: usize, input: usize) -> (usize, usize) {
        (output / 16 * (self.k / 64) + input / 64, output % 8 * 2 + output % 16 / 8)
    }

    /// Every code with every zero, and scales of both signs and many magnitudes, also below the normal numbers of f16.
    fn packed_int4(&self) -> Packed {
        let (mut bytes, mut values) = (vec![0; self.bytes()], vec![0.0; self.n * self.k]);
        let random = self.element.random(60, self.n * self.k);
        for group in 0..self.n * self.k / 64 {
            let (output, first) = (group * 64 / self.k, group * 64 % self.k);
            let (unit, at) = self.scale_of(output, first);
            let zero = (output * 5 + first / 64 * 3) % 17;
            let magnitude = 2f32.powi(-((output + first / 64) as i32 % 20));
            let scale = f16::from_f32(random[output * self.k + first] * magnitude);
            let scales = &mut bytes[self.units_bytes() + unit * 48..][..48];
            scales[at * 2..][..2].copy_from_slice(&scale.to_le_bytes());
            scales[32 + at] = zero as u8;
            for input in first..first + 64 {
                let code = ((random[output * self.k + input] + 1.0) * 60.0) as u8 % 16;
                let (byte, shift) = self.place(output, input);
                bytes[byte] |= code << shift;
                values[output * self.k + input] = (f64::from(code) - zero as f64) * scale.to_f64();
            }
        }
        Packed { bytes, values }
    }

    /// What the format means.
    fn packed(&self) -> Packed {
        if self.format == Format::Int4 {
            return self.packed_int4();
        }
        let (rows, numbers) = (self.rows(), e4m3_numbers());
        let (mut bytes, mut values) = (vec![0; self.bytes()], vec![0.0; rows.len()]);
        let group_len = if self.format == Format::Nf4 { 64 } else { self.k };
        for (at, group) in rows.chunks(group_len).enumerate() {
            let (output, first) = (at * group_len / self.k, at * group_len % self.k);
            let (mut scale, mut inverse) = scaling(group, self.format.largest());
            if self.format == Format::Nf4 {
                let rounded = bf16::from_f32(scale);
                let (unit, at) = self.scale_of(output, first);
                bytes[self.units_bytes() + (unit * 16 + at) * 2..][..2].copy_from_slice(&rounded.to_le_bytes());
                scale = rounded.to_f32();
                inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            } else {
                bytes[self.units_bytes() + output * 4..][..4].copy_from_slice(&scale.to_le_bytes());
            }
            for (at, value) in group.iter().enumerate() {
                let scaled = value * inverse;
                let (code, number) = match self.format {
                    Format::Int8 => ((scaled.round_ties_even() + 127.0) as u8, scaled.round_ties_even()),
                    Format::Fp8 => nearest_e4m3(&numbers, scaled),
                    Format::Nf4 => {
                        let middles = LEVELS.windows(2).map(|pair| (f32::from(pair[0]) + f32::from(pair[1])) / 2.0);
                        let level = middles.filter(|middle| scaled > *middle).count();
                        // Its two upper bits change their places.
                        let code = (level & 3) | ((level & 4) << 1) | ((level & 8) >> 1);
                        (code as u8, f32::from(LEVELS[level]))
                    }
                    Format::Int4 => unreachable!("its codes are those of a checkpoint"),
                };
                let (byte, shift) = self.place(output, first + at);
                bytes[byte] |= code << shift;
                values[output * self.k + first + at] = f64::from(number) * f64::from(scale);
            }
        }
        Packed { bytes, values }
    }

    /// The weight in pieces: in the middle of a tile of outputs, at its end, and with some of the next.
    fn pack(&self, simulator: &Simulator, rows: &[f32]) -> Vec<u8> {
        let rows = self.element.bytes(rows);
        let mut weight = vec![0; self.bytes()];
        let mut first = 0;
        for (at, end) in [7, 16, 20, self.n].map(|end| end.min(self.n)).into_iter().enumerate() {
            let (num_rows, piece) = (end - first, &rows[first * self.k * 2..end * self.k * 2]);
            if num_rows == 0 {
                continue;
            }
            let arguments = [Buffer(&weight), Buffer(piece), U32(first), U32(num_rows), U32(self.k), U32(self.n)];
            // However many blocks share the inputs.
            let grid = [end.div_ceil(16) - first / 16, 1 + at % 2, 1];
            let name = format!("pack_{}_{}", self.format.name(), self.element.name);
            weight = simulator.run(&name, grid, 256, &arguments).swap_remove(0);
            first = end;
        }
        weight
    }

    fn run(
        &self,
        simulator: &Simulator,
        kernel: &str,
        (grid, threads): ([usize; 3], usize),
        (weight, x): (&[u8], &[u8]),
        form: Form,
    ) -> Vec<u8> {
        let m = x.len() / (self.k * 2);
        let nothing = vec![f32::NAN; m * self.n];
        let (out, suffix) =
            if form.is_f32 { (f32_bytes(&nothing), "_f32") } else { (self.element.bytes(&nothing), "") };
        let bias = f32_bytes(&self.bias());
        let bias = if form.has_bias { Buffer(&bias) } else { Null };
        let parts = kernel.starts_with("tiles").then_some(U32(self.parts));
        let arguments = [Buffer(&out), Buffer(x), Buffer(weight), bias, U32(m), U32(self.n), U32(self.k)];
        let arguments: Vec<Argument<'_>> = arguments.into_iter().chain(parts).collect();
        let name = format!("linear_{}_{kernel}_{}{suffix}", self.format.name(), self.element.name);
        simulator.run(&name, grid, threads, &arguments).swap_remove(0)
    }

    fn few(&self, simulator: &Simulator, kernel: (usize, usize), operands: (&[u8], &[u8]), form: Form) -> Vec<u8> {
        let ((row_tiles, outputs), m) = (kernel, operands.1.len() / (self.k * 2));
        let grid = [self.n.div_ceil(outputs), m.div_ceil(8 * row_tiles), 1];
        self.run(simulator, &format!("rows_{row_tiles}"), (grid, 32 * self.parts), operands, form)
    }

    fn many(&self, simulator: &Simulator, outputs: usize, operands: (&[u8], &[u8]), form: Form) -> Vec<u8> {
        let m = operands.1.len() / (self.k * 2);
        let grid = [m.div_ceil(self.format.block_rows()), self.n.div_ceil(outputs), 1];
        self.run(simulator, &format!("tiles_{outputs}"), (grid, 256), operands, form)
    }

    fn assert_close(&self, actual: &[u8], weight: &[f64], x: &[f32], form: Form, context: &str) {
        let bias = self.bias();
        let actual = if form.is_f32 {
            actual.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
        } else {
            self.element.values(actual)
        };
        assert_eq!(actual.len(), x.len() / self.k * self.n, "{context}");
        for (at, actual) in actual.iter().enumerate() {
            let (row, output) = (at / self.n, at % self.n);
            let pairs = x[row * self.k..][..self.k].iter().zip(&weight[output * self.k..][..self.k]);
            let products = pairs.map(|(x, w)| f64::from(*x) * w);
            let bias = if form.has_bias { f64::from(bias[output]) } else { 0.0 };
            let (sum, magnitude) =
                products.fold((bias, bias.abs()), |(sum, magnitude), x| (sum + x, magnitude + x.abs()));
            // As in `linear.rs`, and one rounding more for every scale; 6e-8: the least f16 number.
            let roundings = (self.k + self.k / 64 + self.parts + 2) as f64;
            let additions = roundings * f64::from(f32::EPSILON) / 2.0 * magnitude;
            let result = if form.is_f32 { 0.0 } else { f64::from(self.element.unit) * sum.abs() + 6e-8 };
            let distance = (f64::from(*actual) - sum).abs();
            assert!(distance <= additions + result, "{context}, row {row}, output {output}: {actual} instead of {sum}");
        }
    }

    /// Every kernel in every form, of so many rows.
    fn check(&self, m: usize, forms: &[Form]) {
        let (x, packed) = (self.x(m), self.packed());
        let x_bytes = self.element.bytes(&x);
        for simulator in &*SIMULATORS {
            let operands = (&packed.bytes[..], &x_bytes[..]);
            for form in forms.iter().filter(|form| !form.is_f32 || !self.format.is_grouped()) {
                let context = format!("{}, {m} rows", self.context());
                let kernels = self.format.row_kernels();
                let expected = self.few(simulator, kernels[0], operands, *form);
                self.assert_close(&expected, &packed.values, &x, *form, &context);
                for kernel in &kernels[1..] {
                    let few = self.few(simulator, *kernel, operands, *form);
                    assert!(few == expected, "{context}: {} tiles of rows have other bits", kernel.0);
                }
                for outputs in self.format.tile_kernels() {
                    let many = self.many(simulator, *outputs, operands, *form);
                    assert!(many == expected, "{context}: tiles of {outputs} outputs have other bits");
                }
                let alone = self.few(simulator, kernels[0], (&packed.bytes, &x_bytes[(m - 1) * self.k * 2..]), *form);
                assert!(expected.ends_with(&alone), "{context}: the last row has other bits alone");
            }
        }
    }
}

/// What a layer adds and what it writes. The output head of an NF4 model has 8-bit integers, that of an AWQ or GPTQ model floats: none
/// of their kernels writes f32.
#[derive(Clone, Copy)]
struct Form {
    has_bias: bool,
    is_f32: bool,
}

const PLAIN: Form = Form { has_bias: false, is_f32: false };
const BIASED: Form = Form { has_bias: true, is_f32: false };
const LOGITS: Form = Form { has_bias: false, is_f32: true };
const BIASED_LOGITS: Form = Form { has_bias: true, is_f32: true };

fn for_each_format(formats: &[Format], check: impl Fn(&'static Element, Format)) {
    for element in &ELEMENTS {
        formats.iter().for_each(|format| check(element, *format));
    }
}

#[test]
fn quantised_weights_are_those_of_the_processor() {
    for_each_format(&Format::QUANTISED_TO, |element, format| {
        for (n, k) in [(1usize, 64usize), (16, 32 * 5), (40, 1088), (21, 192)] {
            let layer = Layer { element, format, n, k: k.next_multiple_of(format.unit()), parts: 1 };
            for simulator in &*SIMULATORS {
                let (actual, expected) = (layer.pack(simulator, &layer.rows()), layer.packed().bytes);
                let differs = (0..expected.len()).find(|at| actual[*at] != expected[*at]);
                assert_eq!(differs, None, "{}: the first byte that differs", layer.context());
            }
        }
    });
}

#[test]
fn what_is_not_finite_has_a_scale_that_is_no_number() {
    for_each_format(&Format::QUANTISED_TO, |element, format| {
        for value in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            let layer = Layer { element, format, n: 3, k: 128, parts: 1 };
            let mut rows = layer.rows();
            rows[layer.k + 64] = value;
            for simulator in &*SIMULATORS {
                let weight = layer.pack(simulator, &rows);
                let x = element.bytes(&layer.x(1));
                let out = element.values(&layer.few(simulator, (1, 16), (&weight, &x), PLAIN));
                let expected = [false, true, false];
                assert!(out.iter().map(|x| x.is_nan()).eq(expected), "{} {value}: {out:?}", layer.context());
            }
        }
    });
}

#[test]
fn quantised_layers_are_sums_whose_bits_depend_on_nothing_else() {
    for_each_format(&Format::ALL, |element, format| {
        let check = |n: usize, k: usize, parts, rows: &[usize], forms: &[Form]| {
            let layer = Layer { element, format, n, k: k.next_multiple_of(format.unit()), parts };
            rows.iter().for_each(|m| layer.check(*m, forms));
        };
        // As in `linear.rs`: outputs of whole accesses and of odd ones, blocks beyond the last output, parts of different lengths,
        // fewer units than are under way and more, also than are fetched ahead.
        check(40, 32, 1, &[1], &[PLAIN, BIASED, LOGITS, BIASED_LOGITS]);
        check(37, 192, 3, &[7, 9], &[BIASED, LOGITS]);
        check(136, 192, 2, &[130], &[PLAIN]);
        check(36, 32 * 11, 2, &[33, 64, 65], &[BIASED]);
        check(16, 1088, 8, &[1, 7], &[PLAIN, BIASED_LOGITS]);
        check(16, 1728, 1, &[1], &[PLAIN]);
    });
}
