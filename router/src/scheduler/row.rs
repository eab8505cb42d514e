//! A request's state: what survives everything ([`Sequence`]) and what it has while it occupies a slot ([`Row`]).

use crate::kv::{BlockHash, BlockId, KvCache};
use crate::request::GenerateRequest;

use super::speculation::Acceptance;
use super::{PromptLogprob, RequestId};

/// The truth of a request. Everything else can be rebuilt from it.
pub(super) struct Sequence {
    pub(super) id: RequestId,
    pub(super) request: GenerateRequest,
    /// Prompt and emitted tokens: what a preempted or recovered row enters again with.
    pub(super) tokens: Vec<u32>,
    /// The root of its prefix chain, then one hash per full block of `tokens`; empty if it does not use the cache.
    pub(super) chain: Vec<BlockHash>,
    /// Log-probabilities of its prompt's tokens from the second on, as far as they have arrived; `None` if nobody asks for
    /// them, or has been told.
    pub(super) prompt_logprobs: Option<Vec<PromptLogprob>>,
    /// Whether it has been in a batch before.
    pub(super) was_scheduled: bool,
    /// Crashes since its last token while it computed its first step.
    pub(super) strikes: u32,
    /// Crashes it was in flight at.
    pub(super) crashes: u32,
}

impl Sequence {
    pub(super) fn new(id: RequestId, request: GenerateRequest, cache: &KvCache) -> Self {
        let parts = request.parts();
        let tokens = parts.input_ids.to_vec();
        let mut chain = Vec::new();
        if parts.cache_prompt {
            chain.push(cache.root(parts.salt.as_deref()));
            cache.extend_chain(&mut chain, &tokens);
        }
        let prompt_logprobs = parts.sampling.prompt_logprobs.then(Vec::new);
        Self { id, request, tokens, chain, prompt_logprobs, was_scheduled: false, strikes: 0, crashes: 0 }
    }

    /// Tokens known, prompt and reply.
    pub(super) fn len(&self) -> u32 {
        self.tokens.len() as u32
    }

    /// The part of the prompt that may come from the cache: all but the last token, whose logits are needed. Nothing, if
    /// the logits of all are.
    pub(super) fn cacheable(&self) -> &[u32] {
        match self.prompt_logprobs {
            None => &self.tokens[..self.tokens.len() - 1],
            Some(_) => &[],
        }
    }

    /// Tokens of its reply so far.
    pub(super) fn reply_len(&self) -> u32 {
        self.len() - self.request.input_tokens()
    }
}

/// One stay of a sequence in a slot. Numbers are never reused, so an answer to an earlier stay is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tenancy(pub(super) u64);

/// A sequence in a slot.
pub(super) struct Row {
    pub(super) sequence: Sequence,
    pub(super) tenancy: Tenancy,
    /// Tokens whose KV has been planned: the slot's length after the last plan, if no draft in flight is right.
    pub(super) computed: u32,
    /// Tokens sampled by plans in flight, not yet known; without those that drafts add.
    pub(super) in_flight: u32,
    /// Draft tokens that plans in flight allow it: so many more may be sampled, and as many more be computed.
    pub(super) drafts_in_flight: u32,
    /// Whether it may draft.
    pub(super) speculates: bool,
    /// How good its drafts are.
    pub(super) acceptance: Acceptance,
    /// Whether the plan that ends the prompt has been issued; from then on the shard knows the next input token.
    pub(super) prompt_planned: bool,
    /// Whether a token of this stay has arrived: the row has shown that it can be computed.
    pub(super) has_answered: bool,
    /// Covers at least `computed + drafts_in_flight` tokens.
    pub(super) blocks: Vec<BlockId>,
    /// Leading blocks that came from the prefix index: others have computed them.
    pub(super) cached: u32,
    /// Leading blocks that are offered to the prefix index.
    pub(super) committed: u32,
    /// The last plan it is part of.
    pub(super) planned_in: u64,
}

/// What a row wants from the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// This many more prompt tokens.
    Prefill(u32),
    /// The next token.
    Decode,
    /// Nothing: its last token, by length, is in flight.
    Ending,
}

impl Row {
    pub(super) fn work(&self) -> Work {
        let planned = self.sequence.len() + self.in_flight;
        if planned >= self.sequence.request.max_total_tokens() {
            Work::Ending
        } else if self.prompt_planned {
            Work::Decode
        } else {
            Work::Prefill(self.sequence.len() - self.computed)
        }
    }

    /// Tokens after the plans in flight if all their drafts are right.
    pub(super) fn longest(&self) -> u32 {
        self.sequence.len() + self.in_flight + self.drafts_in_flight
    }

    /// Whether it must know first how many tokens the drafts in flight have brought, because they may have brought the last.
    pub(super) fn may_have_ended(&self) -> bool {
        self.longest() >= self.sequence.request.max_total_tokens()
    }

    /// Offers every block to the index that is full, whose ids are known and whose computation is planned, at the latest
    /// in step `seq`.
    pub(super) fn commit_full_blocks(&mut self, cache: &mut KvCache, block_size: u32, seq: u64) {
        let sequence = &mut self.sequence;
        if sequence.chain.is_empty() {
            return;
        }
        let full = self.computed.min(sequence.tokens.len() as u32) / block_size;
        if full > self.committed {
            cache.extend_chain(&mut sequence.chain, &sequence.tokens);
        }
        while self.committed < full {
            let idx = self.committed as usize;
            let ids = &sequence.tokens[idx * block_size as usize..(idx + 1) * block_size as usize];
            cache.commit(self.blocks[idx], [sequence.chain[idx], sequence.chain[idx + 1]], ids, seq);
            self.committed += 1;
        }
    }
}
