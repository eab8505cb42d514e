//! A router's choice: which experts a row goes to and what each counts; and the order in which pairs are computed.

use super::{ExpertRoutes, ExpertTile, with_words, with_words_mut};
use crate::contract::{expect_device, expect_f32, expect_matrix};
use crate::cuda::{Argument, KernelName};
use crate::limits::MAX_EXPERTS;
use crate::{Cpu, Device, Result, Tensor};

/// Sends every row to the `k` experts with its largest logits; of equal ones those with the lowest numbers. An expert counts as much as
/// the softmax over all experts gives it; if `normalise`, over the row's experts, so that their weights sum to one.
///
/// A logit that is no number is the least, so that every row has its experts, and makes all weights of its row NaN. Softmax is computed in
/// f32, and nothing is rounded to the model's type: transformers rounds the logits, which makes ties, and in Qwen's models the weights.
///
/// # Shapes
/// `logits`: `[T, num_experts]` f32.
/// # Errors
/// [`Error::Shape`](crate::Error::Shape), [`Error::DType`](crate::Error::DType).
///
/// Source: transformers `MixtralTopKRouter`, `Qwen3MoeTopKRouter`.
pub fn route(routes: &mut ExpertRoutes, logits: &Tensor, normalise: bool) -> Result<()> {
    const OP: &str = "route";
    expect_f32(OP, &[("logits", logits)])?;
    expect_matrix(OP, "logits", logits, routes.experts.rows(), routes.num_experts)?;
    match routes.weights.device().clone() {
        Device::Cpu(cpu) => {
            expect_device(OP, routes.weights.device(), &[("logits", logits)])?;
            choose_all(&cpu, routes, logits, normalise);
            group(routes);
        }
        Device::Cuda(cuda) => {
            expect_device(OP, routes.weights.device(), &[("logits", logits)])?;
            let (rows, num_experts, per_row) = (logits.rows(), routes.num_experts, routes.experts_per_row());
            let [weights, experts, places, sorted, tiles] =
                [&routes.weights, &routes.experts, &routes.places, &routes.rows, &routes.tiles].map(Tensor::address);
            let pointers = [weights, experts, logits.address()].map(Argument::Pointer);
            let counts = [num_experts, per_row, usize::from(normalise)].map(Argument::count);
            // SAFETY: experts.cu: a warp per row, of `num_experts` logits, its lists of `per_row` (checked above and by
            // `ExpertRoutes::new`); tensors live as long as their stream's work.
            unsafe {
                let arguments = [&pointers[..], &counts].concat();
                cuda.launch(KernelName::plain("route_experts"), [rows, 1, 1], CHOOSING_THREADS, &arguments)?;
            }
            let pointers = [places, sorted, tiles, experts].map(Argument::Pointer);
            let (kernel, num_tiles) = routes.kernel(&cuda);
            let counts = [routes.pairs(), per_row, kernel.rows(), num_tiles].map(Argument::count);
            // SAFETY: experts.cu: a block per expert, at most MAX_EXPERTS; lists of as many pairs, and room for as many tiles, of which
            // `ExpertRoutes::new` has made more; tensors live as long as their stream's work.
            unsafe {
                let arguments = [&pointers[..], &counts].concat();
                cuda.launch(KernelName::plain("group_pairs"), [num_experts, 1, 1], GROUPING_THREADS, &arguments)?;
            }
        }
        Device::Plan(ledger) => {
            let lists = [&routes.weights, &routes.experts, &routes.places, &routes.rows, &routes.tiles];
            let list_bytes = lists.map(Tensor::bytes).iter().sum::<usize>();
            ledger.count(OP, logits.bytes() + list_bytes, 2 * logits.len());
        }
    }
    Ok(())
}

/// Threads of a block, as `experts.cu` has them: a row is a warp's, an expert's pairs a larger block's.
const CHOOSING_THREADS: usize = 32;
const GROUPING_THREADS: usize = 256;

