//! Ranks on GPUs of their own: tensors summed and gathered over all of them.
//!
//! Parts are added in the order of the ranks, in f32, and rounded once; what NCCL adds itself it adds in an order that depends on sizes
//! and wiring. All ways give the same bits. Where ranks have mapped each other's memory, one kernel sums over it, with one shot or with two
//! (`peers.rs`). Otherwise, and for very many rows, NCCL moves the parts and a kernel adds them (`kernels/cuda/ranks.cu`): everybody gathers all parts and adds
//! all of them, or everybody adds a slice of each and the sums are gathered. The first is one call, the second moves less.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nccl_rs::{Communicator, DataType, Nccl, UniqueId};

use super::libraries::nccl_folders;
use super::peers::{Handle, MAX_RANKS, MAX_TWO_SHOT_BLOCKS, MIN_MULTIPROCESSORS, Peers, Region, Way};
use super::{Argument, Cuda, DeviceMemory, Event, KernelName};
use crate::contract::{
    expect_activations, expect_device, expect_f32, expect_len, expect_matrix, expect_on, expect_vectors,
};
use crate::ops::{RmsScale, add_rms_norm};
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

/// How long the first sum over mapped memory may take. Ranks begin it within milliseconds of each other.
const TRIAL_PATIENCE: Duration = Duration::from_secs(5);

/// Elements that a rank's slice of a sum is a multiple of: a vector of the kernel.
const VECTOR: usize = 8;

/// Threads of a block, as `ranks.cu` has them.
const THREADS: usize = 256;

/// Threads and blocks of the kernels over mapped memory, as `all_reduce.cu` has them; where rows are normalised, and with two shots, blocks
/// have the threads of a row (`rms_norm.cuh`).
const MAPPED_THREADS: usize = 128;
const MAX_MAPPED_BLOCKS: usize = 128;
const ROW_THREADS: usize = 256;
const MAX_FUSED_ROWS: usize = 64;

/// What ranks tell each other when they join: whether something went well, and a handle.
type Exchanged = [u8; EXCHANGED_BYTES];
const EXCHANGED_BYTES: usize = 80;

/// The name of a group, made by one rank and handed to the others. It is for nobody else.
pub type GroupId = [u8; 128];

