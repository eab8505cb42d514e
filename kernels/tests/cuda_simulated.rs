//! Every CUDA kernel on the processor, through the simulator, against the operation that it is an arm of. Inputs are rounded to the
//! kernel's type first; what is left between the two are the kernel's own roundings.

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, reason = "every function of a test file is part of a test")]

mod simulator;

use std::path::Path;
use std::sync::LazyLock;

use half::{bf16, f16};
use kernels::ops::{self, AttentionRows, EmbeddingTable, RopeTable, SequenceRows};
use kernels::{BLOCK_SIZE, DType, Device, KvCache, KvDType, MatrixView, Tensor};
use simulator::Argument::{Buffer, F32, U32};
use simulator::{Argument, SIMULATORS, Simulator};

/// An element type of kernels: half of the distance between two neighbours is `unit` of the larger at most.
struct Element {
    name: &'static str,
    dtype: DType,
    unit: f32,
}

const ELEMENTS: [Element; 2] = [
    Element { name: "bf16", dtype: DType::Bf16, unit: 1.0 / 256.0 },
    Element { name: "f16", dtype: DType::F16, unit: 1.0 / 2048.0 },
];

impl Element {
    fn bytes(&self, values: &[f32]) -> Vec<u8> {
        match self.dtype {
            DType::Bf16 => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
        }
    }

    fn values(&self, bytes: &[u8]) -> Vec<f32> {
        let pairs = bytes.as_chunks::<2>().0.iter();
        match self.dtype {
            DType::Bf16 => pairs.map(|bytes| bf16::from_le_bytes(*bytes).to_f32()).collect(),
            _ => pairs.map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect(),
        }
    }

    fn rounded(&self, values: &[f32]) -> Vec<f32> {
        self.values(&self.bytes(values))
    }

    /// Numbers between -1 and 1 that the type holds.
    fn random(&self, seed: u64, len: usize) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        let values: Vec<f32> = (0..len).map(|_| next()).collect();
        self.rounded(&values)
    }

    /// Each within so many roundings of what is expected.
    fn assert_close(&self, actual: &[u8], expected: &[f32], roundings: f32, context: &str) {
        let actual = self.values(actual);
        assert_eq!(actual.len(), expected.len(), "{context}");
        for (at, (actual, expected)) in actual.iter().zip(expected).enumerate() {
            // 1e-6: differences of f32 sums where the result is nearly zero.
            let bound = roundings * self.unit * expected.abs() + 1e-6;
            assert!((actual - expected).abs() <= bound, "{context}, element {at}: {actual} instead of {expected}");
        }
    }
}

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    bytemuck::cast_slice(values).to_vec()
}

fn u32_bytes(values: &[u32]) -> Vec<u8> {
    bytemuck::cast_slice(values).to_vec()
}

fn tensor(shape: [usize; 2], values: &[f32]) -> Tensor {
    Tensor::from_slice(&Device::cpu(1), &shape, values).unwrap()
}

fn weight(values: &[f32]) -> Tensor {
    Tensor::from_slice(&Device::cpu(1), &[values.len()], values).unwrap()
}

const EPS: f32 = 1e-5;
/// Threads of a row, as `rms_norm.cu` has them.
const NORM_THREADS: usize = 256;

