//! Where the grammar masks of a stream wait for the sampler, and the sampler for them.
//!
//! The one place where the engine thread waits for a router. Whatever ends an epoch wakes it: the end of the stream, a newer
//! stream, the end of the process, and [`MASK_TIMEOUT`].

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use proto::v1::{Mask, Masks};

use super::{Heartbeat, StreamId};
use crate::limits::{MASK_TIMEOUT, MAX_PLANS_IN_FLIGHT};
use crate::masks::{MaskError, MaskSource, NoMasks, StepMasks};
use crate::sampling::mask_bytes;
use crate::slots::SlotLimits;
use crate::violation::Violation;

/// Masks that arrived and were not taken yet: at most one per slot for each of the plans that can be in flight.
#[derive(Debug)]
pub(super) struct MaskBox {
    max_slots: usize,
    mask_bytes: usize,
    timeout: Duration,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// The stream that is served; masks of others are passed over.
    stream: StreamId,
    /// The last plan whose masks were taken.
    taken: u64,
    /// The last plan for which masks arrived.
    latest: u64,
    /// By plan.
    waiting: BTreeMap<u64, StepMasks>,
}

impl MaskBox {
    pub(super) fn new(limits: &SlotLimits) -> MaskBox {
        MaskBox {
            max_slots: limits.max_slots,
            mask_bytes: mask_bytes(limits.vocab_size),
            timeout: MASK_TIMEOUT,
            state: Mutex::new(State { stream: StreamId::NONE, taken: 0, latest: 0, waiting: BTreeMap::new() }),
            changed: Condvar::new(),
        }
    }

    /// Serves `stream` from now on; a step of another one that waits is interrupted.
    pub(super) fn serve(&self, stream: StreamId) {
        *self.state() = State { stream, taken: 0, latest: 0, waiting: BTreeMap::new() };
        self.changed.notify_all();
    }

    /// Takes delivery of a message of `stream`.
    ///
    /// # Errors
    /// The [`Violation`] that ends the epoch: a plan that cannot be in flight, a slot twice, or a mask of the wrong size.
    pub(super) fn deliver(&self, stream: StreamId, Masks { seq, masks }: Masks) -> Result<(), Violation> {
        let mut state = self.state();
        if state.stream != stream {
            return Ok(());
        }
        let (first, last) = (state.latest.max(state.taken + 1), state.taken + MAX_PLANS_IN_FLIGHT as u64);
        if !(first..=last).contains(&seq) {
            return Err(Violation::MaskSeq { actual: seq, first, last });
        }
        state.latest = seq;
        let of_plan = state.waiting.entry(seq).or_default();
        for Mask { slot, allowed } in masks {
            if slot as usize >= self.max_slots {
                return Err(Violation::SlotId { slot, max_slots: self.max_slots });
            }
            if !allowed.len().is_multiple_of(4) {
                return Err(Violation::Packed { field: "masks.allowed", length: allowed.len(), record: 4 });
            }
            if allowed.len() > self.mask_bytes {
                return Err(Violation::MaskLength { slot, actual: allowed.len(), max: self.mask_bytes });
            }
            if of_plan.insert(slot, allowed).is_some() {
                return Err(Violation::TwoMasks { seq, slot });
            }
        }
        self.changed.notify_all();
        Ok(())
    }

    /// See [`MaskSource::take`].
    fn take(&self, stream: StreamId, seq: u64, slots: &[u32]) -> Result<StepMasks, MaskError> {
        let began = Instant::now();
        let mut state = self.state();
        loop {
            if state.stream != stream {
                return Err(MaskError::Interrupted);
            }
            let arrived = state.waiting.get(&seq);
            let has_row = |slot: &u32| slots.contains(slot);
            if let Some(&slot) = arrived.and_then(|masks| masks.keys().find(|&slot| !has_row(slot))) {
                return Err(Violation::MaskSlot { seq, slot }.into());
            }
            let has_mask = |slot| arrived.is_some_and(|masks| masks.contains_key(&slot));
            let Some(missing) = slots.iter().find(|&&slot| !has_mask(slot)) else {
                state.taken = seq;
                return Ok(state.waiting.remove(&seq).unwrap_or_default());
            };
            let waited = began.elapsed();
            if waited >= self.timeout {
                return Err(Violation::MaskMissing { seq, slot: *missing, waited }.into());
            }
            state = self.changed.wait_timeout(state, self.timeout - waited).expect("nobody panics with it").0;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics with it")
    }
}

/// The masks of the step in flight. Waiting for them is not the shard's work: neither its heartbeat nor its pace count it.
pub(super) struct StreamMasks<'a> {
    pub(super) masks: &'a MaskBox,
    /// `None` for a step by hand, which has no grammar.
    pub(super) stream: Option<StreamId>,
    pub(super) heartbeat: &'a Heartbeat,
    /// Time spent waiting so far.
    pub(super) waited: Duration,
}

