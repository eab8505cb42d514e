//! The text of tokens that mean the same wherever they stand: nearly all of a vocabulary.
//!
//! A decoder is made of lists and strings, and decoding a few tokens twice for each new one costs more than everything else that
//! is done for the token. For the two kinds of decoders that published models have, a token that is whole characters adds its own
//! text to whatever text there is before it; that text is looked up here.

use std::collections::HashSet;

use serde_json::{Value, json};
use tokenizers::Tokenizer;

use super::token_bytes::byte_piece;

/// The texts of all plain tokens, one after the other: a string per token would be four times as large.
pub(crate) struct PlainTexts {
    texts: String,
    /// Where the text of each token ends. A token that is not plain has none.
    ends: Vec<u32>,
    strips: bool,
}

/// What a decoder makes of a token between others.
enum Rule {
    /// Its bytes.
    ByteLevel,
    /// The token with spaces for `▁`, unless it stands for a byte.
    Pieces,
}

impl PlainTexts {
    /// Reads the vocabulary of `tokenizer`; of an unknown kind of decoder no token is plain.
    pub(crate) fn new(tokenizer: &Tokenizer) -> Self {
        let decoder = tokenizer.get_decoder().and_then(|decoder| serde_json::to_value(decoder).ok());
        let (rule, strips) = decoder.map_or((None, false), |decoder| rule_of(&decoder));
        let mut plain = Self { texts: String::new(), ends: Vec::new(), strips };
        let Some(rule) = rule else { return plain };
        let added = tokenizer.get_added_tokens_decoder();
        // A decode leaves special tokens out by their content, whatever their id.
        let special: HashSet<&str> =
            added.values().filter(|token| token.special).map(|token| token.content.as_str()).collect();
        let last = tokenizer.get_vocab_size(true).max(added.keys().max().map_or(0, |id| *id as usize + 1));
        for id in 0..last as u32 {
            if let Some(token) = tokenizer.id_to_token(id).filter(|token| !special.contains(token.as_str())) {
                plain.texts.push_str(&rule.text(tokenizer, id, &token).unwrap_or_default());
            }
            let Ok(end) = u32::try_from(plain.texts.len()) else { break };
            plain.ends.push(end);
        }
        plain.texts.shrink_to_fit();
        plain
    }

    /// What `id` adds to a text that is not empty; `None` if that depends on its neighbours, or is not for the reader.
    pub(crate) fn get(&self, id: u32) -> Option<&str> {
        let at = id as usize;
        let end = *self.ends.get(at)? as usize;
        let start = at.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        (start < end).then(|| &self.texts[start..end])
    }

    /// What a plain token with this text is alone.
    pub(crate) fn alone<'text>(&self, text: &'text str) -> &'text str {
        if self.strips { text.strip_prefix(' ').unwrap_or(text) } else { text }
    }
}

impl Rule {
    fn text(&self, tokenizer: &Tokenizer, id: u32, token: &str) -> Option<String> {
        let text = match self {
            // Whatever is not whole characters is decoded with replacement characters.
            Rule::ByteLevel => tokenizer.decode(&[id], true).ok()?,
            Rule::Pieces if byte_piece(token).is_some() => return None,
            Rule::Pieces => token.replace('▁', " "),
        };
        (!text.contains(char::REPLACEMENT_CHARACTER)).then_some(text)
    }
}

/// The rule of a decoder, and whether it strips the space in front of a text.
fn rule_of(decoder: &Value) -> (Option<Rule>, bool) {
    if decoder["type"] == "ByteLevel" {
        return (Some(Rule::ByteLevel), false);
    }
    let steps = decoder["decoders"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_pieces = |steps: &[Value]| {
        steps
            == [
                json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
                json!({ "type": "ByteFallback" }),
                json!({ "type": "Fuse" }),
            ]
    };
    match steps {
        steps if is_pieces(steps) => (Some(Rule::Pieces), false),
        [steps @ .., strip]
            if is_pieces(steps) && *strip == json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }) =>
        {
            (Some(Rule::Pieces), true)
        }
        _ => (None, false),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tokenizer::tests::{byte_fallback, byte_level};

    #[test]
    fn whole_characters_are_plain_and_nothing_else() {
        let tokenizer = byte_level();
        let ids = tokenizer.encode("aé", false).unwrap();
        assert_eq!(tokenizer.plain_text(ids[0]), Some("a"));
        assert_eq!(tokenizer.plain_text(ids[1]), None, "half of a character");
        assert_eq!(tokenizer.plain_text(257), None, "special");
        assert_eq!(tokenizer.plain_text(9999), None, "unknown");
    }

    #[test]
    fn pieces_have_their_space_and_bytes_are_not_plain() {
        let tokenizer = byte_fallback(&["▁there"]);
        let there = tokenizer.token_to_id("▁there").unwrap();
        assert_eq!(tokenizer.plain_text(there), Some(" there"));
        assert_eq!(tokenizer.plain_alone(" there"), "there");
        assert_eq!(tokenizer.plain_text(tokenizer.token_to_id("<0x41>").unwrap()), None);
    }
}
