//! What can go wrong.

use std::time::Duration;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The library is nowhere.
    #[error("no NCCL library: {}. Install it (package libnccl2, or nvidia-nccl-cu13 of PyPI), or name the file in NCCL_LIB", attempts.join("; "))]
    NotFound {
        /// What was tried, with the loader's words.
        attempts: Vec<String>,
    },
    /// A library of that name lacks a function: it is too old, or another one.
    #[error("{path} has no function {function}: it is not NCCL, or older than 2.18")]
    MissingFunction {
        /// The library.
        path: String,
        /// The function.
        function: &'static str,
    },
    /// The library is older than what this crate was written for.
    #[error("{path} is NCCL {version}, the oldest that serves is {oldest}")]
    TooOld {
        /// The library.
        path: String,
        /// Its version, as in `ncclGetVersion`.
        version: u32,
        /// The oldest that serves.
        oldest: u32,
    },
    /// A rank that is none of the group's.
    #[error("rank {rank} is not below the number of ranks, {world_size}")]
    Rank {
        /// The rank.
        rank: usize,
        /// Number of ranks.
        world_size: usize,
    },
    /// NCCL refused or failed.
    #[error("{call}: {code:?}, {reason}")]
    Failed {
        /// The function.
        call: &'static str,
        /// The kind of failure.
        code: Code,
        /// NCCL's words.
        reason: String,
    },
    /// Not complete in time: a peer is dead, stalled or was never there.
    #[error("{call}: not complete after {waited:?}; a peer may be gone")]
    Timeout {
        /// The function.
        call: &'static str,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The communicator failed before, or was aborted.
    #[error("{call}: the communicator is no longer usable")]
    Unusable {
        /// The function.
        call: &'static str,
    },
}

/// The kinds of failure: `ncclResult_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Code {
    /// A call to CUDA failed.
    UnhandledCudaError,
    /// A call to the system failed.
    SystemError,
    /// A defect of NCCL, or memory that was overwritten.
    InternalError,
    /// A wrong argument.
    InvalidArgument,
    /// A wrong use, as two ranks on one GPU.
    InvalidUsage,
    /// A peer or the network failed.
    RemoteError,
    /// A number that no version of the header names.
    Other(i32),
}

impl Code {
    pub(crate) fn of(result: i32) -> Code {
        match result {
            1 => Code::UnhandledCudaError,
            2 => Code::SystemError,
            3 => Code::InternalError,
            4 => Code::InvalidArgument,
            5 => Code::InvalidUsage,
            6 => Code::RemoteError,
            other => Code::Other(other),
        }
    }
}
