//! Linear layers: their weights' packing, all kernels against each other bit by bit and against sums in f64, and the embedding
//! that reads a packed head.

use std::path::Path;

use crate::element::{ELEMENTS, Element, f32_bytes, u32_bytes};
use crate::in_square;
use crate::simulator::Argument::{self, Buffer, F32, Null, U32};
use crate::simulator::{SIMULATORS, Simulator};

/// The kernels of few rows: tiles of eight rows, and outputs of a block.
pub(crate) const ROW_KERNELS: [(usize, usize); 4] = [(1, 16), (2, 32), (4, 32), (8, 64)];

/// The kernels of many rows: outputs of a block.
const TILE_KERNELS: [usize; 2] = [128, 64];

/// That of many rows on Hopper: rows and outputs of a block.
const WGMMA_KERNEL: (usize, usize) = (128, 128);

/// A layer, and how the sums of its outputs are cut.
pub(crate) struct Layer {
    pub(crate) element: &'static Element,
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) parts: usize,
}

/// What a layer adds and what it writes.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Form {
    /// Nothing; the element type.
    Plain,
    /// Its bias; the element type.
    Biased,
    /// Nothing; f32.
    Logits,
    /// Its bias; f32.
    BiasedLogits,
}

impl Form {
    const ALL: [Form; 4] = [Form::Plain, Form::Biased, Form::Logits, Form::BiasedLogits];

    fn has_bias(self) -> bool {
        matches!(self, Form::Biased | Form::BiasedLogits)
    }

    fn is_f32(self) -> bool {
        matches!(self, Form::Logits | Form::BiasedLogits)
    }
}

impl Layer {
    fn context(&self) -> String {
        format!("{} {} x {} in {} parts", self.element.name, self.n, self.k, self.parts)
    }

    /// `[n][k]`.
    fn rows(&self) -> Vec<f32> {
        self.element.random(50, self.n * self.k)
    }

    fn bias(&self) -> Vec<f32> {
        self.element.random(51, self.n)
    }

    /// `[m][k]`.
    pub(crate) fn x(&self, m: usize) -> Vec<f32> {
        self.element.random(52, m * self.k)
    }

    /// Where an element of the weight lies: tiles of 16 outputs and 32 inputs, each two squares. The four columns of a square
    /// that lane c reads are of its eight inputs the first or the last four.
    fn place(&self, output: usize, input: usize) -> usize {
        let tile = output / 16 * (self.k / 32) + input / 32;
        let (vector, square, pair, half) = (input % 32 / 8, input % 8 / 4, input % 4 / 2, input % 2);
        (tile * 2 + square) * 256 + in_square(output % 16, pair * 8 + vector * 2 + half)
    }

