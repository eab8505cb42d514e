//! Mixture of experts: every row goes to a few of many MLPs and gets the weighted sum of what they make of it.
//!
//! ```text
//! experts of a row = the k with the largest router logits
//! out = sum over them of weight · down(silu(gate(x)) · up(x))
//! ```
//!
//! A *pair* is a row and one of its experts. Pairs are sorted by expert and within one by row, so that an expert's rows lie beside each
//! other and its weights are read once for all of them ([`route`], [`gather`]); each expert's rows are multiplied with its own weights
//! ([`linear`]); and [`combine`] brings the rows back. On a GPU nobody but the device knows how many rows an expert has: grids follow from
//! the numbers of rows and experts alone, so that a graph can hold them.
//!
//! A row's bits do not depend on the rows beside it: a linear gives the same for one row and for many, and a row's sum runs over its
//! experts by ascending number.
//!
//! Source: arXiv:1701.06538, arXiv:2401.04088; transformers `MixtralSparseMoeBlock`, `Qwen3MoeSparseMoeBlock`.

mod combine;
mod gather;
mod linear;
mod route;
#[cfg(test)]
mod tests;

pub use combine::combine;
pub use gather::gather;
pub use linear::linear;
pub use route::route;

use bytemuck::{cast_slice, cast_slice_mut};

use super::linear::squares::Kernel;
use crate::cuda::Cuda;
use crate::limits::{MAX_EXPERTS, MAX_EXPERTS_PER_ROW};
use crate::{Arena, DType, Error, Result, Tensor};

/// Where the rows of a step go, in memory of an arena. Lists of numbers are tensors of their bits: there are no tensors of integers.
pub struct ExpertRoutes {
    num_experts: usize,
    /// `[T, k]`: what a row's experts count, by ascending number.
    weights: Tensor,
    /// `[T, k]`: which they are.
    experts: Tensor,
    /// `[T, k]`: where these pairs are among all, sorted.
    places: Tensor,
    /// `[T · k]`: the row of each sorted pair.
    rows: Tensor,
    /// As many [`ExpertTile`]s as there can be; those that are not needed have no rows and come last.
    tiles: Tensor,
}

/// Neighbouring pairs of one expert, which are multiplied together. `experts.cuh` has the same.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct ExpertTile {
    expert: u32,
    first_pair: u32,
    rows: u32,
}

impl ExpertRoutes {
    /// Room for the routes of `rows` rows, each to `experts_per_row` of `num_experts` experts.
    ///
    /// # Errors
    /// [`Error::Index`] for more than [`MAX_EXPERTS`] experts, or more of a row than there are or than [`MAX_EXPERTS_PER_ROW`];
    /// [`Error::OutOfMemory`].
    pub fn new(arena: &mut Arena, rows: usize, num_experts: usize, experts_per_row: usize) -> Result<ExpertRoutes> {
        let below = |arg, index, limit| match index < limit {
            true => Ok(()),
            false => Err(Error::Index { op: "experts", arg, index, limit }),
        };
        below("num_experts", num_experts, MAX_EXPERTS + 1)?;
        below("experts_per_row", experts_per_row, num_experts.min(MAX_EXPERTS_PER_ROW) + 1)?;
        let pairs = rows * experts_per_row;
        // As many as for the smallest tiles, so that fewer rows never need more room.
        let tiles = tiles_at_most(pairs, num_experts, Kernel::FEWEST_ROWS);
        let mut per_row = || arena.tensor(&[rows, experts_per_row], DType::F32);
        Ok(ExpertRoutes {
            num_experts,
            weights: per_row()?,
            experts: per_row()?,
            places: per_row()?,
            rows: arena.tensor(&[pairs], DType::F32)?,
            tiles: arena.tensor(&[tiles, size_of::<ExpertTile>() / size_of::<u32>()], DType::F32)?,
        })
    }

    /// Rows times experts of each.
    pub fn pairs(&self) -> usize {
        self.rows.len()
    }

    fn experts_per_row(&self) -> usize {
        self.experts.cols()
    }

    /// The kernel of a GPU for these pairs, which decides how many rows a tile has, and how many tiles there can be.
    fn kernel(&self, cuda: &Cuda) -> (Kernel, usize) {
        let kernel = Kernel::of_experts(self.pairs(), self.num_experts, cuda.has_wgmma());
        (kernel, tiles_at_most(self.pairs(), self.num_experts, kernel.rows()))
    }
}

/// How many tiles of up to `rows` rows there can be: one for every expert that has pairs less than full, and the full ones.
fn tiles_at_most(pairs: usize, num_experts: usize, rows: usize) -> usize {
    let experts = num_experts.min(pairs);
    pairs.min((pairs + experts * (rows - 1)) / rows)
}

/// Calls `f` with the numbers that a tensor's elements stand for.
fn with_words<T: bytemuck::Pod, R>(tensor: &Tensor, f: impl FnOnce(&[T]) -> R) -> R {
    f(cast_slice(&tensor.as_f32()))
}

/// The same, to be written.
fn with_words_mut<T: bytemuck::Pod, R>(tensor: &mut Tensor, f: impl FnOnce(&mut [T]) -> R) -> R {
    f(cast_slice_mut(&mut tensor.as_f32_mut()))
}
