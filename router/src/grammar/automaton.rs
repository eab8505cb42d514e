//! Automata that learn: a lexer derives its states when a reply first comes upon them, and keeps them for the replies
//! that follow.
//!
//! A reply needs a lexer to itself, because it adds to it. When it is over the lexer is parked, and the next reply of the
//! same grammar goes on with it. What a lexer has learned changes what a mask costs, never the mask.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use llguidance::TokenParser;
use llguidance::api::StopReason;
use llguidance::toktrie::SimpleVob;

use super::error::MatcherError;
use crate::limits::GRAMMAR_PARKED_LEXERS;
use crate::metrics;

/// A grammar before its first token, for any number of readers.
pub(super) struct Automaton {
    /// With the lexer that nobody has taught anything. The lock is held for a copy only.
    cold: Mutex<TokenParser>,
    pool: Arc<Pool>,
    id: u64,
}

impl Automaton {
    /// `parser` stands before its first token.
    pub(super) fn new(mut parser: TokenParser, pool: &Arc<Pool>) -> Arc<Self> {
        parser.start_without_prompt();
        let id = pool.next_id();
        Arc::new(Self { cold: Mutex::new(parser), pool: pool.clone(), id })
    }

    /// A reader before its first token, with a lexer that was taught before, if one is free.
    pub(super) fn reader(self: &Arc<Self>) -> Reader {
        let warm = self.pool.take(self.id);
        let is_warm = warm.is_some();
        let start = warm.unwrap_or_else(|| self.cold());
        let parser = TokenParser::clone(&start);
        Reader { home: self.clone(), parser, start: Some(start), is_warm, tokens: Vec::new() }
    }

    fn cold(&self) -> Box<TokenParser> {
        // A panic during the copy leaves the original as it was.
        Box::new(self.cold.lock().unwrap_or_else(PoisonError::into_inner).deep_clone())
    }
}

impl Drop for Automaton {
    fn drop(&mut self) {
        self.pool.forget(self.id);
    }
}

/// One reply's way through an automaton. Its lexer is parked when it is dropped.
pub(super) struct Reader {
    home: Arc<Automaton>,
    parser: TokenParser,
    /// Still before the first token, over the same lexer: what `parser` teaches it is there for the next reply. `None` once a
    /// call has failed or panicked.
    start: Option<Box<TokenParser>>,
    /// Earlier replies have taught the lexer.
    is_warm: bool,
    /// What was consumed, as long as the lexer is warm: it may have to be read again. As long as the reply at most.
    tokens: Vec<u32>,
}

impl Reader {
    /// The tokens that may come next, ends of the sequence among them where the text may end.
    ///
    /// # Errors
    /// If the mask is beyond its limits or empty, or the text is over; the reader is of no further use.
    pub(super) fn mask(&mut self) -> Result<SimpleVob, MatcherError> {
        self.call(TokenParser::compute_mask)
    }

    /// Whether the token may come next; then it came.
    ///
    /// # Errors
    /// If that is beyond the limits; the reader is of no further use.
    pub(super) fn consume(&mut self, token_id: u32) -> Result<bool, MatcherError> {
        let consumed = self.call(|parser| consume(parser, token_id))?;
        if consumed && self.is_warm {
            self.tokens.push(token_id);
        }
        Ok(consumed)
    }

    /// Whether the text may end here.
    ///
    /// # Errors
    /// As [`Reader::mask`].
    pub(super) fn is_accepting(&mut self) -> Result<bool, MatcherError> {
        self.call(|parser| Ok(parser.is_accepting()))
    }

    /// The text must end here.
    pub(super) fn is_over(&self) -> bool {
        self.parser.stop_reason() == StopReason::NoExtension
    }

    /// A reply is not to blame for what its predecessors put into the lexer: beyond the limits of a warm one it starts over
    /// with a cold one.
    fn call<T>(&mut self, step: impl Fn(&mut TokenParser) -> anyhow::Result<T>) -> Result<T, MatcherError> {
        match self.attempt(&step) {
            Err(MatcherError::TooComplex { .. }) if self.is_warm => {
                self.start_over()?;
                self.attempt(&step)
            }
            result => result,
        }
    }

    fn attempt<T>(&mut self, step: impl Fn(&mut TokenParser) -> anyhow::Result<T>) -> Result<T, MatcherError> {
        let start = self.start.take();
        let done = step(&mut self.parser).map_err(|error| failure(&self.parser, &error))?;
        self.start = start;
        Ok(done)
    }

