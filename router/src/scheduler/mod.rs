//! The scheduler: a pure state machine over requests, slots and blocks. No clock, no I/O, no threads.
//!
//! ```text
//! submit ──▶ waiting ──▶ running (a slot, blocks) ──▶ gone: finished, failed or cancelled
//!               ▲            │ preempted, or the epoch died
//!               └────────────┘ prompt + emitted tokens
//! ```
//! The engine calls [`Scheduler::plan`] until it says that enough plans are in flight, sends what it gets, feeds what
//! comes back to [`Scheduler::apply`], and tells clients what [`Scheduler::take_outputs`] holds. Whatever goes wrong with
//! the shards ends in [`Scheduler::reset`], which puts every running row on the way that preemption uses all day.
//! How a step is filled is told in `plan.rs`.

use std::collections::VecDeque;

use crate::kv::{BlockCounts, BlockId, KvCache, PrefixKey};
use crate::limits;
use crate::request::GenerateRequest;

mod plan;
mod row;
#[cfg(test)]
mod simulation;
mod speculation;
mod step;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod tiny_shard;

pub use step::{
    ApplyError, Chunk, MaskedRow, NewSlot, PromptLogprob, PromptRun, SampledRow, SlotId, StepOutcome, StepPlan,
};

use row::{Row, Sequence, Tenancy};
use speculation::{Decoded, Speculation, Stake};

/// A request's number. Lower is older: age decides who is preempted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// What the shard group can hold. May change when it comes back from a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// KV blocks.
    pub num_blocks: u32,
    /// Rows that can be live.
    pub max_slots: u32,
    /// Token rows per step.
    pub max_step_tokens: u32,
    /// Rows per step whose logits can be computed: sampled rows, and all rows of prompts whose log-probabilities are asked
    /// for.
    pub max_logit_rows: u32,
}

/// What stays the same for the scheduler's life.
#[derive(Clone)]
pub struct SchedulerConfig {
    /// Tokens per KV block.
    pub block_size: u32,
    /// Token ids are below it.
    pub vocab_size: u32,
    /// Tokens that end a sequence.
    pub eos_token_ids: Vec<u32>,
    /// Plans in flight at most.
    pub run_ahead: usize,
    /// The longest draft of a row, in tokens; 0 for none.
    pub max_draft_tokens: u8,
    /// Secret of the prefix index.
    pub prefix_key: PrefixKey,
}

/// News for a client.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// Whose.
    pub request: RequestId,
    /// What.
    pub event: OutputEvent,
}

/// What happened to a request. `Finished` and `Failed` are the last.
#[derive(Clone, Debug, PartialEq)]
pub enum OutputEvent {
    /// It entered a batch for the first time.
    Scheduled {
        /// Tokens found in the prefix cache.
        cached_tokens: u32,
    },
    /// The log-probabilities of its prompt's tokens from the second on; once, before its first token, if asked for.
    Prompt {
        /// One per token.
        logprobs: Vec<PromptLogprob>,
    },
    /// It has one more token.
    Token {
        /// The id.
        id: u32,
        /// Log-probability after all warpers.
        logprob: f32,
        /// The most likely tokens, if asked for.
        top: Option<Box<[(u32, f32)]>>,
    },
    /// Its last token was the one before.
    Finished(FinishReason),
    /// It ended alone.
    Failed(Failure),
}

/// Why a complete reply has no more tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// `max_new_tokens` were generated.
    Length,
    /// The model ended the sequence.
    EosToken,
}

/// Why a request ended without its reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The shards refused this row alone.
    #[error("the shard failed this request: {reason}")]
    Row {
        /// The shard's words.
        reason: String,
    },
    /// Its grammar allows nothing, or has failed itself.
    #[error("the grammar failed this request: {reason}")]
    Grammar {
        /// The grammar's words.
        reason: String,
    },
    /// It was in flight when the shards crashed, again and again; it is probably the cause.
    #[error("the shards crashed {crashes} times while computing this request")]
    Poison {
        /// Crashes it was in flight at.
        crashes: u32,
    },
    /// The shards came back with less memory than it needs.
    #[error(transparent)]
    Misfit(#[from] Misfit),
}

