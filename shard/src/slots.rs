//! The live rows of this rank, and how a plan changes them.
//!
//! A plan is checked whole before anything changes ([`Slots::check`]), so applying it cannot fail. Whatever a check
//! refuses is a disagreement between router and shard about the state; there is nothing to repair, the epoch ends.

use kernels::ops::sample::{NO_RESULT, NOT_COUNTED, Sampled, counted_as};
use proto::unpack_u32;
use proto::v1::{NewSlot, Plan, SlotState};

use crate::sampling::{Choice, History, Params, RowFailure};
use crate::violation::Violation;

mod check;
mod prompt_lookup;

use self::check::Check;
use self::prompt_lookup::PromptLookup;

/// The bounds that plans are held against.
#[derive(Clone, Copy, Debug)]
pub struct SlotLimits {
    /// Slot ids are below this.
    pub max_slots: usize,
    /// Block ids are below this.
    pub num_blocks: usize,
    /// Tokens per block.
    pub block_size: usize,
    /// Longest sequence, in tokens.
    pub max_context: usize,
    /// Tokens that one plan may compute.
    pub max_step_tokens: usize,
    /// Rows of one plan whose logits may be wanted.
    pub max_logit_rows: usize,
    /// Token ids are below this.
    pub vocab_size: usize,
    /// Whether the device of this rank samples what it can.
    pub device_samples: bool,
}

/// All slots of this rank.
#[derive(Debug)]
pub struct Slots {
    limits: SlotLimits,
    /// What plans are checked against, dense.
    shapes: Vec<Shape>,
    slots: Vec<Slot>,
    /// `continues` of the last plan, for `same_rows`.
    continues: Vec<u32>,
    last_seq: u64,
    /// The shapes as the plan under check leaves them.
    scratch: Vec<Shape>,
    /// The draft of the row at hand.
    draft: Vec<u32>,
    /// Slots whose tokens the device counts, opened since the last step with rows.
    opened: Vec<OpenedSlot>,
}

/// A slot whose tokens the device counts, from nothing on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenedSlot {
    /// Which.
    pub slot: u32,
    /// Its tokens whose KV was in the cache, each with how it is [counted](counted_as).
    pub earlier: Vec<(u32, u32)>,
}

/// One live row.
#[derive(Debug, Default)]
pub struct Slot {
    /// For logs and error texts.
    pub request_id: u64,
    /// How its tokens are chosen.
    pub params: Params,
    /// Whether the device of this rank samples its tokens; the processor does otherwise.
    pub on_device: bool,
    /// KV blocks in order of position.
    pub block_table: Vec<u32>,
    /// The tokens whose KV is computed, as far as the parameters need them and the processor samples. While a row is being sampled: those before the
    /// token at hand.
    pub history: History,
    /// The same tokens, all of them, if it speculates.
    lookup: PromptLookup,
    /// What the last row says, while it predicts a prompt token that has not come yet and whose log-probability is wanted.
    pub kept: Option<KeptLogits>,
    /// What `Continue` computes next.
    pub last_token: u32,
    /// Where that token is instead, if the device has it and this processor not yet.
    expected: Option<ExpectedToken>,
    /// Whether it was continued from while it was expected: it is noted when it arrives.
    continued_early: bool,
    /// The plan that opened the slot.
    opened: u64,
    /// Why its sampling failed. Such a row goes on computing until the router frees it, because all ranks must run the
    /// same rows; it just has no samples any more.
    pub failure: Option<RowFailure>,
}

/// The logits of a row that predicts a token which is not known yet.
#[derive(Clone, Debug)]
pub struct KeptLogits {
    /// Of the whole vocabulary.
    pub logits: Vec<f32>,
    /// What the device says of them, if it scores the slot's prompt.
    pub of_device: Option<Sampled>,
}

/// A token that is on its way from the device.
#[derive(Clone, Copy, Debug)]
struct ExpectedToken {
    /// The plan that sampled it.
    seq: u64,
    /// Which of that plan's results it is.
    result: u32,
}

