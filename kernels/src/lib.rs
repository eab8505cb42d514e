//! Tensors and the coarse, fused operations that a decoder is made of. Knows no model, request or protocol.
//!
//! - [`Device`]: `cpu` (AVX-512, AVX2 or portable, chosen at run time; a fork-join pool), `cuda` (a GPU) or `plan` (computes
//!   nothing, counts bytes and FLOPs). [`Tensor`]: a dense handle. [`Arena`]: the stack of a step's activations.
//! - [`LinearWeight`] packs matrices ([`MatrixView`] slices of a mapped checkpoint); [`KvCache`] is paged.
//! - [`ops`]: one file per operation, each with its contract, plain definition, arms and tests.
//!
//! Results are bits, not approximations: for one build, an output row does not depend on the number of threads, on the rows
//! beside it, on the instruction set, or on whether it was computed in a prefill or a decode step (`ops/linear.rs` and
//! `ops/attention.rs` say how).

mod allocation;
mod arena;
mod contract;
mod cuda;
mod device;
mod dtype;
mod error;
mod expert_weights;
mod fp8;
mod int4;
mod kv_cache;
mod ledger;
pub mod limits;
mod linear_weight;
pub mod machine;
mod matrix;
mod memory;
pub mod ops;
mod pool;
mod simd;
mod step_lists;
mod tensor;
mod weight_type;

pub use arena::{Arena, Mark};
pub use cuda::{Cuda, CudaArchitecture, CudaCode, CudaSource, GpuGroup, Graph, GroupId};
pub use device::{Cpu, Device};
pub use dtype::DType;
pub use error::{Error, Result};
pub use expert_weights::ExpertWeights;
pub use fp8::{Fp8View, e4m3_to_f32};
pub use int4::{Int4Rows, Int4Source};
pub use kv_cache::{KvCache, KvDType};
pub use ledger::{Cost, Ledger};
pub use limits::{BLOCK_SIZE, NO_SLOT};
pub use linear_weight::{AlwaysThere, LinearWeight, PanelShape, SourcePages};
pub use matrix::MatrixView;
pub use memory::{Values, ValuesMut};
pub use step_lists::{Indices, StepLimits, StepLists};
pub use tensor::Tensor;
pub use weight_type::WeightType;