/// A request that could not run even alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the request needs {needed_tokens} tokens of KV cache, which holds {capacity_tokens}")]
pub struct Misfit {
    /// Prompt and longest reply.
    pub needed_tokens: u32,
    /// The whole cache.
    pub capacity_tokens: u32,
}

/// How much is going on; for gauges and admission.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Requests in slots.
    pub running: usize,
    /// Requests that wait for a slot.
    pub waiting: usize,
    /// Their tokens.
    pub waiting_tokens: u64,
    /// Prompt and longest reply of the requests in slots, in tokens.
    pub running_max_tokens: u64,
    /// Plans without a result.
    pub plans_in_flight: usize,
    /// The KV cache.
    pub blocks: BlockCounts,
}

/// How often things happened since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Rows that lost their slot for want of blocks.
    pub preemptions: u64,
    /// Tokens that were not computed because the prefix cache had them.
    pub prefix_hit_tokens: u64,
    /// Computed rows whose result nobody wanted any more: the price of running ahead.
    pub wasted_rows: u64,
    /// Draft tokens that were computed.
    pub draft_tokens: u64,
    /// Draft tokens that became tokens of a reply.
    pub accepted_draft_tokens: u64,
}

/// See the module's text.
pub struct Scheduler {
    config: SchedulerConfig,
    capacity: Capacity,
    cache: KvCache,
    /// Indexed by slot.
    slots: Vec<Option<Row>>,
    /// Occupied slots, oldest request first.
    order: Vec<SlotId>,
    free_slots: Vec<SlotId>,
    /// Slots whose row has left since the last plan.
    freed: Vec<SlotId>,
    /// New requests, oldest first.
    waiting: VecDeque<Sequence>,
    /// Preempted and recovered requests, oldest first; ahead of new ones.
    recovered: VecDeque<Sequence>,
    /// Requests that may have crashed the shards, oldest first; after the recovered ones, each alone.
    suspects: VecDeque<Sequence>,
    /// The suspect that is running alone.
    probation: Option<Tenancy>,
    waiting_tokens: u64,
    running_max_tokens: u64,
    next_tenancy: u64,
    /// The last plan's number.
    seq: u64,
    step: StepPlan,
    /// Rows whose logits the step can still compute.
    logit_rows: u32,
    last_continues: Vec<SlotId>,
    speculation: Speculation,
    in_flight: VecDeque<InFlight>,
    /// Stays that the shards could not compute, while plans in flight still have them.
    failed: Vec<Tenancy>,
    spare_in_flight: Vec<InFlight>,
    /// Scratch of the prefix lookup.
    found: Vec<BlockId>,
    outputs: Vec<Output>,
    counters: Counters,
}

/// A plan that was sent: what its result must contain.
#[derive(Default)]
struct InFlight {
    seq: u64,
    /// The first ones are those that continue.
    rows: Vec<PlannedRow>,
    /// How many do.
    continues: usize,
    /// It has no prompts.
    is_decode: bool,
    stake: Stake,
}

#[derive(Clone, Copy)]
struct PlannedRow {
    slot: SlotId,
    tenancy: Tenancy,
    samples: bool,
    draft_limit: u8,
}

impl InFlight {
    /// Draft tokens that were computed in all.
    fn check_drafts(&self, draft_tokens: &[u8]) -> Result<usize, ApplyError> {
        let limits = self.rows.iter().take(self.continues).map(|row| row.draft_limit);
        let is_within = draft_tokens.is_empty()
            || draft_tokens.len() == self.continues && limits.zip(draft_tokens).all(|(limit, &tokens)| tokens <= limit);
        match is_within {
            true => Ok(draft_tokens.iter().map(|&tokens| usize::from(tokens)).sum()),
            false => Err(ApplyError::Drafts { seq: self.seq }),
        }
    }
}

