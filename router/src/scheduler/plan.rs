//! How a step is filled: one token budget, no phases.
//!
//! 1. Rows that decode, oldest first, one token each.
//! 2. Prompts that end within a step, then new ones of that kind: while a longer prompt is around they get at most half
//!    of what is left, so neither kind starves the other.
//! 3. Longer prompts take the rest in chunks; few at a time, and shorter ones overtake them.
//!
//! Every sampled row also takes one of the step's logit rows, and a prompt whose log-probabilities are asked for takes
//! one for each of its tokens: at most half of those that are left, and only one such prompt at a time, so that others
//! go on beside it.
//!
//! A step without prompts may have drafts (`speculation.rs` decides how many): they take what is left of budget, logit rows and
//! blocks, and nobody gives way to them. In a step with prompts they would take the place of prompt tokens, which are
//! sure to be needed.
//!
//! Blocks are taken when a row crosses into them. When none is left, the youngest row that is younger than the asking one
//! goes back to the queue; a row that finds nobody younger skips the step and keeps what it has, until an older one
//! takes it. The oldest row always gets its blocks, so something always moves.

use proto::Message;
use proto::v1::SamplingParams;

use crate::kv::BlockId;
use crate::limits;

use super::row::{Row, Sequence, Tenancy, Work};
use super::speculation::{Acceptance, Candidate, Stake};
use super::step::{Chunk, NewSlot, SlotId, StepPlan};
use super::{MaskedRow, Output, OutputEvent, PlannedRow, Scheduler};

/// Prompts by what is left of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Length {
    /// Fits into the budget of one step.
    Short,
    /// Needs several steps.
    Long,
}

/// What became of an attempt to admit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Admission {
    Admitted(SlotId),
    /// Its prefix is being computed by this very step, or the step's message has no room for its parameters.
    WaitAStep,
    /// No memory: nobody younger may take what it waits for.
    NoBlocks,
}

impl Scheduler {
    /// The next step, or `None` if enough plans are in flight or nothing can run. A returned plan counts as sent.
    ///
    /// In the steady state (the same rows decode) this allocates nothing.
    pub fn plan(&mut self) -> Option<&StepPlan> {
        if self.in_flight.len() >= self.config.run_ahead {
            return None;
        }
        self.step.clear();
        self.logit_rows = self.capacity.max_logit_rows;
        self.step.seq = self.seq + 1;
        let mut stake = Stake::default();
        let a_suspect_is_next = self.recovered.is_empty() && !self.suspects.is_empty();
        if let Some(tenancy) = self.probation {
            self.plan_suspect(tenancy);
        } else if !a_suspect_is_next {
            self.plan_rows();
            stake = self.plan_drafts();
        } else if self.in_flight.is_empty() {
            let tenancy = self.admit_suspect();
            self.plan_suspect(tenancy);
        }
        (!self.step.is_empty()).then(|| self.issue(stake))
    }

    fn plan_rows(&mut self) {
        let budget = self.plan_decodes(self.capacity.max_step_tokens);
        if budget == 0 {
            return;
        }
        let long_waits = self.candidates().any(|sequence| self.length(sequence.len()) == Length::Long);
        let kept = if long_waits || self.longs_running() > 0 { budget / 2 } else { 0 };
        let left = self.plan_prefills(Length::Short, budget - kept);
        let (left, memory_is_short) = match self.oldest_waits_for_blocks() {
            true => (left, false),
            false => self.admit(Length::Short, left),
        };
        let left = self.plan_prefills(Length::Long, left + kept);
        if !memory_is_short {
            self.admit(Length::Long, left);
        }
    }

    /// One token for every row that decodes. Returns the budget that is left.
    fn plan_decodes(&mut self, mut budget: u32) -> u32 {
        let mut idx = 0;
        let mut exhausted = false;
        // Victims are younger, that is behind `idx`, so removing one does not disturb the walk.
        while idx < self.order.len() && budget > 0 && self.logit_rows > 0 {
            let slot = self.order[idx];
            idx += 1;
            let row = self.row(slot);
            if row.work() != Work::Decode || row.may_have_ended() {
                continue;
            }
            let tokens = row.computed + row.drafts_in_flight + 1;
            // Once an older row has found nobody to preempt, a younger one will not either.
            if row.blocks.len() as u32 * self.config.block_size < tokens
                && (exhausted || self.grow(slot, tokens) < tokens)
            {
                exhausted = true;
                continue;
            }
            self.plan_decode(slot);
            budget -= 1;
        }
        budget
    }

