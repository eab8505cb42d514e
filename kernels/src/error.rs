//! What the world can do wrong with a tensor or an operation: one enum, values rather than sentences.

use crate::DType;

/// The result of an operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation or an allocation was refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// A tensor's shape does not fit the operation or the other arguments.
    #[error("{op}: `{arg}` has shape {actual:?}, expected {expected:?}")]
    Shape {
        /// The operation.
        op: &'static str,
        /// Its argument.
        arg: &'static str,
        /// What the other arguments imply.
        expected: Vec<usize>,
        /// What was given.
        actual: Vec<usize>,
    },
    /// A tensor's element type is not the one that the operation takes.
    #[error("{op}: `{arg}` is {actual}, expected {expected}")]
    DType {
        /// The operation.
        op: &'static str,
        /// Its argument.
        arg: &'static str,
        /// What the operation takes.
        expected: DType,
        /// What was given.
        actual: DType,
    },
    /// A position, row, slot, block or layer that lies outside of what it indexes.
    #[error("{op}: `{arg}` holds {index}, the limit is {limit}")]
    Index {
        /// The operation.
        op: &'static str,
        /// Its argument.
        arg: &'static str,
        /// The offending value.
        index: usize,
        /// The first value that is too large.
        limit: usize,
    },
    /// An arena or the machine has no memory left.
    #[error("out of memory: {arena} needs {requested_bytes} bytes, {available_bytes} are left")]
    OutOfMemory {
        /// Which memory: "arena", "tensor", "weights", "kv cache".
        arena: &'static str,
        /// What was asked for.
        requested_bytes: usize,
        /// What is left (0 where the system does not say).
        available_bytes: usize,
    },
    /// The operation has no arm for this device, or the arguments live on different devices.
    #[error("{op}: `{arg}` lives on device {device}, which this call cannot use")]
    UnsupportedDevice {
        /// The operation.
        op: &'static str,
        /// Its argument.
        arg: &'static str,
        /// [`Device::describe`](crate::Device::describe) of the offender.
        device: String,
    },
    /// There is no GPU to use: no driver, an old one, no device, a missing library.
    #[error("CUDA cannot be used: {reason}")]
    CudaUnavailable {
        /// What is missing and what would help, in one sentence.
        reason: String,
    },
    /// The ranks of a group cannot reach each other, or one of them is gone.
    #[error("the GPUs of the group cannot work together: {reason}")]
    Group {
        /// What NCCL says.
        reason: String,
    },
    /// The driver refused a call, or reports what an earlier one did.
    #[error("{call} failed: {code}")]
    Cuda {
        /// The call.
        call: &'static str,
        /// The driver's name of the error and its words.
        code: String,
    },
    /// What was asked for exists, but not on this device.
    #[error("{reason}")]
    Unsupported {
        /// What, and what would be possible.
        reason: String,
    },
}
