//! Whether a plan is legal: held against the shapes of the slots before anything changes.

use proto::MAX_DRAFT_TOKENS;
use proto::v1::{Chunk, NewSlot, Plan, SamplingParams};

use super::{Shape, SlotLimits, field, pairs, scored_tokens};
use crate::limits::MAX_TOP_N_TOKENS;
use crate::violation::Violation;

/// A plan under check, and the shapes as it leaves them so far.
pub(super) struct Check<'a> {
    pub(super) limits: &'a SlotLimits,
    pub(super) shapes: &'a mut [Shape],
    /// Rows whose logits are wanted.
    pub(super) logit_rows: usize,
}

impl Check<'_> {
    /// Holds the whole plan against the shapes and the limits, in the order in which it would be applied.
    pub(super) fn plan(mut self, plan: &Plan, previous_continues: &[u32]) -> Result<(), Violation> {
        for slot in field("freed_slots", &plan.freed_slots)? {
            *self.live(slot)? = Shape::default();
        }
        plan.new_slots.iter().try_for_each(|new| self.open(new))?;
        if !plan.appended_blocks.len().is_multiple_of(8) {
            return Err(Violation::Packed { field: "appended_blocks", length: plan.appended_blocks.len(), record: 8 });
        }
        for (slot, block_id) in pairs(&plan.appended_blocks) {
            self.block(slot, block_id)?;
            self.live(slot)?.num_blocks += 1;
            self.block_count(slot)?;
        }

        let mut tokens = 0;
        if plan.same_rows {
            if plan.seq == 1 {
                return Err(Violation::NoPreviousRows);
            }
            if !plan.continues.is_empty() || !plan.chunks.is_empty() {
                return Err(Violation::RowsBesideSameRows);
            }
            tokens += self.continues(previous_continues.iter().copied(), &plan.draft_limits)?;
        } else {
            tokens += self.continues(field("continues", &plan.continues)?, &plan.draft_limits)?;
        }
        for chunk in &plan.chunks {
            tokens += self.chunk(chunk)?;
        }
        let &SlotLimits { max_step_tokens, max_logit_rows, .. } = self.limits;
        if tokens > max_step_tokens {
            return Err(Violation::StepTokens { actual: tokens, max: max_step_tokens });
        }
        if self.logit_rows > max_logit_rows {
            return Err(Violation::LogitRows { actual: self.logit_rows, max: max_logit_rows });
        }
        Ok(())
    }

    fn open(&mut self, new: &NewSlot) -> Result<(), Violation> {
        let (slot, limits) = (new.slot, self.limits);
        if self.slot(slot)?.live {
            return Err(Violation::AlreadyLive { slot });
        }
        if let Some(params) = &new.params {
            let verdict = params.check(limits.vocab_size as u32, MAX_TOP_N_TOKENS);
            verdict.map_err(|source| Violation::Params { slot, source })?;
        }
        let block_table = field("block_table", &new.block_table)?;
        let (num_blocks, cached_tokens) = (block_table.len(), new.cached_tokens as usize);
        for block_id in block_table {
            self.block(slot, block_id)?;
        }
        let capacity = num_blocks * limits.block_size;
        if !cached_tokens.is_multiple_of(limits.block_size) || cached_tokens > capacity {
            return Err(Violation::CachedTokens {
                slot,
                actual: cached_tokens,
                block_size: limits.block_size,
                capacity,
            });
        }
        let cached_ids = field("cached_ids", &new.cached_ids)?;
        let (sent, needed) =
            (cached_ids.len(), new.speculates || new.params.as_ref().is_some_and(SamplingParams::needs_cached_ids));
        if new.speculates && new.masked {
            return Err(Violation::MaskedSpeculation { slot });
        }
        if sent != cached_tokens && (needed || sent != 0) {
            return Err(Violation::CachedIds { slot, actual: sent, expected: cached_tokens });
        }
        for id in cached_ids {
            self.token(slot, id)?;
        }
        let (scored_tokens, speculates) = (scored_tokens(new), new.speculates);
        *self.slot(slot)? = Shape { live: true, speculates, num_blocks, scored_tokens, ..Shape::default() };
        self.block_count(slot)?;
        self.grow(slot, cached_tokens)
    }

    /// Returns the number of tokens that the rows may compute.
    fn continues(
        &mut self,
        slots: impl ExactSizeIterator<Item = u32>,
        draft_limits: &[u8],
    ) -> Result<usize, Violation> {
        let (rows, limits) = (slots.len(), draft_limits.len());
        if limits != 0 && limits != rows {
            return Err(Violation::DraftLimits { actual: limits, rows });
        }
        let limits = draft_limits.iter().copied().chain(std::iter::repeat(0));
        slots.zip(limits).try_fold(0, |tokens, (slot, draft_limit)| Ok(tokens + self.continue_row(slot, draft_limit)?))
    }

    fn continue_row(&mut self, slot: u32, draft_limit: u8) -> Result<usize, Violation> {
        self.row(slot)?;
        let &mut Shape { sampled, speculates, .. } = self.live(slot)?;
        if !sampled {
            return Err(Violation::NothingSampled { slot });
        }
        let max = if speculates { MAX_DRAFT_TOKENS } else { 0 };
        if draft_limit > max {
            return Err(Violation::DraftLimit { slot, actual: draft_limit, max });
        }
        let tokens = 1 + usize::from(draft_limit);
        self.logit_rows += tokens;
        self.grow(slot, tokens)?;
        Ok(tokens)
    }

    /// Returns the number of tokens of the chunk.
    fn chunk(&mut self, chunk: &Chunk) -> Result<usize, Violation> {
        let slot = chunk.slot;
        self.row(slot)?;
        let length = self.live(slot)?.length;
        if chunk.start_position as usize != length {
            return Err(Violation::ChunkStart { slot, actual: chunk.start_position, expected: length });
        }
        let ids = field("chunks.ids", &chunk.ids)?;
        let tokens = ids.len();
        if tokens == 0 {
            return Err(Violation::EmptyChunk { slot });
        }
        for id in ids {
            self.token(slot, id)?;
        }
        let shape = self.live(slot)?;
        shape.sampled = chunk.sample;
        // As many rows of the chunk predict a token to score; the last one is wanted anyway if it is sampled.
        let predicting = shape.scored_tokens.saturating_sub(length + 1).min(tokens);
        self.logit_rows += predicting + usize::from(chunk.sample && predicting < tokens);
        self.grow(slot, tokens)?;
        Ok(tokens)
    }

    /// A slot that may be live or not.
    fn slot(&mut self, slot: u32) -> Result<&mut Shape, Violation> {
        let max_slots = self.limits.max_slots;
        self.shapes.get_mut(slot as usize).ok_or(Violation::SlotId { slot, max_slots })
    }

    fn live(&mut self, slot: u32) -> Result<&mut Shape, Violation> {
        let shape = self.slot(slot)?;
        if shape.live { Ok(shape) } else { Err(Violation::NotLive { slot }) }
    }

    /// A slot may have rows in one place of a plan only.
    fn row(&mut self, slot: u32) -> Result<(), Violation> {
        match std::mem::replace(&mut self.live(slot)?.has_row, true) {
            true => Err(Violation::TwoRows { slot }),
            false => Ok(()),
        }
    }

    fn block(&self, slot: u32, block_id: u32) -> Result<(), Violation> {
        let num_blocks = self.limits.num_blocks;
        if (block_id as usize) < num_blocks { Ok(()) } else { Err(Violation::BlockId { slot, block_id, num_blocks }) }
    }

    /// No slot needs more blocks than the longest sequence fills.
    fn block_count(&mut self, slot: u32) -> Result<(), Violation> {
        let max = self.limits.max_context.div_ceil(self.limits.block_size);
        let actual = self.live(slot)?.num_blocks;
        if actual <= max { Ok(()) } else { Err(Violation::TooManyBlocks { slot, actual, max }) }
    }

    fn token(&self, slot: u32, token_id: u32) -> Result<(), Violation> {
        let vocab_size = self.limits.vocab_size;
        if (token_id as usize) < vocab_size { Ok(()) } else { Err(Violation::TokenId { slot, token_id, vocab_size }) }
    }

    fn grow(&mut self, slot: u32, tokens: usize) -> Result<(), Violation> {
        let &SlotLimits { block_size, max_context, .. } = self.limits;
        let shape = self.live(slot)?;
        shape.length += tokens;
        let (length, num_blocks) = (shape.length, shape.num_blocks);
        if length > max_context {
            return Err(Violation::Context { slot, length, max_context });
        }
        if length > num_blocks * block_size {
            return Err(Violation::BlockTable { slot, length, num_blocks, needed: length.div_ceil(block_size) });
        }
        Ok(())
    }
}
