//! The checkpoint: safetensors files, mapped, of which each rank touches only its slice.

mod checkpoint;
mod safetensors_file;

pub use checkpoint::{Checkpoint, CheckpointTensor};
