//! What can go wrong between the router and the shards, with fields rather than sentences.

use std::time::Duration;

use crate::scheduler::{Failure, Misfit};

/// Why the engine could not start, or why an epoch ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// A rank's socket did not answer in time.
    #[error("shard rank {rank} cannot be reached within {}s: {reason}", waited.as_secs())]
    Unreachable {
        /// Which rank.
        rank: u32,
        /// How long it was tried.
        waited: Duration,
        /// The last failure.
        reason: String,
    },
    /// A rank says something that does not fit the group.
    #[error("shard rank {rank} says {field} {value}, expected {expected}")]
    Group {
        /// Which rank.
        rank: u32,
        /// Which field of its Welcome.
        field: &'static str,
        /// What it said.
        value: u64,
        /// What rank 0 or the router expected.
        expected: u64,
    },
    /// A rank's stream ended.
    #[error("shard rank {rank} closed its stream: {reason}")]
    StreamClosed {
        /// Which rank.
        rank: u32,
        /// gRPC's status or "end of stream".
        reason: String,
    },
    /// A rank gave up.
    #[error("shard rank {rank} failed: {reason}")]
    Fatal {
        /// Which rank.
        rank: u32,
        /// Its own words.
        reason: String,
    },
    /// A rank does not follow the step protocol.
    #[error("shard rank {rank} breaks the step protocol at plan {seq}: {reason}")]
    Protocol {
        /// Which rank.
        rank: u32,
        /// The plan it answered, or should have.
        seq: u64,
        /// The rule it broke.
        reason: String,
    },
    /// A rank makes no progress.
    #[error("shard rank {rank} has not answered plan {seq} for {}ms", waited.as_millis())]
    Stalled {
        /// Which rank.
        rank: u32,
        /// The oldest unanswered plan; 0 for a ping.
        seq: u64,
        /// How long ago it was due to start.
        waited: Duration,
    },
    /// The scheduler thread could not be spawned.
    #[error("cannot start the scheduler thread: {reason}")]
    Thread {
        /// The operating system's answer.
        reason: String,
    },
}

/// Why a request was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The queue is at its bound (HTTP 429).
    #[error("overloaded: {requests} requests and {queued_tokens} queued prompt tokens ahead")]
    Overloaded {
        /// Requests waiting or running.
        requests: usize,
        /// Prompt tokens waiting.
        queued_tokens: u64,
        /// When one of them should have ended, by the measured rate.
        retry_after: Duration,
    },
    /// The request could not run even alone.
    #[error(transparent)]
    Misfit(#[from] Misfit),
    /// The engine drains or has ended (HTTP 503).
    #[error("the engine takes no more requests")]
    Stopped,
}

/// Why a request that was taken ended without its answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// It ended alone; the engine goes on.
    #[error(transparent)]
    Failure(#[from] Failure),
    /// The engine ended.
    #[error("the engine stopped before the request was complete")]
    Stopped,
}
