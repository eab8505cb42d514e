//! How often each token occurs in a sequence, for the penalties.

use std::collections::HashMap;

/// Occurrences per token id of the prompt and the generated tokens.
///
/// Kept only for slots whose parameters have a penalty; the map's memory is reused by the slot's next request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenCounts(HashMap<u32, u32>);

impl TokenCounts {
    /// Forgets all tokens.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Counts further tokens of the sequence.
    pub fn extend(&mut self, token_ids: impl IntoIterator<Item = u32>) {
        for token_id in token_ids {
            *self.0.entry(token_id).or_insert(0) += 1;
        }
    }

    /// Distinct tokens with their counts, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.0.iter().map(|(&token_id, &count)| (token_id, count))
    }
}
