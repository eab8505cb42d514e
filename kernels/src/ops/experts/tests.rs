//! The operations together, against what they mean, and each where it decides something.

use super::*;
use crate::ops::testing::{assert_close, bits, cpus, cpus_and_models, random, random_tensor};
use crate::{Device, ExpertWeights, LinearWeight, MatrixView, WeightType, ops};

const EXPERTS: usize = 5;
const PER_ROW: usize = 2;
/// Neither fills its last panel.
const WIDTH: usize = 24;
const INNER: usize = 10;

/// Values that bf16 holds exactly.
fn exact(seed: u64, len: usize) -> Vec<f32> {
    random(seed, len).iter().map(|x| (x * 128.0).round() / 128.0).collect()
}

/// The matrices of one projection: `[EXPERTS][n][k]`.
fn pack(device: &Device, values: &[f32], n: usize, k: usize, weight_type: WeightType) -> ExpertWeights {
    let zeros = vec![0; (ExpertWeights::stride(n) - n) * k * size_of::<f32>()];
    let padding = MatrixView::dense(&zeros, DType::F32, ExpertWeights::stride(n) - n, k);
    let matrices = values.chunks_exact(n * k).map(|values| dense(values, n, k));
    let stack: Vec<MatrixView<'_>> = matrices.flat_map(|matrix| [matrix, padding]).collect();
    let stack = LinearWeight::pack_as(device, &stack, weight_type).unwrap();
    ExpertWeights::new(stack, EXPERTS, n).unwrap()
}

fn dense(values: &[f32], n: usize, k: usize) -> MatrixView<'_> {
    MatrixView::dense(cast_slice(values), DType::F32, n, k)
}

/// Gate, up and down of every expert, gate and up stacked.
struct Mixture {
    router: Vec<f32>,
    gate_up: Vec<f32>,
    down: Vec<f32>,
    normalise: bool,
}

impl Mixture {
    fn new(normalise: bool) -> Mixture {
        Mixture {
            router: exact(1, EXPERTS * WIDTH),
            gate_up: exact(2, EXPERTS * 2 * INNER * WIDTH),
            down: exact(3, EXPERTS * WIDTH * INNER),
            normalise,
        }
    }

    /// What it means, in f64.
    fn definition(&self, x: &[f32]) -> Vec<f32> {
        let dot = |a: &[f64], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * f64::from(*b)).sum::<f64>();
        let product = |x: &[f64], w: &[f32]| w.chunks_exact(x.len()).map(|w| dot(x, w)).collect::<Vec<f64>>();
        let row = |x: &[f32]| {
            let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
            let exponentials: Vec<f64> = product(&x, &self.router).iter().map(|logit| logit.exp()).collect();
            let mut chosen: Vec<usize> = (0..EXPERTS).collect();
            chosen.sort_by(|a, b| exponentials[*b].total_cmp(&exponentials[*a]));
            chosen.truncate(PER_ROW);
            let of_chosen: f64 = chosen.iter().map(|expert| exponentials[*expert]).sum();
            let all = if self.normalise { of_chosen } else { exponentials.iter().sum() };
            let mut out = [0.0; WIDTH];
            for expert in chosen {
                let gate_up = product(&x, &self.gate_up[expert * 2 * INNER * WIDTH..][..2 * INNER * WIDTH]);
                let (gate, up) = gate_up.split_at(INNER);
                let inner: Vec<f64> = gate.iter().zip(up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect();
                let down = product(&inner, &self.down[expert * WIDTH * INNER..][..WIDTH * INNER]);
                out.iter_mut().zip(down).for_each(|(out, y)| *out += exponentials[expert] / all * y);
            }
            out.iter().map(|y| *y as f32).collect::<Vec<f32>>()
        };
        x.chunks_exact(WIDTH).flat_map(row).collect()
    }

    fn forward(&self, device: &Device, x: &[f32]) -> Vec<f32> {
        let mut plan = Arena::plan();
        self.forward_in(&mut plan, device, x);
        let mut arena = Arena::new(device, plan.high_water_bytes()).unwrap();
        self.forward_in(&mut arena, device, x).as_f32().to_vec()
    }