    /// Reads the reply so far again, with the masks between its tokens: they refill the lexer's fuel.
    fn start_over(&mut self) -> Result<(), MatcherError> {
        let start = self.home.cold();
        self.parser = TokenParser::clone(&start);
        self.start = Some(start);
        self.is_warm = false;
        for token_id in std::mem::take(&mut self.tokens) {
            self.mask()?;
            if !self.consume(token_id)? {
                return Err(MatcherError::NotAllowed { token_id });
            }
        }
        Ok(())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let Some(start) = self.start.take() else { return };
        let lexer = start.parser.lexer_stats();
        // The next reply finds at least half of the states free.
        if !lexer.error && lexer.num_states < start.limits.max_lexer_states / 2 {
            self.home.pool.park(Parked { id: self.home.id, start, bytes: lexer.num_bytes });
        }
    }
}

fn consume(parser: &mut TokenParser, token_id: u32) -> anyhow::Result<bool> {
    if !parser.validate_token(token_id)? {
        // Beyond its limits a lexer refuses whatever comes.
        return parser.parser.get_error().map_or(Ok(false), |error| Err(anyhow::Error::msg(error.message())));
    }
    anyhow::ensure!(parser.consume_token(token_id)? == 0, "it takes back tokens");
    parser.check_stop()?;
    Ok(true)
}

fn failure(parser: &TokenParser, error: &anyhow::Error) -> MatcherError {
    let reason = error.to_string();
    let too_complex = matches!(parser.stop_reason(), StopReason::LexerTooComplex | StopReason::ParserTooComplex);
    if too_complex || parser.parser.get_error().is_some() {
        MatcherError::TooComplex { reason }
    } else {
        MatcherError::Stuck { reason }
    }
}

/// Taught lexers of all automata that no reply has at the moment. Those parked longest ago make room for others.
pub(super) struct Pool {
    limit: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Oldest first.
    parked: VecDeque<Parked>,
    bytes: usize,
    /// Automata so far.
    ids: u64,
}

struct Parked {
    /// Of its automaton.
    id: u64,
    start: Box<TokenParser>,
    /// Of the lexer, as it counts itself.
    bytes: usize,
}

impl State {
    fn freed(&mut self, bytes: usize) {
        self.bytes -= bytes;
        metrics::grammar_parked_bytes(self.bytes);
    }
}

impl Pool {
    /// A pool of at most `limit` bytes and [`GRAMMAR_PARKED_LEXERS`].
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, state: Mutex::default() })
    }

    fn next_id(&self) -> u64 {
        let mut state = self.lock();
        state.ids += 1;
        state.ids
    }

    fn take(&self, id: u64) -> Option<Box<TokenParser>> {
        let mut state = self.lock();
        let index = state.parked.iter().rposition(|parked| parked.id == id)?;
        let parked = state.parked.remove(index)?;
        state.freed(parked.bytes);
        Some(parked.start)
    }

    /// Keeps it, in the place of the oldest. One larger than the whole pool is not kept.
    fn park(&self, parked: Parked) {
        if parked.bytes > self.limit {
            return;
        }
        let mut state = self.lock();
        let mut evicted = Vec::new();
        while state.parked.len() >= GRAMMAR_PARKED_LEXERS || state.bytes + parked.bytes > self.limit {
            let Some(oldest) = state.parked.pop_front() else { break };
            state.freed(oldest.bytes);
            evicted.push(oldest);
        }
        state.bytes += parked.bytes;
        metrics::grammar_parked_bytes(state.bytes);
        state.parked.push_back(parked);
        // Nobody waits while memory is given back.
        drop(state);
    }

    /// The automaton `id` is gone.
    fn forget(&self, id: u64) {
        let mut state = self.lock();
        let (gone, kept): (VecDeque<_>, _) =
            std::mem::take(&mut state.parked).into_iter().partition(|parked| parked.id == id);
        state.parked = kept;
        state.freed(gone.iter().map(|parked| parked.bytes).sum());
        drop(state);
    }

    /// The state is consistent between statements, so a panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
impl Automaton {
    /// The same automaton, whose readers are all cold.
    pub(super) fn untaught(&self) -> Arc<Self> {
        Arc::new(Self { cold: Mutex::new(*self.cold()), pool: Pool::new(0), id: 0 })
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use llguidance::ParserFactory;
    use llguidance::api::{GrammarInit, ParserLimits, TopLevelGrammar};
    use llguidance::toktrie::{InferenceCapabilities, TokEnv};

    use super::*;
    use crate::grammar::vocabulary::Vocabulary;

    /// Over the tokens 0 to 255, which are the bytes, and the end.
    fn automaton(regex: &str, max_lexer_states: usize, pool: &Arc<Pool>) -> Arc<Automaton> {
        let bytes: Vec<_> = (0..=255).map(|byte| Some(vec![byte])).chain([None]).collect();
        let env: TokEnv = Arc::new(Vocabulary::new(&bytes, &[256]).0);
        let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &[]).unwrap();
        factory.quiet();
        *factory.limits_mut() = ParserLimits { max_lexer_states, ..ParserLimits::default() };
        let init = GrammarInit::Serialized(TopLevelGrammar::from_regex(regex));
        Automaton::new(factory.create_parser_from_init_default(init).unwrap(), pool)
    }

