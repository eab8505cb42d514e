//! Every bound of the launcher, with its reason and what happens when it is reached.

use std::time::Duration;

/// Shards on one host. 64: more processes than any machine has memory domains for; refused as an argument error.
pub(crate) const MAX_SHARDS: usize = 64;
/// Rows a shard can hold unless `--max-batch-size` says otherwise. 256: beyond it a step is compute-bound and a further
/// row only makes every other row slower; requests above it wait in the router's queue.
pub(crate) const MAX_DEFAULT_SLOTS: usize = 256;
/// Tokens of one step unless `--max-batch-prefill-tokens` says otherwise. 512: on a CPU the linears are compute-bound
/// from about 64 rows on, so a larger step adds nothing but time between two tokens of a running stream.
pub(crate) const DEFAULT_STEP_TOKENS: u32 = 512;
/// The same on a GPU, as in TGI: its linears are compute-bound from some hundred rows on, and a step of 4,096 takes a tenth of a second
/// with a model of 8B.
pub(crate) const DEFAULT_CUDA_STEP_TOKENS: u32 = 4096;

/// Lines kept of each child, to be shown if it dies. 40: a panic message with a backtrace's first frames.
pub(crate) const TAIL_LINES: usize = 40;
/// Of these, at most so many are repeated in the launcher's closing error; all were printed as they came.
pub(crate) const REPORTED_LINES: usize = 10;
/// Bytes of one line of a child's output. 64 KiB: a longer one is cut into pieces rather than buffered.
pub(crate) const LINE_BYTES: usize = 64 << 10;
/// Log lines that wait for a slow terminal or pipe. 8192: about 1 MiB; beyond it lines are dropped and counted, because
/// blocking would stall the supervisor and, through the children's pipes, the requests.
pub(crate) const QUEUED_LINES: usize = 8192;
/// How long the last log lines may take to leave at exit. 1 s: a paused terminal must not keep the process.
pub(crate) const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a dead child's pipes may stay open (a tracer or debugger may hold them). Then its exit is reported anyway.
pub(crate) const PIPE_TIMEOUT: Duration = Duration::from_millis(500);

/// Pause between two readiness probes. 5 ms: cheap against a process start, invisible in the time to the ready line.
pub(crate) const PROBE_INTERVAL: Duration = Duration::from_millis(5);
/// How long one readiness probe may take. 1 s: a process that answers later is not ready.
pub(crate) const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// A start-up that is not finished is mentioned this often. 10 s: TGI's interval.
pub(crate) const WAITING_NOTICE: Duration = Duration::from_secs(10);

/// Pause between two health probes of a serving shard. 2 s: unmeasurable load.
pub(crate) const HEALTH_INTERVAL: Duration = Duration::from_secs(2);
/// How long a health probe may go unanswered. 10 s: the design's floor for a stalled step; gRPC is answered by a thread
/// of its own, so only a stopped or starved process takes this long, and it is ended at once.
pub(crate) const HEALTH_TIMEOUT: Duration = Duration::from_secs(10);
/// Times in a row a shard may say that its engine is stalled (it allows a step 10 s, and more where steps are long) before
/// it is killed and its group restarted. 3: the step may be over a moment later.
pub(crate) const HEALTH_FAILURES: u32 = 3;

/// Pauses before the restarts of a failing shard group: at once, then slower, so that a crash loop does not burn the
/// machine. The last one holds for all further restarts.
pub(crate) const RESTART_BACKOFF: [Duration; 4] =
    [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];
/// Failures within [`FAILURE_WINDOW`] that end the launcher, so that whoever runs it (systemd, Kubernetes) sees it.
pub(crate) const MAX_FAILURES: usize = 5;
/// Failures older than this are forgiven. 5 minutes: five unrelated crashes in a longer time are five recoveries.
pub(crate) const FAILURE_WINDOW: Duration = Duration::from_secs(300);

/// Longest path of a unix socket in bytes: `sun_path` of Linux without its terminating zero.
pub(crate) const SOCKET_PATH_BYTES: usize = 107;
/// Names tried for the private folder of the sockets. 16: process ids repeat between containers that share a folder for
/// temporary files, but hardly that often; beyond it the error of the last attempt is reported.
pub(crate) const CREATE_ATTEMPTS: u32 = 16;
