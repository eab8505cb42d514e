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
/// Further outputs that a request of `/v1/responses` asks for. 16: twice as many as OpenAI's API knows.
pub const MAX_INCLUDED: usize = 16;
/// Most unknown fields of a request that are named back in a header. 16: enough to find a typing error.
pub const MAX_REPORTED_FIELDS: usize = 16;
/// Bytes of an unknown field's name that is named back. 64: longer than any parameter's; longer names are left out.
pub const MAX_REPORTED_FIELD_BYTES: usize = 64;
/// The piece of `max_new_tokens` that TGI checks against the context. A client that asks for more is served up to the
/// context limit instead of being refused.
pub const CHECKED_NEW_TOKENS: u32 = 1024;

/// Answers to one request (`n`). 128: OpenAI's own bound; each answer takes a place of `--max-concurrent-requests`.
pub const MAX_N: usize = 128;
/// Alternatives per token on OpenAI's routes (`top_logprobs`). 20: OpenAI's own bound, which clients ask up to.
pub const MAX_TOP_LOGPROBS: u32 = 20;
/// API keys of one server. 64: all are compared on every request, and more tenants than that need a gateway.
pub const MAX_API_KEYS: usize = 64;
/// Bytes of one API key. 512: longer than any provider's; hashing it takes less than a microsecond.
pub const MAX_API_KEY_BYTES: usize = 512;
/// Bytes of a path given by the environment (Vertex AI's AIP_*_ROUTE). 1024: five times the longest there is.
pub const MAX_ROUTE_BYTES: usize = 1024;

// Connections.

/// Connections at one time. 4096: 32 for each of the default 128 requests, so that idle ones of client pools fit, at about
/// 20 kB each; beyond it newcomers wait in the kernel's queue.
pub const MAX_CONNECTIONS: usize = 4096;
/// A connection without a complete request head is closed after this long; also how long it may idle between requests.
/// 120 s: longer than the pools of common clients and load balancers keep one (60 to 90 s), so that it is they who
/// close it, and no request meets a connection that is just going away.
pub const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(120);
/// A request body must be complete after this long; then 408. 60 s: the default largest body of 2 MB at 33 kB/s.
pub const BODY_READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause after the kernel refuses to accept a connection. 1 s: file descriptors come free when requests end, not sooner.
pub const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// Largest `--request-timeout` in seconds. A day: nobody waits longer, and it is a deadline that clocks can hold.
pub const MAX_REQUEST_TIMEOUT_SECONDS: u64 = 24 * 3600;

// Queues and work.

/// Tokenizer and template jobs that wait, per worker. 128: at about 100 µs a job a full queue is 13 ms of work; beyond
/// it the answer is 429, because the queue would only grow. `--max-concurrent-requests` raises it: requests that may all run may
/// also come in one moment.
pub const QUEUED_TEXT_JOBS_PER_WORKER: usize = 128;
/// Template instructions per rendering. A 100-turn conversation takes about 20 000; at 50 million a second this bound
/// is reached in 0.2 s, then the rendering ends with an error.
pub const TEMPLATE_FUEL: u64 = 10_000_000;
/// Template instructions of each of the small renderings that find out what a template is like, when it is loaded.
/// 200 000: fifty times what they take; beyond it the template counts as one that failed.
pub const TEMPLATE_PROBE_FUEL: u64 = 200_000;
/// Nested template calls (macros, includes). 64: published templates use three.
pub const TEMPLATE_RECURSION: usize = 64;
/// Bytes one rendering may write. 16 MiB: eight times the default request body; beyond it rendering stops.
pub const TEMPLATE_OUTPUT_BYTES: usize = 16 << 20;
/// Bytes that one padding method of a template may write. 1 MiB: wider text is a mistake, and memory is not metered by
/// fuel.
pub const TEMPLATE_PADDING_BYTES: usize = 1 << 20;
/// Spaces that `indent` may put before a line. 256: deeper text is a mistake, and memory is not metered by fuel.
pub const TEMPLATE_INDENT: usize = 256;
/// Nesting of a value that a template prints. 256: twice what a JSON body may nest; deeper values can only come from a
/// namespace that holds itself. `tojson` refuses them, printing goes on with `...`.
pub const TEMPLATE_VALUE_DEPTH: usize = 256;
/// Brackets in brackets of a template that are rewritten. 100: deeper ones stay as they are, and minijinja refuses most
/// of them.
pub const TEMPLATE_BRACKET_DEPTH: usize = 100;
/// Named chat templates of one model. 32: published models have at most four.
pub const MAX_NAMED_TEMPLATES: usize = 32;
/// Entries of `chat_template_kwargs`. 64: the longest published template reads about twenty variables.
pub const MAX_TEMPLATE_VARIABLES: usize = 64;
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

