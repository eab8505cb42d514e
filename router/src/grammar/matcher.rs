//! One reply under a grammar: which tokens may come next, and what came.

use std::sync::Arc;

use super::automaton::{Automaton, Reader};
use super::error::MatcherError;

/// The state of one reply. A mask takes from microseconds to some milliseconds, so call it off the async threads.
pub(crate) struct Matcher {
    /// What may come before the text of the grammar, until it is over.
    thought: Option<Thought>,
    /// `None` while a thought has to go on.
    inner: Option<Reader>,
    end_ids: Arc<[u32]>,
    vocab_size: usize,
    /// An end-of-sequence token was accepted.
    ended: bool,
}

/// A thought that is being read.
struct Thought {
    inner: Reader,
    /// Wherever the thought may end, the text may begin.
    answer: Arc<Automaton>,
}

impl Matcher {
    pub(super) fn new(
        thought: Option<&Arc<Automaton>>,
        answer: &Arc<Automaton>,
        end_ids: Arc<[u32]>,
        vocab_size: usize,
    ) -> Self {
        let mut thought = thought.map(|thought| Thought { inner: thought.reader(), answer: answer.clone() });
        let may_begin = thought.as_mut().is_none_or(|thought| thought.inner.is_accepting().unwrap_or(false));
        Self { thought, inner: may_begin.then(|| answer.reader()), end_ids, vocab_size, ended: false }
    }

    /// The tokens that may come next: token `id` by bit `id % 32` of word `id / 32`. End-of-sequence ids are among them
    /// exactly where the text may end; where it must end they are the only ones.
    ///
    /// # Errors
    /// [`MatcherError`] if the mask is beyond its limits or empty; the matcher is of no further use.
    pub(crate) fn mask(&mut self) -> Result<Vec<u32>, MatcherError> {
        let mut words = vec![0u32; self.vocab_size.div_ceil(32)];
        if let Some(thought) = &mut self.thought {
            add_mask(&mut thought.inner, &mut words)?;
            // A reply does not end where its thought does.
            self.end_ids.iter().for_each(|id| words[*id as usize / 32] &= !(1 << (id % 32)));
        }
        match &mut self.inner {
            None => {}
            Some(inner) if self.ended || inner.is_over() => {
                self.end_ids.iter().for_each(|id| words[*id as usize / 32] |= 1 << (id % 32));
            }
            Some(inner) => add_mask(inner, &mut words)?,
        }
        Ok(words)
    }

    /// Continues after `token_id`.
    ///
    /// # Errors
    /// [`MatcherError::NotAllowed`] if the mask here does not have it; the matcher is then unchanged.
    pub(crate) fn accept(&mut self, token_id: u32) -> Result<(), MatcherError> {
        let refused = Err(MatcherError::NotAllowed { token_id });
        if self.end_ids.contains(&token_id) {
            let Some(inner) = &mut self.inner else { return refused };
            let may_end = self.ended || inner.is_over() || inner.is_accepting()?;
            self.ended |= may_end;
            return if may_end { Ok(()) } else { refused };
        }
        if self.ended || token_id as usize >= self.vocab_size {
            return refused;
        }
        let answers = self.inner.as_mut().map_or(Ok(false), |inner| inner.consume(token_id))?;
        let thinks = self.thought.as_mut().map_or(Ok(false), |thought| thought.inner.consume(token_id))?;
        match &mut self.thought {
            Some(thought) if thinks => {
                let is_over = thought.inner.is_over();
                if is_over || thought.inner.is_accepting()? {
                    self.inner = Some(thought.answer.reader());
                } else if !answers {
                    self.inner = None;
                }
                if is_over {
                    self.thought = None;
                }
            }
            _ if answers => self.thought = None,
            _ => return refused,
        }
        Ok(())
    }
}

/// Adds the tokens that may come next.
fn add_mask(reader: &mut Reader, words: &mut [u32]) -> Result<(), MatcherError> {
    let mask = reader.mask()?;
    words.iter_mut().zip(mask.as_slice()).for_each(|(word, more)| *word |= more);
    Ok(())
}
