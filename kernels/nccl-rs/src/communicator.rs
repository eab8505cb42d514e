//! A rank's place in a group, and what ranks do together.

use std::ffi::c_void;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::ffi::{self, CommPtr, Config, DataType, RawUniqueId, ReduceOp};
use crate::{Error, Nccl, Result};

/// The name of a group of ranks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct UniqueId(
    /// Bytes without meaning to anybody but NCCL. They say where the first rank listens, so they are for its peers only.
    pub [u8; ffi::UNIQUE_ID_BYTES],
);

/// An address in a device's memory, as `CUdeviceptr`.
pub type DevicePtr = u64;

/// A stream of the driver, as the number of its `CUstream`; 0 is the default stream.
pub type Stream = usize;

/// A rank of a group. Any thread may use it, and any other may [abort](Communicator::abort) it meanwhile. Dropping it aborts it too:
/// an orderly end, which waits for the peers, is [`close`](Communicator::close).
pub struct Communicator {
    nccl: Nccl,
    rank: usize,
    world_size: usize,
    /// Null when it has ended. Held during every call, all of which return at once, so that nobody ends it under another's feet.
    comm: Mutex<Raw>,
}

struct Raw(CommPtr);

// SAFETY: NCCL's communicators belong to no thread; that two threads do not use one at the same time is the mutex's business.
unsafe impl Send for Raw {}

impl Communicator {
    /// Joins the group `id` as `rank` of `world_size`, on the device that is current on this thread. Returns when all ranks have
    /// joined.
    ///
    /// # Errors
    /// [`Error::Rank`]; [`Error::Failed`]; [`Error::Timeout`] if after `patience` some rank is still missing.
    pub fn join(
        nccl: &Nccl,
        id: &UniqueId,
        rank: usize,
        world_size: usize,
        patience: Duration,
    ) -> Result<Communicator> {
        let (Ok(raw_rank), Ok(raw_size)) = (i32::try_from(rank), i32::try_from(world_size)) else {
            return Err(Error::Rank { rank, world_size });
        };
        if rank >= world_size {
            return Err(Error::Rank { rank, world_size });
        }
        const CALL: &str = "ncclCommInitRankConfig";
        let (mut comm, mut config) = (std::ptr::null_mut(), Config::NONBLOCKING);
        // SAFETY: both places are what the function writes and reads, and live during the call; the id is passed by value, and
        // the library copies the configuration before it returns.
        let result = unsafe {
            let id = RawUniqueId(id.0);
            (nccl.functions.comm_init_rank_config)(&raw mut comm, raw_size, id, raw_rank, &raw mut config)
        };
        // From here on its end is the end of what the library began.
        let communicator = Communicator { nccl: nccl.clone(), rank, world_size, comm: Mutex::new(Raw(comm)) };
        communicator.complete(CALL, result, patience)?;
        Ok(communicator)
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of ranks.
    pub fn world_size(&self) -> usize {
        self.world_size
    }

    /// Enqueues what `enqueue` asks for as one group: either all of it begins, or the group fails. Returns when the library has
    /// enqueued it; the streams run it later, or record it if they are capturing a graph.
    ///
    /// # Errors
    /// What `enqueue` returns; [`Error::Failed`]; [`Error::Timeout`] after `patience`: then abort; [`Error::Unusable`].
    pub fn launch<T>(&self, patience: Duration, enqueue: impl FnOnce(&Group<'_>) -> Result<T>) -> Result<T> {
        let functions = &self.nccl.functions;
        let raw = self.usable("ncclGroupStart")?;
        // SAFETY: the function has no arguments; the group that it begins on this thread ends below, whatever `enqueue` returns.
        functions.check("ncclGroupStart", unsafe { (functions.group_start)() }, Some(raw.0))?;
        let group = Group { communicator: self, comm: raw.0 };
        // Also a panic must not leave the thread in a group.
        let enqueued = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| enqueue(&group)));
        // SAFETY: as above; the communicator of the group is alive, because its lock is held.
        let result = unsafe { (functions.group_end)() };
        drop(raw);
        let enqueued = enqueued.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        self.complete("ncclGroupEnd", result, patience)?;
        Ok(enqueued)
    }

    /// Asks whether something has failed since: a peer that is gone shows here, while the stream waits for it. What a watchdog calls.
    ///
    /// # Errors
    /// [`Error::Failed`], after which only [`abort`](Communicator::abort) is of use; [`Error::Unusable`].
    pub fn check(&self) -> Result<()> {
        const CALL: &str = "ncclCommGetAsyncError";
        let state = self.state(CALL)?;
        match state {
            ffi::IN_PROGRESS => Ok(()),
            state => self.failure(CALL, state),
        }
    }

