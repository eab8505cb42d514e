//! The model's tokenizer: `tokenizer.json`, and which of its tokens are special.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use tokenizers::Tokenizer;

use super::encoder::Encoder;
use super::plain_texts::PlainTexts;
use super::token_bytes::TokenBytes;

use crate::error::ValidationError;
use crate::limits::TOKENIZER_FILE_BYTES;

/// A tokenizer with the facts about it that a request needs.
pub(crate) struct TextTokenizer {
    inner: Tokenizer,
    encoder: Encoder,
    /// Special tokens and their literal text.
    special: HashMap<u32, String>,
    bytes: TokenBytes,
    plain: PlainTexts,
}

/// A token of a text, with the bytes of the text it covers.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) id: u32,
    pub(crate) start: usize,
    pub(crate) stop: usize,
}

/// Why a model has no tokenizer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("{}: {reason}", path.display())]
    Unreadable { path: PathBuf, reason: String },
    #[error("{} has {bytes} bytes, limit {limit}", path.display())]
    TooLarge { path: PathBuf, bytes: u64, limit: u64 },
}

impl TextTokenizer {
    /// Loads a `tokenizer.json`.
    ///
    /// # Errors
    /// [`LoadError`] with the path, if the file is missing, too large or not a tokenizer.
    pub(crate) fn load(path: &Path) -> Result<Self, LoadError> {
        let unreadable = |reason: String| LoadError::Unreadable { path: path.to_owned(), reason };
        let bytes = std::fs::metadata(path).map_err(|error| unreadable(error.to_string()))?.len();
        if bytes > TOKENIZER_FILE_BYTES {
            return Err(LoadError::TooLarge { path: path.to_owned(), bytes, limit: TOKENIZER_FILE_BYTES });
        }
        Tokenizer::from_file(path).and_then(Self::new).map_err(|error| unreadable(error.to_string()))
    }

