//! Where tensors live and operations run.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use crate::allocation::Scratch;
use crate::cuda::{Cuda, CudaCode, Graph};
use crate::ledger::Ledger;
use crate::limits::{MAX_THREADS, MIN_WORK_PER_THREAD};
use crate::ops::linear::Format;
use crate::pool::Pool;
use crate::simd::Isa;
use crate::{DType, Result, WeightType};

/// A device. Cloning it gives another handle on the same one.
#[derive(Clone)]
#[non_exhaustive]
pub enum Device {
    /// The processor: SIMD arms on a thread pool.
    Cpu(Arc<Cpu>),
    /// A GPU: CUDA kernels on a stream.
    Cuda(Arc<Cuda>),
    /// Computes nothing; counts bytes and FLOPs.
    Plan(Arc<Ledger>),
}

impl Device {
    /// The processor with `threads` threads (at least one), the caller of an operation being the first of them.
    ///
    /// The instruction set is the best that the machine has; `TGI_CPU_ISA=amx|avx512-bf16|avx512|avx2|portable` restricts it.
    pub fn cpu(threads: usize) -> Device {
        Device::cpu_with(Isa::detect(), threads)
    }

    pub(crate) fn cpu_with(isa: Isa, threads: usize) -> Device {
        let pool = Pool::new(threads.clamp(1, MAX_THREADS));
        Device::Cpu(Arc::new(Cpu { isa, pool, packed: Mutex::default(), inputs: Mutex::default() }))
    }

    /// A GPU, counted among those that `CUDA_VISIBLE_DEVICES` shows, with the kernels `code` and `host_threads` threads of the processor for
    /// what is not its to do. `report` is told, for people, of kernels that have to be compiled first, and of an instruction that is not used.
    ///
    /// # Errors
    /// [`Error::CudaUnavailable`](crate::Error::CudaUnavailable), in one sentence; [`Error::Cuda`](crate::Error::Cuda).
    pub fn cuda(ordinal: usize, host_threads: usize, code: &CudaCode, report: &dyn Fn(&str)) -> Result<Device> {
        Ok(Device::Cuda(Arc::new(Cuda::open(ordinal, host_threads, code, report)?)))
    }

    /// The processor: itself, or the one beside a GPU.
    pub fn host(&self) -> &Device {
        match self {
            Device::Cuda(cuda) => cuda.host(),
            Device::Cpu(_) | Device::Plan(_) => self,
        }
    }

    /// The type of activations where a model's weights are of `dtype`.
    pub fn activation_dtype(&self, dtype: DType) -> DType {
        match self {
            Device::Cuda(_) => dtype,
            Device::Cpu(_) | Device::Plan(_) => DType::F32,
        }
    }

    /// What `ask` asks of a GPU, as a graph; none of it is done yet. `None` on other devices, where nothing is asked either.
    ///
    /// # Errors
    /// Those of `ask`; [`Error::Cuda`](crate::Error::Cuda).
    pub fn capture<T>(&self, ask: impl FnOnce() -> Result<T>) -> Result<Option<(T, Graph)>> {
        match self {
            Device::Cuda(cuda) => cuda.context.capture(ask).map(Some),
            Device::Cpu(_) | Device::Plan(_) => Ok(None),
        }
    }

    /// Waits until it has done everything that was asked of it. A processor always has.
    ///
    /// # Errors
    /// What it did wrong meanwhile: [`Error::Cuda`](crate::Error::Cuda).
    pub fn synchronize(&self) -> Result<()> {
        match self {
            Device::Cuda(cuda) => cuda.context.synchronize(),
            Device::Cpu(_) | Device::Plan(_) => Ok(()),
        }
    }

    /// Bytes of its memory that are free, and all there are. `None` where the system keeps the books.
    ///
    /// # Errors
    /// [`Error::Cuda`](crate::Error::Cuda).
    pub fn memory(&self) -> Result<Option<(usize, usize)>> {
        match self {
            Device::Cuda(cuda) => cuda.context.memory().map(Some),
            Device::Cpu(_) | Device::Plan(_) => Ok(None),
        }
    }

    /// A device with empty books.
    pub fn plan() -> Device {
        Device::Plan(Arc::default())
    }

