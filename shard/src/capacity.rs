//! How many KV blocks to allocate.
//!
//! The operator's `--max-batch-total-tokens` decides; without it, the memory that is left after weights and arena, and
//! never more than all slots could fill.

use crate::limits::MIN_KV_TOKENS;

/// What the capacity depends on.
#[derive(Clone, Debug)]
pub struct CapacityInput {
    /// Tokens per KV block.
    pub block_size: usize,
    /// Bytes of a KV block of this rank.
    pub bytes_per_block: usize,
    /// Rows that can be live.
    pub max_slots: usize,
    /// Longest sequence the model can represent.
    pub max_position_embeddings: usize,
    /// Longest sequence the operator allows (`--max-total-tokens`).
    pub max_total_tokens: Option<usize>,
    /// KV capacity the operator wants (`--max-batch-total-tokens`).
    pub max_batch_total_tokens: Option<usize>,
    /// Where it will lie; `None` if the system does not tell.
    pub memory: Option<UsableMemory>,
    /// Bytes that the activations will take of it.
    pub arena_bytes: u64,
}

/// The memory that KV cache and activations share.
#[derive(Clone, Copy, Debug)]
pub struct UsableMemory {
    /// What can still be allocated, after the weights.
    pub available_bytes: u64,
    /// The part of it that may be.
    pub fraction: f64,
    /// Ranks that share it.
    pub ranks: usize,
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// KV blocks to allocate.
    pub num_blocks: usize,
    /// Longest sequence that a slot may hold, in tokens.
    pub max_context: usize,
}

/// A configuration that cannot serve one sequence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CapacityError {
    /// More context was asked for than the model has.
    #[error("--max-total-tokens {asked} is more than the {possible} positions of this model")]
    Context {
        /// What was asked for.
        asked: usize,
        /// What the model has.
        possible: usize,
    },
    /// The flags contradict each other.
    #[error(
        "--max-batch-total-tokens {capacity} cannot hold one sequence of {needed} tokens; raise it, or lower \
         --max-total-tokens"
    )]
    Flags {
        /// KV capacity asked for, in tokens.
        capacity: usize,
        /// The sequence it must hold.
        needed: usize,
    },
    /// The KV cache does not fit into memory.
    #[error(
        "not enough memory for the KV cache: one sequence of {needed} tokens takes {needed_bytes} bytes, and \
         {usable_bytes} bytes are usable ({percent} % of the {available_bytes} bytes available, less {arena_bytes} for \
         activations, over {world_size} ranks); free memory, or lower --max-total-tokens"
    )]
    Memory {
        /// The sequence it must hold, in tokens.
        needed: usize,
        /// Bytes that this takes.
        needed_bytes: u64,
        /// Bytes this rank may use for it.
        usable_bytes: u64,
        /// Share of the available memory that may be used.
        percent: u32,
        /// Bytes available to all ranks.
        available_bytes: u64,
        /// Bytes of the activations of one rank.
        arena_bytes: u64,
        /// Ranks that share the memory.
        world_size: usize,
    },
}

