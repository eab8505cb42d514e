//! Memory of every rank that all others have mapped, for sums in one kernel: `kernels/cuda/peers.cuh` says what lies there.
//!
//! There are two such kernels. With one shot every rank sends all others all of its part, and adds everything itself: one way over
//! NVLink, and 2 (n - 1) times the bytes, flags included (`all_reduce.cu`). With two shots a rank adds a share for all: six ways, and
//! 2 (n - 1) / n times the bytes (`all_reduce_two_shot.cu`). Few bytes go the first way, more the second. Neither was measured yet: numbers below are those of the
//! literature.
//!
//! It needs GPUs of one machine that reach each other's memory, each with a process of its own. Whether they do is found out by doing it:
//! only if every rank has mapped all others, and a sum over them is right, do they use it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::memory::{MappedWord, PeerMemory};
use super::{Argument, Context, DeviceMemory};
use crate::Result;

/// Ranks at most, as `peers.cuh` has them.
pub(super) const MAX_RANKS: usize = 8;

/// Multiprocessors that the kernels' blocks need to be on a GPU all at a time.
pub(super) const MIN_MULTIPROCESSORS: u32 = 32;

/// What decides between one shot and two: the bytes that one shot sends beyond those of two, in the time that it needs less. Five ways
/// of 0.7 us at 400 GB/s are 1,400 KB; half of that as data, since one shot sends as many flags. So two ranks take one shot for up to
/// 1.4 MB (85 rows of 8,192), eight for up to 114 KB (7 rows).
const EVEN_BYTES: usize = 700_000;

/// Bytes of a sum with two shots at a time; more goes in pieces of rows. 16 MiB are 1,024 rows of 8,192, and take some 70 us, beside which
/// the ways of one more piece (4 us) are little. Twice as many are mapped: parts and sums.
const PIECE_BYTES: usize = 16 << 20;

/// Bytes from which on a sum is NCCL's: beyond what a chunk of a prompt has (4,096 rows of 8,192). Links are as full with two shots, and the
/// norm needs no kernel of its own; but so far only NCCL is known to fill them.
const MAX_TWO_SHOT_BYTES: usize = 64 << 20;

/// Bytes of a vector, and those before what a kernel has in a region, as `peers.cuh` has them.
const VECTOR_BYTES: usize = 16;
const HEAD_BYTES: usize = 256;

/// Blocks of a kernel with two shots at most, and the bytes of their flags, as `all_reduce_two_shot.cu` has them.
pub(super) const MAX_TWO_SHOT_BLOCKS: usize = 64;
const FLAGS_BYTES: usize = 2 * MAX_TWO_SHOT_BLOCKS * MAX_RANKS * 4;

/// Regions are whole pieces in which the driver maps memory: a handle stands for such a piece.
const MAPPED_BYTES: usize = 2 << 20;

/// What a process gives others to map its memory.
pub(super) type Handle = [u8; 64];

/// A way of a sum over mapped memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Everybody pushes all of its part to all others, and adds what comes.
    OneShot,
    /// Everybody adds a share of all parts, and pushes the sums.
    TwoShot,
}

impl Way {
    /// Vectors of a call at most, the same on all ranks.
    fn room(self, ranks: usize) -> usize {
        match self {
            Way::OneShot => EVEN_BYTES * ranks / ((ranks - 1) * (ranks - 1)).max(1) / VECTOR_BYTES,
            Way::TwoShot => PIECE_BYTES / VECTOR_BYTES,
        }
    }

    /// Bytes of what its kernels have in a region.
    fn bytes(self, ranks: usize) -> usize {
        let room = self.room(ranks);
        match self {
            Way::OneShot => HEAD_BYTES + 4 * VECTOR_BYTES * ranks * room,
            Way::TwoShot => HEAD_BYTES + FLAGS_BYTES + VECTOR_BYTES * (2 * room + MAX_TWO_SHOT_BLOCKS * (ranks - 1)),
        }
    }

    /// Where that begins.
    fn offset(self, ranks: usize) -> usize {
        match self {
            Way::OneShot => 0,
            Way::TwoShot => Way::OneShot.bytes(ranks).next_multiple_of(HEAD_BYTES),
        }
    }
}

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
        let bytes = Way::TwoShot.offset(ranks) + Way::TwoShot.bytes(ranks);
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
    /// How a sum of so many vectors goes, in rows of `row` of them: None if not over mapped memory.
    pub(super) fn way(&self, vectors: usize, row: usize) -> Option<Way> {
        if (1..=self.room(Way::OneShot)).contains(&vectors) {
            return Some(Way::OneShot);
        }
        let is_carried = vectors <= MAX_TWO_SHOT_BYTES / VECTOR_BYTES && row <= self.room(Way::TwoShot);
        (vectors > 0 && is_carried).then_some(Way::TwoShot)
    }

    /// Vectors of a call at most.
    pub(super) fn room(&self, way: Way) -> usize {
        way.room(self.region.ranks)
    }

    /// What every kernel of a way is told of the group.
    pub(super) fn arguments(&self, way: Way) -> Vec<Argument> {
        let Region { own, aborted, ranks } = &self.region;
        let offset = way.offset(*ranks) as u64;
        let mut arguments = [self.rank, *ranks, way.room(*ranks)].map(Argument::count).to_vec();
        arguments.extend([aborted.address(), own.address() + offset].map(Argument::Pointer));
        let of_peer = |peer: usize| Argument::Pointer(self.peers.get(peer).map_or(0, |peer| peer.address() + offset));
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