/// A log line waits this long for others to be written with, if there was one within this time. 10 ms: nobody reads faster, and
/// under load a hundred lines share a system call that costs as much as a hundredth of a request each.
pub const LOG_GATHERING: Duration = Duration::from_millis(10);
/// Bytes of log lines that wait. 64 KiB: what a pipe holds; whoever adds the line that fills it writes them all.
pub const LOG_GATHERED_BYTES: usize = 64 << 10;
/// Samples of histograms are sorted into their buckets this often. 5 s: at a thousand steps a second, a quarter of a MB of samples.
pub const METRICS_UPKEEP: Duration = Duration::from_secs(5);

// Text.

/// Bytes of a prompt that is tokenized on the async thread that validates it. 512: 25 µs of ordinary text and at most some 200 µs of
/// any, as long as an async thread takes for other events; waking a worker and being woken by it costs more than a short question.
pub const SHORT_TEXT_BYTES: usize = 512;
/// Words whose tokens are kept. 16 384: the words of a language that make nine tenths of its texts, at about 100 bytes each; a
/// full cache begins anew.
pub const CACHED_WORDS: usize = 16 << 10;
/// Bytes of a word that is kept. 48: longer than words of a language; beyond it a piece of text does not come back.
pub const CACHED_WORD_BYTES: usize = 48;
/// Words that are looked up before somebody may learn one. 64: a few microseconds.
pub const WORDS_PER_LOOKUP: usize = 64;
/// Prompt tokens the detokenizer looks back to decide whether the first generated token starts with a space.
pub const DETOKENIZER_CONTEXT: usize = 5;
/// Tokens that may wait for the rest of a character. 8: a character is at most four byte tokens, so a longer wait means
/// the model writes invalid UTF-8, which is then sent with replacement characters.
pub const DETOKENIZER_PENDING: usize = 8;

// Scheduling.

/// Plans sent ahead of their results. 2: the device always has the next step while a result travels; a third would only
/// waste one more row per reply that ends on its own.
pub const RUN_AHEAD: usize = 2;
/// Bytes that the rows entering in one plan add to its message, unless it is a single row: parameters with long lists, and the ids of
/// cached prefixes where penalties count them. 4 MiB: a quarter of what a message may have, so that the longest single row fits too;
/// whoever does not fit enters one step later.
pub const MAX_ENTRY_BYTES: usize = 4 << 20;
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
/// Messages to a rank that wait for its stream. 8: Hello, the plans in flight, the masks of each and pings; a full queue means that the
/// rank does not read, and the epoch ends.
pub const MESSAGES_TO_RANK: usize = 8;
/// An unanswered plan ends the epoch after this long, or 20 predicted steps if that is longer. 10 s: longer than any
/// step on a healthy machine, shorter than a client's patience.
pub const WATCHDOG_FLOOR: Duration = Duration::from_secs(10);
/// See [`WATCHDOG_FLOOR`].
pub const WATCHDOG_STEPS: u32 = 20;
/// The scheduler thread looks at its clocks at least this often. 500 ms: a twentieth of [`WATCHDOG_FLOOR`].
pub const WATCHDOG_TICK: Duration = Duration::from_millis(500);
/// Threads that compute grammar masks, if there are as many cores. 4: at 100 µs a mask, 40 000 tokens a second; more would
/// take cores from the shards where those compute on them.
pub const MASK_WORKERS: usize = 4;
/// A mask worker sends what it has computed after this long even if more masks wait. 1 ms: a step's masks usually take
/// less, and one expensive mask holds back few others.
pub const MASK_BATCH_TIME: Duration = Duration::from_millis(1);
/// Masks that are expected to take less than this together go to one worker. 250 µs: waking a second one costs some 50 µs, and
/// takes the core of somebody who computes.
pub const MASK_PART_TIME: Duration = Duration::from_micros(250);
/// What the first mask of a reply is expected to take. 100 µs: it may begin with a copy of the grammar's automaton.
pub const FIRST_MASK_TIME: Duration = Duration::from_micros(100);
/// The shards wait this long for the mask of one row; then its request fails alone. 5 s: a mask takes milliseconds, and
/// everybody in the batch waits with it.
pub const MASK_PATIENCE: Duration = Duration::from_secs(5);
/// An idle rank is pinged this often; a plan is as good as a ping.
pub const PING_INTERVAL: Duration = Duration::from_secs(5);
/// Pause before the n-th attempt to reconnect: doubled from the first value up to the last. The launcher paces restarts;
/// this only keeps the router from spinning on a socket that is not there yet.
pub const RECONNECT_BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// A shard that accepts the connection must say Welcome within this time. 10 s: its weights are loaded before it binds.
pub const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);

// Structured output.