/// Decides on the KV cache.
///
/// # Errors
/// [`CapacityError`] if not even one sequence would fit.
pub fn capacity(input: &CapacityInput) -> Result<Capacity, CapacityError> {
    let &CapacityInput { block_size, bytes_per_block, max_position_embeddings, .. } = input;
    let longest = input.max_total_tokens.unwrap_or(max_position_embeddings);
    if longest > max_position_embeddings {
        return Err(CapacityError::Context { asked: longest, possible: max_position_embeddings });
    }
    // An explicit context must fit. Otherwise a cache shorter than the model's context is served as what it is.
    let needed = input.max_total_tokens.unwrap_or(longest.min(MIN_KV_TOKENS));
    let needed_blocks = needed.div_ceil(block_size);

    let num_blocks = match input.max_batch_total_tokens {
        Some(tokens) if tokens / block_size < needed_blocks => {
            return Err(CapacityError::Flags { capacity: tokens, needed });
        }
        Some(tokens) => tokens / block_size,
        None => {
            let useful = input.max_slots * longest.div_ceil(block_size);
            match input.memory {
                None => useful,
                Some(UsableMemory { available_bytes, fraction, ranks }) => {
                    let share = (available_bytes as f64 * fraction) as u64 / ranks as u64;
                    let usable_bytes = share.saturating_sub(input.arena_bytes);
                    let affordable = (usable_bytes / bytes_per_block as u64) as usize;
                    if affordable < needed_blocks {
                        return Err(CapacityError::Memory {
                            needed,
                            needed_bytes: (needed_blocks * bytes_per_block) as u64,
                            usable_bytes,
                            percent: (fraction * 100.0).round() as u32,
                            available_bytes,
                            arena_bytes: input.arena_bytes,
                            world_size: ranks,
                        });
                    }
                    affordable.min(useful)
                }
            }
        }
    };
    // Block ids travel as u32.
    let num_blocks = num_blocks.min(u32::MAX as usize);
    Ok(Capacity { num_blocks, max_context: longest.min(num_blocks * block_size) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 64 KiB a block, 4 slots, a model of 4096 positions, 64 MiB available.
    fn input() -> CapacityInput {
        CapacityInput {
            block_size: 16,
            bytes_per_block: 1 << 16,
            max_slots: 4,
            max_position_embeddings: 4096,
            max_total_tokens: None,
            max_batch_total_tokens: None,
            memory: available(64 << 20),
            arena_bytes: 0,
        }
    }

    /// Half of `bytes` may be used, by one rank.
    fn available(available_bytes: u64) -> Option<UsableMemory> {
        Some(UsableMemory { available_bytes, fraction: 0.5, ranks: 1 })
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut CapacityInput), num_blocks: usize, max_context: usize) {
        let mut input = input();
        change(&mut input);
        assert_eq!(capacity(&input), Ok(Capacity { num_blocks, max_context }));
    }

    #[track_caller]
    fn check_error(change: impl FnOnce(&mut CapacityInput), expected: &str) {
        let mut input = input();
        change(&mut input);
        assert_eq!(capacity(&input).unwrap_err().to_string(), expected);
    }

    #[test]
    fn the_operator_decides() {
        check(|i| i.max_batch_total_tokens = Some(8000), 500, 4096);
        check(|i| (i.max_batch_total_tokens, i.memory) = (Some(8000), available(0)), 500, 4096);
        check(|i| (i.max_batch_total_tokens, i.max_total_tokens) = (Some(8000), Some(100)), 500, 100);
    }

    #[test]
    fn half_of_the_memory_is_used_and_shared_by_the_ranks() {
        check(|_| (), 512, 4096);
        check(|i| i.memory = i.memory.map(|memory| UsableMemory { ranks: 2, ..memory }), 256, 4096);
        check(|i| i.memory = i.memory.map(|memory| UsableMemory { fraction: 0.25, ..memory }), 256, 4096);
        check(|i| i.arena_bytes = 1 << 20, 496, 4096);
    }

    #[test]
    fn no_more_than_the_slots_can_fill() {
        check(|i| i.memory = available(1 << 40), 4 * 256, 4096);
        check(|i| i.memory = None, 4 * 256, 4096);
        check(|i| i.max_total_tokens = Some(100), 4 * 7, 100);
    }

    #[test]
    fn a_cache_below_the_models_context_shortens_the_context() {
        check(|i| i.max_batch_total_tokens = Some(1000), 62, 992);
        check(|i| i.memory = available(8 << 20), 64, 1024);
    }

    #[test]
    fn what_cannot_hold_one_sequence_is_refused_with_its_numbers() {
        check_error(
            |i| i.max_total_tokens = Some(5000),
            "--max-total-tokens 5000 is more than the 4096 positions of this model",
        );
        check_error(
            |i| (i.max_batch_total_tokens, i.max_total_tokens) = (Some(1000), Some(1001)),
            "--max-batch-total-tokens 1000 cannot hold one sequence of 1001 tokens; raise it, or lower \
             --max-total-tokens",
        );
        check_error(
            |i| (i.memory, i.max_total_tokens) = (available(8 << 20), Some(2048)),
            "not enough memory for the KV cache: one sequence of 2048 tokens takes 8388608 bytes, and 4194304 bytes are \
             usable (50 % of the 8388608 bytes available, less 0 for activations, over 1 ranks); free memory, or lower \
             --max-total-tokens",
        );
    }
}
