//! From names in a checkpoint to this rank's part of a layer, on its device.

use std::ops::Range;

use kernels::{DType, Device, LinearWeight, MatrixView, Tensor, WeightType};

use super::Partition;
use crate::config::{Quantization, weight_types};
use crate::error::Result;
use crate::weights::{Checkpoint, CheckpointTensor};

/// What a layer needs in order to load itself.
pub struct Loader<'a> {
    /// The weights.
    pub checkpoint: &'a Checkpoint,
    /// Where the layers will live.
    pub device: &'a Device,
    /// Which part of them this rank holds.
    pub partition: Partition,
    /// The element type of the model; tensors of another one are rounded to it.
    pub dtype: DType,
    /// What matrices of linear layers are packed as.
    linear_type: WeightType,
    /// The same for the output head.
    head_type: WeightType,
    bytes: std::cell::Cell<u64>,
}

impl<'a> Loader<'a> {
    /// A loader that has loaded nothing.
    pub fn new(
        checkpoint: &'a Checkpoint,
        device: &'a Device,
        partition: Partition,
        dtype: DType,
        quantization: Option<Quantization>,
    ) -> Loader<'a> {
        let (linear_type, head_type) = weight_types(dtype, quantization);
        Loader { checkpoint, device, partition, dtype, linear_type, head_type, bytes: Default::default() }
    }

    /// The memory that everything loaded so far takes on the device, in bytes.
    pub fn loaded_bytes(&self) -> u64 {
        self.bytes.get()
    }

    /// Packs slices of matrices, stacked along their rows.
    pub(super) fn linear_weight(&self, slices: &[MatrixView<'_>]) -> Result<LinearWeight> {
        self.pack(slices, self.linear_type)
    }

    /// Packs slices of the output head.
    pub(super) fn head_weight(&self, slices: &[MatrixView<'_>]) -> Result<LinearWeight> {
        self.pack(slices, self.head_type)
    }

    fn pack(&self, slices: &[MatrixView<'_>], weight_type: WeightType) -> Result<LinearWeight> {
        let weight = LinearWeight::pack_as(self.device, slices, weight_type)?;
        self.count(weight.bytes());
        Ok(weight)
    }

    /// A dense matrix in the model's element type.
    pub(super) fn matrix(&self, slice: &MatrixView<'_>) -> Result<Tensor> {
        let tensor = Tensor::from_matrix(self.device, slice, self.dtype)?;
        self.count(tensor.bytes());
        Ok(tensor)
    }

    /// Slices of vectors one after the other, as f32: norm weights and biases, which are added in f32. They are rounded to
    /// the model's element type first, as every other weight.
    pub(super) fn vector(&self, slices: &[(CheckpointTensor<'_>, Range<usize>)]) -> Result<Tensor> {
        let mut values = Vec::new();
        for (tensor, range) in slices {
            let rounded = Tensor::from_matrix(self.device, &tensor.row_slice(range.clone()), self.dtype)?;
            let bytes = rounded.as_bytes();
            let rounded = MatrixView::dense(&bytes, self.dtype, range.len(), 1);
            values.extend_from_slice(&Tensor::from_matrix(self.device, &rounded, DType::F32)?.as_f32());
        }
        let tensor = Tensor::from_slice(self.device, &[values.len()], &values)?;
        self.count(tensor.bytes());
        Ok(tensor)
    }

    fn count(&self, bytes: usize) {
        self.bytes.set(self.bytes.get() + bytes as u64);
    }
}
