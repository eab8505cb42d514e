//! The arms of quantised weights against what their formats mean, in f64.

use half::bf16;

use crate::ops::linear;
use crate::ops::testing::{assert_close, bits, cpus, cpus_and_models, random, random_tensor};
use crate::{DType, Device, LinearWeight, MatrixView, Tensor, WeightType};

const TYPES: [WeightType; 3] = [WeightType::Int8, WeightType::Fp8, WeightType::Nf4];

/// Shapes (M, N, K): odd ones, tails of panels, groups and row tiles, more groups than a block.
const SHAPES: [(usize, usize, usize); 12] = [
    (1, 1, 1),
    (1, 130, 64),
    (2, 49, 7),
    (3, 64, 33),
    (4, 17, 100),
    (5, 16, 513),
    (8, 48, 40),
    (9, 100, 576),
    (13, 40, 1030),
    (1, 33, 1100),
    (21, 64, 192),
    (40, 70, 130),
];

fn pack(device: &Device, w: &[f32], n: usize, k: usize, weight_type: WeightType) -> LinearWeight {
    let view = MatrixView::dense(bytemuck::cast_slice(w), DType::F32, n, k);
    LinearWeight::pack_as(device, &[view], weight_type).unwrap()
}

pub(super) fn run(device: &Device, x: &[f32], weight: &LinearWeight, bias: Option<&[f32]>) -> Vec<f32> {
    let m = x.len() / weight.k();
    let x = Tensor::from_slice(device, &[m, weight.k()], x).unwrap();
    let bias = bias.map(|bias| Tensor::from_slice(device, &[bias.len()], bias).unwrap());
    let mut out = random_tensor(device, 9, &[m, weight.n()]);
    linear(&mut out, &x, weight, bias.as_ref()).unwrap();
    out.as_f32().to_vec()
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |max, x| max.max(x.abs()))
}

/// The E4M3 numbers that are neither negative nor subnormal, from their definition: (1 + m/8) · 2^(e-7).
fn e4m3_numbers() -> Vec<f32> {
    let normal = |e: i32| (0..8).map(move |m| (1.0 + m as f32 / 8.0) * 2f32.powi(e - 7));
    let mut all: Vec<f32> = std::iter::once(0.0).chain((1..=15).flat_map(normal)).collect();
    all.pop(); // The last pattern is NaN.
    all
}

/// bitsandbytes' code book of NF4.
const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// What a row of weights becomes.
fn dequantized(row: &[f32], weight_type: WeightType) -> Vec<f64> {
    match weight_type {
        WeightType::Float(_) | WeightType::Int4 => unreachable!("not quantised while it is packed"),
        WeightType::Int8 => {
            let absmax = largest(row);
            let code = |w: &f32| if absmax == 0.0 { 0.0 } else { (w * (127.0 / absmax)).round_ties_even() };
            row.iter().map(|w| f64::from(code(w)) * f64::from(absmax / 127.0)).collect()
        }
        WeightType::Fp8 => {
            let (absmax, numbers) = (largest(row), e4m3_numbers());
            let nearest = |w: &f32| {
                let scaled = if absmax == 0.0 { 0.0 } else { w * (448.0 / absmax) };
                // Of two as near, the even one: its index has the parity of its mantissa, but for the zero in front.
                let distance = |at: usize| (numbers[at] - scaled.abs()).abs();
                let best = (0..numbers.len()).min_by(|a, b| {
                    distance(*a).total_cmp(&distance(*b)).then((*a != 0 && a % 2 == 0).cmp(&(*b != 0 && b % 2 == 0)))
                });
                f64::from(numbers[best.unwrap()].copysign(scaled))
            };
            row.iter().map(|w| nearest(w) * f64::from(absmax / 448.0)).collect()
        }
        WeightType::Nf4 => row
            .chunks(64)
            .flat_map(|block| {
                let scale = bf16::from_f32(largest(block) / 127.0).to_f32();
                let levels = NF4.map(|level| (level * 127.0).round());
                let nearest = move |w: &f32| {
                    let scaled = if scale == 0.0 { 0.0 } else { w * (1.0 / scale) };
                    let distance = |level: &&f32| (**level - scaled).abs();
                    let level = levels.iter().min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap();
                    f64::from(*level) * f64::from(scale)
                };
                block.iter().map(nearest).collect::<Vec<_>>()
            })
            .collect(),
    }
}