    /// Drafts for rows that decode, if there are only those.
    fn plan_drafts(&mut self) -> Stake {
        let rows = self.step.continues.len();
        if !self.speculation.is_on() || rows == 0 || !self.step.chunks.is_empty() {
            return Stake::default();
        }
        let mut candidates = self.speculation.candidates();
        for (index, &slot) in self.step.continues.iter().enumerate() {
            let row = self.slots[slot.0 as usize].as_mut().expect("planned rows are live");
            if row.speculates {
                // The plans that are sent before this one is answered have a token each that must not be beyond the last.
                let kept = row.longest() + self.config.run_ahead as u32 - 1;
                let left = row.sequence.request.max_total_tokens().saturating_sub(kept);
                let room = left.min(self.speculation.max_draft_tokens().into()) as u8;
                candidates.push(Candidate::new(index, slot, room, &mut row.acceptance));
            }
        }
        let budget = self.logit_rows.min(self.capacity.max_step_tokens - rows as u32);
        let stake = self.speculation.choose(rows, budget as usize, &mut candidates);
        if candidates.iter().any(|row| row.granted > 0) {
            self.step.draft_limits.resize(rows, 0);
            for row in &candidates {
                self.step.draft_limits[row.index] = self.grow_for_draft(row.slot, row.granted);
            }
        }
        self.speculation.recycle(candidates);
        stake
    }

    /// Appends blocks for `wanted` draft tokens of a row, as long as every other row can still have its next one. Returns the
    /// tokens there is room for.
    fn grow_for_draft(&mut self, slot: SlotId, wanted: u8) -> u8 {
        let row = self.row(slot);
        let start = row.computed + row.drafts_in_flight;
        let needed = self.blocks_for(start + u32::from(wanted)) as usize;
        while self.row(slot).blocks.len() < needed && self.cache.available() > self.order.len() as u32 {
            let block = self.cache.allocate().expect("one is available");
            self.row_mut(slot).blocks.push(block);
            self.step.appended_blocks.push((slot, block));
        }
        let block_size = self.config.block_size;
        let row = self.row_mut(slot);
        let granted = (row.blocks.len() as u32 * block_size - start).min(wanted.into()) as u8;
        row.drafts_in_flight += u32::from(granted);
        granted
    }

    /// The next chunk of every running prompt of this length. Returns the budget that is left.
    fn plan_prefills(&mut self, length: Length, mut budget: u32) -> u32 {
        let mut idx = 0;
        while idx < self.order.len() && budget > 0 {
            let slot = self.order[idx];
            idx += 1;
            if let Work::Prefill(remaining) = self.row(slot).work()
                && self.length(remaining) == length
            {
                budget -= self.plan_chunk(slot, remaining.min(budget));
            }
        }
        budget
    }

    /// Admits waiting prompts of this length, recovered ones first. Returns the budget that is left and whether one had to
    /// stay for want of memory.
    fn admit(&mut self, length: Length, mut budget: u32) -> (u32, bool) {
        let mut idx = 0;
        let mut reserved = None;
        while budget > 0 && self.may_admit(length) && idx < self.num_candidates() {
            if self.length(self.candidate(idx).len()) != length || self.must_wait_for_logits(self.candidate(idx)) {
                idx += 1;
                continue;
            }
            let reserved = reserved.get_or_insert_with(|| self.reserved_blocks());
            match self.try_admit(idx, *reserved) {
                Admission::Admitted(slot) => {
                    budget -= self.plan_chunk(slot, budget);
                    *reserved += self.reserved_by(self.row(slot));
                }
                Admission::WaitAStep => idx += 1,
                Admission::NoBlocks => return (budget, true),
            }
        }
        (budget, false)
    }

    fn may_admit(&self, length: Length) -> bool {
        // A step has a token for every row, or the youngest rows would hold blocks and never run.
        let max_rows = self.capacity.max_step_tokens.min(self.capacity.max_logit_rows) as usize;
        let has_room = !self.free_slots.is_empty() && self.order.len() < max_rows && self.logit_rows > 0;
        has_room && (length == Length::Short || self.longs_running() < limits::MAX_LONG_PREFILLS)
    }

    /// Whether another prompt's log-probabilities are being computed, and this one wants them too.
    fn must_wait_for_logits(&self, sequence: &Sequence) -> bool {
        let wants = |sequence: &Sequence| sequence.prompt_logprobs.is_some();
        wants(sequence) && self.order.iter().any(|&slot| wants(&self.row(slot).sequence))
    }

