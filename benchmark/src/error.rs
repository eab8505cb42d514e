//! Everything that ends a run, each in one line.

use std::path::PathBuf;

use crate::limits;

/// Why nothing could be measured, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Flags that contradict each other or the mode.
    #[error("{0}")]
    Flags(String),
    /// A socket that is not there, or that nobody listens on.
    #[error("{0}; start a shard there, or name another socket with --master-shard-uds-path")]
    Connect(#[from] proto::TransportError),
    /// A shard that does not answer as a shard does.
    #[error("shard rank {rank}: {reason}")]
    Shard {
        /// Its rank.
        rank: u32,
        /// What it said.
        reason: String,
    },
    /// The socket of another rank.
    #[error("{} is the socket of rank {rank}; --master-shard-uds-path must be that of rank 0", path.display())]
    NotMaster {
        /// The socket.
        path: PathBuf,
        /// The rank that answers on it.
        rank: u32,
    },
    /// The other ranks cannot be found.
    #[error(
        "{} belongs to a group of {world_size} shards, whose sockets are PREFIX-0, PREFIX-1, ..; it does not end in -0",
        path.display()
    )]
    Unnumbered {
        /// The socket.
        path: PathBuf,
        /// Number of ranks.
        world_size: u32,
    },
    /// A router is served.
    #[error(
        "the shards serve a router (epoch {epoch}), whose stream a second one would end: measure it with --url, or start \
         shards without a router, or stop the router and give --take-over"
    )]
    Live {
        /// The router's epoch.
        epoch: u64,
    },
    /// A run that the shards cannot hold.
    #[error("{what} is {value}; the shards' {limit} is {most}")]
    TooLarge {
        /// What was asked for, in words.
        what: String,
        /// How much that takes.
        value: u64,
        /// The name of the limit.
        limit: &'static str,
        /// Its value.
        most: u64,
    },
    /// A sampling parameter out of range.
    #[error("{0}")]
    Sampling(proto::InvalidSampling),
    /// An address that is no address.
    #[error("--url {url}: {reason}")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A server that answers no request.
    #[error("{url}: {reason}")]
    Server {
        /// The address that was called.
        url: String,
        /// What happened.
        reason: String,
    },
    /// A file of prompts that cannot be used.
    #[error("--prompts {}: {reason}", path.display())]
    Prompts {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Somebody ended it.
    #[error("stopped before the end")]
    Stopped,
    /// The terminal cannot be drawn on.
    #[error("the terminal: {0}")]
    Terminal(std::io::Error),
    /// The system gives no runtime.
    #[error("cannot start: {0}")]
    Start(std::io::Error),
}

impl Error {
    /// A rank that was silent for longer than a step may take.
    pub(crate) fn silent(rank: u32) -> Error {
        Error::Shard { rank, reason: format!("no answer within {} s", limits::STEP_TIMEOUT.as_secs()) }
    }
}
