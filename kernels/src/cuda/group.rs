//! Ranks on GPUs of their own: tensors summed and gathered over all of them.
//!
//! NCCL moves the parts, our own kernel adds them (`kernels/cuda/ranks.cu`): in the order of the ranks, in f32, rounded once. What NCCL
//! adds itself it adds in an order that depends on sizes and wiring. Two ways give the same bits: everybody gathers all parts and adds
//! all of them, or everybody adds a slice of each and the sums are gathered. The first is one call, the second moves less.

use std::sync::Arc;
use std::time::Duration;

use nccl_rs::{Communicator, DataType, Nccl, UniqueId};

use super::libraries::nccl_folders;
use super::{Argument, Cuda, DeviceMemory, KernelName};
use crate::contract::{expect_activations, expect_f32, expect_len, expect_on, expect_vectors};
use crate::{DType, Device, Error, Result, Tensor};

/// Bytes of other ranks' parts at a time; more goes in pieces. 32 MiB: a step of 512 rows of 8,192 values from four ranks, and far beyond
/// the size from which a link is fully used.
const WORKSPACE_BYTES: usize = 32 << 20;

/// Bytes of all parts up to which everybody gathers all of them. 4 MiB: they take some ten microseconds over NVLink, as long as the
/// second call of the other way.
const GATHERED_BYTES: usize = 4 << 20;

/// How long NCCL may take to enqueue a call. The first ones connect the ranks, which takes seconds; a peer that is gone is found by
/// whoever watches it, long before.
const PATIENCE: Duration = Duration::from_secs(60);

/// Elements that a rank's slice of a sum is a multiple of: a vector of the kernel.
const VECTOR: usize = 8;

/// Threads of a block, as `ranks.cu` has them.
const THREADS: usize = 256;

/// The name of a group, made by one rank and handed to the others. It is for nobody else.
pub type GroupId = [u8; 128];

/// A rank's GPU among those of its group. All ranks call the same methods with tensors of the same shapes in the same order.
pub struct GpuGroup {
    cuda: Arc<Cuda>,
    communicator: Communicator,
    workspace: DeviceMemory,
}

impl GpuGroup {
    /// A name for a new group.
    ///
    /// # Errors
    /// [`Error::Group`] without NCCL.
    pub fn new_id() -> Result<GroupId> {
        Ok(Nccl::load(&nccl_folders()).and_then(|nccl| nccl.unique_id())?.0)
    }

    /// Joins a group as `rank` of `world_size` with the GPU `device`. Returns when all ranks have joined.
    ///
    /// # Errors
    /// [`Error::Group`] without NCCL, or if the others do not come within `patience`; [`Error::UnsupportedDevice`] if the device is no
    /// GPU; [`Error::OutOfMemory`], [`Error::Cuda`].
    pub fn join(device: &Device, id: &GroupId, rank: usize, world_size: usize, patience: Duration) -> Result<GpuGroup> {
        let Device::Cuda(cuda) = device else {
            return Err(Error::UnsupportedDevice { op: "join", arg: "device", device: device.describe() });
        };
        let nccl = Nccl::load(&nccl_folders())?;
        let workspace = DeviceMemory::zeroed(&cuda.context, WORKSPACE_BYTES, "parts of other ranks")?;
        // NCCL takes the device that is current.
        cuda.context.bind()?;
        let communicator = Communicator::join(&nccl, &UniqueId(*id), rank, world_size, patience)?;
        Ok(GpuGroup { cuda: cuda.clone(), communicator, workspace })
    }

    /// Replaces `x` (bfloat16 or float16, rows of whole vectors) by its sum over all ranks: added in their order in f32, rounded once.
    ///
    /// # Errors
    /// [`Error::DType`], [`Error::Unsupported`]; [`Error::Group`] after an abort, or what NCCL says.
    pub fn all_reduce(&self, x: &mut Tensor) -> Result<()> {
        const OP: &str = "all_reduce";
        expect_on(OP, x.device(), "group", &Device::Cuda(self.cuda.clone()))?;
        expect_activations(OP, &[("x", x)])?;
        expect_vectors(OP, x.cols())?;
        let (ranks, element, dtype) = (self.communicator.world_size(), x.dtype().size_bytes(), x.dtype());
        let by_slices = ranks > 2 && x.bytes() * ranks > GATHERED_BYTES;
        let room = WORKSPACE_BYTES / element;
        // Both ways are for whole vectors; slices are for as many of them as there are ranks.
        let piece = if by_slices { room } else { room / ranks } / (VECTOR * ranks) * (VECTOR * ranks);
        for start in (0..x.len()).step_by(piece) {
            let len = piece.min(x.len() - start);
            let sliced = if by_slices { len / (VECTOR * ranks) * (VECTOR * ranks) } else { 0 };
            let address = x.address() + (start * element) as u64;
            // SAFETY: `len` elements of `x` begin there, of which `sliced` are whole vectors for every rank, and so are all that remain
            // (`x` has whole vectors, and so has a piece); a piece fits the workspace as computed above.
            unsafe {
                self.sum_slices(address, sliced, dtype)?;
                self.sum_gathered(address + (sliced * element) as u64, len - sliced, dtype)?;
            }
        }
        Ok(())
    }