    /// Admits candidate `idx` if its whole prompt fits beside what the running rows will need next (`reserved`).
    fn try_admit(&mut self, idx: usize, reserved: u32) -> Admission {
        let mut found = std::mem::take(&mut self.found);
        let sequence = self.candidate(idx);
        let matched = self.cache.find_prefix(sequence.cacheable(), &sequence.chain, self.step.seq, &mut found);
        let needed = self.blocks_for(sequence.len()) - found.len() as u32;
        let bytes = self.entry_bytes(sequence, found.len());
        let is_full = !self.step.new_slots.is_empty() && self.step.entry_bytes + bytes > limits::MAX_ENTRY_BYTES;
        let admission = if matched.next_is_coming || is_full {
            Admission::WaitAStep
        } else if self.cache.available() < matched.unowned + needed + reserved {
            Admission::NoBlocks
        } else {
            let sequence = match idx.checked_sub(self.recovered.len()) {
                None => self.recovered.remove(idx),
                Some(idx) => self.waiting.remove(idx),
            };
            self.step.entry_bytes += bytes;
            Admission::Admitted(self.enter(sequence.expect("candidate() has just read it"), &found))
        };
        self.found = found;
        admission
    }

    /// What the entry of a sequence adds to the plan's message beside its chunks, in bytes, at most.
    fn entry_bytes(&self, sequence: &Sequence, prefix_blocks: usize) -> usize {
        let sampling = &sequence.request.parts().sampling;
        let needs_ids = sampling.needs_cached_ids() || self.may_draft(sequence);
        let cached_ids = if needs_ids { prefix_blocks * self.config.block_size as usize } else { 0 };
        sampling.encoded_len() + size_of::<u32>() * (prefix_blocks + cached_ids)
    }

    /// Whether a sequence may have drafts: a mask is for one position, so there is none for a draft's.
    fn may_draft(&self, sequence: &Sequence) -> bool {
        self.speculation.is_on() && sequence.request.parts().constraint.is_none()
    }

    /// Whether the head of the queue is a long prompt that lacks only memory: then shorter ones must not overtake it, or
    /// a steady flow of them would hold the memory for ever.
    fn oldest_waits_for_blocks(&self) -> bool {
        let Some(sequence) = self.candidates().next() else { return false };
        self.length(sequence.len()) == Length::Long
            && self.longs_running() < limits::MAX_LONG_PREFILLS
            && self.cache.available() < self.blocks_for(sequence.len()) + self.reserved_blocks()
    }

    /// Puts the next suspect into a slot, alone: nothing else is in flight.
    fn admit_suspect(&mut self) -> Tenancy {
        if self.free_slots.is_empty() {
            let youngest = *self.order.last().expect("without a free slot every slot is occupied");
            self.preempt(youngest);
        }
        let sequence = self.suspects.pop_front().expect("the caller has seen a suspect");
        let mut found = std::mem::take(&mut self.found);
        self.cache.find_prefix(sequence.cacheable(), &sequence.chain, self.step.seq, &mut found);
        let slot = self.enter(sequence, &found);
        self.found = found;
        let tenancy = self.row(slot).tenancy;
        self.probation = Some(tenancy);
        tenancy
    }

    fn plan_suspect(&mut self, tenancy: Tenancy) {
        let slot = self.order.iter().copied().find(|&slot| self.row(slot).tenancy == tenancy);
        let slot = slot.expect("leave() ends the probation of a row");
        match self.row(slot).work() {
            Work::Prefill(_) => {
                self.plan_chunk(slot, self.capacity.max_step_tokens);
            }
            Work::Decode => {
                // It has no drafts in flight: it entered as a suspect, and those have none.
                let tokens = self.row(slot).computed + 1;
                if self.grow(slot, tokens) == tokens {
                    self.plan_decode(slot);
                }
            }
            Work::Ending => {}
        }
    }

