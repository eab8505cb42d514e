//! Ids to text, one token at a time: no piece ends inside a character, and the pieces together are the whole decode.
//!
//! A decoder may look at neighbours (a leading space is stripped only at the start of a text, byte tokens form a
//! character only together), so a token cannot be decoded alone. The new text is what the last few tokens decode to
//! with the new one, minus what they decode to without it. While that ends in U+FFFD the character is incomplete and
//! waits for the next token.

use std::sync::Arc;

use super::tokenizer::TextTokenizer;
use crate::limits::{DETOKENIZER_CONTEXT, DETOKENIZER_PENDING};

/// The detokenizer of one generation.
pub(crate) struct Detokenizer {
    tokenizer: Arc<TextTokenizer>,
    /// The last tokens: `..read` are already text and only context, the rest waits.
    ids: Vec<u32>,
    read: usize,
    /// What `ids[..read]` decodes to.
    context: String,
    /// Nothing waits, and all context is plain: a plain token then adds its own text, and decoding would find the same.
    is_settled: bool,
}

/// What one token adds to the text.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Text for the reader; may be empty while a character is incomplete.
    pub(crate) text: String,
    /// The literal form of the token if it is special; it follows `text` and is no part of the generated text.
    pub(crate) special: Option<String>,
}

impl Detokenizer {
    /// A detokenizer for what follows `prompt`.
    pub(crate) fn new(tokenizer: Arc<TextTokenizer>, prompt: &[u32]) -> Self {
        // Context ends at a special token: text after one starts afresh, as in a decode that skips special tokens.
        let tail = &prompt[prompt.len().saturating_sub(DETOKENIZER_CONTEXT)..];
        let start = tail.iter().rposition(|id| tokenizer.special(*id).is_some()).map_or(0, |at| at + 1);
        let mut ids = tail[start..].to_vec();
        if Self::is_plain(&tokenizer, &ids) {
            let context = tokenizer.plain_texts(&ids);
            return Self { read: ids.len(), ids, context, tokenizer, is_settled: true };
        }
        let mut context = tokenizer.decode(&ids);
        // A context cut inside a character would spoil the character after it.
        while context.starts_with(char::REPLACEMENT_CHARACTER) {
            ids.remove(0);
            context = tokenizer.decode(&ids);
        }
        let is_settled = Self::is_plain(&tokenizer, &ids);
        Self { read: ids.len(), ids, context, tokenizer, is_settled }
    }

    /// The text that `id` completes.
    pub(crate) fn push(&mut self, id: u32) -> Piece {
        if self.is_settled
            && let Some(text) = self.tokenizer.plain_text(id)
        {
            self.ids.clear();
            self.ids.push(id);
            self.read = 1;
            self.context.clear();
            self.context.push_str(self.tokenizer.plain_alone(text));
            return Piece { text: text.to_owned(), special: None };
        }
        if let Some(literal) = self.tokenizer.special(id) {
            let special = Some(literal.to_owned());
            return Piece { text: self.flush(), special };
        }
        self.ids.push(id);
        self.is_settled = false;
        let whole = self.tokenizer.decode(&self.ids);
        let is_complete = whole.len() > self.context.len() && !whole.ends_with(char::REPLACEMENT_CHARACTER);
        if !is_complete && self.ids.len() - self.read < DETOKENIZER_PENDING {
            return Piece::default();
        }
        Piece { text: self.take(&whole), special: None }
    }

    /// The text of tokens that still wait: an incomplete character comes out as U+FFFD.
    pub(crate) fn flush(&mut self) -> String {
        if self.read == self.ids.len() {
            return String::new();
        }
        let whole = self.tokenizer.decode(&self.ids);
        self.take(&whole)
    }

    /// Turns the waiting tokens into context and returns their text.
    fn take(&mut self, whole: &str) -> String {
        let waiting = self.tokenizer.decode(&self.ids[self.read..]);
        // A decoder that changes text it has already given (bytes that turn out invalid) cannot take it back.
        let text = whole.strip_prefix(self.context.as_str()).map_or_else(|| waiting.clone(), str::to_owned);
        self.ids.drain(..self.read);
        self.read = self.ids.len();
        self.context = waiting;
        self.is_settled = Self::is_plain(&self.tokenizer, &self.ids);
        text
    }

