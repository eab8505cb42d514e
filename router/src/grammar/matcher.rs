//! One reply under a grammar: which tokens may come next, and what came.

use std::sync::Arc;

use llguidance::api::StopReason;

use super::error::MatcherError;

/// The state of one reply. A mask takes from microseconds to some milliseconds, so call it off the async threads.
pub(crate) struct Matcher {
    inner: llguidance::Matcher,
    end_ids: Arc<[u32]>,
    vocab_size: usize,
    /// An end-of-sequence token was accepted.
    ended: bool,
}

impl Matcher {
    pub(super) fn new(inner: llguidance::Matcher, end_ids: Arc<[u32]>, vocab_size: usize) -> Self {
        Self { inner, end_ids, vocab_size, ended: false }
    }

    /// The tokens that may come next: token `id` by bit `id % 32` of word `id / 32`. End-of-sequence ids are among them
    /// exactly where the text may end; where it must end they are the only ones.
    ///
    /// # Errors
    /// [`MatcherError`] if the mask is beyond its limits or empty; the matcher is of no further use.
    pub(crate) fn mask(&mut self) -> Result<Vec<u32>, MatcherError> {
        let mut words = vec![0u32; self.vocab_size.div_ceil(32)];
        if self.ended || self.inner.stop_reason() == StopReason::NoExtension {
            for id in self.end_ids.iter() {
                words[*id as usize / 32] |= 1 << (id % 32);
            }
            return Ok(words);
        }
        let mask = self.inner.compute_mask_or_eos().map_err(|error| self.error(&error))?;
        let source = mask.as_slice();
        let length = words.len();
        words.copy_from_slice(&source[..length]);
        Ok(words)
    }

    /// Continues after `token_id`.
    ///
    /// # Errors
    /// [`MatcherError::NotAllowed`] if the mask here does not have it; the matcher is then unchanged.
    pub(crate) fn accept(&mut self, token_id: u32) -> Result<(), MatcherError> {
        if self.end_ids.contains(&token_id) {
            let may_end = self.ended
                || self.inner.stop_reason() == StopReason::NoExtension
                || self.inner.is_accepting().map_err(|error| self.error(&error))?;
            self.ended |= may_end;
            return if may_end { Ok(()) } else { Err(MatcherError::NotAllowed { token_id }) };
        }
        if self.ended || self.inner.is_stopped() || token_id as usize >= self.vocab_size {
            return Err(MatcherError::NotAllowed { token_id });
        }
        match self.inner.try_consume_tokens(&[token_id]) {
            Ok(1) => Ok(()),
            Ok(_) => Err(MatcherError::NotAllowed { token_id }),
            Err(error) => Err(self.error(&error)),
        }
    }

    fn error(&self, error: &anyhow::Error) -> MatcherError {
        let reason = error.to_string();
        match self.inner.stop_reason() {
            StopReason::LexerTooComplex | StopReason::ParserTooComplex => MatcherError::TooComplex { reason },
            _ if reason.contains("TooComplex") => MatcherError::TooComplex { reason },
            _ => MatcherError::Stuck { reason },
        }
    }
}
