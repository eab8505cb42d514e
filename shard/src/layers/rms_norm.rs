//! RMSNorm, replicated on every rank.

use kernels::{Tensor, ops};

use super::Loader;
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

    /// Normalises some heads of every row of `x` (`[T, heads · dim]`) in place, each by itself.
    ///
    /// # Errors
    /// As [`ops::head_rms_norm`].
    pub fn forward_heads(&self, x: &mut Tensor, heads: std::ops::Range<usize>) -> Result<()> {
        Ok(ops::head_rms_norm(x, heads, &self.weight, self.eps)?)
    }
}