/// The part of a slot that decides whether a plan is legal.
#[derive(Clone, Copy, Debug, Default)]
struct Shape {
    live: bool,
    speculates: bool,
    /// Whether a token was sampled after the last one computed.
    sampled: bool,
    /// Whether the plan under check has a row for it already.
    has_row: bool,
    /// Tokens whose KV is computed.
    length: usize,
    num_blocks: usize,
    /// Tokens below this position have log-probabilities to report; 0 if none are wanted.
    scored_tokens: usize,
}

/// The rows of one step, in plan order. Reused from step to step.
#[derive(Debug, Default)]
pub struct Rows {
    /// Token ids, `[T]`; 0 where they are on their way.
    pub input_ids: Vec<u32>,
    /// Which result of the step before is the row's token, `[T]`, [`NO_RESULT`] where it is known; empty if all are.
    pub continued: Vec<u32>,
    /// Absolute positions, `[T]`.
    pub positions: Vec<u32>,
    /// `block_id · block_size + offset` of each token's KV, `[T]`.
    pub slot_mapping: Vec<u32>,
    /// How the device [counts](counted_as) the row's token, [`NOT_COUNTED`] where it does not; none behind the last that it counts.
    pub counted: Vec<u32>,
    /// Which rows belong to which slot.
    pub spans: Vec<Span>,
    /// Rows whose logits are wanted, `[S]`, ascending.
    pub logit_rows: Vec<u32>,
    /// What is sampled, in plan order.
    pub sampled: Vec<SampledRow>,
    /// Prompt tokens whose log-probabilities are wanted, in plan order; those of a chunk follow each other.
    pub scored: Vec<ScoredToken>,
    /// Slots whose last row predicts a prompt token of their next chunk, with the index of its logits.
    pub kept: Vec<(u32, usize)>,
    /// Tokens of the draft per row of `continues`; empty if the plan allows nobody a draft.
    pub draft_tokens: Vec<u8>,
}

/// A row from whose logits a token is sampled, and the rows of the draft after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampledRow {
    /// Its slot.
    pub slot: u32,
    /// Position of the token to sample.
    pub position: u32,
    /// Index of its logits in `logit_rows`; those of its draft follow.
    pub logits: usize,
    /// Its index in the step; the tokens of its draft follow.
    pub row: usize,
    /// Tokens of its draft. From the logits of each another token is sampled, if all before it were right.
    pub draft_tokens: usize,
}

/// A prompt token whose log-probability is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScoredToken {
    /// Its slot.
    pub slot: u32,
    /// Its position.
    pub position: u32,
    /// The token.
    pub token_id: u32,
    /// The logits that predict it.
    pub predicted_by: Prediction,
}

/// Where the logits are that predict a prompt token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prediction {
    /// In the slot: the row before the token was the last one of an earlier chunk.
    Kept,
    /// Among those of this step, at this index in `logit_rows`.
    Row(usize),
}

/// Consecutive rows of one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The slot.
    pub slot: u32,
    /// Index of its first row in the step.
    pub first_row: usize,
    /// Number of rows.
    pub num_rows: usize,
    /// Absolute position of the first row.
    pub start_position: usize,
}

impl Slots {
    /// Slots without a live row, before the first plan.
    pub fn new(limits: SlotLimits) -> Slots {
        Slots {
            limits,
            shapes: vec![Shape::default(); limits.max_slots],
            slots: (0..limits.max_slots).map(|_| Slot::default()).collect(),
            continues: Vec::with_capacity(limits.max_slots),
            last_seq: 0,
            scratch: Vec::with_capacity(limits.max_slots),
            draft: Vec::new(),
            opened: Vec::new(),
        }
    }

    /// Frees every slot and expects plan 1 next: the start of an epoch.
    pub fn clear(&mut self) {
        self.shapes.fill(Shape::default());
        self.slots.iter_mut().for_each(|slot| slot.kept = None);
        self.continues.clear();
        self.opened.clear();
        self.last_seq = 0;
    }

    /// Those whose tokens the device counts, opened since this was asked last.
    pub fn take_opened(&mut self) -> Vec<OpenedSlot> {
        std::mem::take(&mut self.opened)
    }

    /// Number of the last plan that was applied.
    pub fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// The bounds that plans are held against.
    pub fn limits(&self) -> &SlotLimits {
        &self.limits
    }

    /// A live slot.
    pub fn get(&self, slot: u32) -> &Slot {
        debug_assert!(self.shapes[slot as usize].live);
        &self.slots[slot as usize]
    }