#[test]
fn rms_norms_are_those_of_the_operation() {
    for element in &ELEMENTS {
        for (rows, cols) in [(1, 8), (3, 64), (2, 2048), (2, 4104)] {
            let x = element.random(1, rows * cols);
            let residual = element.random(2, rows * cols);
            let scale: Vec<f32> = element.random(3, cols).iter().map(|x| 1.0 + x / 4.0).collect();
            let scale = element.rounded(&scale);
            let mut expected = tensor([rows, cols], &x);
            ops::rms_norm_in_place(&mut expected, &weight(&scale), EPS).unwrap();
            let sum: Vec<f32> = residual.iter().zip(&x).map(|(a, b)| a + b).collect();
            let sum = element.rounded(&sum);
            let mut expected_of_sum = tensor([rows, cols], &sum);
            ops::rms_norm_in_place(&mut expected_of_sum, &weight(&scale), EPS).unwrap();

            let zeros = element.bytes(&vec![0.0; rows * cols]);
            let (x_bytes, scale) = (element.bytes(&x), f32_bytes(&scale));
            for simulator in &*SIMULATORS {
                let context = format!("{} {rows} x {cols}", element.name);
                let norm = |x: &[u8], rows: usize| {
                    let out = &zeros[..x.len()];
                    let arguments = [Buffer(out), Buffer(x), Buffer(&scale), F32(EPS), U32(cols)];
                    simulator
                        .run(&format!("rms_norm_{}", element.name), [rows, 1, 1], NORM_THREADS, &arguments)
                        .swap_remove(0)
                };
                let out = norm(&x_bytes, rows);
                element.assert_close(&out, &expected.as_f32(), 2.0, &context);
                let last = x_bytes.len() - x_bytes.len() / rows..;
                assert!(norm(&x_bytes[last.clone()], 1) == out[last], "{context}: a row alone has other bits");

                let residual = element.bytes(&residual);
                let arguments =
                    [Buffer(&zeros), Buffer(&residual), Buffer(&x_bytes), Buffer(&scale), F32(EPS), U32(cols)];
                let name = format!("add_rms_norm_{}", element.name);
                let after = simulator.run(&name, [rows, 1, 1], NORM_THREADS, &arguments);
                assert!(after[1] == element.bytes(&sum), "{context}: the residual is not the sum");
                element.assert_close(&after[0], &expected_of_sum.as_f32(), 2.0, &context);
            }
        }
    }
}

#[test]
fn heads_are_normalised_each_by_itself() {
    for element in &ELEMENTS {
        for (heads, dim) in [(3, 64), (4, 128), (2, 256)] {
            let (rows, cols) = (2, (heads + 1) * dim);
            let x = element.random(4, rows * cols);
            let scale = element.rounded(&element.random(5, dim));
            let mut expected = tensor([rows, cols], &x);
            // All but the first.
            ops::head_rms_norm(&mut expected, 1..heads + 1, &weight(&scale), EPS).unwrap();
            for simulator in &*SIMULATORS {
                let (bytes, scale) = (element.bytes(&x), f32_bytes(&scale));
                let arguments = [Buffer(&bytes), Buffer(&scale), F32(EPS), U32(cols), U32(1), U32(dim)];
                let name = format!("head_rms_norm_{}", element.name);
                let after = simulator.run(&name, [rows, heads, 1], 32, &arguments);
                element.assert_close(&after[0], &expected.as_f32(), 2.0, &format!("{name} of {heads} x {dim}"));
            }
        }
    }
}

#[test]
fn gates_multiply() {
    const THREADS: usize = 128;
    for element in &ELEMENTS {
        for (rows, cols) in [(1, 8), (2, 1024), (3, 1032)] {
            let gate_up: Vec<f32> = element.random(6, rows * 2 * cols).iter().map(|x| x * 8.0).collect();
            let mut expected = tensor([rows, cols], &vec![0.0; rows * cols]);
            ops::silu_mul(&mut expected, &tensor([rows, 2 * cols], &gate_up)).unwrap();
            for simulator in &*SIMULATORS {
                let (out, gate_up) = (element.bytes(&vec![0.0; rows * cols]), element.bytes(&gate_up));
                let arguments = [Buffer(&out), Buffer(&gate_up), U32(cols)];
                let grid = [cols.div_ceil(8 * THREADS), rows, 1];
                let after = simulator.run(&format!("silu_mul_{}", element.name), grid, THREADS, &arguments);
                element.assert_close(&after[0], &expected.as_f32(), 2.0, &format!("{} {rows} x {cols}", element.name));
            }
        }
    }
}

