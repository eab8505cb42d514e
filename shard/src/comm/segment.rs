//! The shared-memory segment of a rank group: its layout, and how processes find it without leaving it behind.
//!
//! Layout: one header line, one line per rank (who it is, how far it came), then two data buffers per rank. Lines are 128
//! bytes, so that ranks do not write to each other's cache lines (nor to their neighbour, which the prefetcher pairs up).

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use nix::fcntl::{FallocateFlags, OFlag, fallocate};
use nix::sys::mman::{shm_open, shm_unlink};
use nix::sys::stat::Mode;

use super::process::Process;
use super::{CollectiveKind, Stamp, StepTag};
use crate::error::{Error, Result};

/// Every rank alternates between two buffers: see `shm.rs`.
pub(super) const BUFFERS: usize = 2;

/// A mapped segment. Unmapped when dropped; the name is gone as soon as all ranks have attached.
pub(super) struct Segment {
    name: String,
    map: NonNull<u8>,
    bytes: usize,
    world_size: usize,
    /// Floats of one buffer.
    pub(super) buffer_len: usize,
}

// SAFETY: the mapping belongs to no thread. Its header and rank lines are atomics; the buffers are raw memory that is
// reached only through `write` and `read`, whose callers order their accesses by those atomics.
unsafe impl Send for Segment {}
// SAFETY: as for `Send`: shared access goes through atomics or through the unsafe `write` and `read`.
unsafe impl Sync for Segment {}

/// The first line: what all ranks must agree on, and how many are there.
#[repr(C, align(128))]
struct Header {
    /// `world_size << 48 | buffer_len`, written by whoever comes first; 0 before that.
    geometry: AtomicU64,
    /// Ranks that have attached. A futex word.
    attached: AtomicU32,
}

/// One rank's line.
#[repr(C, align(128))]
pub(super) struct RankLine {
    pid: AtomicU32,
    started: AtomicU64,
    /// Collectives this rank has published (modulo 2³²). A futex word.
    pub(super) published: AtomicU32,
    /// Ranks that sleep on `published`.
    pub(super) sleepers: AtomicU32,
    /// Set when the rank leaves or fails: it will publish nothing more.
    pub(super) gone: AtomicU32,
    /// Where the rank is between two epochs: see `lobby.rs`. A futex word.
    pub(super) lobby: AtomicU32,
    stamps: [StampLine; BUFFERS],
}

/// A [`Stamp`] in shared memory.
#[repr(C)]
struct StampLine([AtomicU64; 6]);

impl RankLine {
    /// The process behind the rank; pid 0 before it attached.
    pub(super) fn process(&self) -> Process {
        // `pid` is stored after `started`, so a pid that is seen comes with its start time.
        let pid = self.pid.load(Ordering::Acquire);
        Process { pid, started: self.started.load(Ordering::Relaxed) }
    }

    /// Announces what the rank is about to publish. Ordered by the later release of `published`.
    pub(super) fn set_stamp(&self, buffer: usize, stamp: &Stamp) {
        let StepTag { epoch, seq, plan_hash } = stamp.step;
        let words = [epoch, seq, plan_hash, stamp.index, stamp.kind as u64, stamp.len];
        for (cell, word) in self.stamps[buffer].0.iter().zip(words) {
            cell.store(word, Ordering::Relaxed);
        }
    }

    /// What the rank announced. Ordered by an earlier acquire of `published`.
    pub(super) fn stamp(&self, buffer: usize) -> Stamp {
        let [epoch, seq, plan_hash, index, kind, len] =
            std::array::from_fn(|word| self.stamps[buffer].0[word].load(Ordering::Relaxed));
        let kind = match kind {
            1 => CollectiveKind::AllReduce,
            2 => CollectiveKind::AllGather,
            _ => CollectiveKind::Barrier,
        };
        Stamp { step: StepTag { epoch, seq, plan_hash }, index, kind, len }
    }
}