    /// Wraps a tokenizer. Truncation and padding that its file may ask for are switched off: the router's own limits
    /// decide, and a silently cut prompt would be a wrong answer.
    ///
    /// # Errors
    /// If what it adds to a text depends on the text.
    pub(crate) fn new(mut inner: Tokenizer) -> tokenizers::Result<Self> {
        inner.with_padding(None);
        inner.with_truncation(None).expect("only a truncation that is set can be invalid");
        let special = inner
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| token.special)
            .map(|(id, token)| (id, token.content))
            .collect();
        let encoder = Encoder::new(&mut inner)?;
        let (bytes, plain) = (TokenBytes::new(&inner), PlainTexts::new(&inner));
        Ok(Self { inner, encoder, special, bytes, plain })
    }

    /// The ids of `text`.
    ///
    /// # Errors
    /// [`ValidationError::Tokenizer`] if the tokenizer cannot represent it.
    pub(crate) fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, ValidationError> {
        let ids = self.encoder.encode(&self.inner, text, add_special_tokens);
        ids.map_err(|error| ValidationError::Tokenizer { reason: error.to_string() })
    }

    /// The ids of `text` with the byte range each covers; tokens that were added cover 0..0.
    ///
    /// # Errors
    /// [`ValidationError::Tokenizer`] if the tokenizer cannot represent it.
    pub(crate) fn encode_spans(&self, text: &str, add_special_tokens: bool) -> Result<Vec<Span>, ValidationError> {
        match self.inner.encode(text, add_special_tokens) {
            Ok(encoding) => Ok(encoding
                .get_ids()
                .iter()
                .zip(encoding.get_offsets())
                .map(|(&id, &(start, stop))| Span { id, start, stop })
                .collect()),
            Err(error) => Err(ValidationError::Tokenizer { reason: error.to_string() }),
        }
    }

    /// The text of `ids`; special tokens have none. Ids that the tokenizer does not know are skipped: a checkpoint's
    /// vocabulary may be padded beyond its tokenizer's.
    pub(crate) fn decode(&self, ids: &[u32]) -> String {
        // A decoder fails only on a broken decoder definition; the text is then unknown, not the request.
        self.inner.decode(ids, true).unwrap_or_default()
    }

    /// What `id` adds to any text that is not empty. `None` if that depends on the tokens beside it, and for special tokens.
    pub(crate) fn plain_text(&self, id: u32) -> Option<&str> {
        self.plain.get(id)
    }

    /// What a token whose plain text is `text` decodes to alone: some decoders strip the space in front.
    pub(crate) fn plain_alone<'text>(&self, text: &'text str) -> &'text str {
        self.plain.alone(text)
    }

    /// What tokens of which all are plain decode to.
    pub(crate) fn plain_texts(&self, ids: &[u32]) -> String {
        let whole: String = ids.iter().filter_map(|id| self.plain_text(*id)).collect();
        match self.plain_alone(&whole) {
            alone if alone.len() == whole.len() => whole,
            alone => alone.to_owned(),
        }
    }

    /// Whether a token is special.
    pub(crate) fn is_special(&self, id: u32) -> bool {
        self.plain_text(id).is_none() && self.special.contains_key(&id)
    }

    /// The literal text of a special token; `None` for all others.
    pub(crate) fn special(&self, id: u32) -> Option<&str> {
        self.special.get(&id).map(String::as_str)
    }

    /// The id of a special token by its literal text. Looks at all of them: for start-up, not for requests.
    pub(crate) fn special_id(&self, text: &str) -> Option<u32> {
        self.special.iter().find(|(_, literal)| *literal == text).map(|(id, _)| *id)
    }

    /// The bytes of one token, also of one that is only a part of a character. Empty for an unknown id.
    pub(crate) fn token_bytes(&self, id: u32) -> Vec<u8> {
        self.bytes.of(&self.inner, id)
    }

    /// The text of one token by itself, special ones literally.
    pub(crate) fn token_text(&self, id: u32) -> String {
        self.special(id).map_or_else(|| self.decode(&[id]), str::to_owned)
    }

    /// The tokenizer itself, for whoever needs its whole vocabulary.
    pub(crate) fn inner(&self) -> &Tokenizer {
        &self.inner
    }

    /// The id of a token by its exact content.
    #[cfg(test)]
    pub(crate) fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A byte-level BPE tokenizer without merges: every byte is a token (id = position in the byte alphabet), `</s>` is
    /// special. `<s>` is added in front if special tokens are asked for.
    pub(crate) fn byte_level() -> TextTokenizer {
        let mut alphabet: Vec<char> =
            tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().collect();
        alphabet.sort_unstable();
        let vocab: serde_json::Map<String, Value> =
            alphabet.iter().enumerate().map(|(id, byte)| (byte.to_string(), json!(id))).collect();
        from_json(&json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [special(256, "<s>"), special(257, "</s>")],
            "normalizer": null,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
            "post_processor": {"type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [256], "tokens": ["<s>"]}}},
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
            "model": {"type": "BPE", "vocab": vocab, "merges": []}
        }))
    }

    /// A Llama-style BPE tokenizer: `▁` for spaces, a prefix space, and byte fallback for everything but `words`.
    pub(crate) fn byte_fallback(words: &[&str]) -> TextTokenizer {
        let mut vocab = serde_json::Map::new();
        for token in ["<unk>", "<s>", "</s>"] {
            vocab.insert(token.to_owned(), json!(vocab.len()));
        }
        for byte in 0..=255u8 {
            vocab.insert(format!("<0x{byte:02X}>"), json!(vocab.len()));
        }
        for word in words {
            vocab.insert((*word).to_owned(), json!(vocab.len()));
        }
        from_json(&json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
            "pre_tokenizer": null, "post_processor": null,
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": vocab, "merges": []}
        }))
    }

    fn special(id: u32, content: &str) -> Value {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    }

    fn from_json(definition: &Value) -> TextTokenizer {
        let inner = Tokenizer::from_bytes(definition.to_string()).expect("the definition above is valid");
        TextTokenizer::new(inner).expect("it adds tokens before a text only")
    }

    #[test]
    fn special_tokens_are_known_and_not_decoded() {
        let tokenizer = byte_level();
        let ids = tokenizer.encode("hé", true).unwrap();
        assert_eq!(ids.len(), 4, "<s>, h and the two bytes of é");
        assert_eq!(tokenizer.special(ids[0]), Some("<s>"));
        assert_eq!(tokenizer.decode(&ids), "hé");
        assert_eq!(tokenizer.token_text(257), "</s>");
    }

    #[test]
    fn spans_are_bytes_of_the_text() {
        let spans = byte_level().encode_spans("aé", true).unwrap();
        let ranges: Vec<_> = spans.iter().map(|span| (span.start, span.stop)).collect();
        assert_eq!(ranges, [(0, 0), (0, 1), (1, 3), (1, 3)]);
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = TextTokenizer::load(Path::new("/nonexistent/tokenizer.json")).err().unwrap();
        assert!(error.to_string().starts_with("/nonexistent/tokenizer.json: "), "{error}");
    }
}
