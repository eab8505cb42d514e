//! The router: everything between an HTTP client and the shards. Text lives here, tensors do not.
//!
//! A request walks `routes` (wire types) → `validation` (the one [`request::GenerateRequest`]) → `engine` (scheduler,
//! step plans) → `generation` (detokenizer, stop strings) → back into `routes` as an answer or a stream.

pub mod api_key;
pub mod args;
mod chat;
pub mod constraint;
pub mod engine;
mod error;
mod generation;
mod grammar;
pub mod kv;
pub mod limits;
mod listener;
mod logging;
mod memory;
mod metrics;
mod params;
mod priority;
pub mod request;
mod routes;
pub mod scheduler;
mod server;
mod template;
mod text;
mod validation;

pub use args::{Args, command_line};
pub use server::run;