    fn is_plain(tokenizer: &TextTokenizer, ids: &[u32]) -> bool {
        !ids.is_empty() && ids.iter().all(|id| tokenizer.plain_text(*id).is_some())
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::super::tokenizer::tests::{byte_fallback, byte_level};
    use super::*;

    const TEXTS: [&str; 6] = [
        "plain words, and  two spaces ",
        "naïve café: e\u{301}\u{327} combining",
        "👩\u{200d}👩\u{200d}👧 family, 🇩🇪 flag, 👍🏽 skin",
        "日本語のテキスト\nmit Umbrüchen\n\n",
        " leading space",
        "a\u{fffd}b real replacement character\u{fffd}",
    ];

    /// All pieces of `ids` after `prompt`, the last one flushed.
    fn pieces(tokenizer: &Arc<TextTokenizer>, prompt: &[u32], ids: &[u32]) -> Vec<String> {
        let mut detokenizer = Detokenizer::new(tokenizer.clone(), prompt);
        let mut pieces: Vec<String> = ids.iter().map(|id| detokenizer.push(*id).text).collect();
        pieces.push(detokenizer.flush());
        pieces
    }

    #[test]
    fn pieces_join_to_the_whole_decode_wherever_the_prompt_ends() {
        let words = ["▁plain", "▁words", ",", "▁", "a", "b", "e", "▁two", "日", "n"];
        for tokenizer in [Arc::new(byte_level()), Arc::new(byte_fallback(&words))] {
            for text in TEXTS {
                let ids = tokenizer.encode(text, false).unwrap();
                let whole = tokenizer.decode(&ids);
                assert_eq!(pieces(&tokenizer, &[], &ids).concat(), whole);
                for cut in 0..ids.len() {
                    let prompt = tokenizer.decode(&ids[..cut]);
                    if prompt.ends_with(char::REPLACEMENT_CHARACTER) {
                        continue;
                    }
                    let pieces = pieces(&tokenizer, &ids[..cut], &ids[cut..]).concat();
                    assert_eq!(format!("{prompt}{pieces}"), whole, "prompt of {cut} tokens");
                }
            }
        }
    }

    #[test]
    fn no_piece_ends_inside_a_character() {
        let tokenizer = Arc::new(byte_level());
        let ids = tokenizer.encode("👍é", false).unwrap();
        assert_eq!(pieces(&tokenizer, &[], &ids), ["", "", "", "👍", "", "é", ""]);
    }

    #[test]
    fn an_unfinished_character_is_flushed_as_replacement() {
        let tokenizer = Arc::new(byte_level());
        let ids = tokenizer.encode("x👍", false).unwrap();
        assert_eq!(pieces(&tokenizer, &[], &ids[..3]), ["x", "", "", "\u{fffd}"]);
    }

    #[test]
    fn random_bytes_never_panic_and_wait_at_most_the_bound() {
        let seed = rand::random();
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        for tokenizer in [Arc::new(byte_level()), Arc::new(byte_fallback(&["▁", "a"]))] {
            for _ in 0..200 {
                let mut detokenizer = Detokenizer::new(tokenizer.clone(), &[]);
                for _ in 0..64 {
                    // Beyond the vocabulary too: padded checkpoints sample such ids.
                    detokenizer.push(rng.random_range(0..300));
                    assert!(detokenizer.ids.len() - detokenizer.read < DETOKENIZER_PENDING);
                    assert!(detokenizer.ids.len() <= 2 * DETOKENIZER_PENDING);
                }
            }
        }
    }

    /// What is looked up is what decoding finds: the same pieces with and without the short way, at any mixture of tokens.
    #[test]
    fn plain_tokens_need_no_decoding() {
        let seed = rand::random();
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let words = ["▁plain", "▁words", ",", "▁", "▁▁", "a", "b", "▁two", "日", "n", "\u{fffd}", "<0x"];
        for tokenizer in [Arc::new(byte_level()), Arc::new(byte_fallback(&words))] {
            // Words stand behind the special tokens and bytes; both are drawn.
            let draw = |rng: &mut StdRng| match rng.random_bool(0.5) {
                true => rng.random_range(0..280),
                false => rng.random_range(33..127),
            };
            for _ in 0..500 {
                let prompt: Vec<u32> = (0..rng.random_range(0..4)).map(|_| draw(&mut rng)).collect();
                let mut short = Detokenizer::new(tokenizer.clone(), &prompt);
                let mut long = Detokenizer::new(tokenizer.clone(), &prompt);
                for _ in 0..32 {
                    let id = draw(&mut rng);
                    long.is_settled = false;
                    assert_eq!(short.push(id), long.push(id));
                    assert_eq!((&short.ids, short.read, &short.context), (&long.ids, long.read, &long.context));
                }
                assert_eq!(short.flush(), long.flush());
            }
        }
    }

    #[test]
    fn special_tokens_are_literal_and_apart() {
        let tokenizer = Arc::new(byte_level());
        let mut detokenizer = Detokenizer::new(tokenizer.clone(), &[]);
        detokenizer.push(tokenizer.encode("é", false).unwrap()[0]);
        let piece = detokenizer.push(257);
        assert_eq!(piece, Piece { text: "\u{fffd}".into(), special: Some("</s>".into()) });
    }

    #[test]
    fn the_first_word_keeps_its_space_only_after_text() {
        let tokenizer = Arc::new(byte_fallback(&["▁Hi", "▁you"]));
        let (hi, you) = (tokenizer.token_to_id("▁Hi").unwrap(), tokenizer.token_to_id("▁you").unwrap());
        assert_eq!(pieces(&tokenizer, &[hi], &[you]).concat(), " you");
        assert_eq!(pieces(&tokenizer, &[], &[you]).concat(), "you");
        assert_eq!(pieces(&tokenizer, &[hi, 2], &[you]).concat(), "you", "a special token starts the text afresh");
    }

    /// Real tokenizers, where present: whole decode and pieces agree on text cut anywhere.
    #[test]
    fn real_tokenizers_agree() {
        let models = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/models"));
        let Ok(folders) = std::fs::read_dir(models) else {
            println!("skipped: {} is not there", models.display());
            return;
        };
        for path in folders.map(|folder| folder.unwrap().path().join("tokenizer.json")).filter(|path| path.exists()) {
            let tokenizer = Arc::new(TextTokenizer::load(&path).unwrap());
            let ids = tokenizer.encode("Once upon a time, there was a café 👍 and ünïcode.", false).unwrap();
            let whole = tokenizer.decode(&ids);
            for cut in 0..ids.len() {
                let prompt = tokenizer.decode(&ids[..cut]);
                // After a special token (here: unknown characters) the text starts afresh, without its space.
                let is_afresh = ids[..cut].last().is_some_and(|id| tokenizer.special(*id).is_some());
                if !is_afresh && !prompt.ends_with(char::REPLACEMENT_CHARACTER) {
                    let text = pieces(&tokenizer, &ids[..cut], &ids[cut..]).concat();
                    assert_eq!(format!("{prompt}{text}"), whole, "{} cut {cut}", path.display());
                }
            }
        }
    }
}
