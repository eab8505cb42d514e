//! Checkpoints whose linear layers are FP8 E4M3 numbers with scales: what their descriptions say.
//!
//! Sources: transformers `FineGrainedFP8Config` (`fp8` with `weight_block_size`, as DeepSeek and Qwen publish) and `FbgemmFp8Config`;
//! AutoFP8 (`fp8`); compressed-tensors' `float-quantized`; NVIDIA's ModelOpt. Scales of activations, which some of them have, are not
//! needed: inputs are not quantised here.

use serde_json::Value;

use super::{ConfigFile, QuantMethod};
use crate::error::Result;
use crate::limits::MAX_DIMENSION;

/// An FP8 checkpoint. Which layers are quantised, and which of their scales are one for the matrix or one for an output, the tensors say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fp8Checkpoint {
    /// Who quantised it.
    pub method: QuantMethod,
    /// Outputs and inputs of a block with a scale of its own, if there are blocks.
    pub block: Option<[usize; 2]>,
}

impl Fp8Checkpoint {
    /// What a description says; `None` if its method is not one of these.
    ///
    /// # Errors
    /// A kind of numbers or scales that is not supported, by name; a field that is malformed.
    pub(super) fn read(config: &ConfigFile, method: Option<&str>) -> Result<Option<Fp8Checkpoint>> {
        let (method, block) = match method {
            Some("fp8") => {
                if !matches!(config.text("fmt")?, None | Some("e4m3" | "float8_e4m3fn")) {
                    return Err(config.unsupported("fmt", "\"e4m3\""));
                }
                (QuantMethod::Fp8, block_of(config, "weight_block_size")?)
            }
            Some("fbgemm_fp8") => (QuantMethod::Fp8, None),
            Some("modelopt") => {
                if config.text("quant_algo")? != Some("FP8") {
                    return Err(config.unsupported("quant_algo", "\"FP8\""));
                }
                (QuantMethod::Fp8, None)
            }
            Some("compressed-tensors") => (QuantMethod::CompressedTensors, compressed_tensors(config)?),
            _ => return Ok(None),
        };
        Ok(Some(Fp8Checkpoint { method, block }))
    }
}

/// `[outputs, inputs]`.
fn block_of(config: &ConfigFile, field: &str) -> Result<Option<[usize; 2]>> {
    let Some(value) = config.get(field) else { return Ok(None) };
    let extent = |value: &Value| value.as_u64().filter(|x| (1..=MAX_DIMENSION as u64).contains(x)).map(|x| x as usize);
    match value.as_array().map(Vec::as_slice) {
        Some([rows, cols]) if extent(rows).is_some() && extent(cols).is_some() => {
            Ok(extent(rows).zip(extent(cols)).map(|(rows, cols)| [rows, cols]))
        }
        _ => Err(config.wrong(field, "two numbers, the outputs and inputs of a block")),
    }
}

/// The block of all groups of layers, each of which describes its weights.
fn compressed_tensors(config: &ConfigFile) -> Result<Option<[usize; 2]>> {
    if !matches!(config.text("format")?, Some("float-quantized" | "naive-quantized")) {
        return Err(config.unsupported("format", "\"float-quantized\""));
    }
    let groups = config.object("config_groups")?.ok_or_else(|| config.wrong("config_groups", "an object"))?;
    let names: Vec<String> = groups.fields().map(str::to_owned).collect();
    let mut blocks = Vec::new();
    for name in &names {
        let group = groups.object(name)?.ok_or_else(|| groups.wrong(name, "an object"))?;
        let weights = group.object("weights")?.ok_or_else(|| group.wrong("weights", "an object"))?;
        if weights.text("type")? != Some("float") {
            return Err(weights.unsupported("type", "\"float\""));
        }
        if weights.size("num_bits", 64)? != 8 {
            return Err(weights.unsupported("num_bits", "8"));
        }
        if !weights.flag("symmetric", true)? {
            return Err(weights.unsupported("symmetric", "true"));
        }
        blocks.push(match weights.text("strategy")? {
            None | Some("tensor" | "channel") => None,
            Some("block") => match block_of(&weights, "block_structure")? {
                None => return Err(weights.wrong("block_structure", "two numbers, the outputs and inputs of a block")),
                block => block,
            },
            Some(_) => return Err(weights.unsupported("strategy", "\"tensor\", \"channel\", \"block\"")),
        });
    }
    // Tensors say whether they have blocks, but not how large these are.
    let mut sizes = blocks.into_iter().flatten();
    let first = sizes.next();
    match sizes.find(|size| Some(*size) != first) {
        Some(_) => Err(config.unsupported("config_groups", "blocks of one size")),
        None => Ok(first),
    }
}