impl Scheduler {
    /// An idle scheduler.
    pub fn new(config: SchedulerConfig, capacity: Capacity) -> Self {
        let cache = KvCache::new(capacity.num_blocks, config.block_size, config.prefix_key.clone());
        let speculation = Speculation::new(config.max_draft_tokens);
        let mut scheduler = Self {
            config,
            capacity,
            cache,
            slots: Vec::new(),
            order: Vec::new(),
            free_slots: Vec::new(),
            freed: Vec::new(),
            waiting: VecDeque::new(),
            recovered: VecDeque::new(),
            suspects: VecDeque::new(),
            probation: None,
            waiting_tokens: 0,
            running_max_tokens: 0,
            next_tenancy: 0,
            seq: 0,
            step: StepPlan::default(),
            logit_rows: 0,
            last_continues: Vec::new(),
            speculation,
            in_flight: VecDeque::new(),
            failed: Vec::new(),
            spare_in_flight: Vec::new(),
            found: Vec::new(),
            outputs: Vec::new(),
            counters: Counters::default(),
        };
        scheduler.empty_slots();
        scheduler
    }

    /// Puts a request at the end of the queue. `id` is its own for ever; lower is older.
    ///
    /// # Errors
    /// [`Misfit`] if it could not run even with the whole cache for itself.
    pub fn submit(&mut self, id: RequestId, request: GenerateRequest) -> Result<(), Misfit> {
        self.capacity.check(self.config.block_size, &request)?;
        let sequence = Sequence::new(id, request, &self.cache);
        self.waiting_tokens += u64::from(sequence.len());
        self.waiting.push_back(sequence);
        Ok(())
    }

    /// Ends a request without a word; results still in flight for it are dropped. False if it is not known (any more).
    pub fn cancel(&mut self, id: RequestId) -> bool {
        for queue in [&mut self.waiting, &mut self.recovered, &mut self.suspects] {
            if let Some(idx) = queue.iter().position(|sequence| sequence.id == id) {
                let sequence = queue.remove(idx).expect("position found it");
                self.waiting_tokens -= u64::from(sequence.len());
                return true;
            }
        }
        let slot = self.order.iter().copied().find(|&slot| self.row(slot).sequence.id == id);
        slot.map(|slot| self.leave(slot)).is_some()
    }

    /// Ends a request with a failure that the engine has found. False if it is not known (any more).
    pub fn fail(&mut self, id: RequestId, failure: Failure) -> bool {
        let was_known = self.cancel(id);
        if was_known {
            self.outputs.push(Output { request: id, event: OutputEvent::Failed(failure) });
        }
        was_known
    }

    /// Whether anybody still wants the token of a masked row of a plan in flight. If not, any mask will do for it.
    pub fn is_awaited(&self, row: &MaskedRow) -> bool {
        self.is_live(row.slot, row.tenancy)
    }

    /// Takes the result of the oldest plan in flight.
    ///
    /// # Errors
    /// [`ApplyError`] if it does not answer that plan: the epoch must end.
    pub fn apply(&mut self, outcome: StepOutcome) -> Result<(), ApplyError> {
        let expected = self.in_flight.front().map(|plan| plan.seq);
        if expected != Some(outcome.seq) {
            return Err(ApplyError::Seq { actual: outcome.seq, expected });
        }
        let mut plan = self.in_flight.pop_front().expect("its number was just read");
        for run in outcome.prompt_runs {
            self.note_prompt(&plan, run)?;
        }
        let drafted = plan.check_drafts(&outcome.draft_tokens)?;
        let mut samples = outcome.samples.into_iter().peekable();
        let mut accepted = 0;
        for (index, planned) in plan.rows.drain(..).enumerate() {
            let failure = outcome.row_errors.iter().find(|(slot, _)| *slot == planned.slot);
            let drafted = outcome.draft_tokens.get(index).copied().unwrap_or(0);
            if planned.samples {
                if failure.is_none() && samples.peek().is_none_or(|sample| sample.slot != planned.slot) {
                    let actual = samples.next().map(|sample| sample.slot.0);
                    return Err(ApplyError::Row { actual, expected: Some(planned.slot.0) });
                }
                let run = std::iter::from_fn(|| samples.next_if(|sample| sample.slot == planned.slot));
                accepted += usize::from(self.accept_run(planned, drafted, run.take(1 + usize::from(drafted)))?);
            }
            if let Some((_, reason)) = failure {
                self.fail_row(planned, reason);
            }
        }
        self.counters.draft_tokens += drafted as u64;
        self.counters.accepted_draft_tokens += accepted as u64;
        let InFlight { continues: rows, stake, .. } = plan;
        match plan.is_decode {
            true => self.speculation.observe(Decoded { rows, drafted, accepted, took: outcome.took, stake }),
            false => self.speculation.forget(stake),
        }
        self.spare_in_flight.push(plan);
        self.failed
            .retain(|tenancy| self.in_flight.iter().any(|plan| plan.rows.iter().any(|row| row.tenancy == *tenancy)));
        match samples.next() {
            Some(extra) => Err(ApplyError::Row { actual: Some(extra.slot.0), expected: None }),
            None => Ok(()),
        }
    }

