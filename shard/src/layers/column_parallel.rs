//! A linear layer of which each rank computes some of the outputs.

use std::ops::Range;

use kernels::{LinearWeight, Tensor, ops};

use super::Loader;
use super::linear_source::LinearPart;
use crate::error::Result;

/// Several projections of the same input as one matrix product: q, k, v or gate, up.
pub struct ColumnParallelLinear {
    weight: LinearWeight,
    bias: Option<Tensor>,
}

/// One of the stacked projections.
pub struct Projection<'n> {
    /// Name in the checkpoint, without ".weight".
    pub name: &'n str,
    /// All outputs, over all ranks.
    pub out_features: usize,
    /// Those of this rank.
    pub mine: Range<usize>,
}

impl ColumnParallelLinear {
    /// Loads this rank's rows of each projection, stacked in the order given.
    ///
    /// # Errors
    /// Whatever is wrong with the tensors `{name}.weight` (`[out_features, in_features]`), or what a quantised checkpoint has in its place,
    /// and, if `bias`, `{name}.bias`.
    pub fn load(
        loader: &Loader<'_>,
        in_features: usize,
        bias: bool,
        projections: &[Projection<'_>],
    ) -> Result<ColumnParallelLinear> {
        let (mut parts, mut biases) = (Vec::new(), Vec::new());
        for Projection { name, out_features, mine } in projections {
            parts.push(LinearPart {
                name,
                shape: [*out_features, in_features],
                outputs: mine.clone(),
                inputs: 0..in_features,
            });
            if bias {
                biases.push((loader.checkpoint.vector(&format!("{name}.bias"), *out_features)?, mine.clone()));
            }
        }
        let weight = loader.linear_weight(&parts)?;
        let bias = bias.then(|| loader.vector(&biases)).transpose()?;
        Ok(ColumnParallelLinear { weight, bias })
    }

    /// `out`: `[T, this rank's outputs]`; `x`: `[T, in_features]`.
    ///
    /// # Errors
    /// As [`ops::linear`].
    pub fn forward(&self, out: &mut Tensor, x: &Tensor) -> Result<()> {
        Ok(ops::linear(out, x, &self.weight, self.bias.as_ref())?)
    }

    /// This rank's outputs.
    pub fn out_features(&self) -> usize {
        self.weight.n()
    }
}
