//! Linear layers as AWQ or GPTQ left them in a checkpoint: small integers, with a scale and a zero point per output and group of inputs
//! (those of FP8 numbers are in a file of their own, `fp8.rs`).
//!
//! weight[o, i] = scale[g, o] * (code[i, o] - zero[g, o]), where g is the group of input i.
//!
//! Where the integers lie is the business of a file per layout. What a rank needs of a matrix is a [`QuantizedSlice`]: an
//! [`Int4Source`] where the kernels can compute with its integers, else floats.

mod awq;
mod fp8;
mod gptq;

pub use fp8::{Fp8Matrix, Fp8Slice};

use std::fmt;
use std::ops::Range;

use half::{bf16, f16};
use kernels::{DType, Device, Int4Rows, Int4Source, MatrixView};

use super::Checkpoint;
use crate::config::{PackedIntegers, PackedLayout};
use crate::error::Result;

/// Inputs with one scale and zero point in a weight of 4-bit integers.
const BLOCK: usize = 64;
/// Their codes, two in a byte.
type BlockCodes = [u8; BLOCK / 2];
/// Outputs that become floats at a time: their words fill whole cache lines in every layout, and what is written of them stays in
/// the first-level cache.
const ROWS_OF_TURN: usize = 64;

/// The matrix of a linear layer, where it lies in its mapped file.
pub struct QuantizedMatrix<'a> {
    layout: PackedLayout,
    bits: usize,
    in_features: usize,
    out_features: usize,
    group_size: usize,
    /// The group of every input, where that is not simply `input / group_size`.
    order: Option<Vec<u32>>,
    codes: Words<'a>,
    zeros: Words<'a>,
    /// `[groups][out_features]`.
    scales: MatrixView<'a>,
}

/// A dense matrix of 32-bit words.
#[derive(Clone, Copy)]
struct Words<'a> {
    words: &'a [[u8; 4]],
    cols: usize,
}

impl Words<'_> {
    fn get(&self, row: usize, col: usize) -> u32 {
        u32::from_le_bytes(self.words[row * self.cols + col])
    }
}

impl<'a> QuantizedMatrix<'a> {
    /// Whether the layer `name` is quantised.
    pub fn is_in(checkpoint: &Checkpoint, name: &str) -> bool {
        checkpoint.contains(&format!("{name}.qweight"))
    }

