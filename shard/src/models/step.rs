//! What a model is asked to compute in one step.

use kernels::ops::SequenceRows;

/// Token rows of several sequences, prefill and decode mixed. Row t of every list is the same token.
#[derive(Clone, Copy, Debug)]
pub struct StepInput<'a> {
    /// T token ids.
    pub input_ids: &'a [u32],
    /// T positions in their sequences.
    pub positions: &'a [u32],
    /// T slots of the KV cache that receive the row's key and value: `block_id * BLOCK_SIZE + position % BLOCK_SIZE`.
    pub slot_mapping: &'a [u32],
    /// Which rows belong together, in ascending order of their rows.
    pub sequences: &'a [SequenceSpan<'a>],
    /// The rows whose logits are wanted.
    pub sample_rows: &'a [u32],
}

/// The rows of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct SequenceSpan<'a> {
    /// The first of them.
    pub first_row: usize,
    /// How many.
    pub rows: usize,
    /// The position of the first row; the others follow.
    pub start_position: usize,
    /// KV blocks of positions 0.., at least up to the last row's.
    pub block_table: &'a [u32],
}

impl<'a> SequenceSpan<'a> {
    /// As the attention operation wants it.
    pub(super) fn as_rows(&self) -> SequenceRows<'a> {
        let SequenceSpan { first_row, rows: num_rows, start_position, block_table } = *self;
        SequenceRows { first_row, num_rows, start_position, block_table }
    }
}
