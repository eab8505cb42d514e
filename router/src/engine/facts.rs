//! What the shard group is and can hold: every rank's `InfoResponse` merged into one.

use proto::v1::InfoResponse;

use super::error::EngineError;
use crate::request::RequestLimits;

/// The shard group as the router sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardFacts {
    /// Number of ranks.
    pub world_size: u32,
    /// Rank 0's device in words, "cpu (AVX-512, 2 threads)".
    pub device: String,
    /// Data type of the weights, "bfloat16".
    pub dtype: String,
    /// Family of the model, "llama".
    pub model_type: String,
    /// Token ids are below it.
    pub vocab_size: u32,
    /// Longest sequence the model was made for, in tokens.
    pub max_position_embeddings: u32,
    /// Tokens per KV block.
    pub block_size: u32,
    /// KV blocks that every rank has.
    pub num_blocks: u32,
    /// Rows that can be live at once.
    pub max_slots: u32,
    /// Token rows one plan may compute.
    pub max_step_tokens: u32,
    /// Rows of one plan whose logits can be computed.
    pub max_logit_rows: u32,
    /// Ids that end a sequence.
    pub eos_token_ids: Vec<u32>,
    /// Largest `top_n_tokens`.
    pub max_top_n_tokens: u32,
    /// Weights over all ranks, in bytes.
    pub weights_bytes: u64,
    /// KV cache over all ranks, in bytes.
    pub kv_cache_bytes: u64,
}

impl ShardFacts {
    /// Merges what the ranks said, in rank order: sizes are the smallest, bytes are sums, the model must be the same.
    ///
    /// # Errors
    /// [`EngineError::Group`] with the field in which a rank departs from rank 0 or from what was expected.
    pub fn merge(infos: &[InfoResponse]) -> Result<Self, EngineError> {
        let first = &infos[0];
        for (rank, info) in infos.iter().enumerate() {
            let agree = |field, value: u32, expected: u32| match value == expected {
                true => Ok(()),
                false => {
                    Err(EngineError::Group { rank: rank as u32, field, value: value.into(), expected: expected.into() })
                }
            };
            agree("protocol_version", info.protocol_version, proto::PROTOCOL_VERSION)?;
            agree("rank", info.rank, rank as u32)?;
            agree("world_size", info.world_size, infos.len() as u32)?;
            agree("vocab_size", info.vocab_size, first.vocab_size)?;
            agree("block_size", info.block_size, first.block_size)?;
            for (field, value) in [
                ("vocab_size", info.vocab_size),
                ("block_size", info.block_size),
                ("num_blocks", info.num_blocks),
                ("max_slots", info.max_slots),
                ("max_step_tokens", info.max_step_tokens),
                ("max_logit_rows", info.max_logit_rows),
                ("max_position_embeddings", info.max_position_embeddings),
            ] {
                if value == 0 {
                    return Err(EngineError::Group { rank: rank as u32, field, value: 0, expected: 1 });
                }
            }
        }
        let least =
            |field: fn(&InfoResponse) -> u32| infos.iter().map(field).min().expect("a group has at least one rank");
        Ok(Self {
            world_size: infos.len() as u32,
            device: first.device.clone(),
            dtype: first.dtype.clone(),
            model_type: first.model_type.clone(),
            vocab_size: first.vocab_size,
            max_position_embeddings: least(|info| info.max_position_embeddings),
            block_size: first.block_size,
            num_blocks: least(|info| info.num_blocks),
            max_slots: least(|info| info.max_slots),
            max_step_tokens: least(|info| info.max_step_tokens),
            max_logit_rows: least(|info| info.max_logit_rows),
            eos_token_ids: first.eos_token_ids.clone(),
            max_top_n_tokens: least(|info| info.max_top_n_tokens),
            weights_bytes: infos.iter().map(|info| info.weights_bytes).sum(),
            kv_cache_bytes: infos.iter().map(|info| info.kv_cache_bytes).sum(),
        })
    }

    /// Tokens that the whole KV cache holds.
    pub fn capacity_tokens(&self) -> u32 {
        self.num_blocks.saturating_mul(self.block_size)
    }

    /// What a request must respect if the operator allows `max_total_tokens`: never more than the cache can hold.
    pub fn request_limits(&self, max_total_tokens: u32) -> RequestLimits {
        RequestLimits {
            max_total_tokens: max_total_tokens.min(self.capacity_tokens()),
            vocab_size: self.vocab_size,
            max_top_n_tokens: self.max_top_n_tokens,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn info(rank: u32) -> InfoResponse {
        InfoResponse {
            protocol_version: proto::PROTOCOL_VERSION,
            rank,
            world_size: 2,
            vocab_size: 100,
            max_position_embeddings: 64,
            block_size: 16,
            num_blocks: 10 - rank,
            max_slots: 4 + rank,
            max_step_tokens: 32,
            max_logit_rows: 16,
            weights_bytes: 5,
            ..Default::default()
        }
    }

    #[test]
    fn the_group_is_as_large_as_its_smallest_rank() {
        let facts = ShardFacts::merge(&[info(0), info(1)]).unwrap();
        assert_eq!((facts.num_blocks, facts.max_slots, facts.weights_bytes), (9, 4, 10));
        assert_eq!(facts.request_limits(1_000).max_total_tokens, 9 * 16);
    }

    #[test]
    fn a_rank_that_departs_is_named() {
        #[track_caller]
        fn check(change: fn(&mut InfoResponse), expect: Expect) {
            let mut second = info(1);
            change(&mut second);
            expect.assert_eq(&ShardFacts::merge(&[info(0), second]).unwrap_err().to_string());
        }
        check(|i| i.protocol_version = 9, expect!["shard rank 1 says protocol_version 9, expected 3"]);
        check(|i| i.vocab_size = 99, expect!["shard rank 1 says vocab_size 99, expected 100"]);
        check(|i| i.rank = 0, expect!["shard rank 1 says rank 0, expected 1"]);
        check(|i| i.num_blocks = 0, expect!["shard rank 1 says num_blocks 0, expected 1"]);
    }
}