    /// Ends it at once, with all that it has in flight: kernels that wait for a peer on the device return. Once is enough.
    pub fn abort(&self) {
        let mut raw = self.lock();
        let comm = std::mem::replace(&mut raw.0, std::ptr::null_mut());
        if !comm.is_null() {
            // SAFETY: the communicator was alive, and from now on nobody finds it. What the call returns changes nothing: there
            // is no gentler way.
            let _ = unsafe { (self.nccl.functions.comm_abort)(comm) };
        }
    }

    /// Ends it when all that it has in flight is done on every rank.
    ///
    /// # Errors
    /// [`Error::Failed`]; [`Error::Timeout`] after `patience`; [`Error::Unusable`]. It is aborted then.
    pub fn close(self, patience: Duration) -> Result<()> {
        const CALL: &str = "ncclCommFinalize";
        let functions = &self.nccl.functions;
        let raw = self.usable(CALL)?;
        // SAFETY: the communicator is alive: it is not null, and the lock is held.
        let result = unsafe { (functions.comm_finalize)(raw.0) };
        drop(raw);
        self.complete(CALL, result, patience)?;
        let mut raw = self.usable("ncclCommDestroy")?;
        let comm = std::mem::replace(&mut raw.0, std::ptr::null_mut());
        // SAFETY: as above; it is finalized, and from now on nobody finds it.
        functions.check("ncclCommDestroy", unsafe { (functions.comm_destroy)(comm) }, None)
    }

    /// Waits until what returned `result` is complete.
    fn complete(&self, call: &'static str, mut result: ffi::RawResult, patience: Duration) -> Result<()> {
        let start = Instant::now();
        while result == ffi::IN_PROGRESS {
            let waited = start.elapsed();
            if waited >= patience {
                return Err(Error::Timeout { call, waited });
            }
            // A step's collective is enqueued in microseconds; joining takes seconds, in which nobody should be kept busy.
            match waited < SPIN {
                true => std::thread::yield_now(),
                false => std::thread::sleep(NAP.min(patience - waited)),
            }
            result = self.state(call)?;
        }
        self.failure(call, result)
    }

    /// What the library says of it at this moment.
    fn state(&self, call: &'static str) -> Result<ffi::RawResult> {
        let raw = self.usable(call)?;
        let (functions, mut state) = (&self.nccl.functions, ffi::SUCCESS);
        // SAFETY: the communicator is alive, because it is not null and the lock is held; the place is an integer of ours.
        let result = unsafe { (functions.comm_get_async_error)(raw.0, &raw mut state) };
        functions.check("ncclCommGetAsyncError", result, Some(raw.0))?;
        Ok(state)
    }

    /// The error that `result` stands for.
    fn failure(&self, call: &'static str, result: ffi::RawResult) -> Result<()> {
        let raw = self.lock();
        self.nccl.functions.check(call, result, Some(raw.0).filter(|comm| !comm.is_null()))
    }

    fn usable(&self, call: &'static str) -> Result<MutexGuard<'_, Raw>> {
        let raw = self.lock();
        if raw.0.is_null() { Err(Error::Unusable { call }) } else { Ok(raw) }
    }

    fn lock(&self) -> MutexGuard<'_, Raw> {
        // A panic under the lock leaves the pointer as it was: alive or null.
        self.comm.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long completion is looked for without a pause between two looks.
const SPIN: Duration = Duration::from_micros(200);

/// The pause after that.
const NAP: Duration = Duration::from_micros(200);

impl Drop for Communicator {
    fn drop(&mut self) {
        self.abort();
    }
}

/// What is enqueued together. Buffers are of this rank's device; `count` is in elements.
///
/// # Safety
/// Of all methods: every buffer is memory of the communicator's device, as large as the method says, and stays so until the stream has
/// passed the call, or every replay of the graph that records it; `stream` is a stream of that device; and all ranks enqueue
/// the same calls with the same counts and types, in the same order.
pub struct Group<'a> {
    communicator: &'a Communicator,
    comm: CommPtr,
}

impl Group<'_> {
    /// `recv[i]` becomes the reduction of all ranks' `send[i]`; both of `count` elements, which may be the same memory.
    ///
    /// # Safety
    /// See [`Group`].
    /// # Errors
    /// [`Error::Failed`].
    pub unsafe fn all_reduce(
        &self,
        send: DevicePtr,
        recv: DevicePtr,
        count: usize,
        data_type: DataType,
        op: ReduceOp,
        stream: Stream,
    ) -> Result<()> {
        let call = self.communicator.nccl.functions.all_reduce;
        // SAFETY: what this method asks for is what `reduce` does.
        unsafe { self.reduce("ncclAllReduce", call, send, recv, count, data_type, op, stream) }
    }

