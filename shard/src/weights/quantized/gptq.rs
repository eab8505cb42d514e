//! The layout of GPTQ's libraries: a word holds neighbouring inputs of one output.
//!
//! `qweight`: `[in_features / 32 * bits, out_features]`, along each column a stream of codes from the lowest bits on, 32 of them in
//! `bits` words; `qzeros`: `[groups, out_features / 32 * bits]`, the same along each row; `g_idx`: `[in_features]`, the group of each input.
//!
//! Source: AutoGPTQ `QuantLinear.pack`; with 3 bits, its codes across two words are the same stream.

use std::ops::Range;

use super::{BlockCodes, Words};
use crate::error::Result;
use crate::weights::Checkpoint;

/// Of the codes and of the zero points. A layer that does not fill words has none of these shapes.
pub(super) fn shapes([out_features, in_features]: [usize; 2], groups: usize, bits: usize) -> ([usize; 2], [usize; 2]) {
    let words = |count: usize| (count * bits).div_ceil(32);
    ([words(in_features), out_features], [groups, words(out_features)])
}

/// The rows of words that hold the codes of these inputs.
pub(super) fn rows(bits: usize, inputs: &Range<usize>) -> Range<usize> {
    inputs.start * bits / 32..(inputs.end * bits).div_ceil(32)
}

/// The group of every input of the layer `name`; `None` if neighbours share theirs, from the first to the last.
pub(super) fn order(
    checkpoint: &Checkpoint,
    name: &str,
    in_features: usize,
    group_size: usize,
) -> Result<Option<Vec<u32>>> {
    let name = format!("{name}.g_idx");
    if !checkpoint.contains(&name) {
        return Ok(None);
    }
    let groups = in_features.div_ceil(group_size);
    let order: Vec<u32> =
        checkpoint.int32(&name, &[in_features])?.iter().map(|word| u32::from_le_bytes(*word)).collect();
    if let Some((input, group)) = order.iter().enumerate().find(|(_, group)| **group as usize >= groups) {
        let group = *group as i32;
        return Err(checkpoint.wrong(&name, format!("input {input} is of group {group}, of {groups}")));
    }
    let is_plain = order.iter().enumerate().all(|(input, group)| input / group_size == *group as usize);
    Ok((!is_plain).then_some(order))
}

/// The code of an input and an output.
pub(super) fn code(words: &Words<'_>, bits: usize, input: usize, output: usize) -> u32 {
    of_stream(bits, input, |row| words.get(row, output))
}

/// The zero point of a group and an output, as it is stored.
pub(super) fn zero(words: &Words<'_>, bits: usize, group: usize, output: usize) -> u32 {
    of_stream(bits, output, |col| words.get(group, col))
}

/// Element `index` of a stream of words.
fn of_stream(bits: usize, index: usize, word: impl Fn(usize) -> u32) -> u32 {
    let (at, shift) = (index * bits / 32, index * bits % 32);
    let low = word(at) >> shift;
    let high = if shift + bits > 32 { word(at + 1) << (32 - shift) } else { 0 };
    (low | high) & ((1 << bits) - 1)
}

/// The 4-bit codes of 64 inputs from `input` on: an element of `codes` per output. Both have the even input in the lower half of a byte.
pub(super) fn read_block<'c>(
    words: &Words<'_>,
    input: usize,
    outputs: Range<usize>,
    codes: impl Iterator<Item = &'c mut BlockCodes>,
) {
    for (output, codes) in outputs.zip(codes) {
        let (codes, _) = codes.as_chunks_mut::<4>();
        for (row, codes) in (input / 8..).zip(codes) {
            *codes = words.get(row, output).to_le_bytes();
        }
    }
}
