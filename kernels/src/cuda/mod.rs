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
mod uploads;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

pub use driver::Graph;
pub(crate) use driver::{Context, Event};
pub use group::{GpuGroup, GroupId};
pub(crate) use launch::{Argument, KernelName};
pub(crate) use memory::{DeviceMemory, PinnedWords};
pub(crate) use uploads::{PIECE_BYTES, Uploads};

use self::driver::{Function, Module};
pub use self::images::{CudaArchitecture, CudaCode, CudaSource};
use self::images::{Image, Progress};
use crate::ops::linear::squares::wgmma_keeps_bits;
use crate::{Device, Error, Result};

/// A GPU with its kernels.
pub struct Cuda {
    pub(crate) context: Arc<Context>,
    modules: Vec<Module>,
    functions: RwLock<HashMap<KernelName, Function>>,
    /// The processor beside it, for what is done once or for single rows.
    host: OnceLock<Device>,
    host_threads: usize,
    has_wgmma: bool,
    uploads: Mutex<Uploads>,
}

impl Cuda {
    /// Opens a GPU and loads its kernels of `code`; `report` hears of kernels that are compiled first, and of an instruction that is not
    /// used. `host_threads` threads of the processor do what is not the GPU's to do.
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
        let context = Arc::new(context);
        let mut cuda = Cuda {
            uploads: Mutex::new(Uploads::new(&context)),
            context,
            modules,
            functions: RwLock::default(),
            host: OnceLock::new(),
            host_threads,
            has_wgmma: false,
        };
        cuda.has_wgmma = cuda.try_wgmma(report)?;
        Ok(cuda)
    }

    /// Whether linear layers of many rows use Hopper's matrix instruction; `report` hears why not where the GPU has it.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda): after a kernel that does not end well the GPU does nothing more for this process.
    fn try_wgmma(&self, report: &dyn Fn(&str)) -> Result<bool> {
        let refuse = |reason: &str| {
            report(&format!("linear layers of many rows do not use wgmma: {reason}"));
            Ok(false)
        };
        if std::env::var_os("TGI_CUDA_WGMMA").is_some_and(|value| value == "off") {
            return refuse("TGI_CUDA_WGMMA is off");
        }
        match wgmma_keeps_bits(self) {
            Ok(None) => Ok(false),
            Ok(Some(true)) => Ok(true),
            Ok(Some(false)) => refuse("on this GPU its products have other bits than those of mma"),
            Err(Error::Unsupported { reason }) => refuse(&reason),
            Err(Error::Cuda { call, code }) => {
                let code = format!("{code}, on trying wgmma, which TGI_CUDA_WGMMA=off leaves out");
                Err(Error::Cuda { call, code })
            }
            Err(other) => Err(other),
        }
    }

    /// Whether `linear_wgmma.cuh` has the bits of the other kernels here.
    pub(crate) fn has_wgmma(&self) -> bool {
        self.has_wgmma
    }

    /// `NVIDIA H200 (compute capability 9.0)`.
    pub(crate) fn describe(&self) -> String {
        let driver::Properties { name, capability: (major, minor), .. } = &self.context.properties;
        format!("cuda ({name}, compute capability {major}.{minor})")
    }

    /// Pinned memory through which weights go, for one at a time.
    pub(crate) fn uploads(&self) -> MutexGuard<'_, Uploads> {
        // Who panicked has left pieces that are whole, and their turns end.
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner)
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
