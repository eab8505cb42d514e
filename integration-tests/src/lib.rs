//! Real processes, real clients: what can only be seen from outside.
//!
//! The tests start the executable that users start, talk to it as users do, and look at what is left when it ends. This
//! library is their harness: [`Server`] runs the executable, [`Stream`] reads server-sent events, [`TinyModel`] writes
//! models of any shape with random weights, [`LargeTokenizer`] vocabularies of
//! any size, [`FakeShard`] is a shard that takes no time, [`Metrics`] reads `/metrics`, [`Python`] and [`Node`] install pinned clients.

mod demo_model;
mod executable;
mod fake_shard;
mod large_tokenizer;
mod lone_shards;
mod metrics;
mod node;
mod processes;
mod python;
mod server;
mod stream;
mod tiny_model;

pub use demo_model::endless_demo_model;
pub use executable::{benchmark_executable, executable, workspace_root};
pub use fake_shard::{FakeShard, Logprobs, age_of_stamp};
pub use large_tokenizer::LargeTokenizer;
pub use lone_shards::LoneShards;
pub use metrics::Metrics;
pub use node::Node;
pub use processes::{Process, wait_until};
pub use python::Python;
pub use server::{Exit, Server, Setup};
pub use stream::{Event, Stream, generated_ids};
pub use tiny_model::TinyModel;

/// Scheduling, crash recovery and shutdown are waited for, never timed: this long, then the test fails with what it saw.
/// Generous, because the machine may be busy with other builds.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);