    fn read(reader: &mut Reader, text: &str) {
        for byte in text.bytes() {
            assert!(reader.mask().unwrap().is_allowed(byte.into()));
            assert!(reader.consume(byte.into()).unwrap());
        }
    }

    fn states(reader: &Reader) -> usize {
        reader.parser.parser.lexer_stats().num_states
    }

    fn parked(pool: &Pool) -> usize {
        pool.lock().parked.len()
    }

    #[test]
    fn a_lexer_goes_on_where_it_was_left() {
        let pool = Pool::new(1 << 20);
        let automaton = automaton("[a-z]{0,90}", 1000, &pool);
        let (mut first, mut second) = (automaton.reader(), automaton.reader());
        read(&mut first, &"x".repeat(60));
        read(&mut second, "x");
        let taught = states(&first);
        assert!(taught > states(&second) + 50, "they share nothing meanwhile");
        drop(second);
        drop(first);
        assert_eq!(parked(&pool), 2);
        let mut next = automaton.reader();
        assert_eq!((states(&next), parked(&pool)), (taught, 1));
        read(&mut next, &"y".repeat(60));
        assert_eq!(states(&next), taught, "nothing new");
    }

    #[test]
    fn a_lexer_that_failed_or_is_large_is_not_kept() {
        let pool = Pool::new(1 << 20);
        let automaton = automaton("[a-z]{0,90}", 150, &pool);
        let mut failed = automaton.reader();
        assert!(failed.call::<()>(|_| anyhow::bail!("no")).is_err());
        drop(failed);
        let mut panicked = automaton.reader();
        catch_unwind(AssertUnwindSafe(move || {
            panicked.call::<()>(|parser| parser.parser.with_recognizer(|_| panic!()))
        }))
        .unwrap_err();
        let mut large = automaton.reader();
        read(&mut large, &"x".repeat(85));
        assert!(states(&large) > 75);
        drop(large);
        assert_eq!(parked(&pool), 0);
        read(&mut automaton.reader(), "xyz");
        assert_eq!(parked(&pool), 1);
    }

    #[test]
    fn the_pool_keeps_within_its_bytes_and_gives_all_back() {
        let bytes = automaton("[ab]", 1000, &Pool::new(0)).cold().parser.lexer_stats().num_bytes;
        let pool = Pool::new(bytes * 9 / 2);
        let automata: Vec<_> = (0..4).map(|_| automaton("[ab]", 1000, &pool)).collect();
        let readers: Vec<_> = automata.iter().cycle().take(10).map(Automaton::reader).collect();
        drop(readers);
        assert_eq!(pool.lock().parked.iter().map(|parked| parked.id).collect::<Vec<_>>(), [3, 4, 1, 2]);
        assert_eq!(pool.lock().bytes, 4 * bytes);
        let last = automata[0].reader();
        drop(automata);
        assert_eq!(parked(&pool), 0);
        drop(last);
        assert_eq!((parked(&pool), pool.lock().bytes), (0, 0));
    }

    #[test]
    fn a_limit_that_predecessors_used_up_does_not_count() {
        let regex = "x[a-z]{0,40}|y[0-9]{0,90}";
        let (x, y) = (format!("x{}", "a".repeat(35)), format!("y{}", "0".repeat(85)));
        let unlimited = automaton(regex, 10_000, &Pool::new(0));
        let mut alone = unlimited.reader();
        read(&mut alone, &y);
        let pool = Pool::new(1 << 20);
        let limited = automaton(regex, states(&alone) + 5, &pool);
        read(&mut limited.reader(), &x);
        assert_eq!(parked(&pool), 1);
        let mut warm = limited.reader();
        assert!(warm.is_warm && states(&warm) > 30);
        read(&mut warm, &y);
        assert!(!warm.is_warm);
        assert_eq!(states(&warm), states(&alone), "as if it had been cold from the start");
        let refused = automaton(regex, states(&alone) - 5, &pool);
        let mut cold = refused.reader();
        let mut bytes = y.bytes();
        let error = bytes.find_map(|byte| cold.mask().err().or_else(|| cold.consume(byte.into()).err()));
        assert!(matches!(error, Some(MatcherError::TooComplex { .. })), "{error:?}");
    }
}
