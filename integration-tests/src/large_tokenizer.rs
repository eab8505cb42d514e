//! Tokenizers with vocabularies as large as those of real models, for what depends on their size and not on their words.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::tiny_model::Random;

/// A byte-level BPE tokenizer of random words, in the form of Llama 3's: the same pattern splits words, and every token has
/// all merges that can make it.
#[derive(Clone, Copy, Debug)]
pub struct LargeTokenizer {
    /// Tokens, the special ones included.
    pub vocab_size: usize,
    /// Seed of the words.
    pub seed: u64,
}

/// Characters of the longest token.
const LONGEST: usize = 12;
const SPECIAL: [&str; 4] = ["<|begin|>", "<|end|>", "<|user|>", "<|assistant|>"];
const CHAT_TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + \
     eos_token }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";
/// How Llama 3 and GPT-4 split text before they merge.
const PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl LargeTokenizer {
    /// Writes tokenizer.json and tokenizer_config.json to a folder that lives as long as the returned value.
    pub fn write(&self) -> TempDir {
        let dir = TempDir::new().expect("a folder for temporary files can be made");
        self.write_to(dir.path());
        dir
    }

    /// The id of the token that ends a text.
    pub fn eos_token_id(&self) -> u32 {
        (self.vocab_size - SPECIAL.len() + 1) as u32
    }

    fn write_to(&self, dir: &Path) {
        let write = |name: &str, contents: String| fs::write(dir.join(name), contents).expect("it is writable");
        let config = json!({ "bos_token": SPECIAL[0], "eos_token": SPECIAL[1], "chat_template": CHAT_TEMPLATE });
        write("tokenizer_config.json", config.to_string());
        write("tokenizer.json", self.definition().to_string());
    }

    fn definition(&self) -> Value {
        let words = self.words();
        let known: HashSet<&str> = words.iter().map(String::as_str).collect();
        let halves = |word: &String| -> Vec<Value> {
            let splits = word.char_indices().skip(1).map(|(at, _)| word.split_at(at));
            let made = splits.filter(|(left, right)| known.contains(left) && known.contains(right));
            made.map(|(left, right)| json!([left, right])).collect()
        };
        let merges: Vec<Value> = words.iter().flat_map(halves).collect();
        let vocab: Map<String, Value> = words.iter().enumerate().map(|(id, word)| (word.clone(), json!(id))).collect();
        let special = SPECIAL.iter().enumerate().map(|(at, content)| {
            json!({
                "id": words.len() + at, "content": content, "special": true, "normalized": false,
                "single_word": false, "lstrip": false, "rstrip": false,
            })
        });
        let byte_level =
            json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
        let split =
            json!({ "type": "Split", "pattern": { "Regex": PATTERN }, "behavior": "Isolated", "invert": false });
        json!({
            "version": "1.0",
            "added_tokens": special.collect::<Vec<_>>(),
            "pre_tokenizer": { "type": "Sequence", "pretokenizers": [split, byte_level] },
            "decoder": byte_level,
            "model": { "type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": true },
        })
    }

    /// The vocabulary without special tokens: the byte alphabet, then words, each of which two earlier ones make.
    fn words(&self) -> Vec<String> {
        let mut words: Vec<String> = byte_alphabet().map(String::from).collect();
        let mut known: HashSet<String> = words.iter().cloned().collect();
        // `Ġ` is the space before a word.
        let mut parts: Vec<String> = ('a'..='z').chain(['Ġ']).map(String::from).collect();
        let mut random = Random(self.seed);
        while words.len() < self.vocab_size - SPECIAL.len() {
            let (left, right) = (&parts[random.below(parts.len())], &parts[random.below(parts.len())]);
            let word = format!("{left}{right}");
            if !right.starts_with('Ġ') && word.chars().count() <= LONGEST && known.insert(word.clone()) {
                words.push(word.clone());
                parts.push(word);
            }
        }
        words
    }
}

/// The characters that stand for bytes in GPT-2's alphabet: those that are printable for themselves, the others from U+0100 on.
pub(crate) fn byte_alphabet() -> impl Iterator<Item = char> {
    let mut moved = 0xff;
    (0..=255_u8).map(move |byte| match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        _ => {
            moved += 1;
            char::from_u32(moved).expect("U+0100 to U+0143 are characters")
        }
    })
}
