//! The vocabulary as bytes: what each token adds to the text of a reply.

use serde_json::Value;
use tokenizers::Tokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use toktrie::{TokRxInfo, TokTrie, TokenId, TokenizerEnv};

use super::weight::ByteWeights;

/// The bytes of each token by id; `None` for special tokens and ids without a token, which a grammar never allows.
///
/// # Errors
/// The reason, if the tokenizer's decoder is of a kind whose tokens have no bytes of their own.
pub(super) fn token_bytes(tokenizer: &Tokenizer, vocab_size: usize) -> Result<Vec<Option<Vec<u8>>>, String> {
    let decoder = serde_json::to_value(tokenizer.get_decoder()).map_err(|error| error.to_string())?;
    let steps = steps(&decoder)?;
    let added = tokenizer.get_added_tokens_decoder();
    let byte_level = ByteAlphabet::new();
    let mut bytes = Vec::with_capacity(vocab_size);
    for id in 0..u32::try_from(vocab_size).map_err(|error| error.to_string())? {
        bytes.push(match (added.get(&id), tokenizer.id_to_token(id)) {
            (Some(token), _) if token.special => None,
            // Byte-level decoding takes an added token's text as it is, if it is not made of the byte alphabet alone.
            (_, Some(token)) => Some(decode(&token, &steps, &byte_level)),
            (_, None) => None,
        });
    }
    Ok(bytes)
}

/// What a decoder does to one token in the middle of a text.
enum Step {
    ByteLevel,
    ByteFallback,
    Replace {
        pattern: String,
        content: String,
    },
    /// A prefix that marks the continuation of a word; every other token starts with a space.
    WordPiece {
        prefix: String,
    },
}

fn steps(decoder: &Value) -> Result<Vec<Step>, String> {
    let text = |key: &str| decoder[key].as_str().unwrap_or_default().to_owned();
    Ok(match decoder["type"].as_str() {
        Some("Sequence") => {
            let mut all = Vec::new();
            for decoder in decoder["decoders"].as_array().into_iter().flatten() {
                all.extend(steps(decoder)?);
            }
            all
        }
        Some("ByteLevel") => vec![Step::ByteLevel],
        Some("ByteFallback") => vec![Step::ByteFallback],
        Some("Replace") => {
            let Some(pattern) = decoder["pattern"]["String"].as_str() else {
                return Err("its decoder replaces an expression, not a string".to_owned());
            };
            vec![Step::Replace { pattern: pattern.to_owned(), content: text("content") }]
        }
        Some("Metaspace") => {
            vec![Step::Replace { pattern: text("replacement"), content: " ".to_owned() }]
        }
        // These only join tokens, or touch the ends of a text.
        Some("Fuse" | "Strip") => Vec::new(),
        Some("WordPiece") => vec![Step::WordPiece { prefix: text("prefix") }],
        Some(other) => return Err(format!("its decoder is a `{other}`")),
        None => return Err("it has no decoder".to_owned()),
    })
}

fn decode(token: &str, steps: &[Step], byte_level: &ByteAlphabet) -> Vec<u8> {
    let mut text = token.to_owned();
    for step in steps {
        match step {
            Step::ByteLevel => return byte_level.bytes(&text).unwrap_or_else(|| text.clone().into_bytes()),
            Step::ByteFallback => {
                let code = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
                if let Some(byte) =
                    code.filter(|code| code.len() == 2).and_then(|code| u8::from_str_radix(code, 16).ok())
                {
                    return vec![byte];
                }
            }
            Step::Replace { pattern, content } => text = text.replace(pattern.as_str(), content),
            Step::WordPiece { prefix } => {
                text = match text.strip_prefix(prefix.as_str()) {
                    Some(continuation) => continuation.to_owned(),
                    None => format!(" {text}"),
                }
            }
        }
    }
    text.into_bytes()
}

/// GPT-2's printable stand-ins for the 256 bytes.
struct ByteAlphabet(std::collections::HashMap<char, u8>);

impl ByteAlphabet {
    fn new() -> Self {
        // Printable bytes stand for themselves; the others, in order, for the characters from 256 on.
        let alphabet = ByteLevel::alphabet();
        let mut next = 256;
        let mut map = std::collections::HashMap::new();
        for byte in 0..=255u8 {
            let itself = char::from(byte);
            if alphabet.contains(&itself) {
                map.insert(itself, byte);
            } else {
                map.insert(char::from_u32(next).expect("the code points from 256 on are characters"), byte);
                next += 1;
            }
        }
        Self(map)
    }

    fn bytes(&self, token: &str) -> Option<Vec<u8>> {
        token.chars().map(|letter| self.0.get(&letter).copied()).collect()
    }
}

/// The vocabulary as llguidance sees it.
pub(super) struct Vocabulary {
    trie: TokTrie,
}

impl Vocabulary {
    /// `end` are the ids that end a reply, at least one, all below the size of the vocabulary.
    pub(super) fn new(tokens: &[Option<Vec<u8>>], end: &[u32]) -> (Self, ByteWeights) {
        let words: Vec<Vec<u8>> = tokens
            .iter()
            .enumerate()
            .map(|(id, bytes)| match bytes {
                Some(bytes) if !end.iter().any(|end| *end as usize == id) => bytes.clone(),
                // No text contains the marker, so no grammar allows these.
                _ => [&[TokTrie::SPECIAL_TOKEN_MARKER], format!("<{id}>").as_bytes()].concat(),
            })
            .collect();
        let size = u32::try_from(words.len()).expect("token ids are 32 bits");
        let trie = TokTrie::from(&TokRxInfo::new(size, end[0]), &words).with_eos_tokens(end);
        let weights = ByteWeights::new(tokens.iter().flatten().map(Vec::as_slice));
        (Self { trie }, weights)
    }

    pub(super) fn trie(&self) -> &TokTrie {
        &self.trie
    }
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, text: &[u8]) -> Vec<TokenId> {
        self.trie.greedy_tokenize(text)
    }

    fn tokenize_is_canonical(&self) -> bool {
        // The model chooses how to cut what the grammar forces: masks then never depend on the tokenizer's rules for
        // the start of a text.
        false
    }
}
