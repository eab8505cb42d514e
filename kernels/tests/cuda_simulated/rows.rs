//! Kernels that go through rows: norms, activations, embeddings, rotations.

use kernels::ops::{self, Activation, EmbeddingTable, LayerScale, RmsScale, RopeTable};
use kernels::{BLOCK_SIZE, DType, Device, KvCache, KvDType, MatrixView, Tensor};

use crate::element::{E4M3, E5M2, ELEMENTS, Element, Stored, f32_bytes, tensor, u32_bytes, weight};
use crate::simulator::Argument::{Buffer, F32, U32};
use crate::simulator::SIMULATORS;

const EPS: f32 = 1e-5;
/// Threads of a row, as `rms_norm.cu` has them.
const NORM_THREADS: usize = 256;

fn rms(weight: &Tensor) -> RmsScale<'_> {
    RmsScale { weight, eps: EPS, rounds_first: true }
}

#[test]
fn rms_norms_are_those_of_the_operation() {
    for element in &ELEMENTS {
        for (rows, cols) in [(1, 8), (3, 64), (2, 2048), (2, 4104)] {
            let x = element.random(1, rows * cols);
            let residual = element.random(2, rows * cols);
            let scale: Vec<f32> = element.random(3, cols).iter().map(|x| 1.0 + x / 4.0).collect();
            let scale = element.rounded(&scale);
            let mut expected = tensor([rows, cols], &x);
            ops::rms_norm_in_place(&mut expected, rms(&weight(&scale))).unwrap();
            let sum: Vec<f32> = residual.iter().zip(&x).map(|(a, b)| a + b).collect();
            let sum = element.rounded(&sum);
            let mut expected_of_sum = tensor([rows, cols], &sum);
            ops::rms_norm_in_place(&mut expected_of_sum, rms(&weight(&scale))).unwrap();

            let zeros = element.bytes(&vec![0.0; rows * cols]);
            let (x_bytes, scale) = (element.bytes(&x), f32_bytes(&scale));
            for simulator in &*SIMULATORS {
                let context = format!("{} {rows} x {cols}", element.name);
                let norm = |x: &[u8], rows: usize, rounds_first: usize| {
                    let out = &zeros[..x.len()];
                    let arguments = [Buffer(out), Buffer(x), Buffer(&scale), F32(EPS), U32(rounds_first), U32(cols)];
                    simulator
                        .run(&format!("rms_norm_{}", element.name), [rows, 1, 1], NORM_THREADS, &arguments)
                        .swap_remove(0)
                };
                let out = norm(&x_bytes, rows, 1);
                element.assert_close(&out, &expected.as_f32(), 2.0, &context);
                // What is rounded once is nearer.
                element.assert_close(&norm(&x_bytes, rows, 0), &expected.as_f32(), 1.0, &context);
                let last = x_bytes.len() - x_bytes.len() / rows..;
                assert!(norm(&x_bytes[last.clone()], 1, 1) == out[last], "{context}: a row alone has other bits");

                let residual = element.bytes(&residual);
                let buffers = [&zeros, &residual, &x_bytes, &scale].map(|bytes| Buffer(bytes));
                let arguments = [&buffers[..], &[F32(EPS), U32(1), U32(cols)]].concat();
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
            ops::head_rms_norm(&mut expected, 1..heads + 1, rms(&weight(&scale))).unwrap();
            for simulator in &*SIMULATORS {
                let (bytes, scale) = (element.bytes(&x), f32_bytes(&scale));
                let arguments = [Buffer(&bytes), Buffer(&scale), F32(EPS), U32(1), U32(cols), U32(1), U32(dim)];
                let name = format!("head_rms_norm_{}", element.name);
                let after = simulator.run(&name, [rows, heads, 1], 32, &arguments);
                element.assert_close(&after[0], &expected.as_f32(), 2.0, &format!("{name} of {heads} x {dim}"));
            }
        }
    }
}

#[test]
fn layer_norms_are_those_of_the_operation() {
    for element in &ELEMENTS {
        for (rows, cols) in [(1, 8), (3, 64), (2, 4104)] {
            // A mean of several deviations.
            let shifted =
                |seed| element.rounded(&element.random(seed, rows * cols).iter().map(|x| 3.0 + x).collect::<Vec<_>>());
            let [x, residual] = [12, 13].map(shifted);
            let [scale, bias] = [14, 15].map(|seed| element.random(seed, cols));
            let (scale_tensor, bias_tensor) = (weight(&scale), weight(&bias));
            let sum: Vec<f32> = residual.iter().zip(&x).map(|(a, b)| a + b).collect();
            let sum = element.rounded(&sum);
            let [expected, expected_of_sum] = [&x, &sum].map(|x| {
                let mut out = tensor([rows, cols], &vec![0.0; rows * cols]);
                let scale = LayerScale { weight: &scale_tensor, bias: &bias_tensor, eps: EPS };
                ops::layer_norm(&mut out, &tensor([rows, cols], x), scale).unwrap();
                out.as_f32().to_vec()
            });
            let zeros = element.bytes(&vec![0.0; rows * cols]);
            let ([x, residual], [scale, bias]) =
                ([x, residual].map(|x| element.bytes(&x)), [scale, bias].map(|x| f32_bytes(&x)));
            for simulator in &*SIMULATORS {
                let context = format!("{} {rows} x {cols}", element.name);
                let run = |base: &str, buffers: &[&Vec<u8>]| {
                    let buffers = buffers.iter().map(|bytes| Buffer(bytes));
                    let arguments: Vec<_> = buffers.chain([F32(EPS), U32(cols)]).collect();
                    simulator.run(&format!("{base}_{}", element.name), [rows, 1, 1], NORM_THREADS, &arguments)
                };
                let after = run("layer_norm", &[&zeros, &x, &scale, &bias]);
                assert_near(element, &after[0], &expected, 1.0, 1e-5, &context);
                let after = run("add_layer_norm", &[&zeros, &residual, &x, &scale, &bias]);
                assert!(after[1] == element.bytes(&sum), "{context}: the residual is not the sum");
                assert_near(element, &after[0], &expected_of_sum, 1.0, 1e-5, &context);
            }
        }
    }
}

/// Within so many roundings, and an error of f32 of this size, where numbers cancel that are larger than their sum.
fn assert_near(element: &Element, actual: &[u8], expected: &[f32], roundings: f32, error: f32, context: &str) {
    let actual = element.values(actual);
    assert_eq!(actual.len(), expected.len(), "{context}");
    for (at, (actual, expected)) in actual.iter().zip(expected).enumerate() {
        let is_near = (actual - expected).abs() <= roundings * element.unit * expected.abs() + error;
        assert!(is_near, "{context}, element {at}: {actual} instead of {expected}");
    }
}

#[test]
fn activations_are_those_of_the_operation() {
    const THREADS: usize = 128;
    for element in &ELEMENTS {
        for (name, activation) in
            [("silu", Activation::Silu), ("gelu", Activation::Gelu), ("gelu_tanh", Activation::GeluTanh)]
        {
            for (rows, cols) in [(1, 8), (2, 1024), (3, 1032)] {
                let values: Vec<f32> = element.random(6, rows * 2 * cols).iter().map(|x| x * 8.0).collect();
                for (suffix, cols_out) in [("_mul", cols), ("", 2 * cols)] {
                    let mut expected = tensor([rows, cols_out], &vec![0.0; rows * cols_out]);
                    ops::activate(&mut expected, &tensor([rows, 2 * cols], &values), activation).unwrap();
                    for simulator in &*SIMULATORS {
                        let (out, x) = (element.bytes(&vec![0.0; rows * cols_out]), element.bytes(&values));
                        let arguments = [Buffer(&out), Buffer(&x), U32(cols_out)];
                        let grid = [cols_out.div_ceil(8 * THREADS), rows, 1];
                        let kernel = format!("{name}{suffix}_{}", element.name);
                        let after = simulator.run(&kernel, grid, THREADS, &arguments);
                        // 1 + erf is off by 6e-8 where it is nearly 0, times half of 8 and what the gate opens to.
                        let context = format!("{kernel} {rows} x {cols}");
                        assert_near(element, &after[0], &expected.as_f32(), 2.0, 4e-6, &context);
                    }
                }
            }
        }
    }
}

#[test]
fn logits_level_off() {
    const THREADS: usize = 256;
    for len in [1, 700] {
        let values: Vec<f32> = (0..len).map(|at| (at * 37 % 700) as f32 / 3.5 - 100.0).collect();
        let mut expected = tensor([1, len], &values);
        ops::soft_cap(&mut expected, 30.0).unwrap();
        for simulator in &*SIMULATORS {
            let x = f32_bytes(&values);
            let arguments = [Buffer(&x), F32(30.0), U32(len)];
            let after = simulator.run("soft_cap", [len.div_ceil(THREADS), 1, 1], THREADS, &arguments);
            for (actual, expected) in after[0].as_chunks::<4>().0.iter().zip(&*expected.as_f32()) {
                let actual = f32::from_le_bytes(*actual);
                assert!((actual - expected).abs() <= 1e-6 * expected.abs(), "{actual} instead of {expected}");
            }
        }
    }
}

#[test]
fn residuals_are_added_and_rounded_once() {
    const THREADS: usize = 256;
    for element in &ELEMENTS {
        for len in [8, 2048, 2056] {
            let (residual, x) = (element.random(9, len), element.random(10, len));
            let expected: Vec<f32> = residual.iter().zip(&x).map(|(a, b)| a + b).collect();
            for simulator in &*SIMULATORS {
                let (residual, x) = (element.bytes(&residual), element.bytes(&x));
                let arguments = [Buffer(&residual), Buffer(&x), U32(len)];
                let grid = [len.div_ceil(8 * THREADS), 1, 1];
                let after = simulator.run(&format!("add_{}", element.name), grid, THREADS, &arguments);
                assert!(after[0] == element.bytes(&expected), "{} {len}", element.name);
            }
        }
    }
}

#[test]
fn rows_are_gathered() {
    let rows = [4, 0, 0, 3];
    for element in &ELEMENTS {
        for cols in [8, 1024, 1032] {
            let x = element.random(11, 5 * cols);
            let expected: Vec<f32> = rows.iter().flat_map(|row| &x[*row as usize * cols..][..cols]).copied().collect();
            for simulator in &*SIMULATORS {
                let (out, x, rows) = (element.bytes(&vec![1.0; 4 * cols]), element.bytes(&x), u32_bytes(&rows));
                let arguments = [Buffer(&out), Buffer(&x), Buffer(&rows), U32(cols)];
                let after = simulator.run(&format!("gather_rows_{}", element.name), [4, 1, 1], 128, &arguments);
                assert!(after[0] == element.bytes(&expected), "{} of {cols} columns", element.name);
            }
        }
    }
}

#[test]
fn embeddings_are_rows_of_the_table_or_zeros() {
    const SCALE: f32 = 5.625;
    let (num_rows, first_id) = (5, 10);
    let ids = [9, 10, 14, 15, 0, u32::MAX, 12];
    for element in &ELEMENTS {
        for cols in [8, 1024, 1032] {
            let table = element.random(7, num_rows * cols);
            let mut expected = tensor([ids.len(), cols], &vec![1.0; ids.len() * cols]);
            let source = MatrixView::dense(bytemuck::cast_slice(&table), DType::F32, num_rows, cols);
            let dense = Tensor::from_matrix(&Device::cpu(1), &source, element.dtype).unwrap();
            ops::embedding(&mut expected, &ids, EmbeddingTable::Dense(&dense), first_id, SCALE).unwrap();
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
                    F32(SCALE),
                ];
                let after = simulator.run(&format!("embedding_{}", element.name), [ids.len(), 1, 1], 128, &arguments);
                assert!(after[0] == element.bytes(&expected.as_f32()), "{} of {cols} columns", element.name);
            }
        }
    }
}