    /// Gives a sequence a slot and the blocks that hold the start of its prompt.
    fn enter(&mut self, mut sequence: Sequence, prefix: &[BlockId]) -> SlotId {
        let slot = self.free_slots.pop().expect("the caller has seen a free slot");
        let cached_tokens = prefix.len() as u32 * self.config.block_size;
        self.cache.retain(prefix);
        self.counters.prefix_hit_tokens += u64::from(cached_tokens);
        self.waiting_tokens -= u64::from(sequence.len());
        self.running_max_tokens += u64::from(sequence.request.max_total_tokens());
        if !std::mem::replace(&mut sequence.was_scheduled, true) {
            self.outputs.push(Output { request: sequence.id, event: OutputEvent::Scheduled { cached_tokens } });
        }

        let parts = sequence.request.parts();
        // What has been reported is not computed again.
        let prompt_logprobs = sequence.prompt_logprobs.is_some();
        let sampling = SamplingParams { prompt_logprobs, ..parts.sampling.clone() };
        let speculates = self.may_draft(&sequence);
        let needs_ids = sampling.needs_cached_ids() || speculates;
        let cached_ids = if needs_ids { &sequence.tokens[..cached_tokens as usize] } else { &[] };
        self.speculation.rows_entered();
        self.step.new_slots.push(NewSlot {
            slot,
            request: sequence.id,
            sampling,
            prompt_tokens: sequence.request.input_tokens(),
            masked: parts.constraint.is_some(),
            speculates,
            block_table: prefix.to_vec(),
            cached_tokens,
            cached_ids: cached_ids.to_vec(),
        });

        // Room for the longest reply, so that decoding never moves a table.
        let mut blocks = Vec::with_capacity(self.blocks_for(sequence.request.max_total_tokens()) as usize);
        blocks.extend_from_slice(prefix);
        self.next_tenancy += 1;
        let at = self.order.partition_point(|&other| self.row(other).sequence.id < sequence.id);
        self.order.insert(at, slot);
        self.slots[slot.0 as usize] = Some(Row {
            sequence,
            tenancy: Tenancy(self.next_tenancy),
            computed: cached_tokens,
            in_flight: 0,
            drafts_in_flight: 0,
            speculates,
            acceptance: Acceptance::unknown(),
            prompt_planned: false,
            has_answered: false,
            cached: prefix.len() as u32,
            committed: prefix.len() as u32,
            blocks,
            planned_in: 0,
        });
        slot
    }

    fn plan_decode(&mut self, slot: SlotId) {
        let seq = self.step.seq;
        let row = self.row_mut(slot);
        row.computed += 1;
        row.in_flight += 1;
        row.planned_in = seq;
        self.logit_rows -= 1;
        self.step.continues.push(slot);
    }

    /// Plans up to `num_tokens` of a row's prompt, as many as remain and as there are blocks for. Returns their number.
    fn plan_chunk(&mut self, slot: SlotId, num_tokens: u32) -> u32 {
        let row = self.row(slot);
        let start_position = row.computed;
        let wanted = row.sequence.len().min(start_position + num_tokens);
        let end = self.grow(slot, self.end_within_logit_rows(slot, wanted));
        if end == start_position {
            return 0;
        }
        let seq = self.step.seq;
        let row = self.slots[slot.0 as usize].as_mut().expect("the row was just read");
        let sample = end == row.sequence.len();
        self.logit_rows -= match row.sequence.prompt_logprobs {
            Some(_) => end - start_position,
            None => u32::from(sample),
        };
        self.step.chunk_ids.extend_from_slice(&row.sequence.tokens[start_position as usize..end as usize]);
        self.step.chunks.push(Chunk { slot, start_position, num_tokens: end - start_position, sample });
        row.computed = end;
        row.planned_in = seq;
        row.prompt_planned = sample;
        row.in_flight += u32::from(sample);
        row.commit_full_blocks(&mut self.cache, self.config.block_size, seq);
        end - start_position
    }

    /// Where a chunk that wants to reach `end` must end for want of logit rows.
    fn end_within_logit_rows(&self, slot: SlotId, end: u32) -> u32 {
        let row = self.row(slot);
        match row.sequence.prompt_logprobs {
            Some(_) => end.min(row.computed + self.logit_rows.div_ceil(2)),
            // Without its last token a prompt needs no logits.
            None if self.logit_rows == 0 => end.min(row.sequence.len() - 1),
            None => end,
        }
    }

    /// Appends blocks until the row has room for `tokens` tokens, preempting younger rows if it must. Returns the tokens
    /// it has room for, at most `tokens`.
    fn grow(&mut self, slot: SlotId, tokens: u32) -> u32 {
        let needed = self.blocks_for(tokens) as usize;
        while self.row(slot).blocks.len() < needed {
            match self.cache.allocate() {
                Some(block) => {
                    self.row_mut(slot).blocks.push(block);
                    self.step.appended_blocks.push((slot, block));
                }
                None => match self.victim_of(slot) {
                    Some(victim) => self.preempt(victim),
                    None => break,
                },
            }
        }
        tokens.min(self.row(slot).blocks.len() as u32 * self.config.block_size)
    }

