//! Attention in both forms.

use kernels::ops::{self, AttentionRows, RopeTable, Scoring, SequenceRows};
use kernels::{BLOCK_SIZE, Device, KvCache, KvDType};

use crate::element::{E4M3, E5M2, ELEMENTS, Element, Stored, f32_bytes, tensor, u32_bytes};
use crate::simulator::Argument::{self, Buffer, F32, U32};
use crate::simulator::{SIMULATORS, Simulator};

/// Some sequences in the cache, and what attention they get.
struct Sequences {
    lengths: Vec<usize>,
    softcap: Option<f32>,
    window: Option<u32>,
    heads: usize,
    kv_heads: usize,
    dim: usize,
    /// The type of the kernel, which holds all numbers exactly.
    element: &'static Element,
    stored: Stored,
    /// A sequence and a position whose value is no number, with infinities.
    poisoned: Option<(usize, usize)>,
    /// Of every position the value in a dimension, if it is not random.
    value: Option<fn(usize) -> f32>,
}

const SCALE: f32 = 0.3;

impl Sequences {
    fn cols(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.dim
    }

    fn window(&self) -> usize {
        self.window.map_or(u32::MAX as usize, |window| window as usize)
    }

    /// Queries, keys and values of every position of a sequence, the latter two as the cache holds them.
    fn qkv(&self, sequence: usize) -> Vec<f32> {
        let mut qkv = self.element.random(30 + sequence as u64, self.lengths[sequence] * self.cols());
        for row in qkv.chunks_exact_mut(self.cols()) {
            row[self.heads * self.dim..].iter_mut().for_each(|x| *x = self.stored.rounded(*x));
            if let Some(value) = self.value {
                let values = &mut row[(self.heads + self.kv_heads) * self.dim..];
                values.iter_mut().enumerate().for_each(|(at, x)| *x = value(at % self.dim));
            }
        }
        if let Some((_, position)) = self.poisoned.filter(|(poisoned, _)| *poisoned == sequence) {
            let values = self.kv_heads * self.dim;
            let value = &mut qkv[(position + 1) * self.cols() - values..][..values];
            value.iter_mut().step_by(3).for_each(|x| *x = f32::NAN);
            value.iter_mut().skip(1).step_by(3).for_each(|x| *x = f32::NEG_INFINITY);
        }
        qkv
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
        let Sequences { heads, kv_heads, dim, element, stored, .. } = *self;
        let mut keys = vec![f32::NAN; num_blocks * kv_heads * BLOCK_SIZE * dim];
        let mut values = keys.clone();
        for (sequence, table) in tables.iter().enumerate() {
            for (t, row) in self.qkv(sequence).chunks_exact(self.cols()).enumerate() {
                for head in 0..kv_heads {
                    let start = (table[t / BLOCK_SIZE] as usize * kv_heads + head) * BLOCK_SIZE * dim;
                    for d in 0..dim {
                        let key = start + stored.in_squares(d / 16, t % 16, d % 16, dim);
                        let value = start + stored.in_squares(d / 16, d % 16, t % 16, dim);
                        keys[key] = row[(heads + head) * dim + d];
                        values[value] = row[(heads + kv_heads + head) * dim + d];
                    }
                }
            }
        }
        [stored.bytes(element, &keys), stored.bytes(element, &values)]
    }

    /// The tables of all one after the other, and where each begins.
    fn block_tables(&self) -> (Vec<u32>, Vec<u8>) {
        let (_, tables) = self.tables();
        let starts = (0..tables.len()).map(|sequence| tables[..sequence].iter().map(|table| table.len() as u32).sum());
        (starts.collect(), u32_bytes(&tables.concat()))
    }

