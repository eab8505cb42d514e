//! What requests ask: random words, about as many as make the wanted number of tokens, or the lines of a file.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::call::{Caller, Failure};
use crate::args::Args;
use crate::error::Error;
use crate::limits::MAX_PROMPTS_BYTES;
use crate::random::Random;

/// Short common words: one token each in most vocabularies.
const WORDS: &[&str] = &[
    "the", "of", "and", "to", "in", "is", "you", "that", "it", "he", "was", "for", "on", "are", "as", "with", "his",
    "they", "at", "be", "this", "have", "from", "or", "one", "had", "by", "word", "but", "not", "what", "all", "were",
    "we", "when", "your", "can", "said", "there", "use", "an", "each", "which", "she", "do", "how", "their", "if",
    "will", "up", "other", "about", "out", "many", "then", "them", "these", "so", "some", "her", "would", "make",
    "like", "him", "into", "time", "has", "look", "two", "more", "write", "go", "see", "number", "no", "way", "could",
    "people", "my", "than", "first", "water", "been", "call", "who", "oil", "its", "now", "find", "long", "down",
    "day", "did", "get", "come", "made", "may", "part",
];

/// Words of the two texts that are tokenized to learn how many tokens a word has. Their difference leaves out what begins
/// and ends every text.
const SAMPLES: (usize, usize) = (128, 384);

/// A source of prompts without an end.
pub(super) enum Prompts {
    /// Random words.
    Words { count: usize, seed: u64, tokens_per_word: Option<f64> },
    /// Lines of a file.
    File { path: PathBuf, prompts: Vec<String> },
}

impl Prompts {
    /// Reads the file, or asks the server how many tokens a word has.
    ///
    /// # Errors
    /// If the file cannot be used, or the server does not answer.
    pub(super) async fn open(args: &Args, caller: &Caller) -> Result<Prompts, Error> {
        if let Some(path) = &args.http.prompts {
            return Ok(Prompts::File { path: path.clone(), prompts: read(path)? });
        }
        let server = |failure: Failure| Error::Server { url: caller.target().to_owned(), reason: failure.to_string() };
        let short = caller.count_tokens(&words(SAMPLES.0, Random::new(args.seed))).await.map_err(server)?;
        let long = caller.count_tokens(&words(SAMPLES.1, Random::new(args.seed))).await.map_err(server)?;
        let tokens_per_word = short.zip(long).and_then(|(short, long)| {
            let tokens = long.checked_sub(short).filter(|tokens| *tokens > 0)?;
            Some(tokens as f64 / (SAMPLES.1 - SAMPLES.0) as f64)
        });
        let count = (f64::from(args.sequence_length) / tokens_per_word.unwrap_or(1.0)).round().max(1.0) as usize;
        Ok(Prompts::Words { count, seed: args.seed, tokens_per_word })
    }

    /// The prompt of request `number`.
    pub(super) fn prompt(&self, number: u64) -> String {
        match self {
            Prompts::Words { count, seed, .. } => {
                // Two steps of the generator apart, neighbouring numbers have nothing in common.
                let start = Random::new(seed.wrapping_add(1)).next() ^ Random::new(number).next();
                words(*count, Random::new(start))
            }
            Prompts::File { prompts, .. } => prompts[(number % prompts.len() as u64) as usize].clone(),
        }
    }
}

impl std::fmt::Display for Prompts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Prompts::Words { count, tokens_per_word: Some(ratio), .. } => {
                write!(f, "{count} random words ({ratio:.2} tokens each)")
            }
            Prompts::Words { count, tokens_per_word: None, .. } => {
                write!(f, "{count} random words (the server has no /tokenize: one token each is a guess)")
            }
            Prompts::File { path, prompts } => write!(f, "{} of {}", prompts.len(), path.display()),
        }
    }
}

fn words(count: usize, mut random: Random) -> String {
    let mut word = || WORDS[random.below(WORDS.len() as u64) as usize];
    (0..count).map(|_| word()).collect::<Vec<_>>().join(" ")
}

fn read(path: &Path) -> Result<Vec<String>, Error> {
    let unusable = |reason: String| Error::Prompts { path: path.to_owned(), reason };
    let length = std::fs::metadata(path).map_err(|error| unusable(error.to_string()))?.len();
    if length > MAX_PROMPTS_BYTES {
        return Err(unusable(format!("{length} bytes, limit {MAX_PROMPTS_BYTES}")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| unusable(error.to_string()))?;
    let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    let prompts = lines.map(|(number, line)| {
        let value: Value =
            serde_json::from_str(line).map_err(|error| unusable(format!("line {number} is no JSON: {error}")))?;
        let prompt = value["prompt"].as_str().filter(|prompt| !prompt.is_empty());
        prompt.map(str::to_owned).ok_or_else(|| unusable(format!("line {number} has no text in `prompt`")))
    });
    let prompts = prompts.collect::<Result<Vec<_>, _>>()?;
    if prompts.is_empty() { Err(unusable("it has no line".to_owned())) } else { Ok(prompts) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_has_words_of_its_own() {
        let prompts = |seed| Prompts::Words { count: 12, seed, tokens_per_word: Some(1.0) };
        assert_eq!(prompts(1).prompt(0), prompts(1).prompt(0));
        assert_eq!(prompts(1).prompt(5).split(' ').count(), 12);
        let distinct: std::collections::BTreeSet<_> = (0..100).map(|number| prompts(1).prompt(number)).collect();
        assert_eq!(distinct.len(), 100);
        assert_ne!(prompts(1).prompt(0), prompts(2).prompt(0));
    }

    #[test]
    fn a_file_is_read_line_by_line() {
        let path = std::env::temp_dir().join(format!("tgi-benchmark-prompts-{}", std::process::id()));
        let check = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read(&path).map_err(|error| error.to_string().split(": ").skip(1).collect::<Vec<_>>().join(": "))
        };
        assert_eq!(check("{\"prompt\": \"a\"}\n\n{\"prompt\": \"b\", \"x\": 1}\n").unwrap(), ["a", "b"]);
        assert_eq!(check("{\"prompt\": \"a\"}\n{\"text\": \"b\"}").unwrap_err(), "line 2 has no text in `prompt`");
        assert!(check("nonsense").unwrap_err().starts_with("line 1 is no JSON"), "not JSON");
        assert_eq!(check("\n").unwrap_err(), "it has no line");
        std::fs::remove_file(&path).unwrap();
    }
}
