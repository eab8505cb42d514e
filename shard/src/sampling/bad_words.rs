//! Bad words: sequences of tokens that must not appear. The last token of one is forbidden where the others come right
//! before it, in the prompt or in the reply; a word of one token is forbidden everywhere.
//!
//! Source: transformers `NoBadWordsLogitsProcessor`.

use proto::v1::TokenSequence;

use super::candidates::Candidates;
use super::processor::{Needs, Processor};

pub(super) const PROCESSOR: Processor = Processor {
    is_active: |params, _| !params.sampling.bad_words.is_empty(),
    needs: |params| Needs { recent: context_tokens(&params.sampling.bad_words), ..Needs::default() },
    apply: |candidates, row, _| apply(candidates, &row.params.sampling.bad_words, row.history.recent()),
};

/// Forbids what would complete a word after `recent`, the last tokens of the sequence.
fn apply(candidates: &mut Candidates, words: &[TokenSequence], recent: &[u32]) {
    for word in words {
        let (last, before) = word.ids.split_last().expect("checked: no word is empty");
        if recent.ends_with(before) {
            candidates.forbid(*last);
        }
    }
}

/// How many tokens before the one to sample `words` look at.
fn context_tokens(words: &[TokenSequence]) -> usize {
    words.iter().map(|word| word.ids.len() - 1).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequences(words: &[&[u32]]) -> Vec<TokenSequence> {
        words.iter().map(|word| TokenSequence { ids: word.to_vec() }).collect()
    }

    /// The ids that stay allowed out of four.
    #[track_caller]
    fn check(words: &[&[u32]], recent: &[u32], expected: &[u32]) {
        let mut candidates = Candidates::default();
        candidates.load(&[0.5; 4]);
        apply(&mut candidates, &sequences(words), recent);
        let allowed: Vec<u32> = (0..4).filter(|&id| candidates.scores()[id as usize] == 0.5).collect();
        assert_eq!(allowed, expected);
    }

    #[test]
    fn a_single_token_is_forbidden_everywhere() {
        check(&[&[1], &[3]], &[], &[0, 2]);
        check(&[&[1], &[3]], &[1, 1], &[0, 2]);
    }

    #[test]
    fn a_word_is_forbidden_where_it_would_be_completed() {
        let words: &[&[u32]] = &[&[0, 1, 2], &[1, 3]];
        check(words, &[0, 1], &[0, 1]);
        check(words, &[2, 1], &[0, 1, 2]);
        check(words, &[1, 0], &[0, 1, 2, 3]);
        // The sequence is shorter than the word.
        check(words, &[1], &[0, 1, 2]);
        check(words, &[], &[0, 1, 2, 3]);
    }

    #[test]
    fn the_longest_word_decides_what_must_be_remembered() {
        assert_eq!(context_tokens(&[]), 0);
        assert_eq!(context_tokens(&sequences(&[&[1], &[1, 2, 3], &[4, 5]])), 2);
    }
}