    /// A live slot, to record what was sampled.
    pub fn get_mut(&mut self, slot: u32) -> &mut Slot {
        debug_assert!(self.shapes[slot as usize].live);
        &mut self.slots[slot as usize]
    }

    /// The live slots, for a person.
    pub fn inspect(&self) -> Vec<SlotState> {
        let live = self.shapes.iter().zip(&self.slots).enumerate().filter(|(_, (shape, _))| shape.live);
        live.map(|(index, (shape, slot))| SlotState {
            slot: index as u32,
            request_id: slot.request_id,
            length: shape.length as u32,
            block_table: slot.block_table.clone(),
            last_token: slot.last_token,
        })
        .collect()
    }

    /// Whether `plan` is legal now.
    ///
    /// # Errors
    /// The first [`Violation`], in the order in which the plan would be applied. Nothing has changed then.
    pub fn check(&mut self, plan: &Plan) -> Result<(), Violation> {
        if plan.seq != self.last_seq + 1 {
            return Err(Violation::Sequence { actual: plan.seq, expected: self.last_seq + 1 });
        }
        let mut shapes = std::mem::take(&mut self.scratch);
        shapes.clear();
        shapes.extend_from_slice(&self.shapes);
        let verdict = Check { limits: &self.limits, shapes: &mut shapes, logit_rows: 0 }.plan(plan, &self.continues);
        self.scratch = shapes;
        verdict
    }

    /// Carries out a plan that [`Slots::check`] accepted, and lists its rows.
    pub fn apply(&mut self, plan: &Plan, rows: &mut Rows) {
        for slot in packed(&plan.freed_slots) {
            self.shapes[slot as usize] = Shape::default();
            self.slots[slot as usize].kept = None;
        }
        plan.new_slots.iter().for_each(|new| self.open(new, plan.seq));
        for (slot, block_id) in pairs(&plan.appended_blocks) {
            self.slots[slot as usize].block_table.push(block_id);
            self.shapes[slot as usize].num_blocks += 1;
        }
        if !plan.same_rows {
            self.continues.clear();
            self.continues.extend(packed(&plan.continues));
        }
        rows.clear();
        for index in 0..self.continues.len() {
            let draft_limit = plan.draft_limits.get(index).copied();
            let draft_tokens = self.continue_row(self.continues[index], draft_limit.unwrap_or(0), rows);
            // A draft is no longer than its limit, which is a byte.
            rows.draft_tokens.extend(draft_limit.map(|_| draft_tokens as u8));
        }
        for chunk in &plan.chunks {
            self.extend(chunk.slot, packed(&chunk.ids), chunk.sample, rows);
        }
        self.last_seq = plan.seq;
    }

    /// Takes back the tokens of a draft from the one on that was wrong. `right` tokens of it were what was sampled.
    pub fn settle(&mut self, row: &SampledRow, draft: &[u32], right: usize) {
        let (slot, shape) = (&mut self.slots[row.slot as usize], &mut self.shapes[row.slot as usize]);
        shape.length -= row.draft_tokens - right;
        draft[..right].iter().for_each(|&token_id| slot.lookup.push(token_id));
    }

    /// The token that plan `seq` samples for a slot is result `result` of its device, and will arrive later.
    pub fn expect(&mut self, slot: u32, seq: u64, result: u32) {
        self.slots[slot as usize].expected = Some(ExpectedToken { seq, result });
    }

    /// What was expected for a row of plan `seq` arrives. Returns what counts: a slot that has failed before has no tokens any more.
    ///
    /// # Errors
    /// Why there is no token.
    pub fn arrive(
        &mut self,
        row: &SampledRow,
        seq: u64,
        choice: Result<Choice, RowFailure>,
    ) -> Result<Choice, RowFailure> {
        let (shape, slot) = (&self.shapes[row.slot as usize], &mut self.slots[row.slot as usize]);
        // A later plan may have freed the slot meanwhile, or opened it for another request.
        if !shape.live || slot.opened > seq {
            return choice;
        }
        let choice = slot.failure.clone().map_or(choice, Err);
        let token_id = choice.as_ref().map_or(0, |choice| choice.token_id);
        if std::mem::take(&mut slot.continued_early) {
            slot.note(row.position, token_id, shape.speculates);
        }
        slot.last_token = token_id;
        slot.failure = choice.as_ref().err().cloned();
        // A later plan's may be expected already.
        slot.expected = slot.expected.filter(|expected| expected.seq != seq);
        choice
    }

