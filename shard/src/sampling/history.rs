//! What the parameters of a row must know of the tokens before the one to sample.

use super::{Params, TokenCounts};

/// The tokens of a sequence, as far as its parameters ask: kept by its slot, extended by every token that is computed.
///
/// A function of the tokens and the parameters: it does not matter whether a reply's token was sampled here, came back
/// inside a prompt chunk after a preemption, or was found in the prefix cache.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Prompt and reply.
    pub(super) all: TokenCounts,
    /// The reply alone.
    pub(super) reply: TokenCounts,
    /// The last tokens, in order, at least as many as are needed where the sequence has so many.
    recent: Vec<u32>,
}

impl History {
    /// Forgets all tokens.
    pub fn clear(&mut self) {
        self.all.clear();
        self.reply.clear();
        self.recent.clear();
    }

    /// Appends the token at `position`.
    pub fn push(&mut self, params: &Params, position: u32, token_id: u32) {
        let needs = &params.needs;
        if needs.counts {
            self.all.extend([token_id]);
        }
        if needs.reply_counts && position >= params.prompt_tokens {
            self.reply.extend([token_id]);
        }
        if needs.recent > 0 {
            // Cut at twice the length that is read, so that a push costs nothing on average.
            if self.recent.len() == 2 * needs.recent {
                self.recent.drain(..=needs.recent);
            }
            self.recent.push(token_id);
        }
    }

    /// The last tokens, the very last one at the end.
    pub(super) fn recent(&self) -> &[u32] {
        &self.recent
    }
}

#[cfg(test)]
mod tests {
    use proto::v1::{SamplingParams, TokenSequence};

    use super::*;

    /// Of a prompt of three tokens and what follows.
    fn history(sampling: SamplingParams, tokens: &[u32]) -> History {
        let (mut history, params) = (History::default(), Params::new(sampling, 3, false));
        (0..).zip(tokens).for_each(|(position, &token_id)| history.push(&params, position, token_id));
        history
    }

    fn counts(counts: &TokenCounts) -> Vec<(u32, u32)> {
        let mut counts: Vec<_> = counts.iter().collect();
        counts.sort_unstable();
        counts
    }

    #[test]
    fn the_reply_begins_after_the_prompt() {
        let sampling =
            SamplingParams { repetition_penalty: Some(2.0), presence_penalty: Some(1.0), ..Default::default() };
        let history = history(sampling, &[1, 2, 1, 2, 9, 2]);
        assert_eq!(counts(&history.all), [(1, 2), (2, 3), (9, 1)]);
        assert_eq!(counts(&history.reply), [(2, 2), (9, 1)]);
        assert!(history.recent().is_empty());
    }

    #[test]
    fn as_many_recent_tokens_as_the_longest_bad_word_needs() {
        let bad_words = vec![TokenSequence { ids: vec![1, 2, 3, 4] }];
        let sampling = SamplingParams { bad_words, ..Default::default() };
        for length in 0..20 {
            let tokens: Vec<u32> = (0..length).collect();
            let recent = history(sampling.clone(), &tokens);
            assert!(tokens.ends_with(recent.recent()), "{:?} of {length}", recent.recent());
            assert!((3.min(tokens.len())..=6).contains(&recent.recent().len()), "{:?} of {length}", recent.recent());
        }
    }

    #[test]
    fn plain_rows_remember_nothing() {
        let history = history(SamplingParams::default(), &[1, 2, 3]);
        assert!(history.recent().is_empty() && history.all.iter().next().is_none());
    }
}
