//! Where the weight of a linear layer comes from: floats, or what AWQ, GPTQ or FP8 made of them.

use std::ops::Range;

use kernels::{DType, Device, Fp8View, Int4Source, MatrixView};

use crate::config::QuantizedCheckpoint;
use crate::error::Result;
use crate::weights::{Checkpoint, Fp8Matrix, Fp8Slice, Obstacle, QuantizedMatrix, QuantizedSlice};

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
    Integers(QuantizedSlice<'a>),
    Fp8(Fp8Slice<'a>),
}

impl<'a> LinearSource<'a> {
    /// Finds it as its quantised tensors, if the checkpoint is quantised and this layer of it, else as the floats `{name}.weight`.
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
        Ok(match quantized {
            Some(QuantizedCheckpoint::Integers(integers)) if QuantizedMatrix::is_in(checkpoint, name) => {
                LinearSource::Integers(
                    QuantizedMatrix::open(checkpoint, integers, name, *shape)?.slice(outputs, inputs),
                )
            }
            Some(QuantizedCheckpoint::Fp8(fp8)) if Fp8Matrix::is_in(checkpoint, name) => {
                LinearSource::Fp8(Fp8Matrix::open(checkpoint, fp8, name, *shape)?.slice(outputs, inputs))
            }
            _ => {
                let weight = checkpoint.matrix(&format!("{name}.weight"), shape[0], shape[1])?;
                LinearSource::Float(weight.slice(outputs, inputs))
            }
        })
    }

    /// The matrix, if it consists of floats.
    pub(super) fn float(&self) -> Option<MatrixView<'a>> {
        match self {
            LinearSource::Float(view) => Some(*view),
            LinearSource::Integers(_) | LinearSource::Fp8(_) => None,
        }
    }

    /// The matrix, if it consists of integers that can be computed with.
    pub(super) fn int4(&self) -> Option<&dyn Int4Source> {
        match self {
            LinearSource::Integers(slice) if slice.obstacle().is_none() => Some(slice),
            LinearSource::Integers(_) | LinearSource::Fp8(_) | LinearSource::Float(_) => None,
        }
    }

    /// The matrix, if it consists of FP8 numbers that can be computed with.
    pub(super) fn fp8(&self) -> Option<Fp8View<'_>> {
        match self {
            LinearSource::Fp8(slice) => slice.view(),
            LinearSource::Integers(_) | LinearSource::Float(_) => None,
        }
    }

    /// Why it is no such matrix, if it is quantised but has to become floats.
    pub(super) fn obstacle(&self) -> Option<Obstacle> {
        match self {
            LinearSource::Integers(slice) => slice.obstacle(),
            LinearSource::Fp8(slice) => slice.obstacle(),
            LinearSource::Float(_) => None,
        }
    }

    /// Outputs and inputs of the part.
    pub(super) fn shape(&self) -> [usize; 2] {
        match self {
            LinearSource::Float(view) => [view.rows, view.cols],
            LinearSource::Integers(slice) => slice.shape(),
            LinearSource::Fp8(slice) => slice.shape(),
        }
    }

    /// The bytes of the checkpoint that it is made of.
    pub(super) fn bytes(&self) -> Vec<&'a [u8]> {
        match self {
            LinearSource::Float(view) => vec![view.data],
            LinearSource::Integers(slice) => slice.sources().to_vec(),
            LinearSource::Fp8(slice) => slice.sources().to_vec(),
        }
    }

    /// What is quantised as floats of `dtype`, `[outputs][inputs]`; nothing, if it is floats.
    pub(super) fn dequantize(&self, device: &Device, dtype: DType) -> Vec<u8> {
        match self {
            LinearSource::Float(_) => vec![],
            LinearSource::Integers(slice) => slice.dequantize(device, dtype),
            LinearSource::Fp8(slice) => slice.dequantize(device, dtype),
        }
    }
}