    fn open(&mut self, new: &NewSlot, seq: u64) {
        let slot = &mut self.slots[new.slot as usize];
        (slot.opened, slot.expected, slot.continued_early) = (seq, None, false);
        slot.request_id = new.request_id;
        slot.params = Params::new(new.params.clone().unwrap_or_default(), new.prompt_tokens, new.masked);
        slot.on_device = self.limits.device_samples && slot.params.is_for_device();
        slot.block_table.clear();
        slot.block_table.extend(packed(&new.block_table));
        slot.history.clear();
        slot.lookup.clear();
        for (position, id) in (0..).zip(packed(&new.cached_ids)) {
            slot.note(position, id, new.speculates);
        }
        // Another may have had the number since the last step with rows.
        self.opened.retain(|opened| opened.slot != new.slot);
        if slot.counts_on_device() {
            let earlier =
                (0..).zip(packed(&new.cached_ids)).map(|(position, id)| (id, slot.counted(new.slot, position)));
            self.opened.push(OpenedSlot { slot: new.slot, earlier: earlier.collect() });
        }
        slot.last_token = 0;
        slot.failure = None;
        self.shapes[new.slot as usize] = Shape {
            live: true,
            speculates: new.speculates,
            length: new.cached_tokens as usize,
            num_blocks: slot.block_table.len(),
            scored_tokens: scored_tokens(new),
            ..Shape::default()
        };
    }

    /// Appends the token sampled last and, within the limit, a draft of what comes after it. Returns the draft's length.
    fn continue_row(&mut self, slot_id: u32, draft_limit: u8, rows: &mut Rows) -> usize {
        let (slot, shape) = (&mut self.slots[slot_id as usize], &mut self.shapes[slot_id as usize]);
        let (row, start_position) = (rows.input_ids.len(), shape.length);
        let last_token = if slot.expected.is_some() { 0 } else { slot.last_token };
        slot.continued_early = slot.expected.is_some();
        if !slot.continued_early {
            slot.note(start_position as u32, last_token, shape.speculates);
        }
        self.draft.clear();
        // Counts on the device are those before a row; of a draft each row would need others.
        if draft_limit > 0 && !slot.counts_on_device() {
            slot.lookup.propose(draft_limit.into(), &mut self.draft);
        }
        let (draft_tokens, logits) = (self.draft.len(), rows.logit_rows.len());
        for id in std::iter::once(last_token).chain(self.draft.iter().copied()) {
            rows.push(id, shape.length, slot_id, slot, self.limits.block_size);
            rows.want_logits();
            shape.length += 1;
        }
        if let Some(expected) = slot.expected {
            rows.continue_from(row, expected.result);
        }
        rows.spans.push(Span { slot: slot_id, first_row: row, num_rows: 1 + draft_tokens, start_position });
        rows.sampled.push(SampledRow { slot: slot_id, position: start_position as u32 + 1, logits, row, draft_tokens });
        draft_tokens
    }

    /// Appends tokens of a prompt: one row each.
    fn extend(&mut self, slot_id: u32, ids: impl ExactSizeIterator<Item = u32>, sample: bool, rows: &mut Rows) {
        let (slot, shape) = (&mut self.slots[slot_id as usize], &mut self.shapes[slot_id as usize]);
        let (first_row, start_position) = (rows.input_ids.len(), shape.length);
        rows.spans.push(Span { slot: slot_id, first_row, num_rows: ids.len(), start_position });
        // What predicts the token at hand, if that is known.
        let mut prediction = slot.kept.is_some().then_some(Prediction::Kept);
        for id in ids {
            let position = shape.length as u32;
            if let Some(predicted_by) = prediction.take().filter(|_| shape.length < shape.scored_tokens) {
                rows.scored.push(ScoredToken { slot: slot_id, position, token_id: id, predicted_by });
            }
            rows.push(id, shape.length, slot_id, slot, self.limits.block_size);
            shape.length += 1;
            slot.note(position, id, shape.speculates);
            if shape.length < shape.scored_tokens {
                prediction = Some(Prediction::Row(rows.want_logits()));
            }
        }
        if sample {
            let logits = match prediction {
                Some(Prediction::Row(logits)) => logits,
                _ => rows.want_logits(),
            };
            let (position, row) = (shape.length as u32, rows.input_ids.len() - 1);
            rows.sampled.push(SampledRow { slot: slot_id, position, logits, row, draft_tokens: 0 });
        }
        if let Some(Prediction::Row(logits)) = prediction {
            rows.kept.push((slot_id, logits));
        }
        shape.sampled = sample;
    }
}

