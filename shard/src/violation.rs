//! What a router may not ask for: the ways in which a plan can contradict the shard's state.

use std::time::Duration;

use proto::InvalidSampling;

/// A breach of the step protocol. It ends the epoch: router and shard no longer agree on the state.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Violation {
    /// A plan is missing, repeated or out of order.
    #[error("plan {actual} arrived, expected plan {expected}")]
    Sequence {
        /// Its number.
        actual: u64,
        /// The number it should have.
        expected: u64,
    },
    /// A packed field is cut.
    #[error("`{field}` has {length} bytes, which is no multiple of {record}")]
    Packed {
        /// The field.
        field: &'static str,
        /// Its length.
        length: usize,
        /// Bytes of a record.
        record: usize,
    },
    /// A slot id beyond the last slot.
    #[error("slot {slot} does not exist: ids end below {max_slots}")]
    SlotId {
        /// The id.
        slot: u32,
        /// Number of slots.
        max_slots: usize,
    },
    /// The plan uses a slot that holds no row.
    #[error("slot {slot} is not live")]
    NotLive {
        /// The slot.
        slot: u32,
    },
    /// A new slot takes the place of a live one.
    #[error("slot {slot} is live already: free it first")]
    AlreadyLive {
        /// The slot.
        slot: u32,
    },
    /// A slot has rows in two places of a plan.
    #[error("slot {slot} appears twice among the rows of the plan")]
    TwoRows {
        /// The slot.
        slot: u32,
    },
    /// A sampling parameter is out of range.
    #[error("slot {slot}: {source}")]
    Params {
        /// The slot.
        slot: u32,
        /// The parameter.
        source: InvalidSampling,
    },
    /// A block id beyond the last block.
    #[error("slot {slot}: block {block_id} does not exist: ids end below {num_blocks}")]
    BlockId {
        /// The slot.
        slot: u32,
        /// The id.
        block_id: u32,
        /// Number of blocks.
        num_blocks: usize,
    },
    /// More blocks than the longest sequence fills.
    #[error("slot {slot} has {actual} blocks; the longest sequence fills {max}")]
    TooManyBlocks {
        /// The slot.
        slot: u32,
        /// Its blocks.
        actual: usize,
        /// Blocks of the longest sequence.
        max: usize,
    },
    /// A cached prefix that is not made of full blocks that the slot has.
    #[error(
        "slot {slot}: {actual} cached tokens are no multiple of {block_size} or more than the {capacity} that its \
         blocks hold"
    )]
    CachedTokens {
        /// The slot.
        slot: u32,
        /// Tokens said to be cached.
        actual: usize,
        /// Tokens per block.
        block_size: usize,
        /// Tokens that the slot's blocks hold.
        capacity: usize,
    },
    /// The ids of a cached prefix are needed, or sent, and not as many as its tokens.
    #[error("slot {slot}: {actual} cached ids for {expected} cached tokens")]
    CachedIds {
        /// The slot.
        slot: u32,
        /// Ids sent.
        actual: usize,
        /// Tokens said to be cached.
        expected: usize,
    },
    /// A token id beyond the vocabulary.
    #[error("slot {slot}: token {token_id} does not exist: ids end below {vocab_size}")]
    TokenId {
        /// The slot.
        slot: u32,
        /// The id.
        token_id: u32,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// The first plan of an epoch repeats rows.
    #[error("`same_rows` in the first plan of an epoch: there are no rows to repeat")]
    NoPreviousRows,
    /// `same_rows` excludes the fields it stands for.
    #[error("`same_rows` together with `continues` or `chunks`")]
    RowsBesideSameRows,
    /// A row continues although no token was sampled for it.
    #[error("slot {slot} cannot continue: its last chunk did not sample")]
    NothingSampled {
        /// The slot.
        slot: u32,
    },
    /// A draft limit for some rows only.
    #[error("`draft_limits` has {actual} bytes for {rows} rows that continue")]
    DraftLimits {
        /// Its length.
        actual: usize,
        /// Rows that continue.
        rows: usize,
    },
    /// A draft that is too long, or for a slot that does not speculate.
    #[error("slot {slot} may have a draft of {actual} tokens; its longest is {max}")]
    DraftLimit {
        /// The slot.
        slot: u32,
        /// The limit asked for.
        actual: u8,
        /// 0 if the slot does not speculate.
        max: u8,
    },
    /// Drafts and masks exclude each other: a mask belongs to one position.
    #[error("slot {slot} cannot both speculate and wait for masks")]
    MaskedSpeculation {
        /// The slot.
        slot: u32,
    },
    /// A chunk does not start where the sequence ends.
    #[error("slot {slot}: the chunk starts at position {actual}, the sequence is at {expected}")]
    ChunkStart {
        /// The slot.
        slot: u32,
        /// Where the chunk starts.
        actual: u32,
        /// The slot's length.
        expected: usize,
    },
    /// A chunk without tokens.
    #[error("slot {slot}: the chunk has no tokens")]
    EmptyChunk {
        /// The slot.
        slot: u32,
    },
    /// A sequence grows beyond the context.
    #[error("slot {slot} would hold {length} tokens; the longest sequence is {max_context}")]
    Context {
        /// The slot.
        slot: u32,
        /// Its length after the plan.
        length: usize,
        /// Longest sequence.
        max_context: usize,
    },
    /// A sequence grows beyond its blocks.
    #[error("slot {slot} would hold {length} tokens, which takes {needed} blocks; it has {num_blocks}")]
    BlockTable {
        /// The slot.
        slot: u32,
        /// Its length after the plan.
        length: usize,
        /// Blocks it has.
        num_blocks: usize,
        /// Blocks it needs.
        needed: usize,
    },
    /// More tokens than one step computes.
    #[error("the plan has {actual} tokens; a step computes at most {max}")]
    StepTokens {
        /// Tokens of the plan.
        actual: usize,
        /// Budget of a step.
        max: usize,
    },
    /// More rows whose logits are wanted than there is room for.
    #[error("the plan needs the logits of {actual} rows; a step has room for {max}")]
    LogitRows {
        /// Sampled rows, and rows that predict prompt tokens.
        actual: usize,
        /// Info.max_logit_rows.
        max: usize,
    },
    /// Grammar masks for a plan that was executed, or cannot be in flight, or after those of a later one.
    #[error("masks for plan {actual} arrived, expected masks for a plan from {first} to {last}")]
    MaskSeq {
        /// The plan.
        actual: u64,
        /// The first for which masks may still come.
        first: u64,
        /// The last that can be in flight.
        last: u64,
    },
    /// A slot has more than one mask for a plan.
    #[error("slot {slot} has two masks for plan {seq}")]
    TwoMasks {
        /// The plan.
        seq: u64,
        /// The slot.
        slot: u32,
    },
    /// A mask has more words than the vocabulary.
    #[error("slot {slot}: the mask has {actual} bytes; the vocabulary takes {max}")]
    MaskLength {
        /// The slot.
        slot: u32,
        /// Bytes of the mask.
        actual: usize,
        /// Bytes of a mask that has a bit for every token.
        max: usize,
    },
    /// A mask for a slot that the plan does not sample, or whose request has no grammar.
    #[error("slot {slot} has a mask for plan {seq}, which samples no row of it under a grammar")]
    MaskSlot {
        /// The plan.
        seq: u64,
        /// The slot.
        slot: u32,
    },
    /// A row under a grammar waited in vain.
    #[error("no mask for slot {slot} of plan {seq} arrived within {} ms", waited.as_millis())]
    MaskMissing {
        /// The plan.
        seq: u64,
        /// The slot.
        slot: u32,
        /// How long the step waited.
        waited: Duration,
    },
}