    /// `recv[i]`, of `count` elements, becomes the reduction of all ranks' `send[rank · count + i]`.
    ///
    /// # Safety
    /// See [`Group`].
    /// # Errors
    /// [`Error::Failed`].
    pub unsafe fn reduce_scatter(
        &self,
        send: DevicePtr,
        recv: DevicePtr,
        count: usize,
        data_type: DataType,
        op: ReduceOp,
        stream: Stream,
    ) -> Result<()> {
        let call = self.communicator.nccl.functions.reduce_scatter;
        // SAFETY: as in `all_reduce`.
        unsafe { self.reduce("ncclReduceScatter", call, send, recv, count, data_type, op, stream) }
    }

    /// `recv[r · count + i]` becomes rank r's `send[i]`, of `count` elements.
    ///
    /// # Safety
    /// See [`Group`].
    /// # Errors
    /// [`Error::Failed`].
    pub unsafe fn all_gather(
        &self,
        send: DevicePtr,
        recv: DevicePtr,
        count: usize,
        data_type: DataType,
        stream: Stream,
    ) -> Result<()> {
        let call = self.communicator.nccl.functions.all_gather;
        // SAFETY: as in `reduce`.
        let result = unsafe { call(read(send), write(recv), count, data_type, self.comm, stream as *mut c_void) };
        self.check("ncclAllGather", result)
    }

    /// `recv` becomes `root`'s `send`, both of `count` elements; `send` is read on `root` only.
    ///
    /// # Safety
    /// See [`Group`].
    /// # Errors
    /// [`Error::Rank`], [`Error::Failed`].
    pub unsafe fn broadcast(
        &self,
        send: DevicePtr,
        recv: DevicePtr,
        count: usize,
        data_type: DataType,
        root: usize,
        stream: Stream,
    ) -> Result<()> {
        let (call, root) = (self.communicator.nccl.functions.broadcast, self.peer(root)?);
        // SAFETY: as in `reduce`.
        let result = unsafe { call(read(send), write(recv), count, data_type, root, self.comm, stream as *mut c_void) };
        self.check("ncclBroadcast", result)
    }

    /// Sends `count` elements to `peer`, which receives as many in a call of its own.
    ///
    /// # Safety
    /// See [`Group`].
    /// # Errors
    /// [`Error::Rank`], [`Error::Failed`].
    pub unsafe fn send(
        &self,
        buffer: DevicePtr,
        count: usize,
        data_type: DataType,
        peer: usize,
        stream: Stream,
    ) -> Result<()> {
        let (call, peer) = (self.communicator.nccl.functions.send, self.peer(peer)?);
        // SAFETY: as in `reduce`.
        let result = unsafe { call(read(buffer), count, data_type, peer, self.comm, stream as *mut c_void) };
        self.check("ncclSend", result)
    }

    /// Receives `count` elements from `peer`, which sends as many in a call of its own.
    ///
    /// # Safety
    /// See [`Group`].
    /// # Errors
    /// [`Error::Rank`], [`Error::Failed`].
    pub unsafe fn recv(
        &self,
        buffer: DevicePtr,
        count: usize,
        data_type: DataType,
        peer: usize,
        stream: Stream,
    ) -> Result<()> {
        let (call, peer) = (self.communicator.nccl.functions.recv, self.peer(peer)?);
        // SAFETY: as in `reduce`.
        let result = unsafe { call(write(buffer), count, data_type, peer, self.comm, stream as *mut c_void) };
        self.check("ncclRecv", result)
    }

    /// One of the two functions that reduce.
    ///
    /// # Safety
    /// See [`Group`].
    unsafe fn reduce(
        &self,
        name: &'static str,
        call: ffi::Reduce,
        send: DevicePtr,
        recv: DevicePtr,
        count: usize,
        data_type: DataType,
        op: ReduceOp,
        stream: Stream,
    ) -> Result<()> {
        // SAFETY: the communicator is alive, because `launch` holds its lock; buffers and stream are the caller's obligation.
        let result = unsafe { call(read(send), write(recv), count, data_type, op, self.comm, stream as *mut c_void) };
        self.check(name, result)
    }

    fn peer(&self, rank: usize) -> Result<i32> {
        let world_size = self.communicator.world_size;
        let known = i32::try_from(rank).ok().filter(|_| rank < world_size);
        known.ok_or(Error::Rank { rank, world_size })
    }

    /// A call in a group may be in progress: `launch` waits for all of them.
    fn check(&self, call: &'static str, result: ffi::RawResult) -> Result<()> {
        match result {
            ffi::IN_PROGRESS => Ok(()),
            result => self.communicator.nccl.functions.check(call, result, Some(self.comm)),
        }
    }
}

fn read(address: DevicePtr) -> *const c_void {
    address as usize as *const c_void
}

fn write(address: DevicePtr) -> *mut c_void {
    address as usize as *mut c_void
}
