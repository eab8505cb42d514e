//! Memory of every rank that all others have mapped, for sums in one kernel: `kernels/cuda/all_reduce.cu` says what lies there.
//!
//! It needs GPUs of one machine that reach each other's memory, each with a process of its own. Whether they do is found out by doing it:
//! only if every rank has mapped all others, and a sum over them is right, do they use it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::memory::{MappedWord, PeerMemory};
use super::{Argument, Context, DeviceMemory};
use crate::Result;

/// Ranks at most, as `all_reduce.cu` has them.
pub(super) const MAX_RANKS: usize = 8;

/// Multiprocessors that the kernels' blocks need to be on a GPU all at a time.
pub(super) const MIN_MULTIPROCESSORS: u32 = 32;

/// Bytes of a sum at most, however few ranks there are, and times the peers to which they are pushed. 2 MiB over all links: with twice
/// as many for flags as for data, that is where NCCL's two steps take as long.
const MAX_BYTES: usize = 1 << 20;
const MAX_PUSHED_BYTES: usize = 2 << 20;

/// Bytes of a vector, and those before the words of a region.
const VECTOR_BYTES: usize = 16;
const HEAD_BYTES: usize = 256;

/// Regions are whole pieces in which the driver maps memory: a handle stands for such a piece.
const MAPPED_BYTES: usize = 2 << 20;

/// What a process gives others to map its memory.
pub(super) type Handle = [u8; 64];

/// This rank's region, before the others' are there.
pub(super) struct Region {
    own: DeviceMemory,
    aborted: MappedWord,
    ranks: usize,
}

/// All of them.
pub(super) struct Peers {
    /// Those of the next rank, of the one after it, and so on. Before this rank's own: dropped in this order, they are closed first.
    peers: Vec<PeerMemory>,
    region: Region,
    rank: usize,
}

/// This rank's region, which others may still have mapped: to be dropped when all have closed it.
pub(super) struct Unmapped {
    _region: Region,
}

impl Region {
    /// One that is empty, and seen to be so by whoever maps it.
    pub(super) fn new(context: &Arc<Context>, ranks: usize) -> Result<(Region, Handle)> {
        let bytes = HEAD_BYTES + 4 * VECTOR_BYTES * ranks * room(ranks);
        let own = DeviceMemory::zeroed(context, bytes.next_multiple_of(MAPPED_BYTES), "sums over ranks")?;
        context.synchronize()?;
        let handle = own.export()?;
        Ok((Region { own, aborted: MappedWord::zeroed(context)?, ranks }, handle))
    }

    /// Maps those of the other ranks, in the order of ranks.
    pub(super) fn map(self, context: &Arc<Context>, rank: usize, handles: &[Handle]) -> Result<Peers> {
        let peers = (1..self.ranks).map(|behind| &handles[(rank + behind) % self.ranks]);
        let peers = peers.map(|handle| PeerMemory::open(context, handle)).collect::<Result<_>>()?;
        Ok(Peers { peers, region: self, rank })
    }
}

impl Peers {
    /// Whether a sum of so many vectors fits.
    pub(super) fn have_room(&self, vectors: usize) -> bool {
        (1..=room(self.region.ranks)).contains(&vectors)
    }

    /// What every kernel is told of the group.
    pub(super) fn arguments(&self) -> Vec<Argument> {
        let Region { own, aborted, ranks } = &self.region;
        let mut arguments = [self.rank, *ranks, room(*ranks)].map(Argument::count).to_vec();
        arguments.extend([aborted.address(), own.address()].map(Argument::Pointer));
        let of_peer = |peer: usize| Argument::Pointer(self.peers.get(peer).map_or(0, PeerMemory::address));
        arguments.extend((0..MAX_RANKS - 1).map(of_peer));
        arguments
    }

    /// Closes the others' regions.
    pub(super) fn close(self) -> Unmapped {
        drop(self.peers);
        Unmapped { _region: self.region }
    }

    /// Kernels that wait for others return.
    pub(super) fn abort(&self) {
        self.region.aborted.word().store(1, Ordering::SeqCst);
    }
}

/// Vectors of a sum at most, the same on all ranks.
fn room(ranks: usize) -> usize {
    MAX_BYTES.min(MAX_PUSHED_BYTES / (ranks - 1).max(1)) / VECTOR_BYTES
}
