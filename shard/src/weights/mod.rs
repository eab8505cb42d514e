//! The checkpoint: safetensors files, mapped, of which each rank touches only its slice.

mod checkpoint;
mod read_ahead;
mod safetensors_file;

pub use checkpoint::{Checkpoint, CheckpointTensor};
pub use read_ahead::ReadAhead;
