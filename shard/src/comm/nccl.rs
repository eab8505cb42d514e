//! Collectives between GPUs. NCCL moves tensors (`kernels::GpuGroup`); the ranks' shared memory does what NCCL does not: it holds
//! every step's stamp against the others', and knows which process is gone.
//!
//! A GPU that waits for a peer waits for ever, and its host with it. So a thread looks after the peers, and ends what the GPU does
//! when one is dead, or when the epoch has ended and the step goes on. After that the communicator is of no more use, and neither are the
//! graphs that hold it: the process has to be started anew (`is_lost`), which the launcher does with all ranks of a group at once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use kernels::ops::RmsScale;
use kernels::{Device, GpuGroup, GroupId, Tensor};

use super::{Comm, GpuCollectives, Shm, StepTag};
use crate::error::{Error, Result};
use crate::limits::{ABORT_GRACE, GPU_JOIN_TIMEOUT, PEER_CHECK_PERIOD};

/// A rank on a GPU among ranks on others.
pub struct Nccl {
    group: Arc<Group>,
    /// Dropped with the rank, which ends the thread that looks after its peers.
    _watched: Sender<()>,
}

struct Group {
    control: Shm,
    gpus: GpuGroup,
    /// Steps that have begun and not finished.
    steps: AtomicUsize,
    /// Since when nobody waits for the present step any more.
    aborted: Mutex<Option<Instant>>,
    failure: OnceLock<Failure>,
}

/// Why the communicator is of no more use.
#[derive(Debug)]
enum Failure {
    Peer { peer: usize, pid: u32 },
    Gpu(kernels::Error),
    EpochEnded,
}

/// What the group waits for, in errors.
const WAITING_FOR: &str = "its GPU";

impl Nccl {
    /// Joins the GPUs of ranks that have met in `control`.
    ///
    /// # Errors
    /// [`Error::Kernel`] without NCCL, or if the GPUs do not find each other; as [`Comm::all_gather`] if a rank ends meanwhile.
    pub fn open(control: Shm, device: &Device) -> Result<Nccl> {
        let (rank, world_size) = (control.rank(), control.world_size());
        let own: GroupId = if rank == 0 { GpuGroup::new_id()? } else { [0; _] };
        // Numbers up to 255: what is sent keeps every bit of them.
        let own = own.map(f32::from);
        let mut of_ranks = vec![0.0; world_size * own.len()];
        control.all_gather(&own, &mut of_ranks)?;
        let id: Vec<u8> = of_ranks[..own.len()].iter().map(|byte| *byte as u8).collect();
        let id = id.try_into().expect("rank 0 sent as many bytes");
        let gpus = GpuGroup::join(device, &id, rank, world_size, GPU_JOIN_TIMEOUT)?;
        let way =
            if gpus.has_peer_access() { "each other's memory" } else { "NCCL, as they do not map each other's memory" };
        tracing::info!("{world_size} GPUs; sums go over {way}");
        let group =
            Group { control, gpus, steps: AtomicUsize::new(0), aborted: Mutex::new(None), failure: OnceLock::new() };
        let (group, (watched, ended)) = (Arc::new(group), bounded(0));
        let watcher = group.clone();
        let name = "gpu-peers".to_owned();
        let spawned = std::thread::Builder::new().name(name).spawn(move || watcher.watch(&ended));
        spawned.expect("a process can start one more thread");
        Ok(Nccl { group, _watched: watched })
    }
}

impl Group {
    /// Looks after the peers until the rank is dropped or one of them is gone.
    fn watch(&self, ended: &Receiver<()>) {
        while ended.recv_timeout(PEER_CHECK_PERIOD) == Err(RecvTimeoutError::Timeout) {
            if let Some(failure) = self.look() {
                // Set before the GPU goes on, so that no step takes its numbers for results.
                let _ = self.failure.set(failure);
                self.gpus.abort();
                return;
            }
        }
    }

    fn look(&self) -> Option<Failure> {
        let peers = (0..self.control.world_size()).filter(|peer| *peer != self.control.rank());
        for peer in peers {
            if let Err(Error::PeerDead { peer, pid, .. }) = self.control.check_alive(peer, WAITING_FOR) {
                return Some(Failure::Peer { peer, pid });
            }
        }
        if let Err(error) = self.gpus.check() {
            return Some(Failure::Gpu(error));
        }
        let is_late = self.aborted().is_some_and(|since| since.elapsed() > ABORT_GRACE);
        (is_late && self.is_in_step()).then_some(Failure::EpochEnded)
    }

    fn is_in_step(&self) -> bool {
        self.steps.load(Ordering::SeqCst) > 0
    }

    fn aborted(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        // An instant is there or not, whoever panicked.
        self.aborted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self) -> Result<()> {
        let waiting_for = WAITING_FOR.to_owned();
        match self.failure.get() {
            None => Ok(()),
            Some(&Failure::Peer { peer, pid }) => Err(Error::PeerDead { peer, pid, waiting_for }),
            Some(Failure::Gpu(error)) => Err(error.clone().into()),
            Some(Failure::EpochEnded) => Err(Error::EpochEnded { waiting_for }),
        }
    }
}

impl Comm for Nccl {
    fn rank(&self) -> usize {
        self.group.control.rank()
    }

    fn world_size(&self) -> usize {
        self.group.control.world_size()
    }

    /// Meets all ranks: whoever has another plan, or none, is named before any GPU waits for its.
    fn begin_step(&self, tag: StepTag) -> Result<()> {
        self.group.check()?;
        self.group.control.begin_step(tag)?;
        self.group.control.barrier()?;
        self.group.steps.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn finish_step(&self) -> Result<()> {
        self.group.check()?;
        self.group.steps.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }

    fn gpus(&self) -> Option<&dyn GpuCollectives> {
        Some(&self.group.gpus)
    }

    /// Also after a step that began and did not finish: other ranks' GPUs may wait for what this one did not do.
    fn is_lost(&self) -> bool {
        self.group.failure.get().is_some() || self.group.is_in_step()
    }

    fn all_reduce(&self, values: &mut [f32]) -> Result<()> {
        self.group.control.all_reduce(values)
    }

    fn all_gather(&self, local: &[f32], out: &mut [f32]) -> Result<()> {
        self.group.control.all_gather(local, out)
    }

    fn barrier(&self) -> Result<()> {
        self.group.control.barrier()
    }

    fn abort(&self) {
        *self.group.aborted() = Some(Instant::now());
        self.group.control.abort();
    }

    fn resume(&self) {
        *self.group.aborted() = None;
        self.group.control.resume();
    }
}

impl GpuCollectives for GpuGroup {
    fn all_reduce(&self, x: &mut Tensor) -> kernels::Result<()> {
        GpuGroup::all_reduce(self, x)
    }

    fn all_reduce_add_rms_norm(
        &self,
        out: &mut Tensor,
        residual: &mut Tensor,
        x: &mut Tensor,
        scale: RmsScale<'_>,
    ) -> kernels::Result<()> {
        GpuGroup::all_reduce_add_rms_norm(self, out, residual, x, scale)
    }

    fn all_gather(&self, local: &Tensor, out: &mut Tensor) -> kernels::Result<()> {
        GpuGroup::all_gather(self, local, out)
    }
}
