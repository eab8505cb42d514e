//! What the sampler of a step asks for: the grammar masks of its rows.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use crate::violation::Violation;

/// Masks of one step by slot: bit `id % 8` of byte `id / 8` allows a token.
pub type StepMasks = BTreeMap<u32, Bytes>;

/// A sampled row of a slot with `masked`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaskedRow {
    /// Its slot.
    pub slot: u32,
    /// False for a row that failed earlier: it is not sampled, and its router, which learns of it one step late, cannot know
    /// what the grammar allows after it.
    pub required: bool,
}

/// Where the masks of a step come from.
pub trait MaskSource {
    /// The masks of plan `seq`, once every required one of `rows` is there. Called once for every plan, also if `rows` is
    /// empty.
    ///
    /// # Errors
    /// [`MaskError`]. The step cannot be completed then.
    fn take(&mut self, seq: u64, rows: &[MaskedRow]) -> Result<StepMasks, MaskError>;
}

/// Why the masks of a step will not come.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum MaskError {
    /// The router sent none, or others.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// The epoch ended while the step waited for them.
    #[error("the stream ended while the step waited for its grammar masks")]
    Interrupted,
}

/// For steps without masked rows.
#[derive(Clone, Copy, Debug)]
pub struct NoMasks;

impl MaskSource for NoMasks {
    fn take(&mut self, seq: u64, rows: &[MaskedRow]) -> Result<StepMasks, MaskError> {
        match rows.iter().find(|row| row.required) {
            Some(&MaskedRow { slot, .. }) => Err(Violation::MaskMissing { seq, slot, waited: Duration::ZERO }.into()),
            None => Ok(StepMasks::new()),
        }
    }
}