    fn forward_in(&self, arena: &mut Arena, device: &Device, x: &[f32]) -> Tensor {
        let float = WeightType::Float(DType::F32);
        let router = LinearWeight::pack(device, &[dense(&self.router, EXPERTS, WIDTH)]).unwrap();
        let gate_up_proj = pack(device, &self.gate_up, 2 * INNER, WIDTH, float);
        let down_proj = pack(device, &self.down, WIDTH, INNER, float);
        let rows = x.len() / WIDTH;
        let x = Tensor::from_slice(device, &[rows, WIDTH], x).unwrap();
        let mut routes = ExpertRoutes::new(arena, rows, EXPERTS, PER_ROW).unwrap();
        let mut tensor = |rows, cols| arena.tensor(&[rows, cols], DType::F32).unwrap();
        let (mut logits, mut out) = (tensor(rows, EXPERTS), tensor(rows, WIDTH));
        let pairs = routes.pairs();
        let [mut sorted, mut gate_up, mut inner] = [WIDTH, 2 * INNER, INNER].map(|cols| tensor(pairs, cols));
        ops::linear(&mut logits, &x, &router, None).unwrap();
        route(&mut routes, &logits, self.normalise).unwrap();
        gather(&mut sorted, &x, &routes).unwrap();
        linear(&mut gate_up, &sorted, &gate_up_proj, &routes).unwrap();
        ops::activate(&mut inner, &gate_up, ops::Activation::Silu).unwrap();
        linear(&mut sorted, &inner, &down_proj, &routes).unwrap();
        combine(&mut out, &sorted, &routes).unwrap();
        out
    }
}

#[test]
fn arms_match_the_definition_and_each_other_and_rows_do_not_see_each_other() {
    for (rows, normalise) in [(0, true), (1, false), (3, true), (70, false), (70, true)] {
        let (mixture, x) = (Mixture::new(normalise), random(4, rows * WIDTH));
        let expected = mixture.definition(&x);
        let mut first: Option<Vec<u32>> = None;
        for device in cpus() {
            let context = format!("{}, {rows} rows", device.describe());
            let out = mixture.forward(&device, &x);
            // Sums of 24 and 10 products of numbers below 1, then of two experts.
            assert_close(&out, &expected, 2e-5, &context);
            assert_eq!(*first.get_or_insert_with(|| bits(&out)), bits(&out), "{context}");
            for row in (0..rows).step_by(23) {
                let alone = mixture.forward(&device, &x[row * WIDTH..][..WIDTH]);
                assert_eq!(bits(&alone), bits(&out[row * WIDTH..][..WIDTH]), "{context}: row {row} alone");
            }
        }
    }
}

#[test]
fn an_expert_of_a_stack_is_a_linear_of_its_own() {
    let types = [WeightType::Float(DType::F16), WeightType::Float(DType::Bf16)];
    let types = types.into_iter().chain([WeightType::Int8, WeightType::Fp8, WeightType::Nf4]);
    let (n, k, rows) = (20, 72, 13);
    let values = exact(5, EXPERTS * n * k);
    for (weight_type, device) in types.flat_map(|of| cpus_and_models().into_iter().map(move |device| (of, device))) {
        let weights = pack(&device, &values, n, k, weight_type);
        let mut arena = Arena::new(&device, 1 << 16).unwrap();
        let mut routes = ExpertRoutes::new(&mut arena, rows, EXPERTS, 1).unwrap();
        route(&mut routes, &random_tensor(&device, 6, &[rows, EXPERTS]), false).unwrap();
        let (x, mut out) = (random_tensor(&device, 7, &[rows, k]), random_tensor(&device, 8, &[rows, n]));
        let mut sorted = random_tensor(&device, 9, &[rows, k]);
        gather(&mut sorted, &x, &routes).unwrap();
        linear(&mut out, &sorted, &weights, &routes).unwrap();
        for row in 0..rows {
            let expert = with_words(&routes.experts, |experts: &[u32]| experts[row] as usize);
            let place = with_words(&routes.places, |places: &[u32]| places[row] as usize);
            let matrix = dense(&values[expert * n * k..][..n * k], n, k);
            let own = LinearWeight::pack_as(&device, &[matrix], weight_type).unwrap();
            let mut expected = random_tensor(&device, 10, &[1, n]);
            ops::linear(&mut expected, &x.narrow_rows(row, 1).unwrap(), &own, None).unwrap();
            let actual = bits(&out.narrow_rows(place, 1).unwrap().as_f32());
            assert_eq!(actual, bits(&expected.as_f32()), "{}, {weight_type:?}, row {row}", device.describe());
        }
    }
}

