//! The checkpoint: safetensors files, mapped, of which each rank touches only its slice.

mod checkpoint;
mod packed_cache;
mod quantized;
mod read_ahead;
mod safetensors_file;

pub use checkpoint::{Checkpoint, CheckpointTensor};
pub use packed_cache::{CheckpointIdentity, PackedCache, PackedReader, PackedWeights, PackedWriter};
pub use quantized::{Fp8Matrix, Fp8Slice, Obstacle, QuantizedMatrix, QuantizedSlice};
pub use read_ahead::ReadAhead;
