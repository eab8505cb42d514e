//! From names in a checkpoint to this rank's part of a layer, on its device.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;

use kernels::{
    DType, Device, ExpertWeights, Fp8View, Int4Source, LinearWeight, MatrixView, SourcePages, Tensor, WeightType,
};

use super::Partition;
use super::linear_source::{LinearPart, LinearSource};
use crate::config::{Quantization, QuantizedCheckpoint, weight_types};
use crate::error::Result;
use crate::weights::{Checkpoint, CheckpointTensor, Obstacle, PackedWeights};

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
    /// How linear layers were quantised beforehand.
    quantized: Option<QuantizedCheckpoint>,
    /// Layers that were quantised beforehand: those that are computed with as they are (`None`), and those that became floats.
    quantized_layers: RefCell<BTreeMap<Option<Obstacle>, usize>>,
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
            quantized: None,
            quantized_layers: RefCell::default(),
            pages,
            packed: RefCell::new(PackedWeights::Off),
            bytes: Cell::default(),
            sources: RefCell::default(),
        }
    }

    /// The same, of a checkpoint that may be quantised.
    pub fn with_quantized_checkpoint(self, quantized: Option<QuantizedCheckpoint>) -> Loader<'a> {
        Loader { quantized, ..self }
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

    /// For people: how many layers that were quantised beforehand became floats, and why; `None` if none did.
    pub fn dequantized_layers(&self) -> Option<String> {
        let layers = self.quantized_layers.borrow();
        let reasons: Vec<String> = layers
            .iter()
            .filter_map(|(obstacle, count)| obstacle.as_ref().map(|obstacle| format!("{count} {obstacle}")))
            .collect();
        let kept = layers.get(&None).copied().unwrap_or_default();
        let all = layers.values().sum::<usize>();
        (!reasons.is_empty()).then(|| {
            let (dtype, bits) = (self.dtype, self.dtype.size_bytes() * 8);
            let floats = all - kept;
            format!(
                "{floats} of {all} quantised linear layers become {dtype} while loading, {bits} bits a weight: {}",
                reasons.join(", ")
            )
        })
    }

    /// Packs this rank's parts of layers with the same inputs, stacked along their outputs.
    pub(super) fn linear_weight(&self, parts: &[LinearPart<'_>]) -> Result<LinearWeight> {
        self.stack(parts, Padding { every: parts.len(), rows: 0 }, None)
    }

    /// Packs this rank's parts of layers with the same inputs, those of `num_experts` experts one behind the other, as many of each.
    pub(super) fn expert_weights(&self, parts: &[LinearPart<'_>], num_experts: usize) -> Result<ExpertWeights> {
        ExpertWeights::expect_type(self.device, self.linear_type)?;
        let every = parts.len() / num_experts;
        let n = parts[..every].iter().map(|part| part.outputs.len()).sum::<usize>();
        let padding = Padding { every, rows: ExpertWeights::stride(n) - n };
        let are_floats = ExpertWeights::expect_type(self.device, WeightType::Int4).is_err();
        let stack = self.stack(parts, padding, are_floats.then_some(Obstacle::Experts))?;
        Ok(ExpertWeights::new(stack, num_experts, n)?)
    }

    /// Packs the layer that chooses experts, whole on every rank. It is never quantised: of its few numbers, a small error sends a row
    /// elsewhere.
    pub(super) fn router_weight(&self, name: &str, [outputs, inputs]: [usize; 2]) -> Result<LinearWeight> {
        let part = LinearPart { name, shape: [outputs, inputs], outputs: 0..outputs, inputs: 0..inputs };
        let router = self.find(&part)?;
        match router.float() {
            Some(slice) => self.pack(&[slice], WeightType::Float(self.dtype)),
            None => self.pack_dequantized(&[router], Padding { every: 1, rows: 0 }, Obstacle::Router),
        }
    }

    /// `obstacle`: why layers that are quantised must become floats, whatever they are.
    fn stack(&self, parts: &[LinearPart<'_>], padding: Padding, obstacle: Option<Obstacle>) -> Result<LinearWeight> {
        let layers = parts.iter().map(|part| self.find(part)).collect::<Result<Vec<_>>>()?;
        if let Some(slices) = layers.iter().map(LinearSource::float).collect::<Option<Vec<_>>>() {
            let zeros = padding.zeros(&slices);
            return self.pack(&padding.behind(&slices, &zeros), self.linear_type);
        }
        let are_kept = padding.rows == 0 && obstacle.is_none();
        let integers = layers.iter().map(LinearSource::int4).collect::<Option<Vec<&dyn Int4Source>>>();
        let numbers = layers.iter().map(LinearSource::fp8).collect::<Option<Vec<Fp8View<'_>>>>();
        let weight = match (integers, numbers) {
            (Some(matrices), _) if are_kept => {
                self.while_reading(&layers, || LinearWeight::pack_int4(self.device, &matrices))?
            }
            (_, Some(matrices)) if are_kept => {
                self.while_reading(&layers, || LinearWeight::pack_fp8(self.device, &matrices))?
            }
            _ => return self.pack_dequantized(&layers, padding, obstacle.unwrap_or(Obstacle::Stack)),
        };
        *self.quantized_layers.borrow_mut().entry(None).or_default() += layers.len();
        self.count(weight.bytes());
        Ok(weight)
    }

    /// Packs this rank's part of the output head, followed by rows of zeros.
    pub(super) fn head_weight(&self, part: &LinearPart<'_>, missing: usize) -> Result<LinearWeight> {
        let (head, padding) = (self.find(part)?, Padding { every: 1, rows: missing });
        let Some(slice) = head.float() else { return self.pack_dequantized(&[head], padding, Obstacle::Head) };
        let zeros = padding.zeros(&[slice]);
        self.pack(&padding.behind(&[slice], &zeros), self.head_type)
    }

    fn find(&self, part: &LinearPart<'_>) -> Result<LinearSource<'a>> {
        let layer = LinearSource::find(self.checkpoint, self.quantized.as_ref(), part)?;
        self.sources.borrow_mut().extend(layer.bytes());
        Ok(layer)
    }

    /// Packs layers, some of them quantised, as floats of the model's element type. `otherwise` is why layers become floats that have no
    /// obstacle of their own.
    fn pack_dequantized(
        &self,
        layers: &[LinearSource<'a>],
        padding: Padding,
        otherwise: Obstacle,
    ) -> Result<LinearWeight> {
        for layer in layers.iter().filter(|layer| layer.float().is_none()) {
            let obstacle = layer.obstacle().unwrap_or(otherwise);
            *self.quantized_layers.borrow_mut().entry(Some(obstacle)).or_default() += 1;
        }
        let float = WeightType::Float(self.dtype);
        let inputs = layers.first().map_or(0, |layer| layer.shape()[1]);
        let weight = if self.device.is_plan() {
            let outputs = layers.iter().map(|layer| layer.shape()[0]).sum::<usize>();
            let padded = outputs + layers.len() / padding.every * padding.rows;
            LinearWeight::zeroed(self.device, padded, inputs, float)?
        } else {
            self.while_reading(layers, || {
                let rounded: Vec<Vec<u8>> =
                    layers.iter().map(|layer| layer.dequantize(self.device, self.dtype)).collect();
                let mut matrices = Vec::with_capacity(layers.len());
                for (layer, rounded) in layers.iter().zip(&rounded) {
                    let dense = MatrixView::dense(rounded, self.dtype, layer.shape()[0], inputs);
                    matrices.push(layer.float().unwrap_or(dense));
                }
                let zeros = padding.zeros(&matrices);
                LinearWeight::pack_as(self.device, &padding.behind(&matrices, &zeros), float)
            })?
        };
        self.count(weight.bytes());
        Ok(weight)
    }

    /// Calls `pack`, which reads all bytes of these layers.
    fn while_reading<T>(&self, layers: &[LinearSource<'a>], pack: impl FnOnce() -> T) -> T {
        if self.device.is_plan() {
            return pack();
        }
        let parts: Vec<&[u8]> = layers.iter().flat_map(LinearSource::bytes).collect();
        parts.iter().for_each(|part| self.pages.begin(part));
        let packed = pack();
        parts.iter().for_each(|part| self.pages.end(part));
        packed
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
        self.vector_of(slices, |value| value)
    }

    /// The same, of each of which `f` makes what is computed with.
    pub(super) fn vector_of(
        &self,
        slices: &[(CheckpointTensor<'_>, Range<usize>)],
        f: impl Fn(f32) -> f32,
    ) -> Result<Tensor> {
        if self.device.is_plan() {
            let len = slices.iter().map(|(_, range)| range.len()).sum();
            return Ok(Tensor::zeros(self.device, &[len], DType::F32)?);
        }
        let mut values = Vec::new();
        for (tensor, range) in slices {
            let rounded = Tensor::from_matrix(self.device.host(), &tensor.row_slice(range.clone()), self.dtype)?;
            values.extend(rounded.to_vec()?.into_iter().map(&f));
        }
        let tensor = Tensor::from_slice(self.device, &[values.len()], &values)?;
        self.count(tensor.bytes());
        Ok(tensor)
    }

    fn count(&self, bytes: usize) {
        self.bytes.set(self.bytes.get() + bytes as u64);
    }
}

/// Rows of zeros in a stack of matrices: so many behind every so many of them.
#[derive(Clone, Copy)]
struct Padding {
    every: usize,
    rows: usize,
}

impl Padding {
    /// The bytes of one padding.
    fn zeros(self, matrices: &[MatrixView<'_>]) -> Vec<u8> {
        matrices.first().map_or(vec![], |first| vec![0; self.rows * first.cols * first.dtype.size_bytes()])
    }

    /// The matrices with their paddings.
    fn behind<'m>(self, matrices: &[MatrixView<'m>], zeros: &'m [u8]) -> Vec<MatrixView<'m>> {
        let mut stack = Vec::with_capacity(matrices.len() * 2);
        for group in matrices.chunks(self.every) {
            stack.extend_from_slice(group);
            if let Some(first) = group.first().filter(|_| self.rows > 0) {
                stack.push(MatrixView::dense(zeros, first.dtype, self.rows, first.cols));
            }
        }
        stack
    }
}