    /// The numbers with which the arguments of both kernels end.
    fn numbers(&self) -> Vec<Argument<'static>> {
        let Sequences { heads, kv_heads, .. } = *self;
        let group = heads / kv_heads;
        let (scale, steepness) =
            self.softcap.map_or((SCALE, 0.0), |cap| (cap, 2.0 * std::f32::consts::LOG2_E * SCALE / cap));
        let mut numbers = vec![U32(self.cols()), U32(group), U32(kv_heads), F32(scale), F32(steepness)];
        numbers.push(U32(self.window()));
        if let Stored::Fp8(fp8) = self.stored {
            numbers.extend(fp8.widening(self.element).map(U32));
        }
        numbers
    }

    /// The kernel of that name.
    fn kernel(&self, base: &str) -> String {
        format!("{base}_{}_{}{}", self.dim, self.element.name, self.stored.suffix())
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
        let scoring = Scoring { scale: SCALE, softcap: self.softcap, window: self.window };
        ops::attention(&mut out, &qkv, &cache, 0, &AttentionRows::new(&sequences), scoring).unwrap();
        out.as_f32().to_vec()
    }

    /// The last row of each sequence, by the kernels of decode with so many blocks.
    fn decode(&self, simulator: &Simulator, blocks: usize) -> Vec<u8> {
        let Sequences { heads, kv_heads, dim, element, .. } = *self;
        let (mut items, mut first_items) = (Vec::new(), Vec::new());
        for (row, length) in self.lengths.iter().enumerate() {
            first_items.push(items.len() as u32 / 2);
            items.extend((0..length.div_ceil(256)).flat_map(|split| [row as u32, split as u32]));
        }
        let num_items = items.len() / 2;
        let positions: Vec<u32> = self.lengths.iter().map(|length| *length as u32 - 1).collect();
        let [items, num_items_bytes, first_items, positions] =
            [items, vec![num_items as u32], first_items, positions].map(|numbers| u32_bytes(&numbers));
        let [sums, states] = [dim, 2].map(|len| f32_bytes(&vec![f32::NAN; num_items * heads * len]));
        let (qkv, [keys, values]) = (element.bytes(&self.last_rows(&vec![1; self.lengths.len()])), self.cache());
        let (table_starts, tables) = self.block_tables();
        let table_starts = u32_bytes(&table_starts);
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
            Buffer(&table_starts),
        ];
        let arguments: Vec<Argument<'_>> = arguments.into_iter().chain(self.numbers()).collect();
        let name = self.kernel("attention_splits");
        let parts = kv_heads * (heads / kv_heads).div_ceil(8);
        let after = simulator.run(&name, [blocks.min(num_items + 1), parts, 1], 128, &arguments);
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
        let (table_starts, tables) = self.block_tables();
        for (sequence, (num_rows, length)) in rows.iter().zip(&self.lengths).enumerate() {
            let tiles = (num_rows * heads / kv_heads).div_ceil(128);
            items.extend((0..tiles as u32).flat_map(|tile| [sequence as u32, tile]));
            sequences.extend([first_row as u32, *num_rows as u32, (length - num_rows) as u32, table_starts[sequence]]);
            first_row += num_rows;
        }
        let num_items = items.len() / 2;
        let [items, sequences] = [items, sequences].map(|numbers| u32_bytes(&numbers));
        let (qkv, [keys, values]) = (element.bytes(&self.last_rows(rows)), self.cache());
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
        let arguments: Vec<Argument<'_>> = arguments.into_iter().chain(self.numbers()).collect();
        let name = self.kernel("attention_prefill");
        let parts_of_values = if dim <= 128 { 1 } else { dim / 64 };
        simulator.run(&name, [num_items, kv_heads, parts_of_values], 256, &arguments).swap_remove(0)
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
            softcap: None,
            window,
            heads,
            kv_heads,
            dim,
            element,
            stored: Stored::Same,
            poisoned: None,
            value: None,
        };
        check_attention(&sequences(&[3, 520], Some(200), 4, 1, 32));
        check_attention(&sequences(&[1, 16, 17, 255], None, 8, 1, 64));
        check_attention(&sequences(&[256, 257, 530], None, 6, 2, 128));
        check_attention(&sequences(&[40, 700], Some(300), 4, 2, 96));
        check_attention(&sequences(&[15, 321], None, 4, 4, 80));
        check_attention(&sequences(&[300], Some(13), 2, 2, 256));
        // More heads for a KV head than a block of decode computes.
        check_attention(&sequences(&[3, 90], None, 12, 1, 32));
        // Scores that level off, most of them.
        check_attention(&Sequences { softcap: Some(0.7), ..sequences(&[3, 300], Some(200), 4, 2, 64) });
        check_attention(&Sequences { softcap: Some(2.0), ..sequences(&[70], None, 2, 1, 256) });
    }
}

#[test]
fn attention_over_eight_bits_is_that_over_the_numbers_they_are() {
    for element in &ELEMENTS {
        for fp8 in [&E4M3, &E5M2] {
            let sequences = |lengths: &[usize], window, heads, kv_heads, dim| Sequences {
                lengths: lengths.to_vec(),
                softcap: None,
                window,
                heads,
                kv_heads,
                dim,
                element,
                stored: Stored::Fp8(fp8),
                poisoned: None,
                value: None,
            };
            check_attention(&sequences(&[3, 300], Some(200), 4, 1, 32));
            check_attention(&sequences(&[17], None, 8, 1, 64));
            check_attention(&sequences(&[15, 70], None, 4, 4, 64));
            check_attention(&sequences(&[257], None, 6, 2, 128));
        }
    }
}