/// What a row of inputs becomes.
pub(super) fn rounded_inputs(row: &[f32], weight_type: WeightType, pairs: bool) -> Vec<f64> {
    match weight_type {
        WeightType::Fp8 if pairs => row.iter().map(|x| f64::from(bf16::from_f32(*x).to_f32())).collect(),
        WeightType::Fp8 => row.iter().map(|x| f64::from(*x)).collect(),
        _ => row
            .chunks(64)
            .flat_map(|group| {
                let absmax = largest(group);
                let inverse = if absmax == 0.0 { 0.0 } else { 127.0 / absmax };
                group
                    .iter()
                    .map(|x| f64::from((x * inverse).round_ties_even()) * f64::from(absmax / 127.0))
                    .collect::<Vec<_>>()
            })
            .collect(),
    }
}

fn definition(x: &[f32], w: &[f32], bias: Option<&[f32]>, k: usize, of: (WeightType, bool)) -> Vec<f32> {
    let rows: Vec<Vec<f64>> = w.chunks_exact(k).map(|row| dequantized(row, of.0)).collect();
    let dot = |x: &[f64], w: &[f64]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
    x.chunks_exact(k)
        .flat_map(|x| {
            let x = rounded_inputs(x, of.0, of.1);
            let bias = |j: usize| bias.map_or(0.0, |bias| f64::from(bias[j]));
            rows.iter().enumerate().map(|(j, row)| (dot(&x, row) + bias(j)) as f32).collect::<Vec<_>>()
        })
        .collect()
}

fn is_pairs(weight: &LinearWeight) -> bool {
    weight.panel_shape().format == "fp8-pairs-v1"
}

#[test]
fn arms_match_their_definition_and_each_other() {
    for (m, n, k) in SHAPES {
        let (x, mut w, bias) = (random(1, m * k), random(2, n * k), random(3, n));
        // An output without weights, and one with a weight far above the others.
        w[..k].fill(0.0);
        w[n * k - 1] = 30.0;
        for weight_type in TYPES {
            for bias in [None, Some(&bias[..])] {
                let mut first: [Option<Vec<u32>>; 2] = [None, None];
                for device in cpus_and_models() {
                    let context = format!("{} {m}x{n}x{k} {weight_type:?}", device.describe());
                    let weight = pack(&device, &w, n, k, weight_type);
                    let pairs = is_pairs(&weight);
                    let out = run(&device, &x, &weight, bias);
                    let expected = definition(&x, &w, bias, k, (weight_type, pairs));
                    // Roundings of 6e-8 of a running sum below sqrt(K), or for the weight of 30 below that.
                    let tolerance = 6e-8 * k as f32 * (k as f32).sqrt() / 4.0 + 2e-6;
                    assert_close(&out, &expected, tolerance.min(2e-4), &context);
                    let first = first[usize::from(pairs)].get_or_insert_with(|| bits(&out));
                    assert_eq!(*first, bits(&out), "{context}");
                }
            }
        }
    }
}

#[test]
fn a_row_does_not_see_the_rows_beside_it() {
    let (m, n, k) = (23, 83, 1100);
    let (x, w) = (random(1, m * k), random(2, n * k));
    for device in cpus_and_models() {
        for weight_type in TYPES {
            let weight = pack(&device, &w, n, k, weight_type);
            let all = run(&device, &x, &weight, None);
            for (start, len) in [(0, 1), (22, 1), (7, 2), (3, 3), (5, 4), (1, 9), (0, 22)] {
                let part = run(&device, &x[start * k..][..len * k], &weight, None);
                let context = format!("{} {weight_type:?} rows {start}+{len}", device.describe());
                assert_eq!(bits(&part), bits(&all[start * n..][..len * n]), "{context}");
            }
        }
    }
}