impl MaskSource for StreamMasks<'_> {
    fn take(&mut self, seq: u64, slots: &[u32]) -> Result<StepMasks, MaskError> {
        let Some(stream) = self.stream else { return NoMasks.take(seq, slots) };
        let pause = self.heartbeat.step_pauses();
        let masks = self.masks.take(stream, seq, slots);
        self.waited += self.heartbeat.step_resumes(pause);
        masks
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const STREAM: StreamId = StreamId(3);

    /// Two slots, 40 tokens, and no patience.
    fn serving() -> MaskBox {
        let limits = SlotLimits {
            device_samples: false,
            max_slots: 2,
            num_blocks: 1,
            block_size: 1,
            max_context: 1,
            max_step_tokens: 1,
            max_logit_rows: 1,
            vocab_size: 40,
        };
        let masks = MaskBox { timeout: Duration::ZERO, ..MaskBox::new(&limits) };
        masks.serve(STREAM);
        masks
    }

    fn masks(seq: u64, slots: &[u32]) -> Masks {
        let mask = |&slot: &u32| Mask { slot, allowed: Bytes::from_static(&[1, 2, 3, 4]) };
        Masks { seq, masks: slots.iter().map(mask).collect() }
    }

    #[test]
    fn masks_wait_in_any_number_of_messages_until_they_are_taken() {
        let serving = serving();
        serving.deliver(STREAM, masks(1, &[1])).unwrap();
        serving.deliver(STREAM, masks(1, &[0])).unwrap();
        serving.deliver(STREAM, masks(2, &[0])).unwrap();
        let taken = serving.take(STREAM, 1, &[0, 1]).unwrap();
        assert_eq!(taken.into_keys().collect::<Vec<_>>(), [0, 1]);
        assert_eq!(serving.take(STREAM, 2, &[0]).unwrap().len(), 1);
        assert!(serving.take(STREAM, 3, &[]).unwrap().is_empty());
        assert!(serving.state().waiting.is_empty());
    }

    #[track_caller]
    fn check_refused(deliveries: &[Masks], expected: &str) {
        let serving = serving();
        serving.take(STREAM, 1, &[]).unwrap();
        let (last, before) = deliveries.split_last().unwrap();
        before.iter().for_each(|masks| serving.deliver(STREAM, masks.clone()).unwrap());
        assert_eq!(serving.deliver(STREAM, last.clone()).unwrap_err().to_string(), expected);
    }

    #[test]
    fn what_cannot_belong_to_a_plan_in_flight_is_refused() {
        check_refused(&[masks(1, &[0])], "masks for plan 1 arrived, expected masks for a plan from 2 to 5");
        check_refused(&[masks(6, &[0])], "masks for plan 6 arrived, expected masks for a plan from 2 to 5");
        let out_of_order = [masks(3, &[0]), masks(2, &[0])];
        check_refused(&out_of_order, "masks for plan 2 arrived, expected masks for a plan from 3 to 5");
        check_refused(&[masks(2, &[0]), masks(2, &[0])], "slot 0 has two masks for plan 2");
        check_refused(&[masks(2, &[2])], "slot 2 does not exist: ids end below 2");
        let sized = |bytes: usize| Masks { seq: 2, masks: vec![Mask { slot: 0, allowed: vec![0; bytes].into() }] };
        check_refused(&[sized(6)], "`masks.allowed` has 6 bytes, which is no multiple of 4");
        check_refused(&[sized(12)], "slot 0: the mask has 12 bytes; the vocabulary takes 8");
    }

    #[test]
    fn a_mask_without_a_row_and_a_row_without_a_mask_end_the_epoch() {
        let serving = serving();
        let error = serving.take(STREAM, 1, &[0]).unwrap_err();
        assert!(error.to_string().starts_with("no mask for slot 0 of plan 1 arrived within "), "{error}");
        serving.deliver(STREAM, masks(1, &[1])).unwrap();
        let error = serving.take(STREAM, 1, &[0]).unwrap_err();
        assert_eq!(error.to_string(), "slot 1 has a mask for plan 1, which samples no row of it under a grammar");
    }

    #[test]
    fn another_stream_has_its_own() {
        let serving = serving();
        serving.deliver(StreamId(2), masks(9, &[7])).unwrap();
        serving.deliver(STREAM, masks(1, &[0])).unwrap();
        serving.serve(StreamId(4));
        assert_eq!(serving.take(STREAM, 1, &[0]), Err(MaskError::Interrupted));
        assert!(serving.take(StreamId(4), 1, &[]).unwrap().is_empty(), "the masks of the stream before are gone");
    }
}