    /// The weight in pieces: in the middle of a tile of outputs, and at its end.
    pub(crate) fn pack(&self, simulator: &Simulator) -> Vec<u8> {
        let rows = self.element.bytes(&self.rows());
        let mut weight = vec![0; self.n.div_ceil(16) * 16 * self.k * 2];
        let mut first = 0;
        for end in [self.n.min(7), self.n.min(16), self.n] {
            let (num_rows, piece) = (end - first, &rows[first * self.k * 2..end * self.k * 2]);
            if num_rows == 0 {
                continue;
            }
            let arguments = [Buffer(&weight), Buffer(piece), U32(first), U32(num_rows), U32(self.k)];
            let grid = [end.div_ceil(16) - first / 16, self.k.div_ceil(1024), 1];
            weight = simulator.run(&format!("pack_linear_{}", self.element.name), grid, 256, &arguments).swap_remove(0);
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
            if form.is_f32() { (f32_bytes(&nothing), "_f32") } else { (self.element.bytes(&nothing), "") };
        let bias = f32_bytes(&self.bias());
        let bias = if form.has_bias() { Buffer(&bias) } else { Null };
        let parts = (!kernel.starts_with("linear_rows")).then_some(U32(self.parts));
        let arguments = [Buffer(&out), Buffer(x), Buffer(weight), bias, U32(m), U32(self.n), U32(self.k)];
        let arguments: Vec<Argument<'_>> = arguments.into_iter().chain(parts).collect();
        simulator.run(&format!("{kernel}_{}{suffix}", self.element.name), grid, threads, &arguments).swap_remove(0)
    }

    pub(crate) fn few(
        &self,
        simulator: &Simulator,
        kernel: (usize, usize),
        operands: (&[u8], &[u8]),
        form: Form,
    ) -> Vec<u8> {
        let ((row_tiles, outputs), m) = (kernel, operands.1.len() / (self.k * 2));
        let grid = [self.n.div_ceil(outputs), m.div_ceil(8 * row_tiles), 1];
        self.run(simulator, &format!("linear_rows_{row_tiles}"), (grid, 32 * self.parts), operands, form)
    }

    fn many(&self, simulator: &Simulator, outputs: usize, operands: (&[u8], &[u8]), form: Form) -> Vec<u8> {
        let m = operands.1.len() / (self.k * 2);
        let grid = [m.div_ceil(128), self.n.div_ceil(outputs), 1];
        self.run(simulator, &format!("linear_tiles_{outputs}"), (grid, 256), operands, form)
    }

    fn many_on_hopper(&self, simulator: &Simulator, operands: (&[u8], &[u8]), form: Form) -> Vec<u8> {
        let ((rows, outputs), m) = (WGMMA_KERNEL, operands.1.len() / (self.k * 2));
        let grid = [m.div_ceil(rows), self.n.div_ceil(outputs), 1];
        self.run(simulator, &format!("linear_wgmma_{outputs}"), (grid, 256), operands, form)
    }

    fn assert_close(&self, actual: &[u8], x: &[f32], form: Form, context: &str) {
        let (rows, bias) = (self.rows(), self.bias());
        let actual = if form.is_f32() {
            actual.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
        } else {
            self.element.values(actual)
        };
        assert_eq!(actual.len(), x.len() / self.k * self.n, "{context}");
        for (at, actual) in actual.iter().enumerate() {
            let (row, output) = (at / self.n, at % self.n);
            let pairs = x[row * self.k..][..self.k].iter().zip(&rows[output * self.k..][..self.k]);
            let products = pairs.map(|(x, w)| f64::from(*x) * f64::from(*w));
            let bias = if form.has_bias() { f64::from(bias[output]) } else { 0.0 };
            let (sum, magnitude) =
                products.fold((bias, bias.abs()), |(sum, magnitude), x| (sum + x, magnitude + x.abs()));
            // Every addition in f32 rounds by half a unit of a sum that is below the sum of magnitudes, the result once.
            let additions = (self.k + self.parts + 1) as f64 * f64::from(f32::EPSILON) / 2.0 * magnitude;
            let result = if form.is_f32() { 0.0 } else { f64::from(self.element.unit) * sum.abs() };
            let distance = (f64::from(*actual) - sum).abs();
            assert!(distance <= additions + result, "{context}, row {row}, output {output}: {actual} instead of {sum}");
        }
    }

    /// All kernels in these forms, of so many rows.
    fn check(&self, m: usize, forms: &[Form]) {
        let x = self.x(m);
        let x_bytes = self.element.bytes(&x);
        let row_bytes = self.k * 2;
        for simulator in &*SIMULATORS {
            let weight = self.pack(simulator);
            for form in forms {
                let context = format!("{}, {m} rows", self.context());
                let expected = self.few(simulator, ROW_KERNELS[0], (&weight, &x_bytes), *form);
                self.assert_close(&expected, &x, *form, &context);
                for kernel in &ROW_KERNELS[1..] {
                    let few = self.few(simulator, *kernel, (&weight, &x_bytes), *form);
                    assert!(few == expected, "{context}: {} tiles of rows have other bits", kernel.0);
                }
                for outputs in TILE_KERNELS {
                    let many = self.many(simulator, outputs, (&weight, &x_bytes), *form);
                    assert!(many == expected, "{context}: tiles of {outputs} outputs have other bits");
                }
                let many = self.many_on_hopper(simulator, (&weight, &x_bytes), *form);
                assert!(many == expected, "{context}: the products of warpgroups have other bits");
                for row in [0, m - 1] {
                    let one = &x_bytes[row * row_bytes..][..row_bytes];
                    let alone = self.few(simulator, ROW_KERNELS[0], (&weight, one), *form);
                    let among = &expected[row * alone.len()..][..alone.len()];
                    assert!(alone == among, "{context}: row {row} has other bits alone");
                }
            }
        }
    }
}

#[test]
fn weights_lie_in_the_order_of_the_matrix_instruction() {
    for element in &ELEMENTS {
        for (n, k) in [(1, 32), (16, 64), (40, 1056), (100, 96)] {
            let layer = Layer { element, n, k, parts: 1 };
            let rows = layer.rows();
            let mut weight = vec![0.0; n.div_ceil(16) * 16 * k];
            for (at, value) in rows.iter().enumerate() {
                weight[layer.place(at / k, at % k)] = *value;
            }
            for simulator in &*SIMULATORS {
                assert!(layer.pack(simulator) == element.bytes(&weight), "{}", layer.context());
            }
        }
    }
}

#[test]
fn linear_layers_are_sums_whose_bits_depend_on_nothing_else() {
    for element in &ELEMENTS {
        let check = |n, k, parts, rows: &[usize], forms: &[Form]| {
            let layer = Layer { element, n, k, parts };
            rows.iter().for_each(|m| layer.check(*m, forms));
        };
        // Outputs of whole accesses and of odd ones, blocks beyond the last output, fewer tiles of inputs than are under way.
        check(40, 32, 1, &[1, 3], &Form::ALL);
        check(37, 96, 3, &[8, 9], &Form::ALL);
        check(136, 96, 2, &[130], &[Form::Plain, Form::BiasedLogits]);
        check(100, 512 + 32, 2, &[17, 65], &[Form::Biased, Form::Logits]);
        check(40, 512 + 32, 1, &[64], &[Form::Plain]);
        check(72, 160, 5, &[128, 257], &[Form::BiasedLogits]);
        check(100, 1056, 3, &[9], &[Form::Biased]);
        check(16, 1056, 8, &[1, 3], &[Form::Plain, Form::BiasedLogits]);
    }
}

#[test]
fn embeddings_are_rows_of_a_packed_head_or_zeros() {
    let first_id = 10;
    let ids = [9, 10, 30, 49, 50, 0, u32::MAX, 26];
    for element in &ELEMENTS {
        for (k, scale) in [(32, 1.0), (1056, 3.0)] {
            let layer = Layer { element, n: 40, k, parts: 1 };
            let rows: Vec<f32> = layer.rows().iter().map(|x| x * scale).collect();
            let row_of = |id: u32| id.checked_sub(first_id).map(|row| row as usize).filter(|row| *row < layer.n);
            let expected = ids.iter().flat_map(|id| match row_of(*id) {
                Some(row) => rows[row * k..][..k].to_vec(),
                None => vec![0.0; k],
            });
            let expected = element.bytes(&expected.collect::<Vec<f32>>());
            for simulator in &*SIMULATORS {
                let (out, weight) = (element.bytes(&vec![1.0; ids.len() * k]), layer.pack(simulator));
                let ids_bytes = u32_bytes(&ids);
                let extents = [U32(first_id as usize), U32(layer.n), U32(k), F32(scale)];
                let arguments = [&[Buffer(&out), Buffer(&ids_bytes), Buffer(&weight)][..], &extents].concat();
                let name = format!("embedding_head_{}", element.name);
                let after = simulator.run(&name, [ids.len(), 1, 1], 128, &arguments);
                assert!(after[0] == expected, "{name} of {k} columns");
            }
        }
    }
}

#[test]
fn the_simulator_finds_mistakes_with_warpgroups() {
    let kernels = [Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda_simulated/warpgroups.cu")];
    let simulator = Simulator::build("warpgroups", &[], &kernels);
    // 64 rows, all the same, times as many columns as one instruction has.
    let (out, columns): (Vec<u8>, Vec<f32>) = (f32_bytes(&[0.0; 64 * 128]), (0..128).map(|x| x as f32).collect());
    let columns = f32_bytes(&columns);
    let run = |kernel: &str| simulator.try_run(kernel, [1, 1, 1], 128, &[Buffer(&out), Buffer(&columns)]);
    let sums = |kernel: &str| -> Vec<f32> {
        let output = run(kernel);
        assert!(output.status.success(), "{kernel}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout.as_chunks::<4>().0[..64 * 128].iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    };
    // Sixteen products of two and the column's number, twice.
    assert!(sums("multiplies").into_iter().eq((0..64 * 128).map(|at| 64.0 * (at % 128) as f32)));
    assert!(sums("reads_sums_too_early").iter().all(|x| x.is_nan()), "they are under way");
    assert!(sums("replaces_columns_too_early").into_iter().eq([0.0; 64 * 128]), "the columns are read at the wait");
    let says = |kernel: &str, sentence: &str| {
        let output = run(kernel);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && stderr.contains(sentence), "{kernel}: {stderr}");
    };
    says("lacks_a_fence", "lacks_a_fence: a warpgroup multiplies without a fence");
    says("replaces_rows_too_early", "replaces_rows_too_early: an operand in registers was written before the wait");
    says("writes_sums_too_early", "writes_sums_too_early: sums were written before the wait");
    says("describes_too_much", "are in no array in shared memory");
    says("describes_a_swizzle", "swizzled are not simulated");
}

#[test]
fn the_simulator_finds_mistakes_with_copies() {
    let kernels = [Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda_simulated/copies.cu")];
    let simulator = Simulator::build("copies", &[], &kernels);
    let x: Vec<f32> = (0..256).map(|x| x as f32).collect();
    let (out, x_bytes) = (f32_bytes(&[0.0; 256]), f32_bytes(&x));
    let after = |kernel: &str| -> Vec<f32> {
        let after = simulator.run(kernel, [1, 1, 1], 64, &[Buffer(&out), Buffer(&x_bytes)]).swap_remove(0);
        after.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    };
    assert!(after("copies").into_iter().eq((0..256).map(|at| x[at ^ 4])));
    assert!(after("waits_for_too_few").iter().all(|x| x.is_nan()), "nothing has landed");
    assert!(after("requests_too_early").iter().any(|x| x.is_nan()), "the second request destroys what is there");
    // The second block finds what the first one left.
    let output = simulator.try_run("never_waits", [2, 1, 1], 64, &[Buffer(&out), Buffer(&x_bytes)]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && stderr.contains("without waiting for what it copied"), "{stderr}");
}
