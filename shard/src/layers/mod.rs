//! The layers of a decoder, cut over the ranks of a group.
//!
//! Tensor parallelism lives here and nowhere else: a column-parallel layer computes some of the outputs, a row-parallel
//! one sums over some of the inputs and then over the ranks, experts are both, the vocabulary is cut for embedding and head. A model
//! file sees whole layers. Every layer writes into a tensor of its caller.

mod column_parallel;
mod embedding;
mod experts;
mod linear_source;
mod lm_head;
mod loader;
mod norm;
mod partition;
mod row_parallel;

pub use column_parallel::{ColumnParallelLinear, Projection};
pub use embedding::VocabParallelEmbedding;
pub use experts::{ExpertNames, Experts};
pub use lm_head::LmHead;
pub use loader::Loader;
pub use norm::{LayerNorm, Norm, RmsNorm};
pub use partition::Partition;
pub use row_parallel::RowParallelLinear;

use kernels::Tensor;

use crate::comm::Comm;
use crate::error::Result;

/// Sums `x` over all ranks, in rank order. On the plan device there are no values to send.
fn all_reduce(comm: &dyn Comm, x: &mut Tensor) -> Result<()> {
    if comm.world_size() == 1 || x.device().is_plan() {
        return Ok(());
    }
    match comm.gpus() {
        Some(gpus) => Ok(gpus.all_reduce(x)?),
        None => comm.all_reduce(&mut x.as_f32_mut()),
    }
}
