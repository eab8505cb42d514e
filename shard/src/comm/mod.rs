//! Collectives between the ranks of a tensor-parallel group.
//!
//! The rule that makes ranks agree in every bit: sums run in the order of ranks 0..n−1 in f32, whoever computes them.
//! A new transport is one file that implements [`Comm`].
//!
//! Ranks on GPUs have both: NCCL moves tensors between their GPUs, shared memory holds the processes together.

mod lobby;
mod nccl;
mod process;
mod segment;
mod shm;
mod single;

pub use nccl::Nccl;
pub use shm::{Shm, ShmOptions};
pub use single::Single;

use kernels::Tensor;
use kernels::ops::RmsScale;

use crate::error::Result;

/// What the collectives of one rank group can do. Every rank calls the same collectives in the same order.
pub trait Comm: Send + Sync {
    /// This rank, `0..world_size`.
    fn rank(&self) -> usize;

    /// Number of ranks in the group.
    fn world_size(&self) -> usize;

    /// Names the step to which the following collectives belong. Every rank must name the same one.
    ///
    /// # Errors
    /// As [`Comm::all_reduce`], where ranks meet here already.
    fn begin_step(&self, tag: StepTag) -> Result<()>;

    /// Asks, when its device has done all of them, whether the collectives of a step were what they should be: a GPU whose peer is gone
    /// goes on with numbers that mean nothing.
    ///
    /// # Errors
    /// As [`Comm::all_reduce`].
    fn finish_step(&self) -> Result<()> {
        Ok(())
    }

    /// The group of the GPUs on which tensors live, if they do: then tensors are summed and gathered there.
    fn gpus(&self) -> Option<&dyn GpuCollectives> {
        None
    }

    /// Whether nothing but a new process will make collectives work again.
    fn is_lost(&self) -> bool {
        false
    }

    /// Replaces `values` by its element-wise sum over all ranks, added in rank order.
    ///
    /// # Errors
    /// If a rank is dead, late, or at another collective; the error names it. Afterwards every collective fails.
    fn all_reduce(&self, values: &mut [f32]) -> Result<()>;

    /// Concatenates every rank's `local` in rank order; `out` holds `world_size · local.len()` values.
    ///
    /// # Errors
    /// As [`Comm::all_reduce`].
    fn all_gather(&self, local: &[f32], out: &mut [f32]) -> Result<()>;

    /// Returns once every rank has called it.
    ///
    /// # Errors
    /// As [`Comm::all_reduce`].
    fn barrier(&self) -> Result<()>;

    /// Makes the collective in flight on this rank, and all later ones, fail until [`Comm::resume`]. Called from another
    /// thread when this rank's plans stop coming, because its peers may then wait for ever, or it for them.
    fn abort(&self) {}

    /// Lets collectives run again, in an epoch that is new to every rank. Called between steps.
    fn resume(&self) {}
}

/// What the GPUs of a group do for tensors that live there. Every rank asks for the same, with tensors of the same shapes, in the same order.
pub trait GpuCollectives: Send + Sync {
    /// Replaces `x` by its sum over all ranks, added in rank order in f32 and rounded once.
    ///
    /// # Errors
    /// As [`GpuGroup::all_reduce`](kernels::GpuGroup::all_reduce).
    fn all_reduce(&self, x: &mut Tensor) -> kernels::Result<()>;

    /// Sums `x` over all ranks, adds that to `residual` and normalises the result into `out`; `x` is then undefined.
    ///
    /// # Errors
    /// As [`GpuGroup::all_reduce_add_rms_norm`](kernels::GpuGroup::all_reduce_add_rms_norm).
    fn all_reduce_add_rms_norm(
        &self,
        out: &mut Tensor,
        residual: &mut Tensor,
        x: &mut Tensor,
        scale: RmsScale<'_>,
    ) -> kernels::Result<()>;

    /// `out` (`[ranks, ...]`) becomes every rank's `local`, in rank order; both f32.
    ///
    /// # Errors
    /// As [`GpuGroup::all_gather`](kernels::GpuGroup::all_gather).
    fn all_gather(&self, local: &Tensor, out: &mut Tensor) -> kernels::Result<()>;
}

/// The step a collective belongs to. Ranks that execute different plans are found out at their first collective.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepTag {
    /// The life of the shard group.
    pub epoch: u64,
    /// The plan's number within the epoch.
    pub seq: u64,
    /// A hash over the plan's contents.
    pub plan_hash: u64,
}

/// Which collective a rank is at: the step, and what it does there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// The step.
    pub step: StepTag,
    /// Collectives of this step before this one.
    pub index: u64,
    /// What kind of collective.
    pub kind: CollectiveKind,
    /// Values each rank contributes.
    pub len: u64,
}

/// The kinds of collectives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u64)]
pub enum CollectiveKind {
    /// [`Comm::barrier`].
    #[default]
    Barrier = 0,
    /// [`Comm::all_reduce`].
    AllReduce = 1,
    /// [`Comm::all_gather`].
    AllGather = 2,
}

impl std::fmt::Display for Stamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let StepTag { epoch, seq, plan_hash } = self.step;
        write!(
            f,
            "epoch {epoch}, step {seq}, plan {plan_hash:016x}, collective {} ({:?} of {} values)",
            self.index, self.kind, self.len
        )
    }
}