    /// Whether operations on it only count.
    pub fn is_plan(&self) -> bool {
        matches!(self, Device::Plan(_))
    }

    /// For people: `cpu (AVX-512, 2 threads)`, and why the machine's best instructions are not used if they cannot be trusted.
    pub fn describe(&self) -> String {
        match self {
            Device::Cpu(cpu) => {
                let threads = match cpu.pool.threads() {
                    1 => "1 thread".to_owned(),
                    threads => format!("{threads} threads"),
                };
                match Isa::refusal() {
                    Some(reason) => format!("cpu ({}, {threads}; AMX is not used: {reason})", cpu.isa.name()),
                    None => format!("cpu ({}, {threads})", cpu.isa.name()),
                }
            }
            Device::Cuda(cuda) => cuda.describe(),
            Device::Plan(_) => "plan".to_owned(),
        }
    }

    /// The type to which linears round their inputs where their weights are of `dtype`.
    pub fn linear_input_dtype(&self, dtype: DType) -> DType {
        Format::choose(self, WeightType::Float(dtype)).input_dtype()
    }

    /// The books of a plan device.
    pub fn ledger(&self) -> Option<&Ledger> {
        match self {
            Device::Plan(ledger) => Some(ledger),
            Device::Cpu(_) | Device::Cuda(_) => None,
        }
    }

    /// Calls `f(0)` to `f(count - 1)`, spread over the [host](Device::host)'s threads.
    pub fn for_each(&self, count: usize, f: impl Fn(usize) + Sync) {
        match self {
            Device::Cpu(cpu) => cpu.pool.run(count, f),
            Device::Cuda(cuda) => cuda.host().for_each(count, f),
            Device::Plan(_) => (0..count).for_each(f),
        }
    }

    /// Calls `f(index, part)` on parts of `part_len` elements (the last may be shorter), spread over the [host](Device::host)'s
    /// threads.
    pub fn for_each_part<T: Send>(&self, out: &mut [T], part_len: usize, f: impl Fn(usize, &mut [T]) + Sync) {
        match self {
            Device::Cpu(cpu) => cpu.pool.for_parts(out, part_len, f),
            Device::Cuda(cuda) => cuda.host().for_each_part(out, part_len, f),
            Device::Plan(_) => out.chunks_mut(part_len).enumerate().for_each(|(index, part)| f(index, part)),
        }
    }
}

/// The processor: its instruction set and its threads.
pub struct Cpu {
    pub(crate) isa: Isa,
    pub(crate) pool: Pool,
    /// The activations of the linear at work as its arm reads them, in words: as large as the largest of them (rows of a step ×
    /// inputs), then kept.
    pub(crate) packed: Mutex<Scratch<u32>>,
    /// The same for linears with quantised weights, row by row.
    pub(crate) inputs: Mutex<Vec<u32>>,
}

impl Cpu {
    /// Runs `f` on every row of `out`, in contiguous parts: `f(first_row, rows)`. `row_work` is the number of
    /// element visits that one row costs; little work stays on the calling thread.
    pub(crate) fn for_rows<T: Send>(
        &self,
        out: &mut [T],
        row_len: usize,
        row_work: usize,
        f: impl Fn(usize, &mut [T]) + Sync,
    ) {
        self.pool.for_rows(out, row_len, MIN_WORK_PER_THREAD.div_ceil(row_work.max(1)), f);
    }

    /// [`for_rows`](Cpu::for_rows) over two buffers of the same shape: `f(first_row, rows_of_a, rows_of_b)`.
    pub(crate) fn for_rows_of_two<T: Send>(
        &self,
        a: &mut [T],
        b: &mut [T],
        row_len: usize,
        row_work: usize,
        f: impl Fn(usize, &mut [T], &mut [T]) + Sync,
    ) {
        self.pool.for_rows_of_two(a, b, row_len, MIN_WORK_PER_THREAD.div_ceil(row_work.max(1)), f);
    }

    /// Runs `f` on contiguous parts of `0..units`; `unit_work` as in [`for_rows`](Cpu::for_rows).
    pub(crate) fn split(&self, units: usize, unit_work: usize, f: impl Fn(Range<usize>) + Sync) {
        self.pool.split(units, MIN_WORK_PER_THREAD.div_ceil(unit_work.max(1)), f);
    }
}
