//! Drafts without a model: what followed the last tokens of a sequence where they came before.
//!
//! Prompt look-up (github.com/apoorvumang/prompt-lookup-decoding; TGI's n-gram speculation): summaries, code edits and
//! answers from documents repeat passages of their prompt, and of themselves. A draft is a function of the tokens alone, so all ranks,
//! and a shard that took over after a crash, draft the same.

use std::ops::ControlFlow;

/// Tokens that must agree before a passage is worth following. 2: after a single equal token, as TGI has it, most drafts are
/// wrong (articles and commas have many successors).
const MIN_MATCH: usize = 2;
/// Agreement beyond which passages count as equally good; then the newest is taken.
const MAX_MATCH: usize = 8;
/// The search looks this many tokens back. 16,384 take about 10 µs, which attention over as many tokens takes hundreds of times.
const WINDOW: usize = 16_384;

/// The tokens of a sequence that speculates.
#[derive(Debug, Default)]
pub(super) struct PromptLookup {
    tokens: Vec<u32>,
}

impl PromptLookup {
    /// Forgets all tokens.
    pub(super) fn clear(&mut self) {
        self.tokens.clear();
    }

    /// Appends a token.
    pub(super) fn push(&mut self, token_id: u32) {
        self.tokens.push(token_id);
    }

    /// Replaces `draft` by what may follow the last token: `limit` tokens, or none if nothing like the end came before.
    pub(super) fn propose(&self, limit: usize, draft: &mut Vec<u32>) {
        draft.clear();
        let tokens = &self.tokens[self.tokens.len().saturating_sub(WINDOW)..];
        let Some(end) = best_match(tokens) else { return };
        for at in end..end + limit {
            // A passage that runs into the end of the sequence is a period: it goes on with itself.
            let token = at.checked_sub(tokens.len()).map_or_else(|| tokens[at], |at| draft[at]);
            draft.push(token);
        }
    }
}

/// The index after the earlier passage that agrees with the end of `tokens` best; of equals, after the newest.
fn best_match(tokens: &[u32]) -> Option<usize> {
    let (&last, before) = tokens.split_last()?;
    let mut best = (MIN_MATCH - 1, None);
    // From the newest, as the one that is likeliest to go on alike.
    let _ = before.iter().enumerate().rev().filter(|&(_, &id)| id == last).try_for_each(|(at, _)| {
        let agreeing = before[..at].iter().rev().zip(before.iter().rev()).take(MAX_MATCH - 1);
        let length = 1 + agreeing.take_while(|(one, other)| one == other).count();
        if length > best.0 {
            best = (length, Some(at + 1));
        }
        if length == MAX_MATCH { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(tokens: &str, limit: usize, expected: &str) {
        let mut lookup = PromptLookup::default();
        tokens.bytes().for_each(|token| lookup.push(token.into()));
        let mut draft = vec![7];
        lookup.propose(limit, &mut draft);
        let draft: String = draft.iter().map(|&token| char::from(token as u8)).collect();
        assert_eq!(draft, expected);
    }

    #[test]
    fn a_passage_goes_on_as_it_did_before() {
        check("the cat sat; the c", 5, "at sa");
        check("the cat sat; the c", 0, "");
    }

    #[test]
    fn one_equal_token_is_not_enough() {
        check("abcxb", 3, "");
        check("abcxab", 3, "cxa");
        check("a", 3, "");
        check("", 3, "");
    }

    #[test]
    fn the_longest_agreement_wins_then_the_newest() {
        check("zabc1 yab2 zab", 1, "c");
        check("ab1ab2ab", 1, "2");
        check("123456789x 0123456789y 123456789", 1, "y");
    }

    #[test]
    fn a_period_goes_on() {
        check("xyzabcabc", 8, "abcabcab");
        check("aaa", 4, "aaaa");
    }

    #[test]
    fn the_search_has_a_bound() {
        let mut lookup = PromptLookup::default();
        [1, 2, 3].into_iter().for_each(|token| lookup.push(token));
        (0..WINDOW as u32).for_each(|token| lookup.push(10 + token));
        [1, 2].into_iter().for_each(|token| lookup.push(token));
        let mut draft = Vec::new();
        lookup.propose(1, &mut draft);
        assert!(draft.is_empty());
    }
}