/// Experts and weights of rows of four logits, of which two are chosen.
fn choices(logits: &[[f32; 4]], normalise: bool) -> Vec<([u32; 2], [f32; 2])> {
    let device = &cpus()[0];
    let mut arena = Arena::new(device, 1 << 12).unwrap();
    let mut routes = ExpertRoutes::new(&mut arena, logits.len(), 4, 2).unwrap();
    let logits = Tensor::from_slice(device, &[logits.len(), 4], logits.as_flattened()).unwrap();
    route(&mut routes, &logits, normalise).unwrap();
    let experts = with_words(&routes.experts, |experts: &[[u32; 2]]| experts.to_vec());
    experts.into_iter().zip(with_words(&routes.weights, |weights: &[[f32; 2]]| weights.to_vec())).collect()
}

#[test]
fn ties_go_to_the_lowest_and_experts_come_by_number() {
    let ln = f32::ln;
    let rows =
        [[0.0, 1.0, 1.0, 1.0], [ln(1.0), ln(2.0), ln(4.0), ln(1.0)], [3.0, 3.0, 3.0, 3.0], [-0.0, -1.0, 0.0, 0.0]];
    let chosen: Vec<[u32; 2]> = choices(&rows, true).iter().map(|(experts, _)| *experts).collect();
    assert_eq!(chosen, [[1, 2], [1, 2], [0, 1], [0, 2]]);
    let weights = |normalise| choices(&rows, normalise)[1].1;
    assert_close(&weights(true), &[2.0 / 6.0, 4.0 / 6.0], 1e-6, "of the chosen");
    assert_close(&weights(false), &[2.0 / 8.0, 4.0 / 8.0], 1e-6, "of all");
}

#[test]
fn a_row_without_numbers_fails_alone() {
    let (nan, least) = (f32::NAN, f32::NEG_INFINITY);
    let rows = [[0.5, 2.0, 1.0, 0.0], [nan; 4], [0.0, nan, 1.0, 0.0], [least; 4], [f32::INFINITY, 0.0, 0.0, 0.0]];
    for normalise in [false, true] {
        let all = choices(&rows, normalise);
        assert_eq!(all[0], choices(&rows[..1], normalise)[0]);
        assert_eq!(
            all.iter().map(|(experts, _)| *experts).collect::<Vec<_>>(),
            [[1, 2], [0, 1], [0, 2], [0, 1], [0, 1]]
        );
        assert!(all[1..].iter().all(|(_, weights)| weights.iter().all(|weight| weight.is_nan())), "{all:?}");
    }
}

#[test]
fn there_is_room_for_every_tile_and_fewer_rows_need_no_more() {
    for num_experts in [1, 5, 128] {
        let mut most = 0;
        for pairs in (0..40).chain([512, 513, 40_000]) {
            // As uneven as it can be: one pair for every expert but the last.
            let rows = Kernel::of_experts(pairs, num_experts, false).rows();
            let experts = num_experts.min(pairs);
            let uneven = experts.saturating_sub(1) + (pairs - experts.saturating_sub(1)).div_ceil(rows);
            let room = tiles_at_most(pairs, num_experts, Kernel::FEWEST_ROWS);
            assert!(uneven <= tiles_at_most(pairs, num_experts, rows) && most <= room, "{pairs}, {num_experts}");
            assert!(tiles_at_most(pairs, num_experts, rows) <= room, "{pairs}, {num_experts}");
            most = room;
        }
    }
}

#[test]
fn impossible_numbers_are_refused() {
    let mut arena = Arena::plan();
    let mut refused = |num_experts, per_row| ExpertRoutes::new(&mut arena, 1, num_experts, per_row).err().unwrap();
    let too_many = refused(MAX_EXPERTS + 1, 2);
    let (op, limit) = ("experts", MAX_EXPERTS + 1);
    assert_eq!(too_many, Error::Index { op, arg: "num_experts", index: MAX_EXPERTS + 1, limit });
    assert_eq!(refused(4, 5), Error::Index { op, arg: "experts_per_row", index: 5, limit: 5 });
    let device = &cpus()[0];
    let weight = LinearWeight::pack(device, &[dense(&[0.0; 40 * 2], 40, 2)]).unwrap();
    assert!(weight.part(8, 16).is_err() && weight.part(32, 9).is_err(), "between panels, beyond the last output");
    assert!(matches!(ExpertWeights::new(weight, 2, 20), Err(Error::Shape { .. })), "experts begin panels");
}