impl Segment {
    /// Opens the segment `name`, or makes it, and claims the line of `rank`. Whichever rank comes first makes it.
    ///
    /// # Errors
    /// [`Error::SharedMemory`] if the system refuses (most often: /dev/shm is full or too small, as in containers that do
    /// not raise `--shm-size`); [`Error::SegmentInUse`] if the geometry differs or the rank is taken.
    pub(super) fn open(name: &str, rank: usize, world_size: usize, capacity_bytes: usize) -> Result<Segment> {
        assert!(rank < world_size && world_size < 1 << 16, "rank {rank} of {world_size}");
        let fail = |action| move |source: io::Error| Error::SharedMemory { name: name.to_owned(), action, source };
        let buffer_len = (capacity_bytes / size_of::<f32>()).max(1).next_multiple_of(32);
        let bytes =
            size_of::<Header>() + world_size * (size_of::<RankLine>() + BUFFERS * buffer_len * size_of::<f32>());

        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let fd = shm_open(name, OFlag::O_RDWR | OFlag::O_CREAT, mode).map_err(|e| fail("open")(e.into()))?;
        // Reserved, not only sized: on a full /dev/shm the first write to a sparse page would kill the process (SIGBUS).
        // Every rank asks for the same bytes and new ones are zero, so it does not matter who does it first.
        fallocate(&fd, FallocateFlags::empty(), 0, bytes as libc::off_t)
            .map_err(|e| fail("reserve memory (is /dev/shm large enough?)")(e.into()))?;
        // SAFETY: `into_raw_fd` gives up the descriptor, so `File` is its only owner.
        let file = unsafe { File::from_raw_fd(fd.into_raw_fd()) };
        let length = file.metadata().map_err(fail("stat"))?.len();
        // SAFETY: a fresh shared mapping of a file that `fallocate` made at least `bytes` long; nobody shrinks it, since
        // only these lines ever resize it and only upwards.
        let map = unsafe {
            let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
            libc::mmap(std::ptr::null_mut(), bytes, access, flags, std::os::fd::AsRawFd::as_raw_fd(&file), 0)
        };
        if map == libc::MAP_FAILED {
            return Err(fail("map")(io::Error::last_os_error()));
        }
        let map = NonNull::new(map.cast()).expect("mmap does not map at address 0 unless asked to");
        let segment = Segment { name: name.to_owned(), map, bytes, world_size, buffer_len };

        let in_use = |reason: String| Error::SegmentInUse { name: name.to_owned(), reason };
        let geometry = (world_size as u64) << 48 | buffer_len as u64;
        let found = segment.header().geometry.compare_exchange(0, geometry, Ordering::AcqRel, Ordering::Acquire);
        if let Err(other) = found.map_or_else(|other| if other == geometry { Ok(0) } else { Err(other) }, Ok) {
            let (ranks, floats) = (other >> 48, other & 0xffff_ffff_ffff);
            return Err(in_use(format!(
                "made for {ranks} ranks and buffers of {floats} values, this rank expects {world_size} and {buffer_len}"
            )));
        }
        debug_assert!(
            length >= bytes as u64,
            "a rank of another geometry may have reserved more before it was refused"
        );
        segment.claim(rank).map_err(in_use)?;
        Ok(segment)
    }

    /// Writes this process into the rank's line.
    fn claim(&self, rank: usize) -> std::result::Result<(), String> {
        let (line, process) = (self.line(rank), Process::current());
        let free = line.started.compare_exchange(0, process.started.max(1), Ordering::AcqRel, Ordering::Acquire);
        if free.is_err() {
            let holder = line.process();
            if holder.pid != 0 && !holder.is_alive() {
                // Left behind by a group that died while it was starting. The next one gets a fresh segment.
                self.unlink();
                return Err(format!("left behind by process {}, which is dead; removed, start again", holder.pid));
            }
            return Err(format!("rank {rank} is already held by process {}", holder.pid));
        }
        line.pid.store(process.pid, Ordering::Release);
        self.header().attached.fetch_add(1, Ordering::AcqRel);
        futex_wake(&self.header().attached);
        Ok(())
    }

