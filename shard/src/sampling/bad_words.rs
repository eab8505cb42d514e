//! Bad words: sequences of tokens that must not appear. The last token of one is forbidden where the others come right
//! before it, in the prompt or in the reply; a word of one token is forbidden everywhere.
//!
//! Source: transformers `NoBadWordsLogitsProcessor`.

use proto::unpack_u32;
use proto::v1;

use super::InvalidParam;
use super::candidates::Candidates;
use crate::limits::{MAX_BAD_WORD_TOKENS, MAX_BAD_WORDS};

/// Forbids what would complete a word after `recent`, the last tokens of the sequence.
pub(super) fn apply(candidates: &mut Candidates, words: &[Vec<u32>], recent: &[u32]) {
    for word in words {
        let (last, before) = word.split_last().expect("checked: no word is empty");
        if recent.ends_with(before) {
            candidates.forbid(*last);
        }
    }
}

/// How many tokens before the one to sample `words` look at.
pub(super) fn context_tokens(words: &[Vec<u32>]) -> usize {
    words.iter().map(|word| word.len() - 1).max().unwrap_or(0)
}

/// Reads and checks the words: neither empty nor beyond their bounds, ids in the vocabulary.
pub(super) fn parse(wire: &v1::SamplingParams, vocab_size: usize) -> Result<Vec<Vec<u32>>, InvalidParam> {
    let invalid = |value: f64, expected| Err(InvalidParam { field: "bad_words", value, expected });
    if wire.bad_words.len() > MAX_BAD_WORDS {
        return invalid(wire.bad_words.len() as f64, "at most 1024 words");
    }
    let mut words = Vec::with_capacity(wire.bad_words.len());
    for packed in &wire.bad_words {
        let Ok(ids) = unpack_u32(packed) else {
            return invalid(packed.len() as f64, "packed: a multiple of 4 bytes");
        };
        if ids.len() == 0 || ids.len() > MAX_BAD_WORD_TOKENS {
            return invalid(ids.len() as f64, "words of 1 to 64 tokens");
        }
        let word: Vec<u32> = ids.collect();
        if let Some(&token_id) = word.iter().find(|&&token_id| token_id as usize >= vocab_size) {
            return invalid(token_id.into(), "ids below Info.vocab_size");
        }
        words.push(word);
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use proto::pack_u32;

    use super::*;

    /// The ids that stay allowed out of four.
    #[track_caller]
    fn check(words: &[&[u32]], recent: &[u32], expected: &[u32]) {
        let mut candidates = Candidates::default();
        candidates.load(&[0.5; 4]);
        apply(&mut candidates, &words.iter().map(|word| word.to_vec()).collect::<Vec<_>>(), recent);
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
        assert_eq!(context_tokens(&[vec![1], vec![1, 2, 3], vec![4, 5]]), 2);
    }

    #[track_caller]
    fn check_refused(words: &[&[u32]], expected: &str) {
        let bad_words = words.iter().map(|word| pack_u32(word.iter().copied())).collect();
        let wire = v1::SamplingParams { bad_words, ..v1::SamplingParams::default() };
        assert_eq!(parse(&wire, 10).unwrap_err().to_string(), expected);
    }

    #[test]
    fn words_are_checked() {
        let length = format!("expected words of 1 to {MAX_BAD_WORD_TOKENS} tokens");
        check_refused(&[&[1], &[]], &format!("`bad_words` is 0, {length}"));
        check_refused(
            &[&[1; MAX_BAD_WORD_TOKENS + 1]],
            &format!("`bad_words` is {}, {length}", MAX_BAD_WORD_TOKENS + 1),
        );
        check_refused(&[&[1, 10]], "`bad_words` is 10, expected ids below Info.vocab_size");
        let many = vec![&[1][..]; MAX_BAD_WORDS + 1];
        check_refused(&many, &format!("`bad_words` is {}, expected at most {MAX_BAD_WORDS} words", many.len()));
        let wire = v1::SamplingParams { bad_words: vec![vec![0; 5].into()], ..v1::SamplingParams::default() };
        assert_eq!(
            parse(&wire, 10).unwrap_err().to_string(),
            "`bad_words` is 5, expected packed: a multiple of 4 bytes"
        );
    }
}
