//! Every bound of the shard, with its reason and what happens when it is reached.
//!
//! Bounds an operator may move are flags (`args.rs`); those here protect the process itself.

use std::time::Duration;

// The step protocol. A router that goes beyond one of these broke the protocol: its epoch ends with a `Fatal` that says so.

/// Plans that one router may have in flight. 4: the router keeps 2, so that the next step starts without a round trip;
/// the rest is room for models whose step is shorter than that round trip. More would only make cancellations late.
pub const MAX_PLANS_IN_FLIGHT: usize = 4;
/// Steps that may be asked of a device at a time. 2: it begins the next one without waiting for anybody; with more, a row that has
/// ended would be computed again for nothing that often.
pub const MAX_STEPS_IN_FLIGHT: usize = 2;
/// How often the engine looks whether a step is ready, while it waits for plans too. 20 µs: little beside a step of milliseconds, and the
/// device has the next one meanwhile.
pub const DEVICE_POLL_PERIOD: Duration = Duration::from_micros(20);
/// How long a step waits for a grammar mask before the epoch ends. 30 s: a router computes one in milliseconds, and one that
/// still speaks but never sends it must not hold the slots for ever.
pub const MASK_TIMEOUT: Duration = Duration::from_secs(30);
/// Requests by hand (`Inspect`, `Generate`) that may wait for the engine at a time; further ones wait before they are queued.
/// 4: the queue of commands must keep room for a router's plans, behind which the masks come that the engine may wait for.
pub const BY_HAND_COMMANDS: usize = 4;
/// Answers that may wait for the router to read them. 64: far above one result per plan in flight and a pong per
/// second; when they are full, the router does not read and the stream ends, because the engine waits for nobody.
pub const STREAM_MESSAGES: usize = 64;
/// Commands that may wait for the engine: the plans in flight of the present and of an abandoned stream, and a few by
/// hand (`Inspect`, `Generate`). Beyond it the sender waits.
pub const ENGINE_COMMANDS: usize = 2 * MAX_PLANS_IN_FLIGHT + 8;
/// Most tokens of `top_n_tokens`. 128: TGI's default is 5, OpenAI's limit 20; 256 rows of 128 stay below 512 KiB.
pub const MAX_TOP_N_TOKENS: u32 = 128;
/// Tokens reported beyond `top_n_tokens` because they tie with the last. 8: equal floats are rare outside a model
/// that is broken, where the whole vocabulary may tie.
pub const MAX_TOP_TIES: usize = 8;
const _: () = assert!(
    MAX_TOP_N_TOKENS as usize + MAX_TOP_TIES <= kernels::ops::sample::MAX_TOPS,
    "a GPU has room for all tokens that a row reports"
);
/// Rows of one step for which there is room for logits, if the slots alone would make less. 64: the prompt of a request that
/// wants its prompt's log-probabilities must not crawl where few rows decode; 64 rows of a 128k vocabulary take 32 MiB.
pub const MIN_LOGIT_ROWS: usize = 64;
/// Token ids of one `Generate` by hand, prompt and answer. 4096: it is for a person with grpcurl and holds the engine.
pub const MAX_GENERATE_TOKENS: usize = 4096;
/// Rows of a step on a GPU: the blocks that a grid has along its second extent, where some kernels have rows. Sixteen times the default;
/// a larger step would only let running streams wait longer.
pub const MAX_CUDA_STEP_TOKENS: usize = 65_535;

// Memory.

/// The part of the available memory that the KV cache takes when `--max-batch-total-tokens` does not say. One half: the
/// router and the page cache of the weights live on the same machine, and a KV cache that swaps is worse than a small one.
pub const KV_MEMORY_FRACTION: f64 = 0.5;
/// The same of a GPU's memory, which nobody else should be using.
pub const CUDA_KV_MEMORY_FRACTION: f64 = 0.97;
/// What is left at least for what the driver and NCCL allocate for themselves later: graphs, channels between ranks, kernels. 1 GiB and
/// 16 MiB a graph are several times what is known of them.
pub const CUDA_RESERVED_BYTES: u64 = 1 << 30;
/// See [`CUDA_RESERVED_BYTES`].
pub const CUDA_RESERVED_BYTES_PER_GRAPH: u64 = 16 << 20;
/// But no more than this part, so that small GPUs serve too.
pub const MAX_CUDA_RESERVED_FRACTION: f64 = 0.06;
/// The smallest KV cache worth starting with, in tokens, unless the model's context is shorter.
pub const MIN_KV_TOKENS: usize = 512;

// Time.