fn choose_all(cpu: &Cpu, routes: &mut ExpertRoutes, logits: &Tensor, normalise: bool) {
    let (num_experts, per_row, logits) = (routes.num_experts, routes.experts_per_row(), logits.as_f32());
    let (weights, experts) = (&mut routes.weights, &mut routes.experts);
    with_words_mut(weights, |weights| {
        with_words_mut(experts, |experts| {
            // Of a logit an exponential, which costs about eight visits, and one for every expert that is chosen.
            let work = (8 + per_row) * num_experts;
            cpu.for_rows_of_two(weights, experts, per_row, work, |first, weights, experts| {
                let rows = weights.chunks_exact_mut(per_row).zip(experts.chunks_exact_mut(per_row));
                for ((weights, experts), logits) in rows.zip(logits[first * num_experts..].chunks_exact(num_experts)) {
                    choose(logits, normalise, weights, experts);
                }
            });
        });
    });
}

/// The experts of a row by ascending number, and the bits of their weights.
fn choose(logits: &[f32], normalise: bool, weights: &mut [u32], experts: &mut [u32]) {
    let comparable = |expert: u32| match logits[expert as usize] {
        logit if logit.is_nan() => f32::NEG_INFINITY,
        logit => logit,
    };
    // Whether `a` is chosen before `b`.
    let is_before = |a: u32, b: u32| match (comparable(a), comparable(b)) {
        (a_logit, b_logit) if a_logit == b_logit => a < b,
        (a_logit, b_logit) => a_logit > b_logit,
    };
    let all = 0..logits.len() as u32;
    for at in 0..experts.len() {
        let left = all.clone().filter(|expert| at == 0 || is_before(experts[at - 1], *expert));
        let next = left.reduce(|best, expert| if is_before(expert, best) { expert } else { best });
        experts[at] = next.expect("a row has no more experts than there are, and each comes after the ones before it");
    }
    let max = comparable(experts[0]);
    let exponential = |expert: u32| (logits[expert as usize] - max).exp();
    let total = all.map(exponential).sum::<f32>();
    let chosen = experts.iter().copied().map(exponential).sum::<f32>();
    let denominator = if normalise && !total.is_nan() { chosen } else { total };
    experts.sort_unstable();
    for (weight, expert) in weights.iter_mut().zip(&*experts) {
        *weight = (exponential(*expert) / denominator).to_bits();
    }
}

/// Sorts the pairs. On the processor all pairs of an expert are one tile.
fn group(routes: &mut ExpertRoutes) {
    let (num_experts, per_row) = (routes.num_experts, routes.experts_per_row());
    let ExpertRoutes { experts, places, rows, tiles, .. } = routes;
    with_words(experts, |experts: &[u32]| {
        let mut counts = [0u32; MAX_EXPERTS];
        experts.iter().for_each(|expert| counts[*expert as usize] += 1);
        let mut next = [0u32; MAX_EXPERTS];
        with_words_mut(tiles, |tiles: &mut [ExpertTile]| {
            let (mut first_pair, mut tiles) = (0, tiles.iter_mut());
            for (expert, count) in counts[..num_experts].iter().enumerate() {
                next[expert] = first_pair;
                if *count > 0 {
                    let tile = tiles.next().expect("there is room for one of every expert that has pairs");
                    *tile = ExpertTile { expert: expert as u32, first_pair, rows: *count };
                }
                first_pair += count;
            }
            tiles.for_each(|tile| *tile = ExpertTile { expert: 0, first_pair: 0, rows: 0 });
        });
        with_words_mut(places, |places: &mut [u32]| {
            with_words_mut(rows, |rows: &mut [u32]| {
                for (pair, (expert, place)) in experts.iter().zip(places).enumerate() {
                    let next = &mut next[*expert as usize];
                    (*place, rows[*next as usize]) = (*next, (pair / per_row) as u32);
                    *next += 1;
                }
            });
        });
    });
}
