//! AutoAWQ's GEMM layout: a word holds eight neighbouring outputs of one input, first the even ones, then the odd ones.
//!
//! `qweight`: `[in_features, out_features / 8]`; `qzeros`: `[groups, out_features / 8]`, the same; always 4 bits.
//!
//! Source: AutoAWQ `WQLinear_GEMM`, whose order of outputs in a word is 0, 2, 4, 6, 1, 3, 5, 7.

use std::ops::Range;

use super::{BLOCK, BlockCodes, Words};

/// Outputs in a word.
const OUTPUTS: usize = 8;

/// Of the codes and of the zero points. A layer whose outputs do not fill words has none of these shapes.
pub(super) fn shapes([out_features, in_features]: [usize; 2], groups: usize) -> ([usize; 2], [usize; 2]) {
    let words = out_features.div_ceil(OUTPUTS);
    ([in_features, words], [groups, words])
}

/// The integer of a row (an input, or a group) and an output.
pub(super) fn element(words: &Words<'_>, row: usize, output: usize) -> u32 {
    words.get(row, output / OUTPUTS) >> shift(output) & 15
}

/// The lowest bit of an output in its word.
fn shift(output: usize) -> usize {
    4 * (output % OUTPUTS / 2 + output % 2 * OUTPUTS / 2)
}

/// The codes of 64 inputs from `input` on: an element of `codes` per output.
pub(super) fn read_block<'c>(
    words: &Words<'_>,
    input: usize,
    outputs: Range<usize>,
    codes: impl Iterator<Item = &'c mut BlockCodes>,
) {
    let mut column = usize::MAX;
    let mut block = [0; BLOCK];
    for (output, codes) in outputs.zip(codes) {
        if output / OUTPUTS != column {
            column = output / OUTPUTS;
            block = std::array::from_fn(|at| words.get(input + at, column));
        }
        let (pairs, _) = block.as_chunks::<2>();
        for (code, [even, odd]) in codes.iter_mut().zip(pairs) {
            *code = (even >> shift(output) & 15 | (odd >> shift(output) & 15) << 4) as u8;
        }
    }
}
