//! What passes between the scheduler and a shard group: one step's plan down, one step's outcome up.
//!
//! The same content as `Plan` and `StepResult` of `shard.proto` in plain vectors that are reused from step to step;
//! `engine/wire.rs` translates.

use std::time::Duration;

use proto::v1::SamplingParams;

use crate::kv::BlockId;

use super::RequestId;
use super::row::Tenancy;

/// A dense place for a live row on the shards, `0..max_slots`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(pub u32);

/// One step: applied in the order freed slots, new slots, appended blocks; then `continues` and `chunks` run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepPlan {
    /// 1, 2, 3, ... within an epoch.
    pub seq: u64,
    /// `continues` equals the previous plan's, and there are no chunks.
    pub same_rows: bool,
    /// Rows that compute the token sampled last and sample the next.
    pub continues: Vec<SlotId>,
    /// Draft tokens that each of them may compute; empty if none may any.
    pub draft_limits: Vec<u8>,
    /// Pieces of prompts.
    pub chunks: Vec<Chunk>,
    /// The ids of all chunks, one after the other.
    pub chunk_ids: Vec<u32>,
    /// Rows that enter.
    pub new_slots: Vec<NewSlot>,
    /// What the new slots add to the message, in bytes, at most.
    pub entry_bytes: usize,
    /// Blocks that are appended to block tables, in order.
    pub appended_blocks: Vec<(SlotId, BlockId)>,
    /// Rows that have left.
    pub freed_slots: Vec<SlotId>,
    /// Sampled rows that wait for a mask, in row order.
    pub masked: Vec<MaskedRow>,
}

/// A sampled row whose token must match a grammar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaskedRow {
    /// Where.
    pub slot: SlotId,
    /// Whose.
    pub request: RequestId,
    /// Tokens of the reply before the one that is sampled: the mask is the one that follows them.
    pub reply_len: u32,
    /// The stay in the slot, by which [`Scheduler::is_awaited`](super::Scheduler::is_awaited) recognises the row.
    pub(super) tenancy: Tenancy,
}

/// A piece of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Its row.
    pub slot: SlotId,
    /// Position of its first token: the slot's length.
    pub start_position: u32,
    /// Tokens it takes from `chunk_ids`, after those of the chunks before it.
    pub num_tokens: u32,
    /// The prompt ends here: sample.
    pub sample: bool,
}

/// A row that enters.
#[derive(Clone, Debug, PartialEq)]
pub struct NewSlot {
    /// Where.
    pub slot: SlotId,
    /// For error texts.
    pub request: RequestId,
    /// How its tokens are chosen.
    pub sampling: SamplingParams,
    /// Tokens of the prompt: the same at every stay, so that penalties know where the reply begins.
    pub prompt_tokens: u32,
    /// Its sampled rows wait for masks.
    pub masked: bool,
    /// It may draft.
    pub speculates: bool,
    /// Blocks of its cached prefix.
    pub block_table: Vec<BlockId>,
    /// Tokens in those blocks.
    pub cached_tokens: u32,
    /// Their ids, if the parameters need them or it may draft; else empty.
    pub cached_ids: Vec<u32>,
}

impl StepPlan {
    /// Token rows this step computes, at most.
    pub fn num_tokens(&self) -> usize {
        self.continues.len() + self.num_draft_tokens() + self.chunk_ids.len()
    }

    /// Draft tokens among them.
    pub fn num_draft_tokens(&self) -> usize {
        self.draft_limits.iter().map(|&limit| usize::from(limit)).sum()
    }

    /// The chunks with their ids.
    pub fn chunks_with_ids(&self) -> impl Iterator<Item = (&Chunk, &[u32])> {
        let mut rest = self.chunk_ids.as_slice();
        self.chunks.iter().map(move |chunk| {
            let (ids, after) = rest.split_at(chunk.num_tokens as usize);
            rest = after;
            (chunk, ids)
        })
    }

    pub(super) fn clear(&mut self) {
        self.same_rows = false;
        self.continues.clear();
        self.draft_limits.clear();
        self.chunks.clear();
        self.chunk_ids.clear();
        self.new_slots.clear();
        self.entry_bytes = 0;
        self.appended_blocks.clear();
        self.freed_slots.clear();
        self.masked.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.continues.is_empty() && self.chunks.is_empty()
    }
}

/// What a step produced.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepOutcome {
    /// The plan it answers.
    pub seq: u64,
    /// One per sampled row that did not fail, in row order, and one more for each token of its draft that was right. A row whose
    /// draft came to a failure has those before it.
    pub samples: Vec<SampledRow>,
    /// Rows that failed alone, with the shard's words.
    pub row_errors: Vec<(SlotId, String)>,
    /// Log-probabilities of prompt tokens.
    pub prompt_runs: Vec<PromptRun>,
    /// Draft tokens that each of the rows that continue has computed; empty if the plan allowed none.
    pub draft_tokens: Vec<u8>,
    /// What the step took on the shards.
    pub took: Duration,
}

/// Log-probabilities of consecutive tokens of one prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptRun {
    /// The row.
    pub slot: SlotId,
    /// Position of the first of these tokens.
    pub first_position: u32,
    /// One per token.
    pub logprobs: Vec<PromptLogprob>,
}

/// How likely a token of the prompt was, given those before it.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptLogprob {
    /// By the model's own distribution.
    pub logprob: f32,
    /// The most likely tokens in its place, best first, if asked for.
    pub top: Option<Box<[(u32, f32)]>>,
}

/// One row's next token.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledRow {
    /// The row.
    pub slot: SlotId,
    /// The token.
    pub token_id: u32,
    /// Its log-probability after all warpers.
    pub logprob: f32,
    /// The most likely tokens, best first, if asked for.
    pub top: Option<Box<[(u32, f32)]>>,
}

/// An outcome that does not answer the plan: the shards and the router disagree, so the epoch is over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// Not the oldest plan in flight.
    #[error("result {actual} arrived, expected {expected:?}")]
    Seq {
        /// Its number.
        actual: u64,
        /// The oldest plan in flight.
        expected: Option<u64>,
    },
    /// A sampled row is missing, out of order or unknown.
    #[error("sample of slot {actual:?}, expected slot {expected:?}")]
    Row {
        /// What came.
        actual: Option<u32>,
        /// The next sampled row of the plan.
        expected: Option<u32>,
    },
    /// Drafts that the plan did not allow.
    #[error("the draft tokens of plan {seq} are not within its limits")]
    Drafts {
        /// The plan.
        seq: u64,
    },
    /// Log-probabilities of a prompt with a gap, or less than all of them.
    #[error("prompt log-probabilities of slot {slot} at position {actual}, expected {expected}")]
    Prompt {
        /// The row.
        slot: u32,
        /// The position that came.
        actual: u32,
        /// The first one that is still missing.
        expected: u32,
    },
    /// A token outside of the vocabulary.
    #[error("token id {token_id}, vocabulary size is {vocab_size}")]
    TokenId {
        /// The id.
        token_id: u32,
        /// Ids are below it.
        vocab_size: u32,
    },
}
