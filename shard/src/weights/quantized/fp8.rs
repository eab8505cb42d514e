//! Linear layers as FP8 checkpoints have them: weight[o, i] = scale · code[o, i], the codes E4M3, with one scale for the matrix, one for
//! every output, or one for every block of outputs and inputs.
//!
//! `{layer}.weight` holds the codes; `{layer}.weight_scale`, or `{layer}.weight_scale_inv` as DeepSeek's fine-grained checkpoints call it,
//! what they are multiplied by.

use std::ops::Range;

use kernels::{DType, Device, Fp8View, MatrixView, Tensor, e4m3_to_f32};

use super::Obstacle;
use crate::config::Fp8Checkpoint;
use crate::error::Result;
use crate::weights::Checkpoint;

/// The matrix of a linear layer, where it lies in its mapped file.
pub struct Fp8Matrix<'a> {
    /// `[out_features][in_features]`.
    codes: &'a [u8],
    out_features: usize,
    in_features: usize,
    granularity: Granularity,
    scales: Vec<f32>,
    /// The same in the file.
    scale_bytes: &'a [u8],
}

/// What a scale is of.
#[derive(Clone, Copy, PartialEq)]
enum Granularity {
    Matrix,
    Outputs,
    /// So many outputs and inputs.
    Blocks([usize; 2]),
}

impl<'a> Fp8Matrix<'a> {
    /// Whether the layer `name` is quantised.
    pub fn is_in(checkpoint: &Checkpoint, name: &str) -> bool {
        checkpoint.is_e4m3(&format!("{name}.weight"))
    }

    /// Finds the tensors of the layer `name`. Only scales are read.
    ///
    /// # Errors
    /// Whatever is wrong with one of them.
    pub fn open(
        checkpoint: &'a Checkpoint,
        quantized: &Fp8Checkpoint,
        name: &str,
        [out_features, in_features]: [usize; 2],
    ) -> Result<Fp8Matrix<'a>> {
        let codes = checkpoint.e4m3(&format!("{name}.weight"), &[out_features, in_features])?;
        let inverse = format!("{name}.weight_scale_inv");
        let name = if checkpoint.contains(&inverse) { inverse } else { format!("{name}.weight_scale") };
        let (scales, shape) = checkpoint.floats_of_any_shape(&name)?;
        let of_blocks = quantized
            .block
            .filter(|[rows, cols]| *shape == [out_features.div_ceil(*rows), in_features.div_ceil(*cols)]);
        let granularity = match (of_blocks, shape) {
            (Some(block), _) => Granularity::Blocks(block),
            (None, [] | [1] | [1, 1]) => Granularity::Matrix,
            (None, [rows] | [rows, 1]) if *rows == out_features => Granularity::Outputs,
            _ => {
                let blocks = match quantized.block {
                    Some([rows, cols]) => format!("blocks of {rows} outputs and {cols} inputs"),
                    None => "blocks, of which the configuration says nothing".to_owned(),
                };
                let reason = format!(
                    "shape {shape:?} is neither that of one scale, nor of one for each of {out_features} outputs, nor of {blocks}"
                );
                return Err(checkpoint.wrong(&name, reason));
            }
        };
        let count = scales.data.len() / scales.dtype.size_bytes();
        let host = Device::cpu(1);
        let values = Tensor::from_matrix(&host, &MatrixView { rows: count, ..scales }, DType::F32)?.to_vec()?;
        Ok(Fp8Matrix { codes, out_features, in_features, granularity, scales: values, scale_bytes: scales.data })
    }

    /// A part of it.
    pub fn slice(self, outputs: Range<usize>, inputs: Range<usize>) -> Fp8Slice<'a> {
        assert!(outputs.start <= outputs.end && outputs.end <= self.out_features, "outputs {outputs:?}");
        assert!(inputs.start <= inputs.end && inputs.end <= self.in_features, "inputs {inputs:?}");
        let output_scales = match self.granularity {
            Granularity::Matrix => vec![self.scales[0]; outputs.len()],
            Granularity::Outputs => self.scales[outputs.clone()].to_vec(),
            Granularity::Blocks(_) => vec![],
        };
        Fp8Slice { matrix: self, outputs, inputs, output_scales }
    }

    /// The scale of a weight.
    fn scale(&self, output: usize, input: usize) -> f32 {
        self.scales[match self.granularity {
            Granularity::Matrix => 0,
            Granularity::Outputs => output,
            Granularity::Blocks([rows, cols]) => output / rows * self.in_features.div_ceil(cols) + input / cols,
        }]
    }
}

/// A rank's part of an [`Fp8Matrix`].
pub struct Fp8Slice<'a> {
    matrix: Fp8Matrix<'a>,
    outputs: Range<usize>,
    inputs: Range<usize>,
    /// Of the slice's outputs; none where there are blocks.
    output_scales: Vec<f32>,
}

impl<'a> Fp8Slice<'a> {
    /// Outputs and inputs.
    pub fn shape(&self) -> [usize; 2] {
        [self.outputs.len(), self.inputs.len()]
    }

    /// Why it is no [`view`](Fp8Slice::view); `None`: it is one.
    pub fn obstacle(&self) -> Option<Obstacle> {
        match self.matrix.granularity {
            Granularity::Matrix | Granularity::Outputs => None,
            Granularity::Blocks(_) => Some(Obstacle::Blocks),
        }
    }

    /// The numbers that can be computed with as they are.
    pub fn view(&self) -> Option<Fp8View<'_>> {
        let view = Fp8View {
            codes: self.codes(),
            rows: self.outputs.len(),
            cols: self.inputs.len(),
            row_stride: self.matrix.in_features,
            first_col: self.inputs.start,
            scales: &self.output_scales,
        };
        self.obstacle().is_none().then_some(view)
    }

    /// The bytes it is made of, with those between them.
    pub fn sources(&self) -> [&'a [u8]; 2] {
        [self.codes(), self.matrix.scale_bytes]
    }

    /// Its weights as `dtype`, `[outputs][inputs]`: computed in f32, then rounded, on all threads of the host.
    pub fn dequantize(&self, device: &Device, dtype: DType) -> Vec<u8> {
        let [rows, cols] = self.shape();
        let row_bytes = cols * dtype.size_bytes();
        let mut out = vec![0; rows * row_bytes];
        device.for_each_part(&mut out, row_bytes.max(1), |row, out| {
            let output = self.outputs.start + row;
            let codes = &self.codes()[row * self.matrix.in_features..][self.inputs.clone()];
            let weight = |(input, code): (usize, &u8)| self.matrix.scale(output, input) * e4m3_to_f32(*code);
            let weights: Vec<u8> = self.inputs.clone().zip(codes).map(weight).flat_map(f32::to_ne_bytes).collect();
            DType::F32.convert(&weights, dtype, out);
        });
        out
    }

    /// Of its outputs, with all inputs.
    fn codes(&self) -> &'a [u8] {
        let in_features = self.matrix.in_features;
        &self.matrix.codes[self.outputs.start * in_features..self.outputs.end * in_features]
    }
}