    /// The epoch is over: the shards have lost everything. Running requests wait again with prompt + emitted tokens; those
    /// that were in flight at too many crashes fail, and those that did not fit the group that came back.
    pub fn reset(&mut self, capacity: Capacity) {
        let in_flight: Vec<Tenancy> =
            self.in_flight.drain(..).flat_map(|plan| plan.rows).map(|row| row.tenancy).collect();
        let running: Vec<Row> = self
            .order
            .drain(..)
            .map(|slot| self.slots[slot.0 as usize].take().expect("order lists occupied slots"))
            .collect();
        self.capacity = capacity;
        self.cache.reset(capacity.num_blocks);
        self.speculation.reset();
        self.empty_slots();
        for row in running {
            let mut sequence = row.sequence;
            self.waiting_tokens += u64::from(sequence.len());
            if !in_flight.contains(&row.tenancy) {
                self.recovered.push_back(sequence);
                continue;
            }
            sequence.crashes += 1;
            if row.has_answered {
                // It has been computed before, so others are likelier: go on with it at once.
                self.recovered.push_back(sequence);
            } else {
                sequence.strikes += 1;
                self.suspects.push_back(sequence);
            }
        }
        let block_size = self.config.block_size;
        for queue in [&mut self.waiting, &mut self.recovered, &mut self.suspects] {
            queue.make_contiguous().sort_by_key(|sequence| sequence.id);
            queue.retain(|sequence| {
                let failure = match capacity.check(block_size, &sequence.request) {
                    Err(misfit) => Failure::Misfit(misfit),
                    Ok(()) if sequence.strikes >= limits::MAX_STRIKES || sequence.crashes >= limits::MAX_CRASHES => {
                        Failure::Poison { crashes: sequence.crashes }
                    }
                    Ok(()) => return true,
                };
                self.waiting_tokens -= u64::from(sequence.len());
                self.outputs.push(Output { request: sequence.id, event: OutputEvent::Failed(failure) });
                false
            });
        }
    }

