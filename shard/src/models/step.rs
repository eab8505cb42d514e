//! What a model is asked to compute in one step.

use kernels::ops::AttentionRows;
pub use kernels::ops::SequenceRows;
use kernels::ops::sample::ContinuedRows;
use kernels::{Cost, Indices, StepLists};

use crate::error::Result;

/// Token rows of several sequences, prefill and decode mixed. Row t of every list is the same token.
#[derive(Clone, Copy)]
pub struct StepRows<'a> {
    /// T token ids; any where they are results of the step before.
    pub input_ids: &'a [u32],
    /// T numbers of results of the step before, which the device has, [`NO_RESULT`](kernels::ops::sample::NO_RESULT) where the token is
    /// known; empty if all are.
    pub continued: &'a [u32],
    /// T positions in their sequences.
    pub positions: &'a [u32],
    /// T slots of the KV cache that receive the row's key and value: `block_id * BLOCK_SIZE + position % BLOCK_SIZE`.
    pub slot_mapping: &'a [u32],
    /// Which rows belong together, in ascending order of their rows.
    pub sequences: &'a [SequenceRows<'a>],
    /// The rows whose logits are wanted.
    pub sample_rows: &'a [u32],
}

/// What a step takes.
#[derive(Clone, Copy, Debug)]
pub struct StepPlan {
    /// Bytes of an arena.
    pub arena_bytes: usize,
    /// Bytes read and written at least, and arithmetic.
    pub cost: Cost,
}

/// The same, where the model's device reads it.
pub struct StepInput<'a> {
    pub(super) input_ids: Indices<'a>,
    pub(super) continued: Option<ContinuedRows>,
    pub(super) positions: Indices<'a>,
    pub(super) slot_mapping: Indices<'a>,
    pub(super) attention: AttentionRows<'a>,
    pub(super) sample_rows: Indices<'a>,
}

impl<'a> StepInput<'a> {
    /// Adds the rows to the lists of their step, which are still to be sent.
    ///
    /// # Errors
    /// If there are more than the lists were made for.
    pub fn new(rows: &StepRows<'a>, lists: &mut StepLists) -> Result<StepInput<'a>> {
        let input_ids = lists.indices(rows.input_ids)?;
        Ok(StepInput {
            input_ids,
            continued: lists.continued(input_ids, rows.continued)?,
            positions: lists.indices(rows.positions)?,
            slot_mapping: lists.indices(rows.slot_mapping)?,
            attention: lists.attention(rows.sequences)?,
            sample_rows: lists.indices(rows.sample_rows)?,
        })
    }

    /// The tokens of the rows.
    pub fn input_ids(&self) -> Indices<'a> {
        self.input_ids
    }

    /// The rows as the processor reads them.
    pub fn of_host(rows: &StepRows<'a>) -> StepInput<'a> {
        StepInput {
            input_ids: rows.input_ids.into(),
            continued: None,
            positions: rows.positions.into(),
            slot_mapping: rows.slot_mapping.into(),
            attention: AttentionRows::new(rows.sequences),
            sample_rows: rows.sample_rows.into(),
        }
    }
}
