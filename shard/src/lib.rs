//! A shard: one rank of a model. Weights, paged KV cache, step executor, sampling, collectives and the gRPC service.
//!
//! Knows token ids only, never text. A step walks `service` (the stream of plans) → `engine` (a thread without I/O) →
//! `executor`: `slots` (what a plan changes) → `models` (the forward pass over `layers`) → `sampling` → back.

pub mod args;
pub mod capacity;
pub mod comm;
pub mod config;
pub mod engine;
pub mod error;
pub mod executor;
pub mod layers;
pub mod limits;
mod logits;
pub mod masks;
pub mod memory;
pub mod models;
pub mod sampling;
mod server;
pub mod service;
mod session;
pub mod slots;
pub mod start;
mod telemetry;
pub mod violation;
pub mod weights;

pub use args::Args;
pub use error::Error;
pub use server::run;