impl Slot {
    /// Remembers a token whose KV is computed, for whoever needs it.
    fn note(&mut self, position: u32, token_id: u32, speculates: bool) {
        if !self.on_device {
            self.history.push(&self.params, position, token_id);
        }
        if speculates {
            self.lookup.push(token_id);
        }
    }

    /// Whether the device counts its tokens.
    fn counts_on_device(&self) -> bool {
        self.on_device && self.params.counts_tokens()
    }

    /// How the device counts its token at `position`.
    fn counted(&self, slot_id: u32, position: u32) -> u32 {
        counted_as(slot_id, position >= self.params.prompt_tokens)
    }
}

impl Rows {
    /// The tokens of a row's draft.
    pub fn draft_of(&self, row: &SampledRow) -> &[u32] {
        &self.input_ids[row.row + 1..][..row.draft_tokens]
    }

    /// One row: a token of `slot` at `position`.
    fn push(&mut self, token_id: u32, position: usize, slot_id: u32, slot: &Slot, block_size: usize) {
        let block_id = slot.block_table[position / block_size] as usize;
        if slot.counts_on_device() {
            self.counted.resize(self.input_ids.len(), NOT_COUNTED);
            self.counted.push(slot.counted(slot_id, position as u32));
        }
        self.input_ids.push(token_id);
        if !self.continued.is_empty() {
            self.continued.push(NO_RESULT);
        }
        self.positions.push(position as u32);
        self.slot_mapping.push((block_id * block_size + position % block_size) as u32);
    }

    /// The token of a row is a result of the step before.
    fn continue_from(&mut self, row: usize, result: u32) {
        self.continued.resize(self.input_ids.len(), NO_RESULT);
        self.continued[row] = result;
    }

    fn clear(&mut self) {
        self.input_ids.clear();
        self.continued.clear();
        self.counted.clear();
        self.positions.clear();
        self.slot_mapping.clear();
        self.spans.clear();
        self.logit_rows.clear();
        self.sampled.clear();
        self.scored.clear();
        self.kept.clear();
        self.draft_tokens.clear();
    }

    /// Asks for the logits of the last row. Returns their index.
    fn want_logits(&mut self) -> usize {
        self.logit_rows.push(self.input_ids.len() as u32 - 1);
        self.logit_rows.len() - 1
    }
}

/// Tokens below this position have log-probabilities to report.
fn scored_tokens(new: &NewSlot) -> usize {
    if new.params.as_ref().is_some_and(|params| params.prompt_logprobs) { new.prompt_tokens as usize } else { 0 }
}

fn field<'a>(name: &'static str, bytes: &'a [u8]) -> Result<impl ExactSizeIterator<Item = u32> + 'a, Violation> {
    unpack_u32(bytes).map_err(|error| Violation::Packed { field: name, length: error.length, record: error.record })
}

/// The values of a packed field whose length was checked.
fn packed(field: &[u8]) -> impl ExactSizeIterator<Item = u32> + '_ {
    unpack_u32(field).expect("checked: the length is a whole number of records")
}

/// The (slot, block_id) pairs of a field whose length was checked.
fn pairs(field: &[u8]) -> impl Iterator<Item = (u32, u32)> + '_ {
    let (records, _) = field.as_chunks::<8>();
    records.iter().map(|&[s0, s1, s2, s3, b0, b1, b2, b3]| {
        (u32::from_le_bytes([s0, s1, s2, s3]), u32::from_le_bytes([b0, b1, b2, b3]))
    })
}

#[cfg(test)]
mod tests;
