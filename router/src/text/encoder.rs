//! Text to ids: what the library's tokenizer does, without its records of where every character came from.
//!
//! The library keeps a string with the origin of each of its bytes for every word, and a list of strings for every word's tokens:
//! two thirds of its time for ids that nobody asks the origin of. Here a text is cut into the same words, and a word's tokens are
//! looked up where they are known. Normalizers, added tokens and models are the library's own, and so is every way of cutting
//! words but that of byte-level vocabularies, which nearly all published models have.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    Encoding, Model, ModelWrapper, OffsetReferential, OffsetType, PreTokenizer, Result, SplitDelimiterBehavior, Token,
    Tokenizer,
};

use super::token_bytes::byte_alphabet;
use crate::limits::{CACHED_WORD_BYTES, CACHED_WORDS, WORDS_PER_LOOKUP};

/// How GPT-2 cuts text into words; a byte-level pre-tokenizer does so unless it says otherwise.
const GPT2_WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// The way from text to ids of one tokenizer.
pub(super) struct Encoder {
    cutter: Cutter,
    plain: PlainTest,
    /// Tokens before and after those of the text, without special tokens and with them.
    around: [(Vec<u32>, Vec<u32>); 2],
    /// `None` if a word has not always the same tokens.
    known: Option<RwLock<KnownWords>>,
}

/// How text becomes the words that the model sees.
enum Cutter {
    /// By patterns, each of which cuts what the one before it has left; then every byte becomes a character.
    ByteLevel { splits: Vec<Split>, alphabet: Box<[char; 256]> },
    /// The library's pre-tokenizer.
    Library,
}

/// Which texts are what the words are cut from: those with no added token in them that no normalizer changes.
struct PlainTest {
    /// Whether a byte can begin an added token.
    begins_added: Box<[bool; 256]>,
    normalizer: Normalizer,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Normalizer {
    None,
    /// One of Unicode's composed forms, which ASCII already has.
    KeepsAscii,
    Any,
}

impl Encoder {
    /// The way of `tokenizer`, whose model then needs no cache of its own.
    pub(super) fn new(tokenizer: &mut Tokenizer) -> Result<Self> {
        forget_cached_words(tokenizer);
        let is_random = matches!(tokenizer.get_model(), ModelWrapper::BPE(bpe) if bpe.dropout.is_some_and(|p| p > 0.0));
        Ok(Self {
            cutter: Cutter::of(tokenizer.get_pre_tokenizer()),
            plain: PlainTest::new(tokenizer),
            around: [around(tokenizer, false)?, around(tokenizer, true)?],
            known: (!is_random).then(RwLock::default),
        })
    }

    /// The ids of `text`: those of `tokenizer.encode`.
    ///
    /// # Errors
    /// If the model cannot represent a word.
    pub(super) fn encode(&self, tokenizer: &Tokenizer, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let (before, after) = &self.around[usize::from(add_special_tokens)];
        // A token of a large vocabulary is some four bytes of text.
        let mut ids = Vec::with_capacity(before.len() + text.len() / 4 + 1 + after.len());
        ids.extend_from_slice(before);
        match &self.cutter {
            Cutter::ByteLevel { splits, .. } if self.plain.is_plain(text) => {
                self.push_text(tokenizer, splits, text, &mut ids)?;
            }
            Cutter::ByteLevel { splits, .. } => self.push_parts(tokenizer, splits, text, &mut ids)?,
            Cutter::Library => self.push_parts(tokenizer, &[], text, &mut ids)?,
        }
        ids.extend_from_slice(after);
        Ok(ids)
    }

    /// Adds the tokens of a text that may hold added tokens, or that a normalizer may change.
    fn push_parts(&self, tokenizer: &Tokenizer, splits: &[Split], text: &str, ids: &mut Vec<u32>) -> Result<()> {
        let mut parts = tokenizer.get_added_vocabulary().extract_and_normalize(tokenizer.get_normalizer(), text);
        if let (Cutter::Library, Some(pre_tokenizer)) = (&self.cutter, tokenizer.get_pre_tokenizer()) {
            pre_tokenizer.pre_tokenize(&mut parts)?;
        }
        for (part, _, tokens) in parts.get_splits(OffsetReferential::Normalized, OffsetType::None) {
            match tokens {
                Some(tokens) => ids.extend(tokens.iter().map(|token| token.id)),
                None => self.push_text(tokenizer, splits, part, ids)?,
            }
        }
        Ok(())
    }

