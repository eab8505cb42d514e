//! Log-probabilities in the shape of chat completions.

use serde::Serialize;
use utoipa::ToSchema;

use crate::generation::Token;
use crate::routes::chat::ScoredToken;
use crate::text::TextTokenizer;

/// `logprobs` of a chat choice.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Logprobs {
    pub(crate) content: Vec<TokenLogprob>,
}

/// A token with its alternatives.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct TokenLogprob {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
    top_logprobs: Vec<TopLogprob>,
}

/// An alternative.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct TopLogprob {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl TokenLogprob {
    /// The entries of `tokens`.
    pub(crate) fn list(tokenizer: &TextTokenizer, tokens: &[ScoredToken], top: usize) -> Vec<Self> {
        tokens.iter().map(|(token, top_tokens)| Self::new(tokenizer, token, top_tokens, top)).collect()
    }

    /// The entry of one token with the `top` most likely ones (the shard may send more on ties).
    pub(crate) fn new(tokenizer: &TextTokenizer, token: &Token, top_tokens: &[Token], top: usize) -> Self {
        let top_logprobs = top_tokens.iter().take(top).map(|token| {
            let bytes = tokenizer.token_bytes(token.id);
            TopLogprob { token: spelled(&bytes), logprob: token.logprob, bytes }
        });
        let bytes = tokenizer.token_bytes(token.id);
        Self { token: spelled(&bytes), logprob: token.logprob, top_logprobs: top_logprobs.collect(), bytes }
    }
}

/// A token's text; a part of a character is spelled in hexadecimal bytes, as OpenAI does.
pub(crate) fn spelled(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect(),
    }
}
