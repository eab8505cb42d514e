//! How an operation names a kernel and starts it.

use std::ffi::c_void;
use std::fmt;

use cudarc::driver::sys;

use super::Cuda;
use super::driver::{Function, check};
use crate::{DType, KvDType, Result};

/// A kernel's name in the sources: `attention_splits_128_bf16`, `linear_rows_8_bf16_f32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct KernelName {
    base: &'static str,
    /// What it was instantiated for, if anything.
    number: Option<usize>,
    dtype: Option<DType>,
    /// Its results are f32 rather than of its type.
    gives_f32: bool,
    /// The cache that it reads or writes is of eight-bit floats rather than of its type.
    has_fp8_cache: bool,
}

impl KernelName {
    /// A kernel that has no types.
    pub(crate) fn plain(base: &'static str) -> KernelName {
        KernelName { base, number: None, dtype: None, gives_f32: false, has_fp8_cache: false }
    }

    /// That of an element type.
    pub(crate) fn of(base: &'static str, dtype: DType) -> KernelName {
        KernelName { dtype: Some(dtype), ..KernelName::plain(base) }
    }

    /// That of a number and an element type.
    pub(crate) fn numbered(base: &'static str, number: usize, dtype: DType) -> KernelName {
        KernelName { number: Some(number), ..KernelName::of(base, dtype) }
    }

    /// Whether it may begin while the kernel before it ends (programmatic dependent launch): those that call `wait_for_kernels_before`
    /// before they read what others wrote, or write. The weights that it asks for meanwhile are nobody's to write.
    fn may_overlap(self) -> bool {
        self.base.starts_with("linear_")
            || matches!(self.base, "rms_norm" | "add_rms_norm" | "head_rms_norm" | "layer_norm" | "add_layer_norm")
            || matches!(self.base, "silu" | "silu_mul" | "gelu" | "gelu_mul" | "gelu_tanh" | "gelu_tanh_mul")
            || matches!(self.base, "embedding" | "embedding_head" | "gather_rows" | "sample_rows")
            || matches!(self.base, "rope_and_store_kv" | "attention_splits" | "attention_merge" | "attention_prefill")
            || matches!(self.base, "route_experts" | "group_pairs" | "combine_experts")
            || self.base.starts_with("all_reduce")
            || self.base == "spin"
    }

    /// The same with f32 results, if `out` is that.
    pub(crate) fn giving(self, out: DType) -> KernelName {
        KernelName { gives_f32: out == DType::F32, ..self }
    }

    /// The same over a cache of eight-bit floats, if it is one.
    pub(crate) fn over(self, cache: KvDType) -> KernelName {
        KernelName { has_fp8_cache: cache.fp8().is_some(), ..self }
    }
}

impl fmt::Display for KernelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.base)?;
        if let Some(number) = self.number {
            write!(f, "_{number}")?;
        }
        match self.dtype {
            Some(DType::Bf16) => f.write_str("_bf16")?,
            Some(DType::F16) => f.write_str("_f16")?,
            Some(DType::F32) => f.write_str("_f32")?,
            None => {}
        }
        if self.gives_f32 {
            f.write_str("_f32")?;
        }
        if self.has_fp8_cache { f.write_str("_fp8") } else { Ok(()) }
    }
}

/// An argument of a kernel, by its parameter's type.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Argument {
    /// A pointer to memory of the device.
    Pointer(u64),
    /// An `unsigned`.
    U32(u32),
    /// A `float`.
    F32(f32),
}

impl Argument {
    /// An `unsigned` that counts something of the host.
    ///
    /// # Panics
    /// Beyond 32 bits: shapes were checked to lie below.
    pub(crate) fn count(value: usize) -> Argument {
        Argument::U32(u32::try_from(value).expect("extents of a step's tensors fit 32 bits"))
    }

    /// Its bytes, the lowest first, where a parameter of any size begins.
    fn bytes(self) -> u64 {
        match self {
            Argument::Pointer(address) => address,
            Argument::U32(value) => u64::from(value),
            Argument::F32(value) => u64::from(value.to_bits()),
        }
    }
}

/// Parameters of a kernel at most: the longest list has nineteen.
const MAX_PARAMETERS: usize = 20;

impl Cuda {
    /// Starts a kernel behind everything else on the stream: `grid` blocks of `threads` threads. A grid without blocks is no work.
    ///
    /// # Safety
    /// The arguments are the kernel's parameters, one by one; with this grid it touches only memory behind its pointers, which nobody
    /// frees or touches from the host before the stream has passed it.
    pub(crate) unsafe fn launch(
        &self,
        name: KernelName,
        grid: [usize; 3],
        threads: usize,
        arguments: &[Argument],
    ) -> Result<()> {
        if grid.contains(&0) {
            return Ok(());
        }
        let function = self.function(name)?;
        self.context.bind()?;
        let mut values = [0u64; MAX_PARAMETERS];
        let mut pointers = [std::ptr::null_mut::<c_void>(); MAX_PARAMETERS];
        for ((argument, value), pointer) in arguments.iter().zip(&mut values).zip(&mut pointers) {
            *value = argument.bytes();
            *pointer = std::ptr::from_mut(value).cast();
        }
        assert!(arguments.len() <= MAX_PARAMETERS, "{name} has so many parameters");
        let [x, y, z] = grid.map(|extent| u32::try_from(extent).expect("a grid has fewer blocks"));
        let mut overlap = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        // Hopper's and later.
        let overlaps = name.may_overlap() && self.context.properties.capability >= (9, 0);
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: threads as u32,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: 0,
            hStream: self.context.stream(),
            attrs: &raw mut overlap,
            numAttrs: u32::from(overlaps),
        };
        // SAFETY: the function belongs to a module of this context; the attribute lives until the call returns; every pointer leads to eight bytes in `values`, which the call reads
        // before it returns, and no parameter is longer; the rest is the caller's obligation.
        let launched = unsafe {
            sys::cuLaunchKernelEx(&raw const config, function.0, pointers.as_mut_ptr(), std::ptr::null_mut())
        };
        check("cuLaunchKernelEx", launched)
    }

    /// The kernel of that name, looked up once.
    fn function(&self, name: KernelName) -> Result<Function> {
        if let Some(function) = self.functions.read().expect("no panic happens under this lock").get(&name) {
            return Ok(*function);
        }
        self.context.bind()?;
        let text = name.to_string();
        for module in &self.modules {
            if let Some(function) = module.function(&text)? {
                self.functions.write().expect("no panic happens under this lock").insert(name, function);
                return Ok(function);
            }
        }
        Err(crate::Error::Unsupported { reason: format!("there is no CUDA kernel {text}") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_sources() {
        assert_eq!(KernelName::plain("sample_rows").to_string(), "sample_rows");
        assert_eq!(KernelName::of("rms_norm", DType::Bf16).to_string(), "rms_norm_bf16");
        let linear = KernelName::numbered("linear_rows", 8, DType::F16);
        assert_eq!(linear.giving(DType::F16).to_string(), "linear_rows_8_f16");
        assert_eq!(linear.giving(DType::F32).to_string(), "linear_rows_8_f16_f32");
        let splits = KernelName::numbered("attention_splits", 64, DType::Bf16);
        assert_eq!(splits.over(KvDType::Bf16).to_string(), "attention_splits_64_bf16");
        assert_eq!(splits.over(KvDType::F8E5m2).to_string(), "attention_splits_64_bf16_fp8");
    }
}