/// A rank's GPU among those of its group. All ranks call the same methods with tensors of the same shapes in the same order.
pub struct GpuGroup {
    cuda: Arc<Cuda>,
    communicator: Communicator,
    workspace: DeviceMemory,
    /// If all ranks have mapped each other's memory.
    peers: Option<Peers>,
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
        let mut group = GpuGroup { cuda: cuda.clone(), communicator, workspace, peers: None };
        group.peers = group.map_peers()?;
        Ok(group)
    }

    /// Whether sums are one kernel over mapped memory, on all ranks.
    pub fn has_peer_access(&self) -> bool {
        self.peers.is_some()
    }

    /// Maps the memory of all ranks, if all of them can.
    fn map_peers(&self) -> Result<Option<Peers>> {
        let (rank, ranks) = (self.communicator.rank(), self.communicator.world_size());
        let context = &self.cuda.context;
        // Every exchange is made by all, whatever became of the one before.
        let is_possible = (2..=MAX_RANKS).contains(&ranks) && self.cuda.multiprocessors() >= MIN_MULTIPROCESSORS;
        let own = if is_possible { Region::new(context, ranks).ok() } else { None };
        let said = own.as_ref().map_or([0; EXCHANGED_BYTES], |(_, handle)| {
            let mut said = [1; EXCHANGED_BYTES];
            said[1..=handle.len()].copy_from_slice(handle);
            said
        });
        let said = self.exchange(said)?;
        let all_have = |said: &[Exchanged]| said.iter().all(|said| said[0] == 1);
        let handle = |said: &Exchanged| *said[1..].first_chunk::<64>().expect("what is said is longer");
        let handles: Vec<Handle> = said.iter().map(handle).collect();
        let mapped = own.filter(|_| all_have(&said)).and_then(|(own, _)| own.map(context, rank, &handles).ok());
        let mut is_right = all_have(&self.exchange([u8::from(mapped.is_some()); EXCHANGED_BYTES])?);
        if is_right {
            // Between some GPUs memory can be mapped, and what is written there does not arrive.
            let agrees = mapped.as_ref().is_some_and(|peers| self.sums_agree(peers).unwrap_or(false));
            is_right = all_have(&self.exchange([u8::from(agrees); EXCHANGED_BYTES])?);
        }
        if is_right {
            return Ok(mapped);
        }
        // Memory is freed when nobody has it mapped any more.
        let unmapped = mapped.map(Peers::close);
        self.exchange([0; EXCHANGED_BYTES])?;
        drop(unmapped);
        Ok(None)
    }

    /// Every rank's bytes, in the order of ranks.
    fn exchange(&self, own: Exchanged) -> Result<Vec<Exchanged>> {
        let ranks = self.communicator.world_size();
        let mut all = vec![[0; EXCHANGED_BYTES]; ranks];
        let (context, stream) = (&self.cuda.context, self.stream());
        let from = self.workspace.address() + (ranks * EXCHANGED_BYTES) as u64;
        // SAFETY: the workspace has room for one part more than there are ranks, and nobody else uses it now.
        unsafe { context.upload(from, &own)? };
        self.communicator.launch(PATIENCE, |group| {
            // SAFETY: as above.
            unsafe { group.all_gather(from, self.workspace.address(), EXCHANGED_BYTES, DataType::Uint8, stream) }
        })?;
        // SAFETY: as above.
        unsafe { context.download(self.workspace.address(), all.as_flattened_mut())? };
        Ok(all)
    }

    /// Whether a sum over mapped memory is the one of what is gathered.
    fn sums_agree(&self, peers: &Peers) -> Result<bool> {
        const VECTORS: usize = 1024;
        let own: Vec<u8> = (0..VECTORS * VECTOR)
            .flat_map(|at| half::bf16::from_f32((at * (self.communicator.rank() + 3) % 251) as f32).to_le_bytes())
            .collect();
        let context = &self.cuda.context;
        let [gathered, by_one_shot, by_two_shots] =
            [(); 3].map(|()| DeviceMemory::zeroed(context, own.len(), "a sum over ranks"));
        let sums = [gathered?, by_one_shot?, by_two_shots?];
        for sum in &sums {
            // SAFETY: it holds as many bytes, and is freed when what is asked of it is done.
            unsafe { context.upload(sum.address(), &own)? };
        }
        // SAFETY: all hold as many whole vectors, and are freed when what is asked of them is done.
        unsafe {
            self.sum_gathered(sums[0].address(), VECTORS * VECTOR, DType::Bf16)?;
            self.sum_mapped(peers, Way::OneShot, sums[1].address(), VECTORS, DType::Bf16)?;
            self.sum_mapped(peers, Way::TwoShot, sums[2].address(), VECTORS, DType::Bf16)?;
        }
        let (summed, started) = (Event::new(context)?, Instant::now());
        summed.record()?;
        while !summed.is_passed()? {
            if started.elapsed() > TRIAL_PATIENCE {
                // What others wrote does not arrive.
                peers.abort();
                return Ok(false);
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        let mut bytes = [(); 3].map(|()| vec![0; own.len()]);
        for (sum, bytes) in sums.iter().zip(&mut bytes) {
            // SAFETY: as above.
            unsafe { context.download(sum.address(), bytes)? };
        }
        Ok(bytes[1] == bytes[0] && bytes[2] == bytes[0])
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
        let vectors = x.len() / VECTOR;
        if let Some((peers, way)) = self.peers.as_ref().and_then(|peers| Some((peers, peers.way(vectors, 1)?))) {
            // SAFETY: as many vectors begin there.
            return unsafe { self.sum_mapped(peers, way, x.address(), vectors, dtype) };
        }
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

    /// Sums `x` over all ranks, adds that to `residual` and normalises the result into `out`: as [`all_reduce`](GpuGroup::all_reduce) and
    /// [`add_rms_norm`](crate::ops::add_rms_norm), with their bits, in one kernel where that is possible. `x` is then undefined.
    ///
    /// # Errors
    /// As those two.
    pub fn all_reduce_add_rms_norm(
        &self,
        out: &mut Tensor,
        residual: &mut Tensor,
        x: &mut Tensor,
        scale: RmsScale<'_>,
    ) -> Result<()> {
        const OP: &str = "all_reduce_add_rms_norm";
        let weight = scale.weight;
        let (rows, cols, row) = (x.rows(), x.cols(), x.cols() / VECTOR);
        let Some((peers, way)) = self.peers.as_ref().and_then(|peers| Some((peers, peers.way(rows * row, row)?)))
        else {
            self.all_reduce(x)?;
            return add_rms_norm(out, residual, x, scale);
        };
        expect_on(OP, x.device(), "group", &Device::Cuda(self.cuda.clone()))?;
        expect_activations(OP, &[("x", x), ("out", out), ("residual", residual)])?;
        expect_f32(OP, &[("weight", weight)])?;
        expect_device(OP, x.device(), &[("out", out), ("residual", residual), ("weight", weight)])?;
        expect_matrix(OP, "out", out, rows, cols)?;
        expect_matrix(OP, "residual", residual, rows, cols)?;
        expect_len(OP, "weight", weight, cols)?;
        expect_vectors(OP, cols)?;
        let pointers = |first_row: usize| {
            let start = (first_row * cols * x.dtype().size_bytes()) as u64;
            let rows = [&*out, residual, x].map(|tensor| Argument::Pointer(tensor.address() + start));
            [&rows[..], &[Argument::Pointer(weight.address())]].concat()
        };
        if way == Way::OneShot && rows <= MAX_FUSED_ROWS {
            let arguments = [&pointers(0)[..], &scale.arguments(cols), &peers.arguments(way)].concat();
            // SAFETY: all_reduce.cu: a block per row, few enough to be resident at a time, whole vectors that fit the regions, shapes alike
            // (all checked above); tensors live as long as their stream's work, regions as long as the group.
            return unsafe { self.cuda.launch(KernelName::of(OP, x.dtype()), [rows, 1, 1], ROW_THREADS, &arguments) };
        }
        let name = KernelName::of("all_reduce_two_shot_add_rms_norm", x.dtype());
        let piece = peers.room(Way::TwoShot) / row;
        for first in (0..rows).step_by(piece) {
            let len = piece.min(rows - first);
            let rows = [Argument::count(len)];
            let scale = scale.arguments(cols);
            let arguments = [&pointers(first)[..], &rows, &scale, &peers.arguments(Way::TwoShot)].concat();
            let grid = [len.div_ceil(len.div_ceil(MAX_TWO_SHOT_BLOCKS)), 1, 1];
            // SAFETY: all_reduce_two_shot.cu: as above, of the rows `first..first + len`, with a grid that is the same on all ranks.
            unsafe { self.cuda.launch(name, grid, ROW_THREADS, &arguments)? };
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

    /// Ends what the GPU does for the group: kernels that wait for other ranks return, with results that mean nothing. From then on NCCL's
    /// calls are errors, and sums over mapped memory mean nothing either. Any thread may call it.
    pub fn abort(&self) {
        self.peers.iter().for_each(Peers::abort);
        if self.cuda.context.bind().is_ok() {
            self.communicator.abort();
        }
    }

    /// Everybody sums over mapped memory.
    ///
    /// # Safety
    /// As many vectors begin at `address`.
    unsafe fn sum_mapped(&self, peers: &Peers, way: Way, address: u64, vectors: usize, dtype: DType) -> Result<()> {
        let (base, threads, max_blocks) = match way {
            Way::OneShot => ("all_reduce", MAPPED_THREADS, MAX_MAPPED_BLOCKS),
            Way::TwoShot => ("all_reduce_two_shot", ROW_THREADS, MAX_TWO_SHOT_BLOCKS),
        };
        let (name, piece) = (KernelName::of(base, dtype), peers.room(way));
        for first in (0..vectors).step_by(piece) {
            let len = piece.min(vectors - first);
            let x = address + (first * VECTOR * dtype.size_bytes()) as u64;
            let arguments = [&[Argument::Pointer(x), Argument::count(len)][..], &peers.arguments(way)].concat();
            let grid = [len.div_ceil(threads).min(max_blocks), 1, 1];
            // SAFETY: all_reduce.cu, all_reduce_two_shot.cu: as many vectors (the caller's obligation), which fit the regions; blocks few
            // enough to be resident at a time, and as many on all ranks; regions live as long as the group.
            unsafe { self.cuda.launch(name, grid, threads, &arguments)? };
        }
        Ok(())
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

impl Drop for GpuGroup {
    fn drop(&mut self) {
        // Memory is freed when nobody uses it any more, and a kernel that waits for a rank which is gone would do so for ever.
        self.abort();
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