    /// Adds the tokens of a text without added tokens.
    fn push_text(&self, tokenizer: &Tokenizer, splits: &[Split], text: &str, ids: &mut Vec<u32>) -> Result<()> {
        let mut words = Vec::new();
        cut(splits, text, &mut words);
        match &self.known {
            // A part at a time: who learns a word waits for those who look words up.
            Some(known) => {
                words.chunks(WORDS_PER_LOOKUP).try_for_each(|words| self.look_up(known, tokenizer, words, ids))
            }
            None => words.iter().try_for_each(|word| {
                ids.extend(self.tokenize(tokenizer, word)?.iter().map(|token| token.id));
                Ok(())
            }),
        }
    }

    fn look_up(
        &self,
        known: &RwLock<KnownWords>,
        tokenizer: &Tokenizer,
        words: &[&str],
        ids: &mut Vec<u32>,
    ) -> Result<()> {
        let read = || known.read().unwrap_or_else(PoisonError::into_inner);
        let mut words_known = read();
        for word in words {
            if let Some(tokens) = words_known.get(word) {
                ids.extend_from_slice(tokens);
                continue;
            }
            drop(words_known);
            let start = ids.len();
            ids.extend(self.tokenize(tokenizer, word)?.iter().map(|token| token.id));
            if word.len() <= CACHED_WORD_BYTES {
                known.write().unwrap_or_else(PoisonError::into_inner).learn(word, &ids[start..]);
            }
            words_known = read();
        }
        Ok(())
    }

    fn tokenize(&self, tokenizer: &Tokenizer, word: &str) -> Result<Vec<Token>> {
        match &self.cutter {
            Cutter::ByteLevel { alphabet, .. } => {
                let spelled: String = word.bytes().map(|byte| alphabet[usize::from(byte)]).collect();
                tokenizer.get_model().tokenize(&spelled)
            }
            Cutter::Library => tokenizer.get_model().tokenize(word),
        }
    }
}

/// Switches off the model's own cache of words. It has one for each thread that ever encodes, of up to ten thousand words of any
/// length: with a vocabulary that does not cut text into words, of whole prompts.
fn forget_cached_words(tokenizer: &mut Tokenizer) {
    let mut model = tokenizer.get_model().clone();
    model.resize_cache(0);
    tokenizer.with_model(model);
}

/// What the tokenizer puts before and after a text, whatever the text.
fn around(tokenizer: &Tokenizer, add_special_tokens: bool) -> Result<(Vec<u32>, Vec<u32>)> {
    // No vocabulary has as many tokens.
    const TEXT: u32 = u32::MAX;
    let text = Encoding::from_tokens(vec![Token::new(TEXT, String::new(), (0, 0))], 0);
    let whole = tokenizer.post_process(text, None, add_special_tokens)?;
    let mut parts = whole.get_ids().split(|id| *id == TEXT);
    match (parts.next(), parts.next(), parts.next()) {
        (Some(before), Some(after), None) => Ok((before.to_vec(), after.to_vec())),
        _ => Err("its post-processor does not keep the text once".into()),
    }
}

impl Cutter {
    fn of(pre_tokenizer: Option<&PreTokenizerWrapper>) -> Self {
        let steps = match pre_tokenizer {
            Some(PreTokenizerWrapper::Sequence(sequence)) => sequence.as_ref(),
            Some(single) => std::slice::from_ref(single),
            None => return Self::Library,
        };
        let Some((PreTokenizerWrapper::ByteLevel(ByteLevel { add_prefix_space: false, use_regex, .. }), before)) =
            steps.split_last()
        else {
            return Self::Library;
        };
        let given = before.iter().map(|step| match step {
            PreTokenizerWrapper::Split(split) if keeps(split).is_some() => Some(split.clone()),
            _ => None,
        });
        let gpt2 = use_regex.then(|| {
            Split::new(SplitPattern::Regex(GPT2_WORDS.to_owned()), SplitDelimiterBehavior::Isolated, false).ok()
        });
        match given.chain(gpt2).collect() {
            Some(splits) => Self::ByteLevel { splits, alphabet: Box::new(byte_alphabet()) },
            None => Self::Library,
        }
    }
}

/// Whether `split` keeps its matches and what is between them; `None` if it joins pieces.
fn keeps(split: &Split) -> Option<[bool; 2]> {
    match split.behavior {
        SplitDelimiterBehavior::Isolated => Some([true, true]),
        SplitDelimiterBehavior::Removed => Some([split.invert, !split.invert]),
        _ => None,
    }
}

/// Cuts `text` by the first of `splits` and every piece by the others.
fn cut<'text>(splits: &[Split], text: &'text str, words: &mut Vec<&'text str>) {
    if text.is_empty() {
        return;
    }
    let Some((split, rest)) = splits.split_first() else {
        return words.push(text);
    };
    let [keeps_matches, keeps_others] = keeps(split).expect("others are left to the library");
    let mut last = 0;
    for (start, end) in split.regex.find_iter(text) {
        if keeps_others {
            cut(rest, &text[last..start], words);
        }
        if keeps_matches {
            cut(rest, &text[start..end], words);
        }
        last = end;
    }
    if keeps_others {
        cut(rest, &text[last..], words);
    }
}