#[test]
fn embeddings_are_rows_of_the_table_or_zeros() {
    let (num_rows, first_id) = (5, 10);
    let ids = [9, 10, 14, 15, 0, u32::MAX, 12];
    for element in &ELEMENTS {
        for cols in [8, 1024, 1032] {
            let table = element.random(7, num_rows * cols);
            let mut expected = tensor([ids.len(), cols], &vec![1.0; ids.len() * cols]);
            let source = MatrixView::dense(bytemuck::cast_slice(&table), DType::F32, num_rows, cols);
            let dense = Tensor::from_matrix(&Device::cpu(1), &source, element.dtype).unwrap();
            ops::embedding(&mut expected, &ids, EmbeddingTable::Dense(&dense), first_id).unwrap();
            for simulator in &*SIMULATORS {
                let (out, table) = (element.bytes(&vec![1.0; ids.len() * cols]), element.bytes(&table));
                let ids_bytes = u32_bytes(&ids);
                let arguments = [
                    Buffer(&out),
                    Buffer(&ids_bytes),
                    Buffer(&table),
                    U32(first_id as usize),
                    U32(num_rows),
                    U32(cols),
                ];
                let after = simulator.run(&format!("embedding_{}", element.name), [ids.len(), 1, 1], 128, &arguments);
                assert!(after[0] == element.bytes(&expected.as_f32()), "{} of {cols} columns", element.name);
            }
        }
    }
}

/// Where the matrix instruction's 16 x 16 operand has an element: 32 lanes of four pairs. Lane `4 r + c` holds of the rows r and r + 8
/// the columns 2 c, 2 c + 1 and 2 c + 8, 2 c + 9 (PTX ISA, fragments of mma.m16n8k16).
fn in_square(row: usize, col: usize) -> usize {
    static PLACES: LazyLock<[[usize; 16]; 16]> = LazyLock::new(|| {
        let elements = |lane: usize| {
            let (r, c) = (lane / 4, lane % 4 * 2);
            [(r, c), (r, c + 1), (r + 8, c), (r + 8, c + 1), (r, c + 8), (r, c + 9), (r + 8, c + 8), (r + 8, c + 9)]
        };
        let mut places = [[0; 16]; 16];
        for (at, (row, col)) in (0..32).flat_map(elements).enumerate() {
            places[row][col] = at;
        }
        places
    });
    PLACES[row][col]
}

#[test]
fn queries_and_keys_turn_and_the_cache_receives_them() {
    let (heads, kv_heads, num_blocks) = (4, 2, 3);
    for element in &ELEMENTS {
        for (dim, rotary_dim) in [(64, 64), (80, 32), (128, 128)] {
            let (rows, half) = (19, rotary_dim / 2);
            let cols = (heads + 2 * kv_heads) * dim;
            let positions: Vec<u32> = (0..rows as u32).map(|row| row * 37 % 500).collect();
            let slots: Vec<u32> = (0..rows as u32).map(|row| (row * 5 + 3) % (16 * num_blocks as u32)).collect();
            let inv_freq: Vec<f32> = (0..half).map(|i| 10_000f32.powf(-2.0 * i as f32 / rotary_dim as f32)).collect();
            let qkv = element.random(8, rows * cols);

            let device = Device::cpu(1);
            let rope = RopeTable::new(&device, rotary_dim, 500, &inv_freq, 1.0).unwrap();
            let mut cache = KvCache::new(&device, 1, num_blocks, kv_heads, dim, KvDType::F32).unwrap();
            let mut expected = tensor([rows, cols], &qkv);
            ops::rope_and_store_kv(&mut expected, heads, &rope, &positions, &slots, &mut cache, 0).unwrap();

            let angles = |f: fn(f32) -> f32| -> Vec<f32> {
                (0..500).flat_map(|position| inv_freq.iter().map(move |freq| f(position as f32 * freq))).collect()
            };
            let (cos, sin) = (f32_bytes(&angles(f32::cos)), f32_bytes(&angles(f32::sin)));
            for simulator in &*SIMULATORS {
                let context = format!("{} {dim} / {rotary_dim}", element.name);
                let cache = element.bytes(&vec![-7.0; num_blocks * kv_heads * BLOCK_SIZE * dim]);
                let (qkv, positions, slots_bytes) = (element.bytes(&qkv), u32_bytes(&positions), u32_bytes(&slots));
                let arguments = [
                    Buffer(&qkv),
                    Buffer(&cos),
                    Buffer(&sin),
                    Buffer(&positions),
                    Buffer(&slots_bytes),
                    Buffer(&cache),
                    Buffer(&cache),
                    U32(heads),
                    U32(kv_heads),
                    U32(dim),
                    U32(half),
                ];
                let name = format!("rope_and_store_kv_{}", element.name);
                let after = simulator.run(&name, [rows, 1, 1], 256, &arguments);
                let turned = element.values(&after[0]);
                element.assert_close(&after[0], &expected.as_f32(), 1.0, &context);

                // The cache holds what the row holds, each at its place, and nothing else was written.
                let (mut keys, mut values) = (element.values(&cache), element.values(&cache));
                for (row, slot) in slots.iter().enumerate() {
                    for head in 0..kv_heads {
                        let (block, offset) = (*slot as usize / BLOCK_SIZE, *slot as usize % BLOCK_SIZE);
                        let start = (block * kv_heads + head) * BLOCK_SIZE * dim;
                        let key = &turned[row * cols + (heads + head) * dim..][..dim];
                        let value = &turned[row * cols + (heads + kv_heads + head) * dim..][..dim];
                        for d in 0..dim {
                            let square = start + d / 16 * 256;
                            keys[square + in_square(offset, d % 16)] = key[d];
                            values[square + in_square(d % 16, offset)] = value[d];
                        }
                    }
                }
                assert!(after[5] == element.bytes(&keys), "{context}: keys");
                assert!(after[6] == element.bytes(&values), "{context}: values");
            }
        }
    }
}

