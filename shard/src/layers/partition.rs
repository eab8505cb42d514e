//! Which part of a model a rank holds.

use std::ops::Range;

use crate::config::DecoderSpec;
use crate::error::{Error, Result};

/// A rank's share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    rank: usize,
    world_size: usize,
}

impl Partition {
    /// The share of `rank` in a group of `world_size`.
    ///
    /// # Errors
    /// [`Error::Indivisible`] if the model cannot be cut like that.
    pub fn new(spec: &DecoderSpec, rank: usize, world_size: usize) -> Result<Partition> {
        assert!(rank < world_size, "rank {rank} of {world_size}");
        if let Some((field, value)) = obstacle(spec, world_size) {
            let possible = (1..=spec.num_heads).filter(|ranks| obstacle(spec, *ranks).is_none()).collect();
            return Err(Error::Indivisible { world_size, field, value, possible });
        }
        Ok(Partition { rank, world_size })
    }

    /// This rank's part of `0..n`, which divides.
    pub fn even(&self, n: usize) -> Range<usize> {
        let part = n / self.world_size;
        self.rank * part..(self.rank + 1) * part
    }

    /// This rank's KV heads. With fewer heads than ranks, neighbouring ranks hold the same one: their query heads share it.
    pub fn kv_heads(&self, num_kv_heads: usize) -> Range<usize> {
        if num_kv_heads >= self.world_size {
            return self.even(num_kv_heads);
        }
        let head = self.rank * num_kv_heads / self.world_size;
        head..head + 1
    }

    /// This rank's token ids: pieces of [`Partition::vocab_stride`], the last ones shorter or empty.
    pub fn vocab(&self, vocab_size: usize) -> Range<usize> {
        let stride = self.vocab_stride(vocab_size);
        (self.rank * stride).min(vocab_size)..((self.rank + 1) * stride).min(vocab_size)
    }

    /// Token ids per rank, rounded up.
    pub fn vocab_stride(&self, vocab_size: usize) -> usize {
        vocab_size.div_ceil(self.world_size)
    }
}

/// The first dimension that does not divide.
fn obstacle(spec: &DecoderSpec, world_size: usize) -> Option<(&'static str, usize)> {
    let DecoderSpec { num_heads, num_kv_heads, intermediate_size, .. } = *spec;
    if !num_heads.is_multiple_of(world_size) {
        return Some(("num_attention_heads", num_heads));
    }
    // Fewer KV heads than ranks are replicated, the same number of times each.
    if !num_kv_heads.is_multiple_of(world_size) && !world_size.is_multiple_of(num_kv_heads) {
        return Some(("num_key_value_heads", num_kv_heads));
    }
    if !intermediate_size.is_multiple_of(world_size) {
        return Some(("intermediate_size", intermediate_size));
    }
    let expert_size = spec.experts.as_ref().map(|experts| experts.intermediate_size);
    expert_size.filter(|size| !size.is_multiple_of(world_size)).map(|size| ("moe_intermediate_size", size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ExpertsSpec, NormKind, NormSpec, RopeScaling, RopeSpec};

    fn spec(num_heads: usize, num_kv_heads: usize, intermediate_size: usize) -> DecoderSpec {
        DecoderSpec {
            model_type: "llama".into(),
            dtype: None,
            kv_dtype: None,
            quantization: None,
            quantized_checkpoint: None,
            vocab_size: 10,
            hidden_size: 8 * num_heads,
            intermediate_size,
            num_layers: 1,
            num_heads,
            num_kv_heads,
            head_dim: 8,
            max_position_embeddings: 16,
            norm: NormSpec { kind: NormKind::Rms, eps: 1e-6 },
            activation: kernels::ops::Activation::Silu,
            scales_embeddings: false,
            rope: RopeSpec { theta: 1e4, scaling: RopeScaling::Default },
            window_rope: None,
            attention_scale: 1.0,
            attention_softcap: None,
            logit_softcap: None,
            qkv_bias: false,
            o_bias: false,
            mlp_bias: false,
            qk_norm: false,
            experts: None,
            tie_word_embeddings: false,
            windows: vec![None],
            eos_token_ids: vec![],
        }
    }

    #[track_caller]
    fn check_error(spec: &DecoderSpec, world_size: usize, expected: &str) {
        assert_eq!(Partition::new(spec, 0, world_size).unwrap_err().to_string(), expected);
    }

    #[test]
    fn what_does_not_divide_is_named_with_what_would() {
        check_error(
            &spec(8, 4, 64),
            3,
            "`--num-shard 3`: num_attention_heads 8 is not divisible by 3; possible: 1, 2, 4, 8",
        );
        check_error(
            &spec(12, 4, 96),
            3,
            "`--num-shard 3`: num_key_value_heads 4 is not divisible by 3; possible: 1, 2, 4, 12",
        );
        check_error(
            &spec(8, 8, 36),
            8,
            "`--num-shard 8`: intermediate_size 36 is not divisible by 8; possible: 1, 2, 4",
        );
    }

    #[test]
    fn experts_are_cut_along_their_own_width() {
        let experts = |intermediate_size| ExpertsSpec {
            num_experts: 4,
            experts_per_row: 2,
            intermediate_size,
            normalise: true,
            layers: vec![true],
        };
        let spec = DecoderSpec { experts: Some(experts(20)), ..spec(8, 8, 64) };
        assert!(Partition::new(&spec, 0, 4).is_ok());
        check_error(&spec, 8, "`--num-shard 8`: moe_intermediate_size 20 is not divisible by 8; possible: 1, 2, 4");
    }

    #[test]
    fn few_kv_heads_are_replicated_beside_their_query_heads() {
        let spec = spec(8, 2, 64);
        let heads = |rank| {
            let partition = Partition::new(&spec, rank, 4).unwrap();
            (partition.even(8), partition.kv_heads(2))
        };
        assert_eq!([0, 1, 2, 3].map(heads), [(0..2, 0..1), (2..4, 0..1), (4..6, 1..2), (6..8, 1..2)]);
    }

    #[test]
    fn an_uneven_vocabulary_is_covered_once() {
        let ranges = |world_size: usize, vocab_size| {
            let part = |rank| Partition { rank, world_size }.vocab(vocab_size);
            (0..world_size).map(part).collect::<Vec<_>>()
        };
        assert_eq!(ranges(4, 10), [0..3, 3..6, 6..9, 9..10]);
        assert_eq!(ranges(4, 5), [0..2, 2..4, 4..5, 5..5]);
        assert_eq!(ranges(1, 5), vec![0..5]);
    }
}
