//! A linear layer of which each rank sees some of the inputs.

use std::ops::Range;
use std::sync::Arc;

use kernels::{LinearWeight, Tensor, ops};

use super::linear_source::LinearPart;
use super::{Loader, Norm, RmsNorm};
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
    /// Whatever is wrong with that tensor, or what a quantised checkpoint has in its place, or, if `bias`, with `{name}.bias`.
    pub fn load(
        loader: &Loader<'_>,
        comm: &Arc<dyn Comm>,
        name: &str,
        [out_features, in_features]: [usize; 2],
        mine: Range<usize>,
        bias: bool,
    ) -> Result<RowParallelLinear> {
        let part = LinearPart { name, shape: [out_features, in_features], outputs: 0..out_features, inputs: mine };
        let bias = match bias {
            // Every rank looks it up, so that all of them fail alike if it is missing.
            true => Some(loader.checkpoint.vector(&format!("{name}.bias"), out_features)?),
            false => None,
        };
        let bias = bias.filter(|_| comm.rank() == 0);
        Ok(RowParallelLinear {
            weight: loader.linear_weight(&[part])?,
            bias: bias.map(|bias| loader.vector(&[(bias, 0..out_features)])).transpose()?,
            comm: comm.clone(),
        })
    }

    /// `out`: `[T, out_features]`, this rank's part of the sum; `x`: `[T, this rank's inputs]`.
    ///
    /// # Errors
    /// As [`ops::linear`].
    pub fn forward_part(&self, out: &mut Tensor, x: &Tensor) -> Result<()> {
        Ok(ops::linear(out, x, &self.weight, self.bias.as_ref())?)
    }

    /// The parts of all ranks, which [`forward_part`](RowParallelLinear::forward_part) made, are summed, normalised by `norm_after` if there
    /// is one, and added to `residual`, which `norm` then normalises into `out`; all `[T, out_features]`. `part` is then undefined.
    ///
    /// # Errors
    /// As [`Norm::forward_add_sum`].
    pub fn add_to(
        &self,
        residual: &mut Tensor,
        part: &mut Tensor,
        norm_after: Option<&RmsNorm>,
        norm: &Norm,
        out: &mut Tensor,
    ) -> Result<()> {
        norm.forward_add_sum(&*self.comm, out, residual, part, norm_after)
    }
}
