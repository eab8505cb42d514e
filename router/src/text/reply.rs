//! The text of one generation: what each token adds, and where a stop string ends it.

use std::collections::VecDeque;
use std::sync::Arc;

use super::detokenizer::Detokenizer;
use super::stop::{Scan, StopMatcher};
use super::tokenizer::TextTokenizer;

/// What becomes of a stop string that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopText {
    /// It stays at the end of the text (TGI's native API). Nothing need be held back then: every token's text is sent
    /// at once, and the last one is cut after the stop string.
    Keep,
    /// It is removed (OpenAI). Text that a stop string may still claim waits for the tokens after it.
    Remove,
}

/// Turns the tokens of one generation into text.
pub(crate) struct ReplyText {
    detokenizer: Detokenizer,
    stops: StopMatcher,
    stop_text: StopText,
    /// Text that a stop string may still claim, in pieces of visible or hidden (special token) text.
    held: VecDeque<(String, Visibility)>,
    generated: String,
    /// Special tokens that the reader sees like any other text.
    shown: Arc<[u32]>,
    /// The stop string that was removed.
    removed_stop: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Visibility {
    Visible,
    Hidden,
}

/// What one token did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct TokenText {
    /// The token's own text; special tokens literally.
    pub(crate) token: String,
    /// What may be shown to the reader now: no special tokens, no text that a stop string may still claim.
    pub(crate) delta: String,
    /// A stop string ended: no token follows.
    pub(crate) is_stopped: bool,
}

/// Whether more tokens can follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Position {
    Inner,
    Last,
}

impl ReplyText {
    /// The text of what follows `prompt`. Stop strings match special tokens' literal text too, as in TGI.
    pub(crate) fn new(tokenizer: Arc<TextTokenizer>, prompt: &[u32], stops: &[String], stop_text: StopText) -> Self {
        Self {
            detokenizer: Detokenizer::new(tokenizer, prompt),
            stops: StopMatcher::new(stops),
            stop_text,
            held: VecDeque::new(),
            generated: String::new(),
            shown: Arc::default(),
            removed_stop: None,
        }
    }

    /// Lets the reader see the special tokens `ids`.
    pub(crate) fn show(&mut self, ids: Arc<[u32]>) {
        self.shown = ids;
    }

    /// Adds a token.
    pub(crate) fn push(&mut self, id: u32, position: Position) -> TokenText {
        let mut piece = self.detokenizer.push(id);
        if self.shown.contains(&id)
            && let Some(special) = piece.special.take()
        {
            piece.text.push_str(&special);
        }
        if position == Position::Last && piece.special.is_none() {
            piece.text.push_str(&self.detokenizer.flush());
        }
        let result = if self.stops.is_empty() {
            let mut token = piece.text.clone();
            token.push_str(piece.special.as_deref().unwrap_or_default());
            TokenText { token, delta: piece.text, is_stopped: false }
        } else {
            let pieces = [(Some(piece.text), Visibility::Visible), (piece.special, Visibility::Hidden)];
            let pieces = pieces.into_iter().filter_map(|(text, visibility)| Some((text?, visibility)));
            match self.stop_text {
                StopText::Keep => self.push_keeping(pieces),
                StopText::Remove => self.push_removing(pieces, position),
            }
        };
        self.generated.push_str(&result.delta);
        result
    }

    /// The whole text so far, as the reader sees it.
    pub(crate) fn generated(&self) -> &str {
        &self.generated
    }

    /// The stop string that ended the text and was removed from it.
    pub(crate) fn removed_stop(&self) -> Option<&str> {
        self.removed_stop.as_deref()
    }

    fn push_keeping(&mut self, pieces: impl Iterator<Item = (String, Visibility)>) -> TokenText {
        let mut result = TokenText::default();
        for (mut text, visibility) in pieces {
            if let Scan::Found { end, .. } = self.stops.scan(&text) {
                text.truncate(end);
                result.is_stopped = true;
            }
            result.token.push_str(&text);
            if visibility == Visibility::Visible {
                result.delta.push_str(&text);
            }
            if result.is_stopped {
                break;
            }
        }
        result
    }

    fn push_removing(&mut self, pieces: impl Iterator<Item = (String, Visibility)>, position: Position) -> TokenText {
        let mut result = TokenText::default();
        let mut hold = self.held_bytes();
        for (text, visibility) in pieces {
            result.token.push_str(&text);
            if result.is_stopped {
                continue;
            }
            let before = self.held_bytes();
            let scan = self.stops.scan(&text);
            self.held.push_back((text, visibility));
            match scan {
                Scan::Clear { hold: bytes } => hold = bytes,
                Scan::Found { end, length } => {
                    result.delta = self.release(before + end - length);
                    result.is_stopped = true;
                    let held: String = self.held.iter().map(|(text, _)| text.as_str()).collect();
                    self.removed_stop = Some(held[..length].to_owned());
                }
            }
        }
        if !result.is_stopped {
            let keep = if position == Position::Last { 0 } else { hold };
            result.delta = self.release(self.held_bytes() - keep);
        }
        result
    }

    fn held_bytes(&self) -> usize {
        self.held.iter().map(|(text, _)| text.len()).sum()
    }

