//! Every bound of the benchmark, with its reason and what happens when it is reached.

use std::time::Duration;

/// Batch sizes, concurrencies or rates of one run. 64: each has its distributions and a place in the interface; more are
/// refused.
pub const MAX_POINTS: usize = 64;

// Shard mode.

/// Plans in flight. 2, as the router keeps: the next step is there before the last one has ended.
pub const PLANS_IN_FLIGHT: u64 = 2;
/// Messages that may wait for a rank to read them. 8: above the plans in flight and the Hello.
pub const MESSAGES_TO_RANK: usize = 8;
/// A shard must say what it is, and Welcome, within this time. 10 s, as for the router.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A step that takes longer ends the run. 120 s: a prompt of a whole step budget on a slow machine takes seconds.
pub const STEP_TIMEOUT: Duration = Duration::from_secs(120);

// HTTP mode.

/// Requests in flight at a fixed arrival rate. 4096: as many connections as the router accepts; an arrival beyond it is
/// not sent and counts as a failure, because waiting for a place would make the load a closed loop.
pub const MAX_IN_FLIGHT: usize = 4096;
/// A request that takes longer counts as a failure. 10 min: longer than anything a person would wait for.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(600);
/// Bytes of one event of a stream. 1 MiB: far above the largest last event; a longer one is a failure of its request.
pub const MAX_EVENT_BYTES: usize = 1 << 20;
/// Kinds of failures that are counted apart. 32: more than any server has; further ones count as "other".
pub const MAX_FAILURE_KINDS: usize = 32;
/// Bytes of an error body that are shown. 512: a sentence and its JSON.
pub const MAX_ERROR_BYTES: usize = 512;
/// Bytes of an answer to `/tokenize`. 4 MiB: the sample of words takes about 100 kB.
pub const MAX_TOKENIZED_BYTES: usize = 4 << 20;
/// Bytes of a prompts file. 64 MiB: it is held in memory.
pub const MAX_PROMPTS_BYTES: u64 = 64 << 20;

// The interface.

/// Time between two pictures. 66 ms: fast enough for the eye, and too seldom to disturb what is measured.
pub const FRAME: Duration = Duration::from_millis(66);
