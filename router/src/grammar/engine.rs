//! Compiled grammars on demand: threads of their own, one compilation per grammar at a time, and a cache.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use tokio::sync::oneshot;

use super::cache::Cache;
use super::compiled::{CompiledGrammar, Compiler};
use super::error::GrammarError;
use super::json::check_depth;
use super::spec::GrammarSpec;
use crate::limits::{
    GRAMMAR_CACHE_BYTES, GRAMMAR_COMPILE_TIMEOUT, GRAMMAR_STACK_BYTES, GRAMMAR_WORKERS, MAX_GRAMMAR_BYTES,
    QUEUED_GRAMMARS,
};
use crate::memory::return_freed_memory;
use crate::metrics;
use crate::text::TextTokenizer;

/// The compiler of grammars and the cache of what it compiled. Its threads end when it is dropped.
pub(crate) struct GrammarEngine {
    jobs: Sender<Job>,
    state: Arc<Mutex<State>>,
    timeout: Duration,
}

/// Identity of a grammar: a hash of its kind and text.
pub(super) type Key = [u8; 32];

type Compiled = Result<Arc<CompiledGrammar>, GrammarError>;
type Flight = Shared<BoxFuture<'static, Compiled>>;

struct Job {
    key: Key,
    spec: GrammarSpec,
    source_bytes: usize,
    reply: oneshot::Sender<Compiled>,
}

struct State {
    cache: Cache,
    /// Compilations under way, for everyone who asks for the same grammar meanwhile.
    flights: HashMap<Key, Flight>,
}

/// What the compiling threads share.
struct Worker {
    jobs: Receiver<Job>,
    state: Arc<Mutex<State>>,
    tokenizer: Arc<TextTokenizer>,
    vocab_size: usize,
    end_ids: Vec<u32>,
    compiler: Arc<OnceLock<Result<Compiler, String>>>,
}

impl GrammarEngine {
    /// Starts the compiling threads. They read the vocabulary when the first grammar comes: with 128 thousand tokens it takes 80 MB,
    /// which a server that nobody asks for structured output has no use for, and half a second, which one reply waits for.
    ///
    /// # Errors
    /// If the model has no end-of-sequence token within its vocabulary, or the system refuses a thread.
    pub(crate) fn new(
        tokenizer: &Arc<TextTokenizer>,
        vocab_size: usize,
        eos_token_ids: &[u32],
    ) -> Result<GrammarEngine, String> {
        let mut end_ids = eos_token_ids.to_vec();
        end_ids.retain(|id| (*id as usize) < vocab_size);
        if end_ids.is_empty() {
            return Err(format!("no end-of-sequence token among its {vocab_size} tokens"));
        }
        Self::start(tokenizer, vocab_size, end_ids, GRAMMAR_CACHE_BYTES, GRAMMAR_COMPILE_TIMEOUT)
    }

    /// [`GrammarEngine::new`] with bounds of a test's choice.
    pub(super) fn start(
        tokenizer: &Arc<TextTokenizer>,
        vocab_size: usize,
        end_ids: Vec<u32>,
        cache_bytes: usize,
        timeout: Duration,
    ) -> Result<GrammarEngine, String> {
        let (jobs, queue) = bounded(QUEUED_GRAMMARS);
        let state = Arc::new(Mutex::new(State { cache: Cache::new(cache_bytes), flights: HashMap::new() }));
        let compiler = Arc::new(OnceLock::new());
        for index in 0..GRAMMAR_WORKERS {
            let worker = Worker {
                jobs: queue.clone(),
                state: state.clone(),
                tokenizer: tokenizer.clone(),
                vocab_size,
                end_ids: end_ids.clone(),
                compiler: compiler.clone(),
            };
            std::thread::Builder::new()
                .name(format!("grammar-{index}"))
                .stack_size(GRAMMAR_STACK_BYTES)
                .spawn(move || worker.run())
                .map_err(|error| error.to_string())?;
        }
        Ok(Self { jobs, state, timeout })
    }

