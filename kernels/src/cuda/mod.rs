//! GPUs: a device whose operations are kernels of `kernels/cuda/` on one stream.
//!
//! Everything about CUDA is found at run time (`libraries.rs`), so one executable serves machines with and without a GPU. Machine
//! code is embedded by a build that found nvcc, or compiled at the first start (`images.rs`). `driver.rs` and `memory.rs` have the driver's calls,
//! `launch.rs` how operations name and start kernels. An operation's launch stands in its own file, beside its CPU arm.

mod driver;
mod group;
mod images;
mod launch;
mod libraries;
mod memory;
mod peers;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, RwLock};

pub use driver::Graph;
pub(crate) use driver::{Context, Event};
pub use group::{GpuGroup, GroupId};
pub(crate) use launch::{Argument, KernelName};
pub(crate) use memory::{DeviceMemory, PinnedWords};

use self::driver::{Function, Module};
pub use self::images::{CudaArchitecture, CudaCode, CudaSource};
use self::images::{Image, Progress};
use crate::{Device, Error, Result};

/// A GPU with its kernels.
pub struct Cuda {
    pub(crate) context: Arc<Context>,
    modules: Vec<Module>,
    functions: RwLock<HashMap<KernelName, Function>>,
    /// The processor beside it, for what is done once or for single rows.
    host: OnceLock<Device>,
    host_threads: usize,
}

impl Cuda {
    /// Opens a GPU and loads its kernels of `code`; `report` hears of kernels that are compiled first. `host_threads` threads of the processor
    /// do what is not the GPU's to do.
    ///
    /// # Errors
    /// [`Error::CudaUnavailable`](crate::Error::CudaUnavailable), [`Error::Cuda`](crate::Error::Cuda).
    pub(crate) fn open(ordinal: usize, host_threads: usize, code: &CudaCode, report: &dyn Fn(&str)) -> Result<Cuda> {
        let context = Context::open(ordinal)?;
        let images =
            images::load(code, context.properties.capability, &|progress: Progress| report(&progress.to_string()))?;
        let module = |image: &Image| {
            Module::load(&context, &image.code).map_err(|error| match error {
                Error::Cuda { call, code } => Error::Cuda { call, code: format!("{code}, loading {}", image.file) },
                other => other,
            })
        };
        let modules = images.iter().map(module).collect::<Result<_>>()?;
        Ok(Cuda {
            context: Arc::new(context),
            modules,
            functions: RwLock::default(),
            host: OnceLock::new(),
            host_threads,
        })
    }

    /// `NVIDIA H200 (compute capability 9.0)`.
    pub(crate) fn describe(&self) -> String {
        let driver::Properties { name, capability: (major, minor), .. } = &self.context.properties;
        format!("cuda ({name}, compute capability {major}.{minor})")
    }

    /// Multiprocessors of the GPU.
    pub(crate) fn multiprocessors(&self) -> u32 {
        self.context.properties.multiprocessors
    }

    /// The processor beside it.
    pub(crate) fn host(&self) -> &Device {
        self.host.get_or_init(|| Device::cpu(self.host_threads))
    }
}