#[test]
fn the_simulator_finds_mistakes() {
    let mistakes = [Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/simulator/mistakes.cu")];
    let plain = Simulator::build("mistakes", &[], &mistakes);
    let sanitized = Simulator::build("mistakes-sanitized", &["-g", "-fsanitize=address"], &mistakes);
    let says = |simulator: &Simulator, kernel: &str, arguments: &[Argument<'_>], sentence: &str| {
        let output = simulator.try_run(kernel, [1, 1, 1], 64, arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && stderr.contains(sentence), "{kernel}: {stderr}");
    };
    let (numbers, x) = (u32_bytes(&[0; 40]), f32_bytes(&(0..64).map(|x| x as f32).collect::<Vec<_>>()));
    says(&plain, "writes_beyond", &[Buffer(&numbers), U32(40)], "writes_beyond wrote beyond buffer 0");
    says(&sanitized, "writes_beyond", &[Buffer(&numbers), U32(40)], "mistakes.cu:6");
    says(&plain, "diverges", &[Buffer(&x)], "threads wait at the barriers of lines 30 and 33");
    says(&plain, "deadlocks", &[Buffer(&x)], "threads wait for others that never come");
    says(&plain, "writes_beyond", &[Buffer(&numbers)], "writes_beyond has 2 parameters, not 1");
    says(&plain, "forgotten", &[], "there is no kernel forgotten");

    let zeros = f32_bytes(&[0.0; 64]);
    let reversed = |kernel: &str| {
        let after = plain.run(kernel, [1, 1, 1], 64, &[Buffer(&zeros), Buffer(&x)]).swap_remove(0);
        after.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect::<Vec<f32>>()
    };
    assert!(reversed("lacks_a_barrier")[0].is_nan(), "shared memory that nobody wrote is no number");
    assert!(reversed("has_its_barrier").into_iter().eq((0..64).rev().map(|x| x as f32)));
}

#[test]
fn the_best_token_and_the_drawn_one_are_those_of_the_operation() {
    const THREADS: usize = 512;
    let device = Device::cpu(1);
    for vocab_size in [1, 40, 513, 5000] {
        // A few levels, so that there are ties; a row whose best is first, one of impossible tokens alone, one with numbers missing.
        let mut rows: Vec<Vec<f32>> = (0..6)
            .map(|row| ELEMENTS[1].random(20 + row, vocab_size).iter().map(|x| (x * 8.0).round() / 2.0).collect())
            .collect();
        rows[3][0] = 100.0;
        rows[4].fill(f32::NEG_INFINITY);
        rows[5].iter_mut().step_by(3).for_each(|x| *x = f32::NAN);
        let seeds: Vec<u64> = (0..rows.len() as u64).map(|row| row * 0x1234_5678_9abc_def1).collect();
        let positions: Vec<u32> = (0..rows.len() as u32).map(|row| row * 1000 + 7).collect();
        let best: Vec<u32> = rows.iter().map(|row| ops::sample::argmax(&device, row)).collect();
        let draw = |(row, (seed, position)): (&Vec<f32>, (&u64, &u32))| {
            ops::sample::gumbel_argmax(&device, row, None, *seed, *position)
        };
        let drawn: Vec<u32> = rows.iter().zip(seeds.iter().zip(&positions)).map(draw).collect();

        let (ids, logits) = (u32_bytes(&vec![7; rows.len()]), f32_bytes(&rows.concat()));
        let (seeds, positions) = (bytemuck::cast_slice::<u64, u8>(&seeds), u32_bytes(&positions));
        for simulator in &*SIMULATORS {
            let grid = [rows.len(), 1, 1];
            let arguments = [Buffer(&ids), Buffer(&logits), U32(vocab_size)];
            assert!(simulator.run("argmax", grid, THREADS, &arguments)[0] == u32_bytes(&best), "{vocab_size}");
            let arguments = [Buffer(&ids), Buffer(&logits), Buffer(seeds), Buffer(&positions), U32(vocab_size)];
            assert!(simulator.run("gumbel_argmax", grid, THREADS, &arguments)[0] == u32_bytes(&drawn), "{vocab_size}");
        }
    }
}

/// Some sequences in the cache, and what attention they get.
struct Sequences {
    lengths: Vec<usize>,
    window: Option<u32>,
    heads: usize,
    kv_heads: usize,
    dim: usize,
    /// The type of the kernel, which holds all numbers exactly.
    element: &'static Element,
}

const SCALE: f32 = 0.3;

impl Sequences {
    fn cols(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.dim
    }

    fn window(&self) -> usize {
        self.window.map_or(u32::MAX as usize, |window| window as usize)
    }

    /// Queries, keys and values of every position of a sequence.
    fn qkv(&self, sequence: usize) -> Vec<f32> {
        self.element.random(30 + sequence as u64, self.lengths[sequence] * self.cols())
    }

    /// Those of its last rows.
    fn last_rows(&self, rows: &[usize]) -> Vec<f32> {
        let of = |(sequence, rows): (usize, &usize)| {
            let qkv = self.qkv(sequence);
            qkv[qkv.len() - rows * self.cols()..].to_vec()
        };
        rows.iter().enumerate().flat_map(of).collect()
    }

    /// The blocks of each sequence in an order that is no order, and how many there are: one is nobody's.
    fn tables(&self) -> (usize, Vec<Vec<u32>>) {
        let num_blocks = 1 + self.lengths.iter().map(|length| length.div_ceil(BLOCK_SIZE)).sum::<usize>();
        // All of them: 1009 is a prime.
        let mut next = (0..1009).map(|at| at * 7 % 1009).filter(|block| *block < num_blocks as u32);
        let tables = self.lengths.iter().map(|length| next.by_ref().take(length.div_ceil(BLOCK_SIZE)).collect());
        (num_blocks, tables.collect())
    }

    /// Keys and values as the kernels read them; what no position owns is no number.
    fn cache(&self) -> [Vec<u8>; 2] {
        let (num_blocks, tables) = self.tables();
        let Sequences { heads, kv_heads, dim, .. } = *self;
        let mut keys = vec![f32::NAN; num_blocks * kv_heads * BLOCK_SIZE * dim];
        let mut values = keys.clone();
        for (sequence, table) in tables.iter().enumerate() {
            for (t, row) in self.qkv(sequence).chunks_exact(self.cols()).enumerate() {
                for head in 0..kv_heads {
                    let start = (table[t / BLOCK_SIZE] as usize * kv_heads + head) * BLOCK_SIZE * dim;
                    for d in 0..dim {
                        let square = start + d / 16 * 256;
                        keys[square + in_square(t % 16, d % 16)] = row[(heads + head) * dim + d];
                        values[square + in_square(d % 16, t % 16)] = row[(heads + kv_heads + head) * dim + d];
                    }
                }
            }
        }
        [self.element.bytes(&keys), self.element.bytes(&values)]
    }

    /// The tables of all, as long as each other. What one does not have is not looked up.
    fn block_tables(&self) -> (usize, Vec<u8>) {
        let (_, tables) = self.tables();
        let len = tables.iter().map(Vec::len).max().unwrap();
        let padded = tables.iter().flat_map(|table| {
            let mut table = table.clone();
            table.resize(len, u32::MAX);
            table
        });
        (len, u32_bytes(&padded.collect::<Vec<_>>()))
    }

    /// The numbers with which the arguments of both kernels end.
    fn numbers(&self, table_len: usize) -> [Argument<'static>; 6] {
        let Sequences { heads, kv_heads, .. } = *self;
        let group = heads / kv_heads;
        [U32(table_len), U32(self.cols()), U32(group), U32(kv_heads), F32(SCALE), U32(self.window())]
    }

    /// What the operation computes for the last rows of each sequence.
    fn expected(&self, rows: &[usize]) -> Vec<f32> {
        let device = Device::cpu(1);
        let Sequences { heads, kv_heads, dim, .. } = *self;
        let (num_blocks, tables) = self.tables();
        let rope = RopeTable::new(&device, 0, 1000, &[], 1.0).unwrap();
        let mut cache = KvCache::new(&device, 1, num_blocks, kv_heads, dim, KvDType::F32).unwrap();
        for (sequence, table) in tables.iter().enumerate() {
            let positions: Vec<u32> = (0..self.lengths[sequence] as u32).collect();
            let slots: Vec<u32> = positions.iter().map(|t| table[*t as usize / BLOCK_SIZE] * 16 + t % 16).collect();
            let mut qkv = tensor([positions.len(), self.cols()], &self.qkv(sequence));
            ops::rope_and_store_kv(&mut qkv, heads, &rope, &positions, &slots, &mut cache, 0).unwrap();
        }
        let mut first_row = 0;
        let sequences = rows.iter().zip(&self.lengths).zip(&tables).map(|((num_rows, length), block_table)| {
            first_row += num_rows;
            let start_position = length - num_rows;
            SequenceRows { first_row: first_row - num_rows, num_rows: *num_rows, start_position, block_table }
        });
        let sequences: Vec<SequenceRows<'_>> = sequences.collect();
        let total: usize = rows.iter().sum();
        let mut out = tensor([total, heads * dim], &vec![0.0; total * heads * dim]);
        let qkv = tensor([total, self.cols()], &self.last_rows(rows));
        ops::attention(&mut out, &qkv, &cache, 0, &AttentionRows { sequences: &sequences }, SCALE, self.window)
            .unwrap();
        out.as_f32().to_vec()
    }

    /// The last row of each sequence, by the kernels of decode with so many blocks.
    fn decode(&self, simulator: &Simulator, blocks: usize) -> Vec<u8> {
        let Sequences { heads, kv_heads, dim, element, .. } = *self;
        let (mut items, mut first_items) = (Vec::new(), Vec::new());
        for (row, length) in self.lengths.iter().enumerate() {
            first_items.push(items.len() as u32 / 2);
            let splits = length.saturating_sub(self.window()) / 256..length.div_ceil(256);
            items.extend(splits.flat_map(|split| [row as u32, split as u32]));
        }
        let num_items = items.len() / 2;
        let positions: Vec<u32> = self.lengths.iter().map(|length| *length as u32 - 1).collect();
        let [items, num_items_bytes, first_items, positions] =
            [items, vec![num_items as u32], first_items, positions].map(|numbers| u32_bytes(&numbers));
        let [sums, states] = [dim, 2].map(|len| f32_bytes(&vec![f32::NAN; num_items * heads * len]));
        let (qkv, [keys, values]) = (element.bytes(&self.last_rows(&vec![1; self.lengths.len()])), self.cache());
        let (table_len, tables) = self.block_tables();
        let arguments = [
            Buffer(&sums),
            Buffer(&states),
            Buffer(&qkv),
            Buffer(&keys),
            Buffer(&values),
            Buffer(&items),
            Buffer(&num_items_bytes),
            Buffer(&positions),
            Buffer(&tables),
        ];
        let arguments: Vec<Argument<'_>> = arguments.into_iter().chain(self.numbers(table_len)).collect();
        let name = format!("attention_splits_{dim}_{}", element.name);
        let after = simulator.run(&name, [blocks.min(num_items + 1), kv_heads, 1], 128, &arguments);
        let out = element.bytes(&vec![0.0; self.lengths.len() * heads * dim]);
        let arguments = [
            Buffer(&out),
            Buffer(&after[0]),
            Buffer(&after[1]),
            Buffer(&first_items),
            Buffer(&positions),
            U32(self.window()),
        ];
        let name = format!("attention_merge_{}", element.name);
        simulator.run(&name, [self.lengths.len(), heads, 1], dim, &arguments).swap_remove(0)
    }

    /// The last rows of each sequence, by the kernel of prefill.
    fn prefill(&self, simulator: &Simulator, rows: &[usize]) -> Vec<u8> {
        let Sequences { heads, kv_heads, dim, element, .. } = *self;
        let (mut items, mut sequences, mut first_row) = (Vec::new(), Vec::new(), 0);
        for (sequence, (num_rows, length)) in rows.iter().zip(&self.lengths).enumerate() {
            let tiles = (num_rows * heads / kv_heads).div_ceil(64);
            items.extend((0..tiles as u32).flat_map(|tile| [sequence as u32, tile]));
            sequences.extend([first_row as u32, *num_rows as u32, (length - num_rows) as u32]);
            first_row += num_rows;
        }
        let num_items = items.len() / 2;
        let [items, sequences] = [items, sequences].map(|numbers| u32_bytes(&numbers));
        let (qkv, [keys, values]) = (element.bytes(&self.last_rows(rows)), self.cache());
        let (table_len, tables) = self.block_tables();
        let out = element.bytes(&vec![f32::NAN; first_row * heads * dim]);
        let arguments = [
            Buffer(&out),
            Buffer(&qkv),
            Buffer(&keys),
            Buffer(&values),
            Buffer(&items),
            Buffer(&sequences),
            Buffer(&tables),
        ];
        let arguments: Vec<Argument<'_>> = arguments.into_iter().chain(self.numbers(table_len)).collect();
        let name = format!("attention_prefill_{dim}_{}", element.name);
        simulator.run(&name, [num_items, kv_heads, dim.div_ceil(128)], 128, &arguments).swap_remove(0)
    }

    /// Weights are rounded, each by half a unit of itself, and so is the result: values are below one.
    fn assert_close(&self, actual: &[u8], rows: &[usize], context: &str) {
        let actual = self.element.values(actual);
        let expected = self.expected(rows);
        assert_eq!(actual.len(), expected.len());
        for (at, (actual, expected)) in actual.iter().zip(&expected).enumerate() {
            let is_close = (actual - expected).abs() <= 2.0 * self.element.unit;
            assert!(is_close, "{context}, element {at}: {actual} instead of {expected}");
        }
    }
}

#[test]
fn attention_is_that_of_the_operation_and_decode_has_the_bits_of_prefill() {
    for element in &ELEMENTS {
        let sequences = |lengths: &[usize], window, heads, kv_heads, dim| Sequences {
            lengths: lengths.to_vec(),
            window,
            heads,
            kv_heads,
            dim,
            element,
        };
        check_attention(&sequences(&[1, 16, 17, 255], None, 8, 1, 64));
        check_attention(&sequences(&[256, 257, 530], None, 6, 2, 128));
        check_attention(&sequences(&[40, 700], Some(300), 4, 2, 96));
        check_attention(&sequences(&[300], Some(13), 2, 2, 256));
    }
}

fn check_attention(sequences: &Sequences) {
    let Sequences { lengths, heads, dim, element, .. } = sequences;
    let context = format!("{} {lengths:?}, window {:?}, dim {dim}", element.name, sequences.window);
    // The last rows: one of each sequence, and more.
    let one = vec![1; lengths.len()];
    let several: Vec<usize> = lengths.iter().map(|length| *length.min(&21)).collect();
    for simulator in &*SIMULATORS {
        let decoded = sequences.decode(simulator, 1);
        sequences.assert_close(&decoded, &one, &format!("decode, {context}"));
        assert!(sequences.decode(simulator, usize::MAX) == decoded, "{context}: who computes a split shows");
        let prefilled = sequences.prefill(simulator, &several);
        sequences.assert_close(&prefilled, &several, &format!("prefill, {context}"));

        let row_bytes = heads * dim * 2;
        let mut end = 0;
        for (row, rows) in several.iter().enumerate() {
            end += rows * row_bytes;
            let (last, alone) = (&prefilled[end - row_bytes..end], &decoded[row * row_bytes..][..row_bytes]);
            assert!(last == alone, "{context}: row {row} has other bits in a chunk than alone");
        }
    }
}