    /// What has happened since the last call of [`Scheduler::take_outputs`], in order.
    pub fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    /// What has happened since the last call, in order.
    pub fn take_outputs(&mut self) -> std::vec::Drain<'_, Output> {
        self.outputs.drain(..)
    }

    /// What the shard group can hold.
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// How much is going on.
    pub fn load(&self) -> Load {
        Load {
            running: self.order.len(),
            waiting: self.waiting.len() + self.recovered.len() + self.suspects.len(),
            waiting_tokens: self.waiting_tokens,
            running_max_tokens: self.running_max_tokens,
            plans_in_flight: self.in_flight.len(),
            blocks: self.cache.counts(),
        }
    }

    /// How often things happened.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// No request is left.
    pub fn is_idle(&self) -> bool {
        self.order.is_empty() && self.waiting.is_empty() && self.recovered.is_empty() && self.suspects.is_empty()
    }

    /// Log-probabilities of a prompt have arrived.
    fn note_prompt(&mut self, plan: &InFlight, run: PromptRun) -> Result<(), ApplyError> {
        let planned = plan.rows.iter().find(|row| row.slot == run.slot);
        let gap = |expected| ApplyError::Prompt { slot: run.slot.0, actual: run.first_position, expected };
        let planned = planned.ok_or_else(|| gap(0))?;
        if !self.is_live(planned.slot, planned.tenancy) {
            return Ok(());
        }
        let sequence = &mut self.row_mut(run.slot).sequence;
        let prompt_tokens = sequence.request.input_tokens();
        let Some(known) = &mut sequence.prompt_logprobs else { return Err(gap(prompt_tokens)) };
        // What an earlier stay has reported comes again, bit for bit.
        let next = known.len() as u32 + 1;
        if run.first_position == 0 || run.first_position > next {
            return Err(gap(next));
        }
        let repeated = (next - run.first_position) as usize;
        let missing = (prompt_tokens - next) as usize;
        known.extend(run.logprobs.into_iter().skip(repeated).take(missing));
        Ok(())
    }

    /// A row's next tokens have arrived: one, and one more for every token of its draft that was right; or, if it failed, those
    /// before the failure. Returns how many draft tokens became tokens of the reply.
    fn accept_run(
        &mut self,
        planned: PlannedRow,
        drafted: u8,
        samples: impl Iterator<Item = SampledRow>,
    ) -> Result<u8, ApplyError> {
        if self.is_live(planned.slot, planned.tenancy) {
            let row = self.row_mut(planned.slot);
            row.in_flight -= 1;
            row.drafts_in_flight -= u32::from(planned.draft_limit);
        }
        let (mut sampled, mut accepted) = (0, 0);
        for sample in samples {
            let is_live = self.is_live(planned.slot, planned.tenancy);
            if is_live && sampled > 0 {
                // The token before was computed by this very step, as the draft had it.
                self.row_mut(planned.slot).computed += 1;
                accepted += 1;
            }
            self.accept(planned, sample)?;
            sampled += 1;
        }
        if self.is_live(planned.slot, planned.tenancy) && sampled > 0 {
            self.row_mut(planned.slot).acceptance.observe(drafted, sampled - 1);
        }
        Ok(accepted)
    }

    /// A row's next token has arrived.
    fn accept(&mut self, planned: PlannedRow, sample: SampledRow) -> Result<(), ApplyError> {
        if sample.token_id >= self.config.vocab_size {
            return Err(ApplyError::TokenId { token_id: sample.token_id, vocab_size: self.config.vocab_size });
        }
        if !self.is_live(planned.slot, planned.tenancy) {
            self.counters.wasted_rows += 1;
            return Ok(());
        }
        let row = self.slots[planned.slot.0 as usize].as_mut().expect("it is live");
        row.has_answered = true;
        row.sequence.strikes = 0;
        row.sequence.tokens.push(sample.token_id);
        row.commit_full_blocks(&mut self.cache, self.config.block_size, self.seq);
        if self.probation == Some(planned.tenancy) {
            self.probation = None;
        }

        let request = row.sequence.id;
        if let Some(logprobs) = row.sequence.prompt_logprobs.take() {
            let (reported, expected) = (logprobs.len() as u32 + 1, row.sequence.request.input_tokens());
            if reported != expected {
                return Err(ApplyError::Prompt { slot: planned.slot.0, actual: expected, expected: reported });
            }
            self.outputs.push(Output { request, event: OutputEvent::Prompt { logprobs } });
        }
        let SampledRow { token_id, logprob, top, .. } = sample;
        self.outputs.push(Output { request, event: OutputEvent::Token { id: token_id, logprob, top } });
        let is_eos = !row.sequence.request.parts().ignore_eos && self.config.eos_token_ids.contains(&token_id);
        let reason = match is_eos {
            true => FinishReason::EosToken,
            false if row.sequence.len() == row.sequence.request.max_total_tokens() => FinishReason::Length,
            false => return Ok(()),
        };
        self.outputs.push(Output { request, event: OutputEvent::Finished(reason) });
        self.leave(planned.slot);
        Ok(())
    }

    /// The shards could not compute a row.
    fn fail_row(&mut self, planned: PlannedRow, reason: &str) {
        let has_been_dealt_with = self.failed.contains(&planned.tenancy);
        self.failed.push(planned.tenancy);
        if !self.is_live(planned.slot, planned.tenancy) {
            self.counters.wasted_rows += u64::from(planned.samples);
            if !has_been_dealt_with {
                self.distrust_everything();
            }
            return;
        }
        let sequence = self.leave_distrusted(planned.slot);
        let failure = Failure::Row { reason: reason.to_owned() };
        self.outputs.push(Output { request: sequence.id, event: OutputEvent::Failed(failure) });
    }

    /// A row failed that had left its slot by the time this became known, so nobody knows any more which blocks it has
    /// offered to the index. It is rare enough to empty the index for it; whoever has taken a prefix from there starts again.
    fn distrust_everything(&mut self) {
        let blocks: Vec<BlockId> = (0..self.capacity.num_blocks).map(BlockId).collect();
        self.cache.distrust(&blocks);
        let readers: Vec<SlotId> = self.order.iter().copied().filter(|&slot| self.row(slot).cached > 0).collect();
        for slot in readers {
            let restarted = self.leave(slot);
            self.requeue(restarted);
        }
    }

    /// Takes out a row whose blocks may hold anything. Rows that have taken some of them as their prefix in the meantime
    /// start again; no token of theirs has been seen, for their results come after the one that brought the failure.
    fn leave_distrusted(&mut self, slot: SlotId) -> Sequence {
        let row = self.row(slot);
        let own = row.blocks[row.cached as usize..].to_vec();
        self.cache.distrust(&own);
        let reads = |row: &Row| row.blocks.iter().any(|block| own.contains(block));
        let readers: Vec<(SlotId, Tenancy)> = self
            .order
            .iter()
            .filter(|&&other| other != slot && reads(self.row(other)))
            .map(|&reader| (reader, self.row(reader).tenancy))
            .collect();
        let sequence = self.leave(slot);
        for (reader, tenancy) in readers {
            if self.is_live(reader, tenancy) {
                let restarted = self.leave_distrusted(reader);
                self.requeue(restarted);
            }
        }
        sequence
    }

    /// Takes a row out of its slot; its blocks go back, and the next plan frees the slot on the shards.
    fn leave(&mut self, slot: SlotId) -> Sequence {
        let row = self.slots[slot.0 as usize].take().expect("only an occupied slot is left");
        let at = self.order.iter().position(|&other| other == slot).expect("order lists occupied slots");
        self.order.remove(at);
        self.cache.release(&row.blocks);
        self.free_slots.push(slot);
        self.freed.push(slot);
        self.running_max_tokens -= u64::from(row.sequence.request.max_total_tokens());
        if self.probation == Some(row.tenancy) {
            self.probation = None;
        }
        row.sequence
    }

    /// Puts a sequence that has run before new ones, in order of age.
    fn requeue(&mut self, sequence: Sequence) {
        self.waiting_tokens += u64::from(sequence.len());
        let at = self.recovered.partition_point(|other| other.id < sequence.id);
        self.recovered.insert(at, sequence);
    }

    fn is_live(&self, slot: SlotId, tenancy: Tenancy) -> bool {
        self.slots[slot.0 as usize].as_ref().is_some_and(|row| row.tenancy == tenancy)
    }

    fn row(&self, slot: SlotId) -> &Row {
        self.slots[slot.0 as usize].as_ref().expect("only occupied slots are asked for")
    }

    fn row_mut(&mut self, slot: SlotId) -> &mut Row {
        self.slots[slot.0 as usize].as_mut().expect("only occupied slots are asked for")
    }

    /// The state of a fresh epoch.
    fn empty_slots(&mut self) {
        let max_slots = self.capacity.max_slots;
        self.slots = (0..max_slots).map(|_| None).collect();
        self.free_slots = (0..max_slots).rev().map(SlotId).collect();
        self.freed.clear();
        self.order = Vec::with_capacity(max_slots as usize);
        self.probation = None;
        self.running_max_tokens = 0;
        self.seq = 0;
        self.last_continues.clear();
        self.failed.clear();
    }
}

impl Capacity {
    /// Whether the request could run alone. The KV of the last token is never computed.
    ///
    /// # Errors
    /// [`Misfit`] with both sizes.
    pub fn check(&self, block_size: u32, request: &GenerateRequest) -> Result<(), Misfit> {
        let needed_tokens = request.max_total_tokens() - 1;
        match needed_tokens.div_ceil(block_size) <= self.num_blocks {
            true => Ok(()),
            false => Err(Misfit { needed_tokens, capacity_tokens: self.num_blocks * block_size }),
        }
    }
}
