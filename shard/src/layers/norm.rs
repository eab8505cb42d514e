//! RMSNorm and LayerNorm, replicated on every rank.

use std::ops::Range;

use kernels::Tensor;
use kernels::ops::{self, LayerScale, RmsScale};

use super::{Loader, all_reduce};
use crate::comm::Comm;
use crate::config::{NormKind, NormSpec};
use crate::error::Result;

/// A norm over rows of the residual stream.
pub enum Norm {
    /// Scales.
    Rms(RmsNorm),
    /// Shifts and scales.
    Layer(LayerNorm),
}

/// An RMSNorm over the last dimension.
pub struct RmsNorm {
    weight: Tensor,
    eps: f32,
    rounds_first: bool,
}

/// A LayerNorm over the last dimension.
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f32,
}

impl Norm {
    /// Loads `{name}.weight` (`[dim]`), and of a LayerNorm `{name}.bias`.
    ///
    /// # Errors
    /// Whatever is wrong with these tensors.
    pub fn load(loader: &Loader<'_>, name: &str, dim: usize, spec: NormSpec) -> Result<Norm> {
        if spec.kind != NormKind::Layer {
            return Ok(Norm::Rms(RmsNorm::load(loader, name, dim, spec)?));
        }
        let vector = |part| {
            let vector = loader.checkpoint.vector(&format!("{name}.{part}"), dim)?;
            loader.vector(&[(vector, 0..dim)])
        };
        Ok(Norm::Layer(LayerNorm { weight: vector("weight")?, bias: vector("bias")?, eps: spec.eps }))
    }

    /// `out = norm(x)`; both `[T, dim]`.
    ///
    /// # Errors
    /// As [`ops::rms_norm`] and [`ops::layer_norm`].
    pub fn forward(&self, out: &mut Tensor, x: &Tensor) -> Result<()> {
        match self {
            Norm::Rms(norm) => ops::rms_norm(out, x, norm.scale())?,
            Norm::Layer(norm) => ops::layer_norm(out, x, norm.scale())?,
        }
        Ok(())
    }

    /// `residual += x; out = norm(residual)`; all `[T, dim]`.
    ///
    /// # Errors
    /// As [`ops::add_rms_norm`] and [`ops::add_layer_norm`].
    pub fn forward_add(&self, out: &mut Tensor, residual: &mut Tensor, x: &Tensor) -> Result<()> {
        match self {
            Norm::Rms(norm) => ops::add_rms_norm(out, residual, x, norm.scale())?,
            Norm::Layer(norm) => ops::add_layer_norm(out, residual, x, norm.scale())?,
        }
        Ok(())
    }

    /// Sums `x` over the ranks of `comm`, normalises the sum by `after` if there is one, then as [`forward_add`](Norm::forward_add); `x` is
    /// then undefined.
    ///
    /// # Errors
    /// As [`forward_add`](Norm::forward_add) and [`Comm::all_reduce`].
    pub fn forward_add_sum(
        &self,
        comm: &dyn Comm,
        out: &mut Tensor,
        residual: &mut Tensor,
        x: &mut Tensor,
        after: Option<&RmsNorm>,
    ) -> Result<()> {
        let gpus = comm.gpus().filter(|_| !x.device().is_plan());
        if let (Norm::Rms(norm), Some(gpus), None) = (self, gpus, after) {
            return Ok(gpus.all_reduce_add_rms_norm(out, residual, x, norm.scale())?);
        }
        all_reduce(comm, x)?;
        if let Some(after) = after {
            after.forward_in_place(x)?;
        }
        self.forward_add(out, residual, x)
    }
}

impl RmsNorm {
    /// Loads `{name}.weight` (`[dim]`). Beside LayerNorms, what is said to be an RMSNorm is a plain one.
    ///
    /// # Errors
    /// Whatever is wrong with that tensor.
    pub fn load(loader: &Loader<'_>, name: &str, dim: usize, spec: NormSpec) -> Result<RmsNorm> {
        let vector = loader.checkpoint.vector(&format!("{name}.weight"), dim)?;
        let is_offset = spec.kind == NormKind::RmsPlusOne;
        let of = |weight: f32| if is_offset { 1.0 + weight } else { weight };
        Ok(RmsNorm { weight: loader.vector_of(&[(vector, 0..dim)], of)?, eps: spec.eps, rounds_first: !is_offset })
    }

    fn scale(&self) -> RmsScale<'_> {
        RmsScale { weight: &self.weight, eps: self.eps, rounds_first: self.rounds_first }
    }

    /// Normalises every row of `x` (`[T, dim]`) in place.
    ///
    /// # Errors
    /// As [`ops::rms_norm_in_place`].
    pub fn forward_in_place(&self, x: &mut Tensor) -> Result<()> {
        Ok(ops::rms_norm_in_place(x, self.scale())?)
    }

    /// Normalises some heads of every row of `x` (`[T, heads · dim]`) in place, each by itself.
    ///
    /// # Errors
    /// As [`ops::head_rms_norm`].
    pub fn forward_heads(&self, x: &mut Tensor, heads: Range<usize>) -> Result<()> {
        Ok(ops::head_rms_norm(x, heads, self.scale())?)
    }
}

impl LayerNorm {
    fn scale(&self) -> LayerScale<'_> {
        LayerScale { weight: &self.weight, bias: &self.bias, eps: self.eps }
    }
}