    /// Removes the name: processes that have the segment keep it, and nothing stays behind when they end.
    pub(super) fn unlink(&self) {
        // Every rank does this, so all but the first find it gone.
        let _ = shm_unlink(self.name.as_str());
    }

    /// How many ranks have attached: a futex word.
    pub(super) fn attached(&self) -> &AtomicU32 {
        &self.header().attached
    }

    fn header(&self) -> &Header {
        // SAFETY: the mapping starts with a Header (page-aligned, all of it atomics, zero is a valid value) and lives as
        // long as `self`.
        unsafe { self.map.cast::<Header>().as_ref() }
    }

    /// The line of a rank.
    pub(super) fn line(&self, rank: usize) -> &RankLine {
        assert!(rank < self.world_size);
        let offset = size_of::<Header>() + rank * size_of::<RankLine>();
        // SAFETY: `open` mapped world_size lines behind the header, `rank` is below world_size, both types have size and
        // alignment 128·n, and a line holds nothing but atomics, for which zero is valid.
        unsafe { self.map.add(offset).cast::<RankLine>().as_ref() }
    }

    /// Copies `values` into a buffer of `rank`, from its start.
    ///
    /// # Safety
    /// Nobody else may read or write that buffer until the caller has released it to them through `published`.
    pub(super) unsafe fn write(&self, rank: usize, buffer: usize, values: &[f32]) {
        assert!(values.len() <= self.buffer_len);
        // SAFETY: the source is a slice, the target `buffer_len` floats of the mapping, which no slice aliases; exclusive
        // by this function's contract.
        unsafe { self.buffer(rank, buffer).copy_from_nonoverlapping(NonNull::from(values).cast(), values.len()) };
    }

    /// The first `len` values of a buffer of `rank`.
    ///
    /// # Safety
    /// The caller must have acquired the buffer through `published`, and its owner must not write to it while the slice
    /// lives.
    pub(super) unsafe fn read(&self, rank: usize, buffer: usize, len: usize) -> &[f32] {
        assert!(len <= self.buffer_len);
        // SAFETY: `len` floats inside the mapping, aligned to 128; any bits are a valid f32; not written meanwhile by
        // this function's contract.
        unsafe { std::slice::from_raw_parts(self.buffer(rank, buffer).as_ptr(), len) }
    }

    fn buffer(&self, rank: usize, buffer: usize) -> NonNull<f32> {
        assert!(rank < self.world_size && buffer < BUFFERS);
        let index = rank * BUFFERS + buffer;
        let offset =
            size_of::<Header>() + self.world_size * size_of::<RankLine>() + index * self.buffer_len * size_of::<f32>();
        // SAFETY: `open` mapped world_size · BUFFERS buffers behind the lines, and the index is below that.
        unsafe { self.map.add(offset).cast() }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // SAFETY: `map` and `bytes` are those of the mmap in `open`; references into it borrow `self`, so none is left.
        unsafe { libc::munmap(self.map.as_ptr().cast(), self.bytes) };
    }
}

/// Sleeps until somebody wakes `word`, unless it no longer holds `seen`; at most for `timeout`. May wake early.
pub(super) fn futex_wait(word: &AtomicU32, seen: u32, timeout: std::time::Duration) {
    let timeout =
        libc::timespec { tv_sec: timeout.as_secs() as libc::time_t, tv_nsec: timeout.subsec_nanos() as libc::c_long };
    // SAFETY: FUTEX_WAIT reads `word`, an aligned u32 that outlives the call, and `timeout`, a local. Not FUTEX_PRIVATE:
    // the other side is another process. The result is not needed, since callers look at the word again.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, seen, &raw const timeout) };
}

/// Wakes everybody who sleeps on `word`.
pub(super) fn futex_wake(word: &AtomicU32) {
    // SAFETY: FUTEX_WAKE only uses the address of `word`, which is mapped.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}
