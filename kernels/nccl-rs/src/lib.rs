//! NVIDIA's collectives (NCCL), found at run time: a program that contains this crate starts on machines without the library.
//!
//! [`Nccl::load`] finds `libnccl.so.2` and says in one sentence what is missing if it can't. A [`Communicator`] never blocks in the
//! library: whatever takes time is begun, then watched until a deadline, so that a peer that died ends a call with an [`Error`]
//! and not a process with a signal. Whoever gives up on a communicator calls [`Communicator::abort`], which also ends kernels that wait
//! on the device.
//!
//! The crate knows no device: buffers and streams are the driver's handles, as numbers.
//!
//! Source: NCCL's user guide and `nccl.h` of version 2.28; what is declared here has had the same meaning since 2.18.

mod communicator;
mod error;
mod ffi;
mod library;

pub use communicator::{Communicator, DevicePtr, Stream, UniqueId};
pub use error::{Code, Error, Result};
pub use ffi::{DataType, ReduceOp};
pub use library::Nccl;