    /// Takes the first `bytes` of the held text and returns what of it is visible.
    fn release(&mut self, mut bytes: usize) -> String {
        let mut released = String::new();
        while bytes > 0 {
            let (mut text, visibility) = self.held.pop_front().expect("only held text is released");
            if text.len() > bytes {
                self.held.push_front((text.split_off(bytes), visibility));
            }
            bytes -= text.len();
            if visibility == Visibility::Visible {
                released.push_str(&text);
            }
        }
        released
    }
}

#[cfg(test)]
mod tests {
    use super::super::tokenizer::tests::byte_level;
    use super::*;

    /// Feeds `text` (with `</s>` as the special token), one byte a token; the deltas joined with `|`, `!` at a stop.
    #[track_caller]
    fn check(text: &str, stops: &[&str], stop_text: StopText, expected: &str) {
        let tokenizer = Arc::new(byte_level());
        let ids = tokenizer.encode(text, false).unwrap();
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut reply = ReplyText::new(tokenizer, &[], &stops, stop_text);
        let (mut shown, mut joined) = (String::new(), String::new());
        for (at, id) in ids.iter().enumerate() {
            let position = if at + 1 == ids.len() { Position::Last } else { Position::Inner };
            let result = reply.push(*id, position);
            joined.push_str(&result.delta);
            shown.push_str(&result.delta);
            if result.is_stopped {
                shown.push('!');
                break;
            }
            shown.push('|');
        }
        assert_eq!(shown, expected);
        assert_eq!(reply.generated(), joined, "the deltas are the text");
    }

    #[test]
    fn without_stops_every_token_is_shown_at_once() {
        check("abé", &[], StopText::Remove, "a|b||é|");
        check("a</s>", &[], StopText::Keep, "a||");
    }

    #[test]
    fn text_that_a_stop_may_claim_waits() {
        check("xSTY", &["STOP"], StopText::Remove, "x|||STY|");
        check("xSTOPy", &["STOP"], StopText::Remove, "x||||!");
        check("xST", &["STOP"], StopText::Remove, "x||ST|");
        check("aaab", &["aab"], StopText::Remove, "||a|!");
    }

    #[test]
    fn natively_the_stop_text_stays_and_nothing_waits() {
        check("xSTOPy", &["STOP"], StopText::Keep, "x|S|T|O|P!");
    }

    #[test]
    fn special_tokens_can_stop_and_are_never_shown() {
        check("ab</s>c", &["</s>"], StopText::Remove, "a|b|!");
        check("ab</s>c", &["b</s>"], StopText::Remove, "a||!");
        check("ab</s>c", &["x"], StopText::Keep, "a|b||c|");
    }

    #[test]
    fn special_tokens_that_mean_something_are_text() {
        for (stops, expected) in [(&[][..], "ab<s>c"), (&["b<s>c"], "a"), (&["<s>"], "ab"), (&["</s>"], "ab<s>c")] {
            let tokenizer = Arc::new(byte_level());
            let stops: Vec<String> = stops.iter().map(|stop: &&str| (*stop).to_owned()).collect();
            let ids = tokenizer.encode("ab<s>c</s>", false).unwrap();
            let visible = tokenizer.token_to_id("<s>");
            let mut reply = ReplyText::new(tokenizer, &[], &stops, StopText::Remove);
            reply.show(visible.into_iter().collect());
            for (at, id) in ids.iter().enumerate() {
                let position = if at + 1 == ids.len() { Position::Last } else { Position::Inner };
                if reply.push(*id, position).is_stopped {
                    break;
                }
            }
            assert_eq!(reply.generated(), expected, "{stops:?}");
        }
    }

    #[test]
    fn marks_are_shown_and_can_stop() {
        let tokenizer = Arc::new(byte_level());
        let ids = tokenizer.encode("a</s>b", false).unwrap();
        for (stops, expected) in
            [(vec![], "a</s>b"), (vec!["zz".to_owned()], "a</s>b"), (vec!["s>b".to_owned()], "a</")]
        {
            let mut reply = ReplyText::new(tokenizer.clone(), &[], &stops, StopText::Remove);
            reply.show([ids[1]].into());
            for (at, id) in ids.iter().enumerate() {
                reply.push(*id, if at + 1 == ids.len() { Position::Last } else { Position::Inner });
            }
            assert_eq!(reply.generated(), expected);
            assert_eq!(reply.removed_stop(), stops.iter().find(|stop| *stop == "s>b").map(String::as_str));
        }
    }

    #[test]
    fn a_stop_inside_a_token_cuts_its_text_there() {
        let tokenizer = Arc::new(super::super::tokenizer::tests::byte_fallback(&["▁there", "▁was"]));
        let ids = ["▁there", "▁was"].map(|token| tokenizer.token_to_id(token).unwrap());
        for (stop_text, expected) in [(StopText::Keep, "there w"), (StopText::Remove, "ther")] {
            let mut reply = ReplyText::new(tokenizer.clone(), &[], &["e w".to_owned()], stop_text);
            assert!(!reply.push(ids[0], Position::Inner).is_stopped);
            assert!(reply.push(ids[1], Position::Inner).is_stopped);
            assert_eq!(reply.generated(), expected);
        }
    }
}
