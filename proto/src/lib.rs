//! What the processes agree on: the step protocol (`proto/shard.proto`), its packed byte fields, the ranges of its sampling
//! parameters, and the unix-socket transport under it. Nothing else.

/// The generated messages, client and server of `text_generation.shard.v1`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod v1 {
    tonic::include_proto!("text_generation.shard.v1");
}

mod packed;
mod sampling_params;
mod transport;

pub use packed::{PackedError, SAMPLE_BYTES, Sample, pack_f32, pack_u32, unpack_f32, unpack_u32};
/// How large a message is when it travels, among others.
pub use prost::Message;
pub use sampling_params::{InvalidSampling, MAX_BAD_WORD_TOKENS, MAX_BAD_WORDS, MAX_LOGIT_BIASES};
pub use transport::{TransportError, bind, connect, socket_path};

/// Raised by one whenever a change to `shard.proto` makes an older peer misread a message; both sides check it in
/// Hello / Welcome.
pub const PROTOCOL_VERSION: u32 = 3;

/// Largest draft limit of a row. 32: a copied passage that is longer goes on in the next step, and a step that verified
/// more tokens of one sequence would be bound by arithmetic on every machine.
pub const MAX_DRAFT_TOKENS: u8 = 32;

/// Upper bound of one gRPC message in bytes.
///
/// 16 MiB: a plan with a 64k-token budget is 256 KiB and a grammar mask row of a 256k vocabulary 32 KiB (256 rows:
/// 8 MiB), so nothing legal comes near; a larger message is a bug or an attack and ends the stream.
pub const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// The encoded `FileDescriptorSet` of `shard.proto`, for gRPC server reflection.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/shard_descriptor.bin"));
