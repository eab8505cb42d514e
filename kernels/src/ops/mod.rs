//! The operations, one per file: contract, dispatch on the device, CPU arm, plain definition, test.
//!
//! An operation runs where its output lives. Activations are row-major, f32 on the processor and of the weights' type on a GPU;
//! outputs belong to the caller. On the plan device an
//! operation checks its arguments and counts; only the output (or the in-out tensor) must live there.

mod activation;
mod add;
pub(crate) mod attention;
mod concat_columns;
mod embedding;
pub mod experts;
mod gather_rows;
mod layer_norm;
pub(crate) mod linear;
mod rms_norm;
mod rope;
pub mod sample;
mod soft_cap;
#[cfg(test)]
pub(crate) mod testing;

pub use activation::{Activation, activate};
pub use add::add;
pub use attention::{AttentionRows, Scoring, SequenceRows, attention};
pub use concat_columns::concat_columns;
pub use embedding::{EmbeddingTable, embedding};
pub use gather_rows::gather_rows;
pub use layer_norm::{LayerScale, add_layer_norm, layer_norm};
pub use linear::linear;
pub use rms_norm::{RmsScale, add_rms_norm, head_rms_norm, rms_norm, rms_norm_in_place};
pub use rope::{RopeTable, rope_and_store_kv};
pub use soft_cap::soft_cap;
