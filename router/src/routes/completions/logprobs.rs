//! Log-probabilities in the shape of completions: four lists with an entry per token.

use std::sync::Arc;

use serde::Serialize;
use serde_json::Map;
use serde_json::Value;
use utoipa::ToSchema;

use crate::generation::{PromptToken, Token};
use crate::routes::openai::logprobs::spelled;
use crate::text::TextTokenizer;

/// `logprobs` of a completion.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct LegacyLogprobs {
    tokens: Vec<String>,
    /// Null for the first token of a prompt.
    token_logprobs: Vec<Option<f32>>,
    /// The most likely tokens and the one that came.
    #[schema(value_type = Vec<Option<std::collections::HashMap<String, f32>>>)]
    top_logprobs: Vec<Option<Map<String, Value>>>,
    /// Where each token begins in the choice's text, in characters.
    text_offset: Vec<usize>,
}

/// Makes the entries of one choice.
pub(super) struct Recorder {
    tokenizer: Arc<TextTokenizer>,
    top: usize,
    /// Characters so far.
    offset: usize,
}

impl Recorder {
    pub(super) fn new(tokenizer: Arc<TextTokenizer>, top: usize) -> Self {
        Self { tokenizer, top, offset: 0 }
    }

    /// The entries of a prompt.
    pub(super) fn prompt(&mut self, tokens: &[PromptToken]) -> LegacyLogprobs {
        let mut out = LegacyLogprobs::default();
        for token in tokens {
            self.push(&mut out, token.id, token.logprob, &token.top_tokens);
        }
        out
    }

    /// Adds the entry of a token of the reply.
    pub(super) fn token(&mut self, out: &mut LegacyLogprobs, token: &Token, top_tokens: &[Token]) {
        self.push(out, token.id, Some(token.logprob), top_tokens);
    }

    fn push(&mut self, out: &mut LegacyLogprobs, id: u32, logprob: Option<f32>, top_tokens: &[Token]) {
        let bytes = self.tokenizer.token_bytes(id);
        let token = spelled(&bytes);
        let entry = |id, logprob: f32| (spelled(&self.tokenizer.token_bytes(id)), Value::from(logprob));
        let top = logprob.map(|logprob| {
            let mut top: Map<_, _> =
                top_tokens.iter().take(self.top).map(|token| entry(token.id, token.logprob)).collect();
            top.entry(token.clone()).or_insert(Value::from(logprob));
            top
        });
        out.tokens.push(token);
        out.token_logprobs.push(logprob);
        out.top_logprobs.push(top);
        out.text_offset.push(self.offset);
        // Special tokens are no text. Of others each character counts where its first byte is.
        if self.tokenizer.special(id).is_none() {
            self.offset += bytes.iter().filter(|byte| **byte & 0xC0 != 0x80).count();
        }
    }
}

impl LegacyLogprobs {
    /// Adds the entries of the next piece.
    pub(super) fn extend(&mut self, next: LegacyLogprobs) {
        self.tokens.extend(next.tokens);
        self.token_logprobs.extend(next.token_logprobs);
        self.top_logprobs.extend(next.top_logprobs);
        self.text_offset.extend(next.text_offset);
    }
}