impl PlainTest {
    fn new(tokenizer: &Tokenizer) -> Self {
        let added = tokenizer.get_added_tokens_decoder();
        let mut begins_added = Box::new([false; 256]);
        for first in added.values().filter_map(|token| token.content.bytes().next()) {
            begins_added[usize::from(first)] = true;
        }
        let normalizer = match tokenizer.get_normalizer() {
            None => Normalizer::None,
            // Their form may begin with another character.
            Some(_) if !added.values().all(|token| token.content.is_ascii()) => Normalizer::Any,
            Some(NormalizerWrapper::NFC(_) | NormalizerWrapper::NFKC(_)) => Normalizer::KeepsAscii,
            Some(_) => Normalizer::Any,
        };
        Self { begins_added, normalizer }
    }

    fn is_plain(&self, text: &str) -> bool {
        let is_unchanged = match self.normalizer {
            Normalizer::None => true,
            Normalizer::KeepsAscii => text.is_ascii(),
            Normalizer::Any => false,
        };
        is_unchanged && !text.bytes().any(|byte| self.begins_added[usize::from(byte)])
    }
}

/// Words whose tokens are known, of all threads.
#[derive(Default)]
struct KnownWords {
    /// Where the tokens of a word are in `ids`.
    places: HashMap<Box<str>, (u32, u32)>,
    ids: Vec<u32>,
}

impl KnownWords {
    fn get(&self, word: &str) -> Option<&[u32]> {
        let (start, end) = *self.places.get(word)?;
        Some(&self.ids[start as usize..end as usize])
    }