#[test]
fn queries_and_keys_turn_and_the_cache_receives_them() {
    let (heads, kv_heads, num_blocks) = (4, 2, 3);
    let caches = [Stored::Same, Stored::Fp8(&E4M3), Stored::Fp8(&E5M2)];
    for (element, stored) in ELEMENTS.iter().flat_map(|element| caches.map(|stored| (element, stored))) {
        for (dim, rotary_dim) in [(64, 64), (80, 32), (128, 128)] {
            let (rows, half) = (19, rotary_dim / 2);
            let cols = (heads + 2 * kv_heads) * dim;
            let positions: Vec<u32> = (0..rows as u32).map(|row| row * 37 % 500).collect();
            let slots: Vec<u32> = (0..rows as u32).map(|row| (row * 5 + 3) % (16 * num_blocks as u32)).collect();
            let inv_freq: Vec<f32> = (0..half).map(|i| 10_000f32.powf(-2.0 * i as f32 / rotary_dim as f32)).collect();
            let mut qkv = element.random(8, rows * cols);
            if let Stored::Fp8(fp8) = stored {
                // Values beyond its largest number and below its least, and some that are no number.
                for (at, value) in qkv.chunks_exact_mut(cols).flat_map(|row| &mut row[cols - dim..]).enumerate() {
                    *value *= fp8.value(fp8.largest) * [1.1, 1e-3, 1e-6][at % 3];
                }
                let last = qkv.len() - 3;
                qkv[last..].copy_from_slice(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
                qkv = element.rounded(&qkv);
            }

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
                let context = format!("{} over {} {dim} / {rotary_dim}", element.name, stored.name());
                let mut keys = vec![-7.0; num_blocks * kv_heads * BLOCK_SIZE * dim];
                let mut values = keys.clone();
                let cache = stored.bytes(element, &keys);
                let (qkv, positions, slots_bytes) = (element.bytes(&qkv), u32_bytes(&positions), u32_bytes(&slots));
                let mut arguments = vec![
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
                if let Stored::Fp8(fp8) = stored {
                    arguments.extend([U32(fp8.mantissa_bits as usize), U32(usize::from(fp8.largest))]);
                }
                let name = format!("rope_and_store_kv_{}{}", element.name, stored.suffix());
                let grid = [rows, heads + 2 * kv_heads, 1];
                let after = simulator.run(&name, grid, 64, &arguments);
                let turned = element.values(&after[0]);
                element.assert_close(&after[0], &expected.as_f32(), 1.0, &context);

                // The cache holds what the row holds, each at its place, and nothing else was written.
                for (row, slot) in slots.iter().enumerate() {
                    for head in 0..kv_heads {
                        let (block, offset) = (*slot as usize / BLOCK_SIZE, *slot as usize % BLOCK_SIZE);
                        let start = (block * kv_heads + head) * BLOCK_SIZE * dim;
                        let key = &turned[row * cols + (heads + head) * dim..][..dim];
                        let value = &turned[row * cols + (heads + kv_heads + head) * dim..][..dim];
                        for d in 0..dim {
                            keys[start + stored.in_squares(d / 16, offset, d % 16, dim)] = key[d];
                            values[start + stored.in_squares(d / 16, d % 16, offset, dim)] = value[d];
                        }
                    }
                }
                assert!(after[5] == stored.bytes(element, &keys), "{context}: keys");
                assert!(after[6] == stored.bytes(element, &values), "{context}: values");
            }
        }
    }
}