/// Bytes of a JSON schema, of a Lark grammar or of all choices together. 256 KiB: four times the largest schema of the
/// JSON-Schema-Store; beyond it compilation is an attack. A typed 422.
pub const MAX_GRAMMAR_BYTES: usize = 256 << 10;
/// Bytes of a regular expression, alone or in a schema. 16 KiB: longer than any written by hand.
pub const MAX_GRAMMAR_REGEX_BYTES: usize = 16 << 10;
/// Nested groups and repetitions of a regular expression. 64: the parser of the automaton recurses into them.
pub const MAX_GRAMMAR_REGEX_NESTING: u32 = 64;
/// Nested arrays and objects of a JSON schema. 128: what `serde_json` reads.
pub const MAX_SCHEMA_DEPTH: usize = 128;
/// Subschemas and constants of one JSON schema. 20 000: a schema of [`MAX_GRAMMAR_BYTES`] has fewer in practice.
pub const MAX_SCHEMA_PLACES: usize = 20_000;
/// Alternatives that Boolean keywords may multiply into at one place. 256: an `anyOf` of that many objects.
pub const MAX_SCHEMA_ALTERNATIVES: usize = 256;
/// Subschemas looked at while a schema is compiled. 200 000: ten times per place; reached in about a second.
pub const MAX_SCHEMA_EXPANSIONS: usize = 200_000;
/// `minItems`, `maxLength` and their like. A million: beyond any context; the automaton counts in logarithmic space.
pub const MAX_SCHEMA_COUNT: usize = 1_000_000;
/// How deep below an instance it is looked for what makes a subschema empty. 3: as deep as the marks stand by which the
/// options of a `oneOf` are told apart; beyond it they count as overlapping, which costs states and is still exact.
pub const SCHEMA_EMPTINESS_DEPTH: usize = 3;
/// Digits of a number on either side of the point, in a bound of a schema and in what is generated. 64: four times what
/// a double keeps; a schema with a longer one is refused.
pub const MAX_NUMBER_DIGITS: usize = 64;
/// `contains` of one array, its own and those of subschemas. 2: their counts multiply into states.
pub const MAX_CONTAINS: usize = 2;
/// Items told apart one by one under `contains`. 64: each is a state.
pub const MAX_COUNTED_ITEMS: usize = 64;
/// Values of the items of a `uniqueItems` array. 10: every subset of them is a state.
pub const MAX_UNIQUE_VALUES: usize = 10;
/// Rules of one grammar. 30 000: half of what llguidance's 16-bit symbols hold.
pub const MAX_GRAMMAR_RULES: usize = 30_000;
/// Fuel to decide whether an expression matches anything. 300 000: some ten milliseconds; what is undecided is refused.
pub const GRAMMAR_EMPTINESS_FUEL: u64 = 300_000;
/// Threads that compile grammars. 2: a hard grammar must not hold back all others.
pub const GRAMMAR_WORKERS: usize = 2;
/// Grammars that may wait for compilation. 64: at some 10 ms each a second of work; beyond it the answer is 429.
pub const QUEUED_GRAMMARS: usize = 64;
/// A grammar that is not compiled after this long is refused. 10 s: only grammars at the edge of the limits come near it.
pub const GRAMMAR_COMPILE_TIMEOUT: Duration = Duration::from_secs(10);
/// Stack of a compiling thread. 64 MiB of address space: recursion is bounded by the limits above at some 10 MiB.
pub const GRAMMAR_STACK_BYTES: usize = 64 << 20;
/// Bytes of compiled grammars kept for reuse. 256 MiB: hundreds of schemas; the least recently used goes first.
pub const GRAMMAR_CACHE_BYTES: usize = 256 << 20;
/// Fuel of one token mask, in llguidance's units (about 14 000 a millisecond). 400 000: about 30 ms, one decode step.
pub const GRAMMAR_MASK_FUEL: u64 = 400_000;
/// Parser items of one token mask (about 20 000 a millisecond). See [`GRAMMAR_MASK_FUEL`].
pub const GRAMMAR_MASK_ITEMS: usize = 200_000;
/// Lexer states of one reply, about 2 kB each. 50 000: 100 MB is the most one reply may take.
pub const GRAMMAR_LEXER_STATES: usize = 50_000;
/// Bytes of lexers that wait for the next reply of their grammar, as they count themselves. 64 MiB: more than a hundred of
/// usual schemas, at half a megabyte each; those that have waited longest go first.
pub const GRAMMAR_PARKED_BYTES: usize = 64 << 20;
/// Lexers that wait. 256: twice as many as requests run at once by default; finding one takes less than a microsecond.
pub const GRAMMAR_PARKED_LEXERS: usize = 256;

// Tool calls in a reply.

/// Nested brackets in the arguments of a tool call. 127: what `serde_json` and most clients' parsers read; a call that
/// is nested deeper is no call.
pub const MAX_ARGUMENTS_DEPTH: usize = 127;
/// Bytes of a reply that may wait because they could be a tool call whose name is not known yet. 256 KiB: only formats
/// that write the arguments before the name need more than a hundred; beyond it the text is content.
pub const TOOL_CALL_HEAD_BYTES: usize = 256 << 10;
/// Tool calls that the mask of one reply allows. 32: more than published agents make at once, and a model that cannot
/// stop calling ends.
pub const MAX_TOOL_CALLS: usize = 32;
/// Bytes between a function's name and its arguments, such as the call's number. 128: published formats write fewer than
/// 40; beyond it the text is content.
pub const MAX_NAME_TAIL_BYTES: usize = 128;
/// References and alternatives that are followed for the type of a parameter that is written as text. 8: schema
/// generators nest two or three; beyond it the type counts as unknown.
pub const MAX_TYPE_REFERENCES: u32 = 8;
