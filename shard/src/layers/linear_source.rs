//! Where the weight of a linear layer comes from: floats, or the integers that AWQ or GPTQ made of them.

use std::ops::Range;

use kernels::{Int4Source, MatrixView};

use crate::config::QuantizedCheckpoint;
use crate::error::Result;
use crate::weights::{Checkpoint, Obstacle, QuantizedMatrix, QuantizedSlice};

/// A linear layer, and which part of it a rank holds.
pub(super) struct LinearPart<'n> {
    /// Name in the checkpoint, without ".weight".
    pub(super) name: &'n str,
    /// Outputs and inputs, over all ranks.
    pub(super) shape: [usize; 2],
    /// The rank's outputs.
    pub(super) outputs: Range<usize>,
    /// The rank's inputs.
    pub(super) inputs: Range<usize>,
}

/// That part in a checkpoint.
pub(super) enum LinearSource<'a> {
    Float(MatrixView<'a>),
    Quantized(QuantizedSlice<'a>),
}

impl<'a> LinearSource<'a> {
    /// Finds it as `{name}.qweight` with its companions, if the checkpoint is quantised and this layer of it, else as `{name}.weight`.
    ///
    /// # Errors
    /// Whatever is wrong with these tensors.
    pub(super) fn find(
        checkpoint: &'a Checkpoint,
        quantized: Option<&QuantizedCheckpoint>,
        part: &LinearPart<'_>,
    ) -> Result<LinearSource<'a>> {
        let LinearPart { name, shape, outputs, inputs } = part;
        let (outputs, inputs) = (outputs.clone(), inputs.clone());
        Ok(match quantized.filter(|_| QuantizedMatrix::is_in(checkpoint, name)) {
            Some(quantized) => LinearSource::Quantized(
                QuantizedMatrix::open(checkpoint, quantized, name, *shape)?.slice(outputs, inputs),
            ),
            None => {
                let weight = checkpoint.matrix(&format!("{name}.weight"), shape[0], shape[1])?;
                LinearSource::Float(weight.slice(outputs, inputs))
            }
        })
    }

    /// The matrix, if it consists of floats.
    pub(super) fn float(&self) -> Option<MatrixView<'a>> {
        match self {
            LinearSource::Float(view) => Some(*view),
            LinearSource::Quantized(_) => None,
        }
    }

    /// The matrix, if it consists of integers that can be computed with.
    pub(super) fn int4(&self) -> Option<&dyn Int4Source> {
        match self {
            LinearSource::Quantized(slice) if slice.obstacle().is_none() => Some(slice),
            LinearSource::Quantized(_) | LinearSource::Float(_) => None,
        }
    }

    /// Why it is no such matrix, if it is quantised but has to become floats.
    pub(super) fn obstacle(&self) -> Option<Obstacle> {
        match self {
            LinearSource::Quantized(slice) => slice.obstacle(),
            LinearSource::Float(_) => None,
        }
    }

    /// Outputs and inputs of the part.
    pub(super) fn shape(&self) -> [usize; 2] {
        match self {
            LinearSource::Float(view) => [view.rows, view.cols],
            LinearSource::Quantized(slice) => slice.shape(),
        }
    }

    /// The bytes of the checkpoint that it is made of.
    pub(super) fn bytes(&self) -> Vec<&'a [u8]> {
        match self {
            LinearSource::Float(view) => vec![view.data],
            LinearSource::Quantized(slice) => slice.sources().to_vec(),
        }
    }
}