    /// The youngest row that must give way to `slot`: younger, not part of this step yet, and not about to end by itself.
    /// A suspect runs alone, so everybody gives way to it.
    fn victim_of(&self, slot: SlotId) -> Option<SlotId> {
        let asking = self.row(slot);
        let is_suspect = self.probation == Some(asking.tenancy);
        self.order.iter().rev().copied().filter(|&other| other != slot).find(|&other| {
            let row = self.row(other);
            let gives_way = is_suspect || row.sequence.id > asking.sequence.id;
            gives_way && row.planned_in != self.step.seq && row.work() != Work::Ending
        })
    }

    /// Sends a row back to the queue, with what it has emitted as part of its prompt.
    fn preempt(&mut self, slot: SlotId) {
        let sequence = self.leave(slot);
        self.counters.preemptions += 1;
        self.requeue(sequence);
    }

    /// Seals the step: from here on it is sent.
    fn issue(&mut self, stake: Stake) -> &StepPlan {
        self.seq = self.step.seq;
        self.step.freed_slots.append(&mut self.freed);
        self.step.same_rows = self.step.chunks.is_empty() && self.step.continues == self.last_continues;
        self.last_continues.clone_from(&self.step.continues);

        let mut plan = self.spare_in_flight.pop().unwrap_or_default();
        plan.seq = self.seq;
        (plan.continues, plan.is_decode, plan.stake) = (self.step.continues.len(), self.step.chunks.is_empty(), stake);
        plan.rows.clear();
        let limits = self.step.draft_limits.iter().copied().chain(std::iter::repeat(0));
        let continues = self.step.continues.iter().zip(limits).map(|(&slot, limit)| (slot, true, limit));
        let chunks = self.step.chunks.iter().map(|chunk| (chunk.slot, chunk.sample, 0));
        plan.rows.extend(continues.chain(chunks).map(|(slot, samples, draft_limit)| {
            let row = self.slots[slot.0 as usize].as_ref().expect("planned rows are live");
            let (sequence, tenancy) = (&row.sequence, row.tenancy);
            if samples && sequence.request.parts().constraint.is_some() {
                // The token that this step samples is in flight already, and is not one of those before it.
                let reply_len = sequence.reply_len() + row.in_flight - 1;
                self.step.masked.push(MaskedRow { slot, request: sequence.id, reply_len, tenancy });
            }
            PlannedRow { slot, tenancy, samples, draft_limit }
        }));
        self.in_flight.push_back(plan);
        &self.step
    }

    /// Waiting sequences that may be admitted now, in order: recovered ones, then new ones, which wait until every suspect
    /// has been tried.
    fn candidates(&self) -> impl Iterator<Item = &Sequence> {
        self.recovered.iter().chain(&self.waiting).take(self.num_candidates())
    }

    fn candidate(&self, idx: usize) -> &Sequence {
        match idx.checked_sub(self.recovered.len()) {
            None => &self.recovered[idx],
            Some(idx) => &self.waiting[idx],
        }
    }

    fn num_candidates(&self) -> usize {
        let new = if self.suspects.is_empty() { self.waiting.len() } else { 0 };
        (self.recovered.len() + new).min(limits::ADMISSION_WINDOW)
    }

    fn length(&self, remaining: u32) -> Length {
        if remaining > self.capacity.max_step_tokens { Length::Long } else { Length::Short }
    }

    fn longs_running(&self) -> usize {
        let is_long =
            |row: &Row| matches!(row.work(), Work::Prefill(remaining) if self.length(remaining) == Length::Long);
        self.order.iter().filter(|&&slot| is_long(self.row(slot))).count()
    }

    /// Blocks the running rows will ask for next: the rest of their prompts, and one for each that decodes. New rows are
    /// admitted beside that, or they would be preempted at once.
    fn reserved_blocks(&self) -> u32 {
        self.order.iter().map(|&slot| self.reserved_by(self.row(slot))).sum()
    }

    fn reserved_by(&self, row: &Row) -> u32 {
        match row.work() {
            Work::Prefill(_) => self.blocks_for(row.sequence.len()).saturating_sub(row.blocks.len() as u32) + 1,
            Work::Decode => 1,
            Work::Ending => 0,
        }
    }

    fn blocks_for(&self, tokens: u32) -> u32 {
        tokens.div_ceil(self.config.block_size)
    }
}
