//! RMSNorm, replicated on every rank.

use kernels::{Tensor, ops};

use super::{Loader, all_reduce};
use crate::comm::Comm;
use crate::error::Result;

/// A norm over the last dimension.
pub struct RmsNorm {
    weight: Tensor,
    eps: f32,
}

impl RmsNorm {
    /// Loads `{name}.weight` (`[dim]`).
    ///
    /// # Errors
    /// Whatever is wrong with that tensor.
    pub fn load(loader: &Loader<'_>, name: &str, dim: usize, eps: f32) -> Result<RmsNorm> {
        let weight = loader.checkpoint.vector(&format!("{name}.weight"), dim)?;
        Ok(RmsNorm { weight: loader.vector(&[(weight, 0..dim)])?, eps })
    }

    /// `out = norm(x)`; both `[T, dim]`.
    ///
    /// # Errors
    /// As [`ops::rms_norm`].
    pub fn forward(&self, out: &mut Tensor, x: &Tensor) -> Result<()> {
        Ok(ops::rms_norm(out, x, &self.weight, self.eps)?)
    }

    /// `residual += x; out = norm(residual)`; all `[T, dim]`.
    ///
    /// # Errors
    /// As [`ops::add_rms_norm`].
    pub fn forward_add(&self, out: &mut Tensor, residual: &mut Tensor, x: &Tensor) -> Result<()> {
        Ok(ops::add_rms_norm(out, residual, x, &self.weight, self.eps)?)
    }

    /// Sums `x` over the ranks of `comm`, then as [`forward_add`](RmsNorm::forward_add); `x` is then undefined.
    ///
    /// # Errors
    /// As [`ops::add_rms_norm`] and [`Comm::all_reduce`].
    pub fn forward_add_sum(
        &self,
        comm: &dyn Comm,
        out: &mut Tensor,
        residual: &mut Tensor,
        x: &mut Tensor,
    ) -> Result<()> {
        if let Some(gpus) = comm.gpus().filter(|_| !x.device().is_plan()) {
            return Ok(gpus.all_reduce_add_rms_norm(out, residual, x, &self.weight, self.eps)?);
        }
        all_reduce(comm, x)?;
        self.forward_add(out, residual, x)
    }

    /// Normalises some heads of every row of `x` (`[T, heads · dim]`) in place, each by itself.
    ///
    /// # Errors
    /// As [`ops::head_rms_norm`].
    pub fn forward_heads(&self, x: &mut Tensor, heads: std::ops::Range<usize>) -> Result<()> {
        Ok(ops::head_rms_norm(x, heads, &self.weight, self.eps)?)
    }
}