    /// Keeps a word. A full cache begins anew: the words of the next prompts are soon back, and no order has to be kept.
    fn learn(&mut self, word: &str, tokens: &[u32]) {
        if self.places.len() >= CACHED_WORDS {
            self.places.clear();
            self.ids.clear();
        }
        // Another thread may have met the word at the same time: its place then stays unused until the cache begins anew.
        let start = self.ids.len();
        self.ids.extend_from_slice(tokens);
        // Far below 2^32: a word has at most as many tokens as bytes.
        self.places.insert(word.into(), (start as u32, self.ids.len() as u32));
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::seq::IndexedRandom;
    use rand::{Rng, SeedableRng};
    use serde_json::{Value, json};

    use super::*;

    const LLAMA3_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

    /// The demo model's tokenizer, changed.
    fn demo(change: impl FnOnce(&mut Value)) -> Tokenizer {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../launcher/demo-model/tokenizer.json");
        let mut definition: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        change(&mut definition);
        Tokenizer::from_bytes(definition.to_string()).unwrap()
    }

    fn split(pattern: &str, behavior: &str, invert: bool) -> Value {
        json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert})
    }

    fn byte_level(use_regex: bool, add_prefix_space: bool) -> Value {
        json!({"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true, "use_regex": use_regex})
    }

    fn sequence(steps: &[Value]) -> Value {
        json!({"type": "Sequence", "pretokenizers": steps})
    }

    fn cuts_itself(tokenizer: &Tokenizer) -> bool {
        matches!(Cutter::of(tokenizer.get_pre_tokenizer()), Cutter::ByteLevel { .. })
    }

    /// Texts of everything that tokenizers treat specially.
    fn texts() -> Vec<String> {
        const PIECES: [&str; 34] = [
            "the", " server", "'s", "'LL", " ", "  ", "\n", "\r\n", "\t", "123", " 4567", "é", "e\u{301}", "日本",
            "👍", "\u{0}", "\u{ad}", "!?", " …", "<s>", "<|user|>", "<|end|>", "<", "|>", "<s", "Ġ", "x", "\u{a0}",
            "ﬁ", "K", "½", "don't", "\u{200d}", "<|word|>",
        ];
        let mut random = StdRng::seed_from_u64(7);
        let mut text =
            || (0..random.random_range(0..24)).map(|_| *PIECES.choose(&mut random).unwrap()).collect::<String>();
        let mut texts: Vec<String> = (0..400).map(|_| text()).collect();
        texts.extend(PIECES.map(str::to_owned));
        texts.push(String::new());
        texts.push("a server's answer ".repeat(100));
        texts.push("ab".repeat(300));
        texts
    }

    /// Compares ids with those that the library finds, first without and then with known words.
    #[track_caller]
    fn check(change: impl Fn(&mut Value)) {
        let (library, mut tokenizer) = (demo(&change), demo(&change));
        let encoder = Encoder::new(&mut tokenizer).unwrap();
        for text in texts().iter().cycle().take(2 * texts().len()) {
            for add_special_tokens in [false, true] {
                let expected = library.encode_fast(text.as_str(), add_special_tokens).unwrap().get_ids().to_vec();
                assert_eq!(encoder.encode(&tokenizer, text, add_special_tokens).unwrap(), expected, "{text:?}");
            }
        }
    }

    #[test]
    fn byte_level_ids_are_the_librarys() {
        let cutters = [
            byte_level(true, false),
            byte_level(false, false),
            sequence(&[split(LLAMA3_WORDS, "Isolated", false), byte_level(false, false)]),
            sequence(&[split(LLAMA3_WORDS, "Removed", true), byte_level(false, false)]),
            sequence(&[split(r"\s+", "Removed", false), byte_level(true, false)]),
            sequence(&[
                split(r"\p{N}{1,3}", "Isolated", false),
                split("x?", "Isolated", true),
                byte_level(true, false),
            ]),
        ];
        for cutter in cutters {
            assert!(cuts_itself(&demo(|definition| definition["pre_tokenizer"] = cutter.clone())), "{cutter}");
            check(|definition| definition["pre_tokenizer"] = cutter.clone());
        }
    }

    #[test]
    fn what_is_left_to_the_library_is_the_librarys_too() {
        let cutters = [
            Value::Null,
            byte_level(true, true),
            sequence(&[split(r"\s+", "MergedWithNext", false), byte_level(false, false)]),
            sequence(&[json!({"type": "Digits", "individual_digits": true}), byte_level(true, false)]),
        ];
        for cutter in cutters {
            assert!(!cuts_itself(&demo(|definition| definition["pre_tokenizer"] = cutter.clone())), "{cutter}");
            check(|definition| definition["pre_tokenizer"] = cutter.clone());
        }
    }

    #[test]
    fn normalizers_and_added_tokens_are_heeded() {
        for normalizer in ["NFC", "NFKC", "NFD", "Lowercase"] {
            check(|definition| definition["normalizer"] = json!({"type": normalizer}));
        }
        let word = |content: &str, is_stripped: bool, is_normalized: bool| {
            json!({"id": 2048, "content": content, "single_word": false, "lstrip": is_stripped, "rstrip": is_stripped,
                "normalized": is_normalized, "special": false})
        };
        for (normalizer, token) in [
            (Value::Null, word("<|word|>", true, false)),
            (Value::Null, word("server", false, true)),
            // Composed, it is the letter K.
            (json!({"type": "NFC"}), word("\u{212a}", false, true)),
        ] {
            check(|definition| {
                definition["normalizer"] = normalizer.clone();
                definition["added_tokens"].as_array_mut().unwrap().push(token.clone());
            });
        }
    }

    #[test]
    fn every_post_processor_adds_what_the_library_adds() {
        check(|definition| definition["post_processor"] = Value::Null);
        check(|definition| definition["post_processor"] = byte_level(true, false));
        check(|definition| {
            let template = definition["post_processor"].take();
            definition["post_processor"] =
                json!({"type": "Sequence", "processors": [byte_level(true, false), template]});
        });
        check(|definition| {
            definition["post_processor"] = json!({"type": "RobertaProcessing", "sep": ["<|end|>", 1], "cls": ["<s>", 0],
                "trim_offsets": true, "add_prefix_space": false});
        });
    }

    #[test]
    fn a_full_cache_begins_anew() {
        let mut known = KnownWords::default();
        for word in 0..CACHED_WORDS as u32 {
            known.learn(&word.to_string(), &[word, word]);
        }
        assert_eq!(known.get("7"), Some([7, 7].as_slice()));
        known.learn("one more", &[1]);
        assert_eq!((known.get("7"), known.get("one more")), (None, Some([1].as_slice())));
        assert_eq!(known.ids.len(), 1);
    }

    #[test]
    fn long_words_are_not_kept() {
        let mut tokenizer = demo(|_| {});
        let encoder = Encoder::new(&mut tokenizer).unwrap();
        let long = "a".repeat(CACHED_WORD_BYTES + 1);
        encoder.encode(&tokenizer, &format!("short {long}"), false).unwrap();
        let known = encoder.known.as_ref().unwrap().read().unwrap();
        assert_eq!(known.places.keys().map(AsRef::as_ref).collect::<Vec<&str>>(), ["short"]);
    }

    #[test]
    fn a_random_model_is_asked_every_time() {
        let mut tokenizer = demo(|definition| definition["model"]["dropout"] = json!(0.5));
        let encoder = Encoder::new(&mut tokenizer).unwrap();
        assert!(encoder.known.is_none());
        assert!(!encoder.encode(&tokenizer, "a server", false).unwrap().is_empty());
    }
}
