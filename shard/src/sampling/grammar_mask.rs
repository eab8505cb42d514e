//! Grammar mask: only the tokens with which the text can still become what the grammar describes.
//!
//! The router walks the grammar and sends one bit per token (`Mask` of `shard.proto`).

use super::candidates::Candidates;
use super::processor::{Needs, Processor};

pub(super) const PROCESSOR: Processor = Processor {
    is_active: |params, _| params.masked,
    needs: Needs::nothing,
    apply: |candidates, row, _| apply(candidates, row.allowed.expect("a step with masked rows waits for their masks")),
};

/// Bytes of a mask that has a bit for every token: whole 32-bit words.
pub const fn mask_bytes(vocab_size: usize) -> usize {
    vocab_size.div_ceil(32) * 4
}

/// Removes the tokens whose bit in `allowed` is zero or missing.
fn apply(candidates: &mut Candidates, allowed: &[u8]) {
    // Bit id % 32 of little-endian word id / 32 is bit id % 64 of little-endian double word id / 64. Sixty-four tokens that the
    // grammar forbids cost one look.
    candidates.retain_bits(allowed.chunks(8).map(|bytes| {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(word)
    }));
}

#[cfg(test)]
mod tests {
    use proto::pack_u32;

    use super::super::candidates::check_kept;
    use super::*;

    #[track_caller]
    fn check(words: &[u32], vocab_size: usize, expected: &[u32]) {
        let logits: Vec<f32> = (0..vocab_size).map(|id| id as f32).collect();
        check_kept(&logits, |candidates| apply(candidates, &pack_u32(words.iter().copied())), expected);
    }

    #[test]
    fn a_bit_is_a_token() {
        check(&[1 << 31 | 1 << 9 | 1, 1 << 3], 40, &[0, 9, 31, 35]);
    }

    #[test]
    fn a_missing_word_forbids_and_a_bit_beyond_the_vocabulary_means_nothing() {
        check(&[1 << 5], 40, &[5]);
        check(&[], 40, &[]);
        check(&[0, u32::MAX], 34, &[32, 33]);
    }

    #[test]
    fn masks_are_whole_words() {
        assert_eq!([1, 32, 33, 96].map(mask_bytes), [4, 4, 8, 12]);
    }
}