/// A step may take this long, or [`STALL_FACTOR`] times what its rows took lately; then `Health` turns UNAVAILABLE.
/// 10 s: beyond any scheduling hiccup, and clients usually wait longer.
pub const STALL_AFTER: Duration = Duration::from_secs(10);
/// 20: attention over a full context makes a row several times dearer than over an empty one.
pub const STALL_FACTOR: u32 = 20;
/// How often grpc.health.v1 is brought up to date.
pub const HEALTH_PERIOD: Duration = Duration::from_millis(500);
/// A router must say Hello this soon after it opened a stream, or the stream ends.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// On SIGTERM the step in flight may take this long; then the process exits without it.
pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);
/// After that, connections may take this long to say goodbye. 2 s: a peer that hangs must not keep the process.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a shard that cannot go on lives after its last message. 100 ms: enough for a socket of this machine.
pub const LAST_WORDS: Duration = Duration::from_millis(100);
/// How often a shard that was told its parent looks whether it is still there.
pub const PARENT_CHECK_PERIOD: Duration = Duration::from_secs(1);

// Model files. They may come from anywhere.

/// Largest JSON file of a model directory, in bytes. 64 MiB: the index of the largest published checkpoints has 10 MiB.
pub const MAX_JSON_BYTES: u64 = 64 << 20;
/// Largest header of a safetensors file, in bytes. 100 MB, the limit of the format's own library.
pub const MAX_SAFETENSORS_HEADER_BYTES: u64 = 100_000_000;
/// Most tensors of a checkpoint. 2²⁰: mixture-of-experts models of today come to 100 thousand.
pub const MAX_TENSORS: usize = 1 << 20;
/// Most safetensors files of a checkpoint: each is a mapping, of which a Linux process may have 65530.
pub const MAX_WEIGHT_FILES: usize = 4096;
/// Most layers of a model. 1024: the deepest published decoders have 126.
pub const MAX_LAYERS: usize = 1024;
/// Most positions of a model. 2²⁴: RoPE tables hold a row per position; the longest published contexts have 10 million.
pub const MAX_POSITIONS: usize = 1 << 24;
/// Largest hidden, intermediate, head or vocabulary size. 2²⁴: beyond it products of two could overflow, and no model is.
pub const MAX_DIMENSION: usize = 1 << 24;

/// How far the disk reads ahead of packing, in bytes. 128 MiB: some tens of milliseconds of the fastest disks, longer than a
/// matrix takes from one of its parts to the next; and little beside a model, because it counts as memory of the shard.
pub const READ_AHEAD_BYTES: usize = 128 << 20;
/// Bytes the disk is asked for at a time. 2 MiB: many requests of the largest size that disks take, and no more than a packing
/// thread takes on at a time.
pub const READ_AHEAD_STEP: usize = 2 << 20;

/// How long a checkpoint must have been left alone before its packed weights are kept. 2 s: its identity is known by times, and
/// file systems count them in steps of up to two seconds.
pub const PACKED_CACHE_MIN_AGE: Duration = Duration::from_secs(2);
/// Bytes of packed weights with one checksum, read by one thread. 2 MiB: what a second-level cache holds, and one huge page.
pub const PACKED_CACHE_PIECE: usize = 2 << 20;
/// Largest table of a file of packed weights, in bytes. 256 MiB: a terabyte of weights has half a million checksums of up to 160
/// bytes of JSON.
pub const MAX_PACKED_CACHE_TABLE_BYTES: u64 = 256 << 20;

// Collectives.

/// Bytes of one of the two shared-memory buffers of a rank. 1 MiB: a decode step of 32 rows of 8192 values in one piece;
/// larger sums go in pieces that stay in the second-level cache.
pub const SHM_BUFFER_BYTES: usize = 1 << 20;
/// How long a rank may be behind the others in a collective before the epoch ends with its name.
/// 10 s: ranks do equal work, so this is far beyond scheduling noise, and as patient as the router.
pub const COLLECTIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the ranks of a group wait for each other at start-up.
pub const RANKS_ATTACH_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the GPUs of a group wait for each other at start-up. 5 minutes: ranks come when they have compiled their kernels, if they
/// have to, and the launcher ends all of them when one dies.
pub const GPU_JOIN_TIMEOUT: Duration = Duration::from_secs(300);
/// How long a step may go on after its epoch has ended, before what the GPU does is ended too and the process with it. 2 s: any step
/// that is not waiting for a rank is over by then.
pub const ABORT_GRACE: Duration = Duration::from_secs(2);
/// How often a waiting rank looks whether the one it waits for still lives: a dead rank is named within twice this.
pub const PEER_CHECK_PERIOD: Duration = Duration::from_millis(250);
/// How long a rank spins for its peers before it sleeps. 50 µs: about the difference between ranks that computed the same
/// layer, and the price of going to sleep and being woken.
pub const COLLECTIVE_SPIN: Duration = Duration::from_micros(50);