    /// Finds the tensors of the layer `name`: `{name}.qweight`, `.qzeros`, `.scales` and, of GPTQ, `.g_idx` if it is there. Only the latter
    /// is read.
    ///
    /// # Errors
    /// Whatever is wrong with one of them.
    pub fn open(
        checkpoint: &'a Checkpoint,
        quantized: &PackedIntegers,
        name: &str,
        [out_features, in_features]: [usize; 2],
    ) -> Result<QuantizedMatrix<'a>> {
        let PackedIntegers { layout, bits, group_size } = *quantized;
        let group_size = group_size.unwrap_or(in_features);
        let groups = in_features.div_ceil(group_size);
        let (codes_shape, zeros_shape) = match layout {
            PackedLayout::AwqGemm => awq::shapes([out_features, in_features], groups),
            PackedLayout::Gptq | PackedLayout::GptqV2 => gptq::shapes([out_features, in_features], groups, bits),
        };
        let words = |suffix: &str, [rows, cols]: [usize; 2]| {
            checkpoint.int32(&format!("{name}.{suffix}"), &[rows, cols]).map(|words| Words { words, cols })
        };
        let order = match layout {
            PackedLayout::AwqGemm => None,
            PackedLayout::Gptq | PackedLayout::GptqV2 => gptq::order(checkpoint, name, in_features, group_size)?,
        };
        Ok(QuantizedMatrix {
            layout,
            bits,
            in_features,
            out_features,
            group_size,
            order,
            codes: words("qweight", codes_shape)?,
            zeros: words("qzeros", zeros_shape)?,
            scales: checkpoint.matrix(&format!("{name}.scales"), groups, out_features)?.whole(),
        })
    }

    /// A part of it.
    pub fn slice(self, outputs: Range<usize>, inputs: Range<usize>) -> QuantizedSlice<'a> {
        assert!(outputs.start <= outputs.end && outputs.end <= self.out_features, "outputs {outputs:?}");
        assert!(inputs.start <= inputs.end && inputs.end <= self.in_features, "inputs {inputs:?}");
        QuantizedSlice { matrix: self, outputs, inputs }
    }

    fn group(&self, input: usize) -> usize {
        self.order.as_ref().map_or(input / self.group_size, |order| order[input] as usize)
    }

    fn code(&self, input: usize, output: usize) -> u32 {
        match self.layout {
            PackedLayout::AwqGemm => awq::element(&self.codes, input, output),
            PackedLayout::Gptq | PackedLayout::GptqV2 => gptq::code(&self.codes, self.bits, input, output),
        }
    }

    fn zero(&self, group: usize, output: usize) -> u32 {
        match self.layout {
            PackedLayout::AwqGemm => awq::element(&self.zeros, group, output),
            // One more than the largest code is a legal zero point of this layout: nothing wraps around.
            PackedLayout::Gptq => gptq::zero(&self.zeros, self.bits, group, output) + 1,
            PackedLayout::GptqV2 => gptq::zero(&self.zeros, self.bits, group, output),
        }
    }

    fn scale_bytes(&self, group: usize, output: usize) -> &[u8] {
        let size = self.scales.dtype.size_bytes();
        &self.scales.data[(group * self.out_features + output) * size..][..size]
    }

    fn scale(&self, group: usize, output: usize) -> f32 {
        match (self.scales.dtype, self.scale_bytes(group, output)) {
            (DType::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            (DType::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
            (DType::Bf16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
            (dtype, bytes) => unreachable!("{dtype} of {} bytes", bytes.len()),
        }
    }
}

/// A rank's part of a [`QuantizedMatrix`].
pub struct QuantizedSlice<'a> {
    matrix: QuantizedMatrix<'a>,
    outputs: Range<usize>,
    inputs: Range<usize>,
}

/// Why a slice cannot be computed with as what it has in the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Obstacle {
    /// Weights of so many bits.
    Bits(usize),
    /// Groups of so many inputs, not a multiple of 64.
    GroupSize(usize),
    /// Inputs of a group are not neighbours.
    ActivationOrder,
    /// The rank's inputs, or all of them, do not begin and end at multiples of 64.
    Cut,
    /// Scales of 32 bits.
    Scales,
    /// FP8 numbers with a scale for every block of inputs.
    Blocks,
    /// It is stacked with layers that cannot, or are not quantised.
    Stack,
    /// It is the output head, whose errors reach the logits directly and whose rows are padded.
    Head,
    /// They are experts, which a GPU has as floats only.
    Experts,
    /// It chooses experts, which a small error changes.
    Router,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::Bits(bits) => write!(f, "because of {bits} bits"),
            Obstacle::GroupSize(inputs) => write!(f, "because of groups of {inputs} inputs"),
            Obstacle::ActivationOrder => f.write_str("because of activation order (desc_act)"),
            Obstacle::Cut => f.write_str("because a rank's inputs are not a multiple of 64"),
            Obstacle::Scales => f.write_str("because of float32 scales"),
            Obstacle::Blocks => f.write_str("because of scales for blocks of inputs"),
            Obstacle::Stack => f.write_str("because of another layer that is computed together with it"),
            Obstacle::Head => f.write_str("as output head"),
            Obstacle::Experts => f.write_str("as experts on a GPU"),
            Obstacle::Router => f.write_str("as router of experts"),
        }
    }
}

impl<'a> QuantizedSlice<'a> {
    /// Outputs and inputs.
    pub fn shape(&self) -> [usize; 2] {
        [self.outputs.len(), self.inputs.len()]
    }

    /// Why it is no [`Int4Source`]; `None`: it is one.
    pub fn obstacle(&self) -> Option<Obstacle> {
        let QuantizedMatrix { bits, group_size, in_features, .. } = self.matrix;
        let is_cut = |input: usize| !input.is_multiple_of(BLOCK);
        if bits != 4 {
            Some(Obstacle::Bits(bits))
        } else if self.matrix.order.is_some() {
            Some(Obstacle::ActivationOrder)
        } else if is_cut(group_size) && group_size < in_features {
            Some(Obstacle::GroupSize(group_size))
        } else if is_cut(self.inputs.start) || is_cut(self.inputs.end) {
            Some(Obstacle::Cut)
        } else if self.matrix.scales.dtype == DType::F32 {
            Some(Obstacle::Scales)
        } else {
            None
        }
    }