    /// The compiled form of `spec`, from the cache if it is there.
    ///
    /// # Errors
    /// [`GrammarError`]; what a client can change about it is in the message.
    pub(crate) async fn compile(&self, spec: &GrammarSpec) -> Result<Arc<CompiledGrammar>, GrammarError> {
        let (key, source_bytes) = identity(spec)?;
        let flight = {
            let mut state = lock(&self.state);
            if let Some(compiled) = state.cache.get(&key) {
                metrics::grammar_cache_hit();
                return Ok(compiled);
            }
            if let Some(flight) = state.flights.get(&key) {
                metrics::grammar_cache_hit();
                flight.clone()
            } else {
                metrics::grammar_cache_miss();
                let (reply, result) = oneshot::channel();
                match self.jobs.try_send(Job { key, spec: spec.clone(), source_bytes, reply }) {
                    Ok(()) => {}
                    Err(TrySendError::Full(_)) => return Err(GrammarError::Overloaded { limit: QUEUED_GRAMMARS }),
                    Err(TrySendError::Disconnected(_)) => unreachable!("workers live as long as the engine"),
                }
                let lost = || GrammarError::Internal { reason: "its thread ended".to_owned() };
                let flight = async move { result.await.unwrap_or_else(|_| Err(lost())) }.boxed().shared();
                state.flights.insert(key, flight.clone());
                flight
            }
        };
        // The compilation itself goes on: its own limits end it, and whoever asks again may find it done.
        match tokio::time::timeout(self.timeout, flight).await {
            Ok(compiled) => compiled,
            Err(_) => Err(GrammarError::TimedOut { limit: self.timeout }),
        }
    }
}

#[cfg(test)]
impl GrammarEngine {
    /// Bytes of the cache, and compilations under way.
    pub(super) fn load(&self) -> (usize, usize) {
        let state = lock(&self.state);
        (state.cache.bytes(), state.flights.len())
    }
}

impl Worker {
    fn run(self) {
        for Job { key, spec, source_bytes, reply } in &self.jobs {
            let started = Instant::now();
            // The job owns what it touches, so nothing half-done survives a panic.
            let compiled = catch_unwind(AssertUnwindSafe(|| match self.compiler() {
                Ok(compiler) => compiler.compile(&spec, source_bytes).map(Arc::new),
                Err(reason) => Err(GrammarError::Tokenizer { reason: reason.clone() }),
            }))
            .unwrap_or_else(|_| Err(GrammarError::Internal { reason: "it panicked on this grammar".to_owned() }));
            metrics::grammar_compiled(started.elapsed());
            let mut state = lock(&self.state);
            state.flights.remove(&key);
            if let Ok(compiled) = &compiled {
                state.cache.insert(key, compiled.clone());
                metrics::grammar_cache_bytes(state.cache.bytes());
            }
            drop(state);
            // Nobody may be waiting any more; the cache has it then.
            let _ = reply.send(compiled);
        }
    }

    fn compiler(&self) -> &Result<Compiler, String> {
        self.compiler.get_or_init(|| {
            let compiler = catch_unwind(AssertUnwindSafe(|| {
                Compiler::new(self.tokenizer.inner(), self.vocab_size, &self.end_ids)
            }));
            return_freed_memory();
            compiler.unwrap_or_else(|_| Err("reading its vocabulary panicked".to_owned()))
        })
    }
}

/// The key of a grammar and the bytes of its text.
fn identity(spec: &GrammarSpec) -> Result<(Key, usize), GrammarError> {
    let mut hasher = blake3::Hasher::new();
    let mut bytes = 0;
    let mut add = |part: &[u8]| {
        hasher.update(&part.len().to_le_bytes());
        hasher.update(part);
        bytes += part.len();
    };
    match spec {
        GrammarSpec::JsonSchema(schema) => {
            check_depth(schema)?;
            let text = schema.to_string();
            if text.len() > MAX_GRAMMAR_BYTES {
                return Err(GrammarError::TooLarge {
                    what: "JSON schema",
                    value: text.len(),
                    limit: MAX_GRAMMAR_BYTES,
                });
            }
            add(b"json_schema");
            add(text.as_bytes());
        }
        GrammarSpec::JsonObject => add(b"json_object"),
        GrammarSpec::Regex(pattern) => {
            add(b"regex");
            add(pattern.as_bytes());
        }
        GrammarSpec::Choice(choices) => {
            add(b"choice");
            choices.iter().for_each(|choice| add(choice.as_bytes()));
        }
        GrammarSpec::Lark(text) => {
            add(b"lark");
            add(text.as_bytes());
        }
        GrammarSpec::ToolCalls { lark, schemas } => {
            schemas.iter().try_for_each(|(_, schema)| check_depth(schema))?;
            add(b"tool_calls");
            add(lark.as_bytes());
            for (tool, schema) in schemas.iter() {
                // A format that writes parameters as text leaves parts of their schemas out of its grammar.
                add(tool.as_bytes());
                add(schema.to_string().as_bytes());
            }
        }
        GrammarSpec::AfterThought { thought, answer } => {
            let (answer, answer_bytes) = identity(answer)?;
            add(b"after_thought");
            add(thought.as_bytes());
            add(&answer);
            bytes += answer_bytes;
        }
    }
    Ok((*hasher.finalize().as_bytes(), bytes))
}

/// The state is consistent between statements, so a panic elsewhere does not spoil it.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
