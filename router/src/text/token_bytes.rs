//! The bytes of a token by itself. A decoder gives text, and a token that is a part of a character has none; its bytes
//! are what log-probabilities report and what a grammar walks.

use std::collections::HashMap;

use tokenizers::Tokenizer;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

/// How a vocabulary spells bytes.
pub(crate) struct TokenBytes {
    spelling: Spelling,
    /// Tokens that stand for themselves.
    added: HashMap<u32, String>,
}

enum Spelling {
    /// GPT-2's: each character of a token stands for one byte.
    ByteLevel(HashMap<char, u8>),
    /// SentencePiece's: `▁` is a space, `<0x0A>` is a byte.
    Pieces,
    /// The decoder knows; tokens are whole characters.
    Text,
}

impl TokenBytes {
    pub(crate) fn new(tokenizer: &Tokenizer) -> Self {
        let added = tokenizer.get_added_tokens_decoder().into_iter().map(|(id, token)| (id, token.content)).collect();
        Self { spelling: tokenizer.get_decoder().map_or(Spelling::Text, Spelling::of), added }
    }

    /// The bytes of `id`; none for an id that the tokenizer does not know.
    pub(crate) fn of(&self, tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
        if let Some(content) = self.added.get(&id) {
            return content.clone().into_bytes();
        }
        let Some(token) = tokenizer.id_to_token(id) else { return Vec::new() };
        match &self.spelling {
            Spelling::ByteLevel(bytes) => token
                .chars()
                .flat_map(|char| match bytes.get(&char) {
                    Some(byte) => vec![*byte],
                    // No vocabulary of this kind has such a character, but a file can.
                    None => char.to_string().into_bytes(),
                })
                .collect(),
            Spelling::Pieces => match byte_piece(&token) {
                Some(byte) => vec![byte],
                None => token.replace('▁', " ").into_bytes(),
            },
            Spelling::Text => tokenizer.decode(&[id], false).unwrap_or(token).into_bytes(),
        }
    }
}

impl Spelling {
    fn of(decoder: &DecoderWrapper) -> Self {
        let steps = match decoder {
            DecoderWrapper::Sequence(sequence) => sequence.get_decoders(),
            single => std::slice::from_ref(single),
        };
        let is_piece = |step: &DecoderWrapper| match step {
            DecoderWrapper::Metaspace(_) | DecoderWrapper::ByteFallback(_) => true,
            DecoderWrapper::Replace(replace) => serde_json::to_string(replace).is_ok_and(|text| text.contains('▁')),
            _ => false,
        };
        if steps.iter().any(|step| matches!(step, DecoderWrapper::ByteLevel(_))) {
            Spelling::ByteLevel(byte_level())
        } else if steps.iter().any(is_piece) {
            Spelling::Pieces
        } else {
            Spelling::Text
        }
    }
}

/// GPT-2's alphabet: printable bytes stand for themselves, the others for the characters from U+0100 on, in order.
pub(super) fn byte_alphabet() -> [char; 256] {
    let mut others = '\u{100}'..;
    std::array::from_fn(|byte| match byte as u8 {
        byte @ (b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF) => char::from(byte),
        _ => others.next().expect("there are more characters than bytes"),
    })
}

/// What the characters of [`byte_alphabet`] stand for.
fn byte_level() -> HashMap<char, u8> {
    let map: HashMap<char, u8> = byte_alphabet().into_iter().zip(0..=255).collect();
    debug_assert_eq!(map.len(), ByteLevel::alphabet().len());
    map
}

/// The byte of `<0x0A>`.
pub(super) fn byte_piece(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::super::tokenizer::tests::{byte_fallback, byte_level as byte_level_tokenizer};
    use super::*;

    #[test]
    fn the_alphabet_is_the_tokenizers() {
        let own = byte_level();
        assert!(ByteLevel::alphabet().iter().all(|char| own.contains_key(char)));
    }

    #[test]
    fn bytes_join_to_the_text_whatever_the_cut() {
        let tokenizer = byte_level_tokenizer();
        for text in ["plain text", "é👍\u{0}\n\u{ad}", "日本語"] {
            let ids = tokenizer.encode(text, false).unwrap();
            let bytes: Vec<u8> = ids.iter().flat_map(|id| tokenizer.token_bytes(*id)).collect();
            assert_eq!(bytes, text.as_bytes());
        }
        assert_eq!(tokenizer.token_bytes(257), b"</s>");
        assert_eq!(tokenizer.token_bytes(9999), b"");
    }

    #[test]
    fn pieces_have_spaces_and_bytes() {
        let tokenizer = byte_fallback(&["▁there"]);
        assert_eq!(tokenizer.token_bytes(tokenizer.token_to_id("▁there").unwrap()), b" there");
        assert_eq!(tokenizer.token_bytes(tokenizer.token_to_id("<0xC3>").unwrap()), [0xC3]);
        assert_eq!(tokenizer.token_bytes(tokenizer.token_to_id("<unk>").unwrap()), b"<unk>");
    }
}