    /// The bytes it is made of, with those between them.
    pub fn sources(&self) -> [&'a [u8]; 3] {
        let QuantizedMatrix { layout, bits, codes, zeros, scales, .. } = &self.matrix;
        let rows = match layout {
            PackedLayout::AwqGemm => self.inputs.clone(),
            PackedLayout::Gptq | PackedLayout::GptqV2 => gptq::rows(*bits, &self.inputs),
        };
        let codes: &'a [[u8; 4]] = &codes.words[rows.start * codes.cols..rows.end * codes.cols];
        let zeros: &'a [[u8; 4]] = zeros.words;
        [codes.as_flattened(), zeros.as_flattened(), scales.data]
    }

    /// Its weights as `dtype`, `[outputs][inputs]`: computed in f32, then rounded, on all threads of the host.
    pub fn dequantize(&self, device: &Device, dtype: DType) -> Vec<u8> {
        let [rows, cols] = self.shape();
        let mut out = vec![0; rows * cols * dtype.size_bytes()];
        let turn_bytes = ROWS_OF_TURN * cols * dtype.size_bytes();
        device.for_each_part(&mut out, turn_bytes.max(1), |turn, out| {
            let first = self.outputs.start + turn * ROWS_OF_TURN;
            let outputs = first..self.outputs.end.min(first + ROWS_OF_TURN);
            match dtype {
                DType::F32 => self.dequantize_rows(outputs, out, f32::to_le_bytes),
                DType::F16 => self.dequantize_rows(outputs, out, |value| f16::from_f32(value).to_le_bytes()),
                DType::Bf16 => self.dequantize_rows(outputs, out, |value| bf16::from_f32(value).to_le_bytes()),
            }
        });
        out
    }

    fn dequantize_rows<const BYTES: usize>(
        &self,
        outputs: Range<usize>,
        out: &mut [u8],
        round: impl Fn(f32) -> [u8; BYTES],
    ) {
        let (matrix, cols) = (&self.matrix, self.inputs.len());
        let groups = matrix.in_features.div_ceil(matrix.group_size);
        let parameters = |group: usize| {
            outputs.clone().map(move |output| (matrix.scale(group, output), matrix.zero(group, output) as f32))
        };
        let parameters: Vec<(f32, f32)> = (0..groups).flat_map(parameters).collect();
        let (elements, _) = out.as_chunks_mut::<BYTES>();
        // Along the outputs first: that is how every layout lies in memory.
        for (col, input) in self.inputs.clone().enumerate() {
            let parameters = &parameters[matrix.group(input) * outputs.len()..][..outputs.len()];
            for ((row, output), (scale, zero)) in outputs.clone().enumerate().zip(parameters) {
                elements[row * cols + col] = round(scale * (matrix.code(input, output) as f32 - zero));
            }
        }
    }
}

/// Only where there is no [`Obstacle`].
impl Int4Source for QuantizedSlice<'_> {
    fn rows(&self) -> usize {
        self.outputs.len()
    }

    fn cols(&self) -> usize {
        self.inputs.len()
    }

    fn read(&self, rows: Range<usize>, out: &mut Int4Rows) {
        debug_assert_eq!(self.obstacle(), None, "the caller asked");
        let (matrix, blocks) = (&self.matrix, self.inputs.len() / BLOCK);
        let outputs = self.outputs.start + rows.start..self.outputs.start + rows.end;
        out.codes.resize(rows.len() * blocks * size_of::<BlockCodes>(), 0);
        out.scales.resize(rows.len() * blocks, f16::ZERO);
        out.zeros.resize(rows.len() * blocks, 0);
        let (codes, _) = out.codes.as_chunks_mut();
        for block in 0..blocks {
            // A block of all outputs at a time: what lies beside each other in the file is read while it is in a cache.
            let input = self.inputs.start + block * BLOCK;
            let codes = codes.iter_mut().skip(block).step_by(blocks);
            match matrix.layout {
                PackedLayout::AwqGemm => awq::read_block(&matrix.codes, input, outputs.clone(), codes),
                PackedLayout::Gptq | PackedLayout::GptqV2 => {
                    gptq::read_block(&matrix.codes, input, outputs.clone(), codes);
                }
            }
            let group = input / matrix.group_size;
            for (row, output) in outputs.clone().enumerate() {
                out.zeros[row * blocks + block] = matrix.zero(group, output) as u8;
                out.scales[row * blocks + block] = f16::from_f32(matrix.scale(group, output));
            }
        }
    }
}
