//! A linear layer of which each rank sees some of the inputs.

use std::ops::Range;
use std::sync::Arc;

use kernels::{LinearWeight, Tensor, ops};

use super::{Loader, all_reduce};
use crate::comm::Comm;
use crate::error::Result;

/// Completes what a [`ColumnParallelLinear`](super::ColumnParallelLinear) began: partial sums, added over the ranks.
pub struct RowParallelLinear {
    weight: LinearWeight,
    /// Only on rank 0, so that the sum over the ranks holds it once.
    bias: Option<Tensor>,
    comm: Arc<dyn Comm>,
}

impl RowParallelLinear {
    /// Loads this rank's columns `mine` of `{name}.weight` (`[out_features, in_features]`).
    ///
    /// # Errors
    /// Whatever is wrong with that tensor or, if `bias`, with `{name}.bias`.
    pub fn load(
        loader: &Loader<'_>,
        comm: &Arc<dyn Comm>,
        name: &str,
        [out_features, in_features]: [usize; 2],
        mine: Range<usize>,
        bias: bool,
    ) -> Result<RowParallelLinear> {
        let weight = loader.checkpoint.matrix(&format!("{name}.weight"), out_features, in_features)?;
        let bias = match bias {
            // Every rank looks it up, so that all of them fail alike if it is missing.
            true => Some(loader.checkpoint.vector(&format!("{name}.bias"), out_features)?),
            false => None,
        };
        let bias = bias.filter(|_| comm.rank() == 0);
        Ok(RowParallelLinear {
            weight: loader.linear_weight(&[weight.col_slice(mine)])?,
            bias: bias.map(|bias| loader.vector(&[(bias, 0..out_features)])).transpose()?,
            comm: comm.clone(),
        })
    }

    /// `out`: `[T, out_features]`, complete and equal on every rank; `x`: `[T, this rank's inputs]`.
    ///
    /// # Errors
    /// As [`ops::linear`] and [`Comm::all_reduce`].
    pub fn forward(&self, out: &mut Tensor, x: &Tensor) -> Result<()> {
        ops::linear(out, x, &self.weight, self.bias.as_ref())?;
        all_reduce(&*self.comm, out)
    }
}