/// Chunks of more pairs than a block has, and warps that see nothing of what others of their block see.
#[test]
fn a_row_has_the_same_bits_in_any_chunk() {
    let [bf16, f16] = &ELEMENTS;
    let cases = [(bf16, Stored::Same, None), (f16, Stored::Same, Some(70)), (bf16, Stored::Fp8(&E4M3), Some(5))];
    for (element, stored, window) in cases {
        let sequences = Sequences {
            lengths: vec![330],
            window,
            softcap: None,
            heads: 1,
            kv_heads: 1,
            dim: 32,
            element,
            stored,
            poisoned: None,
            value: None,
        };
        let row_bytes = 32 * 2;
        for simulator in &*SIMULATORS {
            let (many, few) = (sequences.prefill(simulator, &[150]), sequences.prefill(simulator, &[40]));
            let context = format!("{} over {}, window {window:?}", element.name, stored.name());
            sequences.assert_close(&many, &[150], &context);
            assert!(many[110 * row_bytes..] == few, "{context}: a longer chunk has other bits");
        }
    }
}

/// A position that sees itself alone gets its own value: of every dimension another code, half of them at a time.
#[test]
fn every_number_of_eight_bits_is_widened_exactly() {
    type ValueOf = fn(usize) -> f32;
    let halves: [(_, [ValueOf; 2]); 2] = [
        (&E4M3, [|d| E4M3.value(d as u8), |d| E4M3.value(d as u8 | 0x80)]),
        (&E5M2, [|d| E5M2.value(d as u8), |d| E5M2.value(d as u8 | 0x80)]),
    ];
    for element in &ELEMENTS {
        for (fp8, values) in halves {
            for (first_code, value) in [0u8, 0x80].into_iter().zip(values) {
                let sequences = Sequences {
                    lengths: vec![1],
                    softcap: None,
                    window: None,
                    heads: 1,
                    kv_heads: 1,
                    dim: 128,
                    element,
                    stored: Stored::Fp8(fp8),
                    poisoned: None,
                    value: Some(value),
                };
                for simulator in &*SIMULATORS {
                    for out in [sequences.decode(simulator, 1), sequences.prefill(simulator, &[1])] {
                        let actual = element.values(&out);
                        assert_eq!(actual.len(), 128);
                        for (code, actual) in (first_code..=u8::MAX).zip(actual) {
                            let expected = fp8.value(code);
                            let is_same = actual == expected || (actual.is_nan() && expected.is_nan());
                            assert!(is_same, "{} {}: {code:#x} is {actual}", element.name, fp8.name);
                        }
                    }
                }
            }
        }
    }
}

/// A value of zero weight is not read, whatever it is.
#[test]
fn what_a_row_does_not_see_does_not_harm_it() {
    let (length, num_rows) = (90, 40);
    let [bf16, f16] = &ELEMENTS;
    let caches = [(bf16, Stored::Same), (f16, Stored::Same), (bf16, Stored::Fp8(&E4M3)), (f16, Stored::Fp8(&E5M2))];
    for (element, stored) in caches {
        for (group, window) in [(1, None), (3, None), (2, Some(30))] {
            let sequences = |poisoned| Sequences {
                lengths: vec![length],
                softcap: None,
                window,
                heads: group,
                kv_heads: 1,
                dim: 32,
                element,
                stored,
                poisoned,
                value: None,
            };
            let healthy = sequences(None);
            let row_bytes = group * 32 * 2;
            for simulator in &*SIMULATORS {
                let expected = healthy.prefill(simulator, &[num_rows]);
                // In the chunk, and before it.
                for position in [85, 60, 30] {
                    let actual = sequences(Some((0, position))).prefill(simulator, &[num_rows]);
                    let rows = expected.chunks_exact(row_bytes).zip(actual.chunks_exact(row_bytes));
                    for (t, (expected, actual)) in (length - num_rows..).zip(rows) {
                        let sees = position <= t && t < position + healthy.window();
                        let context = format!(
                            "{} over {}: group {group} window {window:?} {position} at {t}",
                            element.name,
                            stored.name()
                        );
                        assert_eq!(element.values(actual).iter().any(|x| !x.is_finite()), sees, "{context}");
                        assert!(sees || expected == actual, "{context}: other bits");
                    }
                }
            }
        }
    }
}

fn check_attention(sequences: &Sequences) {
    let Sequences { lengths, heads, dim, element, stored, .. } = sequences;
    let (name, stored) = (element.name, stored.name());
    let context = format!("{name} over {stored}, {lengths:?}, window {:?}, dim {dim}", sequences.window);
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