    /// `out` (`[ranks, ...]`) becomes every rank's `local`, in the order of the ranks; both f32.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::DType`]; [`Error::Group`] after an abort, or what NCCL says.
    pub fn all_gather(&self, local: &Tensor, out: &mut Tensor) -> Result<()> {
        const OP: &str = "all_gather";
        expect_on(OP, local.device(), "group", &Device::Cuda(self.cuda.clone()))?;
        expect_on(OP, local.device(), "out", out.device())?;
        expect_f32(OP, &[("local", local), ("out", out)])?;
        expect_len(OP, "out", out, self.communicator.world_size() * local.len())?;
        self.cuda.context.bind()?;
        let (from, to, stream) = (local.address(), out.address(), self.stream());
        self.communicator.launch(PATIENCE, |group| {
            // SAFETY: the tensors lie on this GPU, are as long as `out` was checked to be, and live as long as their stream's work.
            unsafe { group.all_gather(from, to, local.len(), DataType::Float32, stream) }
        })?;
        Ok(())
    }

    /// Asks whether a rank or a link has failed meanwhile.
    ///
    /// # Errors
    /// [`Error::Group`].
    pub fn check(&self) -> Result<()> {
        Ok(self.communicator.check()?)
    }

    /// Ends what the GPU does for the group: kernels that wait for other ranks return, with results that mean nothing. From then on every
    /// call is an error. Any thread may call it.
    pub fn abort(&self) {
        if self.cuda.context.bind().is_ok() {
            self.communicator.abort();
        }
    }

    /// Everybody gathers all parts and adds them.
    ///
    /// # Safety
    /// `len` elements begin at `address`, whole vectors; the workspace holds as many of every rank.
    unsafe fn sum_gathered(&self, address: u64, len: usize, dtype: DType) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        self.cuda.context.bind()?;
        let (parts, stream) = (self.workspace.address(), self.stream());
        self.communicator.launch(PATIENCE, |group| {
            // SAFETY: the caller's obligation; what lies there is the stream's, which passes this before it is freed.
            unsafe { group.all_gather(address, parts, len, data_type(dtype), stream) }
        })?;
        // SAFETY: as many elements of every rank lie in the workspace now.
        unsafe { self.sum(address, len, dtype) }
    }

    /// Everybody adds a slice of all parts, and gathers the sums.
    ///
    /// # Safety
    /// `len` elements begin at `address`, whole vectors for every rank; the workspace holds as many.
    unsafe fn sum_slices(&self, address: u64, len: usize, dtype: DType) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        self.cuda.context.bind()?;
        let (ranks, stream, data_type) = (self.communicator.world_size(), self.stream(), data_type(dtype));
        let slice = len / ranks;
        let of = |start: u64, rank: usize| start + (rank * slice * dtype.size_bytes()) as u64;
        let own = of(address, self.communicator.rank());
        self.communicator.launch(PATIENCE, |group| {
            for rank in 0..ranks {
                // SAFETY: a slice of `address` for every rank, and one of every rank for the workspace: the caller's obligation.
                unsafe {
                    group.send(of(address, rank), slice, data_type, rank, stream)?;
                    group.recv(of(self.workspace.address(), rank), slice, data_type, rank, stream)?;
                }
            }
            Ok(())
        })?;
        // SAFETY: every rank's slice lies in the workspace now.
        unsafe { self.sum(own, slice, dtype)? };
        self.communicator.launch(PATIENCE, |group| {
            // SAFETY: as above; a rank's sums lie where they are gathered, as NCCL wants them in place.
            unsafe { group.all_gather(own, address, slice, data_type, stream) }
        })?;
        Ok(())
    }

    /// Adds the parts in the workspace, `len` elements of every rank, into `out`.
    ///
    /// # Safety
    /// `len` elements begin at `out`, whole vectors.
    unsafe fn sum(&self, out: u64, len: usize, dtype: DType) -> Result<()> {
        let pointers = [out, self.workspace.address()].map(Argument::Pointer);
        let counts = [self.communicator.world_size(), len].map(Argument::count);
        let grid = [len.div_ceil(VECTOR * THREADS), 1, 1];
        // SAFETY: ranks.cu: `len` elements at `out` (the caller's obligation) and of every rank in the workspace.
        unsafe {
            self.cuda.launch(KernelName::of("sum_ranks", dtype), grid, THREADS, &[&pointers[..], &counts].concat())
        }
    }

    fn stream(&self) -> usize {
        self.cuda.context.stream() as usize
    }
}

fn data_type(dtype: DType) -> DataType {
    match dtype {
        DType::F32 => DataType::Float32,
        DType::F16 => DataType::Float16,
        DType::Bf16 => DataType::Bfloat16,
    }
}

impl From<nccl_rs::Error> for Error {
    fn from(error: nccl_rs::Error) -> Error {
        Error::Group { reason: error.to_string() }
    }
}
