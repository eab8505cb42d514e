//! Every bound of the router, with its reason and what happens when it is reached.
//!
//! Bounds an operator may move are flags (`args.rs`); those here protect the process itself.

use std::time::Duration;

// What a client may send. A value beyond its bound is a typed 422 that names field, limit and value.

/// Messages in one chat request. 4096: more turns than any context of today holds at 8 tokens a turn of 32k.
pub const MAX_MESSAGES: usize = 4096;
/// Content parts in one chat message. 256: text split finer than that is an attack on the template engine.
pub const MAX_CONTENT_PARTS: usize = 256;
/// Tools in one request. 128: OpenAI's own bound; every tool costs the prompt tokens and the grammar states.
pub const MAX_TOOLS: usize = 128;
/// Calls in one message of the assistant. 128: as many as there can be tools.
pub const MAX_CALLS_PER_MESSAGE: usize = 128;
/// Documents in one chat request. 1024: more than a context holds at 32 tokens each.
pub const MAX_DOCUMENTS: usize = 1024;
/// Choices that a reply can be bound to. 4096: a large classification; each becomes a branch of the grammar.
pub const MAX_GRAMMAR_CHOICES: usize = 4096;
/// Forbidden words given as text. 256: each becomes up to two token lists, and each list costs every step.
pub const MAX_BAD_WORD_STRINGS: usize = 256;
/// Bytes of one forbidden word. 256: a long phrase.
pub const MAX_BAD_WORD_BYTES: usize = 256;
/// Tokens in one `/detokenize` request. 1 Mi: four bytes each fill the default request body.
pub const MAX_DETOKENIZED: usize = 1 << 20;
/// Bytes of one stop string. 1024: the matcher keeps a table of this size per string and holds that much text back.
pub const MAX_STOP_BYTES: usize = 1024;
/// Bytes of `model`, `user` and other names that we echo or log. 256: longer than any path a hub accepts.
pub const MAX_NAME_BYTES: usize = 256;
/// Most unknown fields of a request that are named back in a header. 16: enough to find a typing error.
pub const MAX_REPORTED_FIELDS: usize = 16;
/// The piece of `max_new_tokens` that TGI checks against the context. A client that asks for more is served up to the
/// context limit instead of being refused.
pub const CHECKED_NEW_TOKENS: u32 = 1024;

// Queues and work.

/// Tokenizer and template jobs that wait, per worker. 128: at about 100 µs a job a full queue is 13 ms of work; beyond
/// it the answer is 429, because the queue would only grow.
pub const QUEUED_TEXT_JOBS_PER_WORKER: usize = 128;
/// Template instructions per rendering. A 100-turn conversation takes about 20 000; at 50 million a second this bound
/// is reached in 0.2 s, then the rendering ends with an error.
pub const TEMPLATE_FUEL: u64 = 10_000_000;
/// Nested template calls (macros, includes). 64: published templates use three.
pub const TEMPLATE_RECURSION: usize = 64;
/// Bytes one rendering may write. 16 MiB: eight times the default request body; beyond it rendering stops.
pub const TEMPLATE_OUTPUT_BYTES: usize = 16 << 20;
/// Bytes of a chat template file or of a tokenizer_config.json. 16 MiB: the largest published ones are below 1 MiB.
pub const MODEL_TEXT_FILE_BYTES: u64 = 16 << 20;
/// Bytes of a tokenizer.json. 256 MiB: the largest published one (a 256k vocabulary) is 34 MiB.
pub const TOKENIZER_FILE_BYTES: u64 = 256 << 20;

// Time.

/// The shards may take this long to say Welcome when the router starts. An hour: both start at once, a large model loads for
/// many minutes from a slow disk, and a launcher ends the router anyway when a shard fails.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3600);
/// Most seconds of `--graceful-termination-timeout`. A week: longer than any reply, and a deadline that clocks can hold.
pub const MAX_GRACE_SECONDS: u64 = 7 * 24 * 3600;
/// A silent stream gets a comment line this often, so that proxies with a 30 s idle limit keep it open.
pub const SSE_KEEP_ALIVE: Duration = Duration::from_secs(15);

// Text.

/// Prompt tokens the detokenizer looks back to decide whether the first generated token starts with a space.
pub const DETOKENIZER_CONTEXT: usize = 5;
/// Tokens that may wait for the rest of a character. 8: a character is at most four byte tokens, so a longer wait means
/// the model writes invalid UTF-8, which is then sent with replacement characters.
pub const DETOKENIZER_PENDING: usize = 8;

// Scheduling.

/// Plans sent ahead of their results. 2: the device always has the next step while a result travels; a third would only
/// waste one more row per reply that ends on its own.
pub const RUN_AHEAD: usize = 2;
/// Prompts that may be in the middle of a prefill of more than one step. 1: the blocks of a half-computed prompt are
/// idle memory, so finishing one before starting the next is never slower; shorter prompts overtake it.
pub const MAX_LONG_PREFILLS: usize = 1;
/// Waiting requests that are looked at for one that fits beside a long prefill. 64: what a step can admit; the rest of
/// the queue waits for the next step.
pub const ADMISSION_WINDOW: usize = 64;
/// Crashes in a row, without a token between them, while a request was computing its first step. 2: the second time it
/// ran alone, so it is the cause, and it fails alone.
pub const MAX_STRIKES: u32 = 2;
/// Crashes a request may be in flight at over its life. 4: one below the launcher's patience, so that a request which
/// kills its shards at ever later tokens cannot take the server with it.
pub const MAX_CRASHES: u32 = 4;
/// The prompt tokens that may wait, in fillings of the whole KV cache. 8: a client behind it would wait for the cache to
/// turn over eight times, longer than its own timeout; beyond it the answer is 429.
pub const QUEUED_CACHE_FILLINGS: u64 = 8;

// The engine.

/// `Retry-After` of a 429. At least 1 s: HTTP counts whole seconds. At most 60 s: a rate measured in a bad moment must not
/// send clients away for good.
pub const RETRY_AFTER: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(60);
/// Shard messages that may wait for the scheduler thread, per rank, beside the commands of clients. 8: one per plan in
/// flight, a pong, an end of stream, and room; beyond it the reader waits and gRPC's flow control stops the shard.
pub const SHARD_MESSAGES_PER_RANK: usize = 8;
/// Messages to a rank that wait for its stream. 8: Hello, the plans in flight and pings; a full queue means that the
/// rank does not read, and the epoch ends.
pub const MESSAGES_TO_RANK: usize = 8;
/// An unanswered plan ends the epoch after this long, or 20 predicted steps if that is longer. 10 s: longer than any
/// step on a healthy machine, shorter than a client's patience.
pub const WATCHDOG_FLOOR: Duration = Duration::from_secs(10);
/// See [`WATCHDOG_FLOOR`].
pub const WATCHDOG_STEPS: u32 = 20;
/// The scheduler thread looks at its clocks at least this often. 500 ms: a twentieth of [`WATCHDOG_FLOOR`].
pub const WATCHDOG_TICK: Duration = Duration::from_millis(500);
/// An idle rank is pinged this often; a plan is as good as a ping.
pub const PING_INTERVAL: Duration = Duration::from_secs(5);
/// Pause before the n-th attempt to reconnect: doubled from the first value up to the last. The launcher paces restarts;
/// this only keeps the router from spinning on a socket that is not there yet.
pub const RECONNECT_BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// A shard that accepts the connection must say Welcome within this time. 10 s: its weights are loaded before it binds.
pub const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);
