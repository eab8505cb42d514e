//! What the sampler of a step asks for: the grammar masks of its rows.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use crate::violation::Violation;

/// Masks of one step by slot: bit `id % 8` of byte `id / 8` allows a token.
pub type StepMasks = BTreeMap<u32, Bytes>;

/// Where the masks of a step come from.
pub trait MaskSource {
    /// The masks of plan `seq`, once those of all `slots` are there: of every sampled row with `masked`, also of one that
    /// failed earlier (its router learns of it one step late and sends one that allows everything). Called once for every
    /// plan, also if `slots` is empty.
    ///
    /// # Errors
    /// [`MaskError`]. The step cannot be completed then.
    fn take(&mut self, seq: u64, slots: &[u32]) -> Result<StepMasks, MaskError>;
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
    fn take(&mut self, seq: u64, slots: &[u32]) -> Result<StepMasks, MaskError> {
        match slots.first() {
            Some(&slot) => Err(Violation::MaskMissing { seq, slot, waited: Duration::ZERO }.into()),
            None => Ok(StepMasks::new()),
        }
    }
}