/// One-hot inputs read the weights back: 1 is a code of every arm.
#[test]
fn weights_are_what_their_formats_say() {
    let (n, k) = (19, 130);
    let w: Vec<f32> = random(5, n * k).iter().enumerate().map(|(at, x)| x * x * x * (1.0 + (at % 7) as f32)).collect();
    let mut identity = vec![0.0; k * k];
    (0..k).for_each(|at| identity[at * k + at] = 1.0);
    let device = &cpus()[0];
    for (weight_type, bound) in
        [(WeightType::Int8, 0.5 / 127.0), (WeightType::Fp8, 1.0 / 16.0), (WeightType::Nf4, 0.16)]
    {
        let read = run(device, &identity, &pack(device, &w, n, k, weight_type), None);
        for (row, weights) in w.chunks_exact(k).enumerate() {
            for (at, w) in weights.iter().enumerate() {
                let block = &weights[at / 64 * 64..k.min(at / 64 * 64 + 64)];
                let (read, exact) = (read[at * n + row], *w);
                let allowed = match weight_type {
                    // Half a step of the output's range; a sixteenth of the weight (or of the smallest number); half of
                    // the widest gap in the block's levels.
                    WeightType::Int8 => bound * largest(weights),
                    WeightType::Fp8 => bound * exact.abs().max(largest(weights) / 448.0 / 4.0),
                    _ => bound * largest(block),
                };
                assert!((read - exact).abs() <= allowed * 1.001, "{weight_type:?} [{row}, {at}]: {read} for {exact}");
                if weight_type == WeightType::Nf4 {
                    // As near as any level of bitsandbytes, but for the roundings of level (0.5 / 127) and scale (2^-9).
                    let absmax = largest(block);
                    let nearest = NF4.iter().map(|level| (level * absmax - exact).abs()).fold(f32::MAX, f32::min);
                    assert!((read - exact).abs() <= nearest + absmax * (0.5 / 127.0 + 1.0 / 256.0), "[{row}, {at}]");
                }
            }
        }
    }
}

#[test]
fn weights_that_are_not_finite_make_their_output_nan_and_no_other() {
    let (n, k) = (18, 70);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut w = random(2, n * k);
        w[5 * k + 3] = bad;
        for device in cpus_and_models() {
            for weight_type in TYPES {
                let out = run(&device, &random(1, k), &pack(&device, &w, n, k, weight_type), None);
                let nan: Vec<usize> = (0..n).filter(|at| out[*at].is_nan()).collect();
                assert_eq!(nan, [5], "{} {weight_type:?} {bad}", device.describe());
            }
        }
    }
}

#[test]
fn inputs_that_are_not_finite_reach_all_outputs_of_their_row() {
    let (n, k) = (18, 70);
    let w: Vec<f32> = random(2, n * k).iter().map(|w| w + 2.0).collect();
    for bad in [f32::NAN, f32::INFINITY] {
        let mut x = random(1, 2 * k);
        x[k + 66] = bad;
        for device in cpus_and_models() {
            for weight_type in TYPES {
                let out = run(&device, &x, &pack(&device, &w, n, k, weight_type), None);
                assert!(out[..n].iter().all(|x| x.is_finite()), "{} {weight_type:?}", device.describe());
                assert!(out[n..].iter().all(|x| !x.is_finite()), "{} {weight_type:?}", device.describe());
            }
        }
    }
}

#[test]
fn huge_and_tiny_weights_keep_their_size() {
    let (n, k) = (3, 64);
    // Below 1e-30 weights are zeros (see `scale_and_inverse`); bf16 holds everything above.
    for size in [1e-25f32, 1e-10, 1e10, 1e30] {
        let w: Vec<f32> = vec![size; n * k];
        for device in cpus_and_models() {
            for weight_type in TYPES {
                let out = run(&device, &vec![1.0; k], &pack(&device, &w, n, k, weight_type), None);
                let context = format!("{} {weight_type:?} {size:e}", device.describe());
                let relative: Vec<f32> = out.iter().map(|out| out / size).collect();
                // NF4's scale is bf16.
                assert_close(&relative, &[64.0; 3], 0.004, &context);
            }
        }
    }
    for device in cpus_and_models() {
        for weight_type in TYPES {
            let weight = pack(&device, &[0.0; 3 * 64], n, k, weight_type);
            assert_eq!(run(&device, &vec![1.0; k], &weight, None), [0.0; 3]);
            let weight = pack(&device, &[1.0; 3 * 64], n, k, weight_type);
            assert_eq!(run(&device, &vec![0.0; k], &weight, None), [0.0; 3]);
        }
    }
}

#[test]
fn panels_take_the_bytes_that_the_formats_promise() {
    let device = Device::plan();
    let bytes = |weight_type| {
        let zeros = vec![0u8; 256 * 576 * 2];
        let view = MatrixView::dense(&zeros, DType::Bf16, 256, 576);
        LinearWeight::pack_as(&device, &[view], weight_type).unwrap().bytes()
    };
    assert_eq!(bytes(WeightType::Int8), 256 * 576 + 256 * 4);
    assert_eq!(bytes(WeightType::Fp8), 256 * 576 + 256 * 4);
    // Nine groups: the scales of the tenth are padding.
    assert_eq!(bytes(WeightType::Nf4), 256 * (576 / 2 + 10 * 2));
}
