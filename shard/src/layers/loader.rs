//! From names in a checkpoint to this rank's part of a layer, on its device.

use std::cell::{Cell, RefCell};
use std::ops::Range;

use kernels::{DType, Device, LinearWeight, MatrixView, SourcePages, Tensor, WeightType};

use super::Partition;
use crate::config::{Quantization, weight_types};
use crate::error::Result;
use crate::weights::{Checkpoint, CheckpointTensor, PackedWeights};

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
    pages: &'a dyn SourcePages,
    packed: RefCell<PackedWeights>,
    bytes: Cell<u64>,
    /// What was asked for, in this order.
    sources: RefCell<Vec<&'a [u8]>>,
}

impl<'a> Loader<'a> {
    /// A loader that has loaded nothing. `pages` hears which parts of the checkpoint are read.
    pub fn new(
        checkpoint: &'a Checkpoint,
        device: &'a Device,
        partition: Partition,
        dtype: DType,
        quantization: Option<Quantization>,
        pages: &'a dyn SourcePages,
    ) -> Loader<'a> {
        let (linear_type, head_type) = weight_types(dtype, quantization);
        Loader {
            checkpoint,
            device,
            partition,
            dtype,
            linear_type,
            head_type,
            pages,
            packed: RefCell::new(PackedWeights::Off),
            bytes: Cell::default(),
            sources: RefCell::default(),
        }
    }

    /// The same, taking packed weights from a file or keeping them in one.
    pub fn with_packed_weights(self, packed: PackedWeights) -> Loader<'a> {
        Loader { packed: RefCell::new(packed), ..self }
    }

    /// All weights were loaded: those that were to be kept are complete.
    pub fn finish_packed_weights(&self) {
        if let PackedWeights::Write(writer) = self.packed.replace(PackedWeights::Off) {
            // Nobody waits for the disk.
            drop(writer.finish());
        }
    }

    /// The parts of the checkpoint that large weights were made of, in the order of loading. With a loader for the `plan`
    /// device: those that they will be made of.
    pub fn into_sources(self) -> Vec<&'a [u8]> {
        self.sources.into_inner()
    }

    /// The memory that everything loaded so far takes on the device, in bytes.
    pub fn loaded_bytes(&self) -> u64 {
        self.bytes.get()
    }

    /// Packs slices of matrices, stacked along their rows.
    pub(super) fn linear_weight(&self, slices: &[MatrixView<'a>]) -> Result<LinearWeight> {
        self.sources.borrow_mut().extend(slices.iter().map(|slice| slice.data));
        self.pack(slices, self.linear_type)
    }

    /// Packs a slice of the output head, followed by rows of zeros.
    pub(super) fn head_weight(&self, slice: MatrixView<'a>, missing: usize) -> Result<LinearWeight> {
        self.sources.borrow_mut().push(slice.data);
        let zeros = vec![0; missing * slice.cols * slice.dtype.size_bytes()];
        let padding = MatrixView::dense(&zeros, slice.dtype, missing, slice.cols);
        self.pack(&[slice, padding], self.head_type)
    }

    fn pack(&self, slices: &[MatrixView<'_>], weight_type: WeightType) -> Result<LinearWeight> {
        let weight = match self.restore(slices, weight_type)? {
            Some(weight) => weight,
            None => LinearWeight::pack_from(self.device, slices, weight_type, self.pages)?,
        };
        if let PackedWeights::Write(writer) = &mut *self.packed.borrow_mut() {
            writer.push(self.device, weight.panel_shape(), weight.packed_bytes());
        }
        self.count(weight.bytes());
        Ok(weight)
    }

    /// The next packed weight of the file; `None` without a file, or if it turns out to be worthless.
    fn restore(&self, slices: &[MatrixView<'_>], weight_type: WeightType) -> Result<Option<LinearWeight>> {
        let mut packed = self.packed.borrow_mut();
        let PackedWeights::Read(reader) = &mut *packed else { return Ok(None) };
        match LinearWeight::restore(self.device, slices, weight_type, |shape, out| {
            reader.next(self.device, shape, out)
        })? {
            Ok(weight) => Ok(Some(weight)),
            Err(reason) => {
                let path = reader.path().display();
                tracing::warn!("the packed weights {path} are damaged ({reason}): removed, the rest is packed anew");
                *packed = PackedWeights::Off;
                Ok(None)
            }
        }
    }

    /// A dense matrix in the model's element type.
    pub(super) fn matrix(&self, slice: &MatrixView<'a>) -> Result<Tensor> {
        self.sources.borrow_mut().push(slice.data);
        let tensor = Tensor::from_matrix(self.device, slice, self.dtype)?;
        if !self.device.is_plan() {
            self.pages.end(slice.data);
        }
        self.count(tensor.bytes());
        Ok(tensor)
    }

    /// Slices of vectors one after the other, as f32: norm weights and biases, which are added in f32. They are rounded to
    /// the model's element type first, as every other weight.
    pub(super) fn vector(&self, slices: &[(CheckpointTensor<'_>, Range<usize>)]) -> Result<Tensor> {
        if self.device.is_plan() {
            let len = slices.iter().map(|(_, range)| range.len()).sum();
            return Ok(Tensor::zeros(self.device, &[len], DType::F32)?);
        }
        let mut values = Vec::new();
        for (tensor, range) in slices {
            values.extend(
                Tensor::from_matrix(self.device.host(), &tensor.row_slice(range.clone()), self.dtype)?.to_vec()?,
            );
        }
        let tensor = Tensor::from_slice(self.device, &[values.len()], &values)?;
        self.count(tensor.bytes());
        Ok(tensor)
    }

    fn count(&self, bytes: usize) {
        self.bytes.set(self.bytes.get() + bytes as u64);
    }
}
