//! Collectives over shared memory, between CPU ranks in processes of one machine.
//!
//! One collective is: write my part into my buffer, stamp it, publish it (count up and wake), wait until every peer has
//! published as many, compare the stamps, read all parts. Every rank adds up all parts itself, in rank order: one wait per
//! collective. (The two-shot form, in which each rank adds one chunk and then gathers, halves the reading at four ranks
//! but waits twice; at the sizes of a decode step the wait is the cost.)
//!
//! Two buffers per rank make that single wait enough. A rank writes buffer n % 2 in collective n after it saw everybody
//! publish n − 1, and whoever published n − 1 had finished reading n − 2, the last use of that buffer.
//!
//! Ranks may outnumber the cores, so a wait spins only briefly and then sleeps on a futex.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::segment::{BUFFERS, Segment, futex_wait, futex_wake};
use super::{CollectiveKind, Comm, Stamp, StepTag};
use crate::error::{Error, Result};
use crate::limits::{COLLECTIVE_SPIN, COLLECTIVE_TIMEOUT, PEER_CHECK_PERIOD, RANKS_ATTACH_TIMEOUT, SHM_BUFFER_BYTES};

/// A rank of a group over shared memory.
pub struct Shm {
    pub(super) segment: Segment,
    pub(super) rank: usize,
    pub(super) world_size: usize,
    pub(super) options: ShmOptions,
    /// Whether to spin before sleeping: only if every rank can have a core.
    spins: bool,
    /// Set while no plans come: see [`Comm::abort`].
    pub(super) aborted: AtomicBool,
    state: Mutex<State>,
}

/// How a group behaves. Every rank must use the same `capacity_bytes`.
#[derive(Clone, Copy, Debug)]
pub struct ShmOptions {
    /// Bytes of one buffer. Longer collectives go in pieces.
    pub capacity_bytes: usize,
    /// How long to wait at start-up for the other ranks to attach.
    pub attach_timeout: Duration,
    /// How long to wait in a collective for the slowest rank.
    pub timeout: Duration,
}

impl Default for ShmOptions {
    fn default() -> ShmOptions {
        ShmOptions {
            capacity_bytes: SHM_BUFFER_BYTES,
            attach_timeout: RANKS_ATTACH_TIMEOUT,
            timeout: COLLECTIVE_TIMEOUT,
        }
    }
}

#[derive(Default)]
struct State {
    step: StepTag,
    /// Collectives of this step so far.
    index: u64,
    /// Collectives ever, modulo 2³².
    published: u32,
    failed: bool,
    /// Whether the peers must be met before the next collective.
    outside: bool,
}

impl Shm {
    /// Joins the group `name` ("/" and at most 250 other characters without "/"), made by whichever rank comes first,
    /// and waits until all ranks have joined. `capacity_bytes` is the size of one buffer.
    ///
    /// # Errors
    /// See [`Shm::open_with`].
    pub fn open(name: &str, rank: usize, world_size: usize, capacity_bytes: usize) -> Result<Shm> {
        Shm::open_with(name, rank, world_size, ShmOptions { capacity_bytes, ..ShmOptions::default() })
    }

    /// [`Shm::open`] with every option.
    ///
    /// # Errors
    /// [`Error::SharedMemory`], [`Error::SegmentInUse`], or [`Error::PeerDead`] / [`Error::PeerTimeout`] naming a rank that
    /// died or did not come. The name is removed in every case but [`Error::SegmentInUse`], where others may hold it.
    pub fn open_with(name: &str, rank: usize, world_size: usize, options: ShmOptions) -> Result<Shm> {
        let segment = Segment::open(name, rank, world_size, options.capacity_bytes)?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let spins = world_size <= cores;
        let comm =
            Shm { segment, rank, world_size, options, spins, aborted: AtomicBool::new(false), state: Mutex::default() };
        let joined = comm.wait_for_all_to_attach();
        comm.segment.unlink();
        joined.map(|()| comm)
    }

    fn wait_for_all_to_attach(&self) -> Result<()> {
        let (word, started) = (self.segment.attached(), Instant::now());
        loop {
            let attached = word.load(Ordering::Acquire);
            if attached as usize == self.world_size {
                return Ok(());
            }
            for peer in 0..self.world_size {
                self.check_alive(peer, "to attach")?;
            }
            let waited = started.elapsed();
            if waited >= self.options.attach_timeout {
                let missing = (0..self.world_size).find(|peer| self.segment.line(*peer).process().pid == 0);
                return Err(Error::PeerTimeout {
                    peer: missing.unwrap_or(self.rank),
                    waited_ms: waited.as_millis(),
                    waiting_for: "to attach".to_owned(),
                });
            }
            futex_wait(word, attached, PEER_CHECK_PERIOD.min(self.options.attach_timeout - waited));
        }
    }

    /// One round of a collective of `len` values per rank: publishes `part`, waits for every rank, compares stamps.
    /// Nothing overwrites the returned parts while they are borrowed, since that takes the `state` of the next round.
    fn exchange<'s>(
        &'s self,
        state: &'s mut State,
        kind: CollectiveKind,
        len: usize,
        part: &[f32],
    ) -> Result<Parts<'s>> {
        if state.failed {
            return Err(Error::GroupFailed);
        }
        if state.outside {
            self.meet(state.step.epoch).inspect_err(|_| state.failed = true)?;
            (state.published, state.outside) = (0, false);
        }
        let stamp = Stamp { step: state.step, index: state.index, kind, len: len as u64 };
        let (round, buffer) = (state.published.wrapping_add(1), state.published as usize % BUFFERS);
        let mine = self.segment.line(self.rank);
        // SAFETY: this rank last published this buffer in round − 2 and has seen every peer publish round − 1, which
        // they do after their last read of round − 2; and no `Parts` of this rank is alive, since that borrows `state`.
        unsafe { self.segment.write(self.rank, buffer, part) };
        mine.set_stamp(buffer, &stamp);
        (state.published, state.index) = (round, state.index + 1);
        // SeqCst with the sleepers' count: either this rank sees the sleeper, or the sleeper sees this round.
        mine.published.store(round, Ordering::SeqCst);
        if mine.sleepers.load(Ordering::SeqCst) > 0 {
            futex_wake(&mine.published);
        }

        let arrived = (0..self.world_size).try_for_each(|peer| self.wait_for(peer, round, &stamp));
        if let Err(error) = arrived.and_then(|()| self.check_stamps(buffer)) {
            state.failed = true;
            self.leave();
            return Err(error);
        }
        Ok(Parts { comm: self, buffer, len: part.len(), _state: state })
    }

    /// Returns once `peer` has published `round`.
    fn wait_for(&self, peer: usize, round: u32, stamp: &Stamp) -> Result<()> {
        let line = self.segment.line(peer);
        // Both count rounds modulo 2³² and are at most one apart.
        let arrived = |published: u32| published.wrapping_sub(round) as i32 >= 0;
        let started = Instant::now();
        let mut spins = 0_u32;
        while self.spins && !arrived(line.published.load(Ordering::Acquire)) {
            std::hint::spin_loop();
            spins += 1;
            // Reading the clock is dearer than a turn of this loop.
            if spins.is_multiple_of(64) && started.elapsed() > COLLECTIVE_SPIN {
                break;
            }
        }
        loop {
            let published = line.published.load(Ordering::Acquire);
            if arrived(published) {
                return Ok(());
            }
            let waited = started.elapsed();
            if self.aborted.load(Ordering::Acquire) {
                return Err(Error::EpochEnded { waiting_for: stamp.to_string() });
            }
            if line.gone.load(Ordering::Acquire) != 0 && !arrived(line.published.load(Ordering::Acquire)) {
                let pid = line.process().pid;
                return Err(Error::PeerDead { peer, pid, waiting_for: stamp.to_string() });
            }
            if waited >= PEER_CHECK_PERIOD {
                self.check_alive(peer, stamp)?;
            }
            if waited >= self.options.timeout {
                return Err(Error::PeerTimeout { peer, waited_ms: waited.as_millis(), waiting_for: stamp.to_string() });
            }
            line.sleepers.fetch_add(1, Ordering::SeqCst);
            // The futex compares once more inside the kernel, so a publication in between is not slept through.
            futex_wait(&line.published, published, PEER_CHECK_PERIOD.min(self.options.timeout - waited));
            line.sleepers.fetch_sub(1, Ordering::SeqCst);
        }
    }

    pub(super) fn check_alive(&self, peer: usize, waiting_for: impl std::fmt::Display) -> Result<()> {
        let process = self.segment.line(peer).process();
        if process.pid != 0 && !process.is_alive() {
            return Err(Error::PeerDead { peer, pid: process.pid, waiting_for: waiting_for.to_string() });
        }
        Ok(())
    }

    /// Every rank must be at the same collective; every rank comes to the same verdict.
    fn check_stamps(&self, buffer: usize) -> Result<()> {
        let stamp = |rank| self.segment.line(rank).stamp(buffer);
        let expected = stamp(0);
        if (1..self.world_size).all(|rank| stamp(rank) == expected) {
            return Ok(());
        }
        let votes = |candidate: &Stamp| (0..self.world_size).filter(|rank| stamp(*rank) == *candidate).count();
        // The first of the greatest, so that a draw goes to rank 0.
        let expected = (0..self.world_size).rev().map(stamp).max_by_key(votes).expect("a group has ranks");
        let guilty = (0..self.world_size).find(|rank| stamp(*rank) != expected).expect("two stamps differ");
        Err(Error::RankMismatch { guilty, expected: Box::new(expected), actual: Box::new(stamp(guilty)) })
    }

    /// Tells the peers not to wait for this rank any more.
    fn leave(&self) {
        let line = self.segment.line(self.rank);
        line.gone.store(1, Ordering::SeqCst);
        futex_wake(&line.published);
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // A panic inside a collective leaves no round half done that a later one could not detect by its stamp.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for Shm {
    fn drop(&mut self) {
        self.leave();
    }
}

/// What every rank published in one round.
struct Parts<'s> {
    comm: &'s Shm,
    buffer: usize,
    len: usize,
    /// Taken by the next round, so parts do not outlive theirs.
    _state: &'s mut State,
}

impl Parts<'_> {
    fn of(&self, rank: usize) -> &[f32] {
        // SAFETY: `exchange` acquired this round of `rank`; its owner writes this buffer again only two rounds on, for
        // which it must see this rank publish the next round, and that takes `_state`.
        unsafe { self.comm.segment.read(rank, self.buffer, self.len) }
    }
}

impl Comm for Shm {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn begin_step(&self, tag: StepTag) -> Result<()> {
        let mut state = self.state();
        (state.step, state.index) = (tag, 0);
        Ok(())
    }

    fn all_reduce(&self, values: &mut [f32]) -> Result<()> {
        let (mut state, len) = (self.state(), values.len());
        for piece in values.chunks_mut(self.segment.buffer_len) {
            let parts = self.exchange(&mut state, CollectiveKind::AllReduce, len, piece)?;
            piece.copy_from_slice(parts.of(0));
            for rank in 1..self.world_size {
                piece.iter_mut().zip(parts.of(rank)).for_each(|(sum, value)| *sum += value);
            }
        }
        Ok(())
    }

    fn all_gather(&self, local: &[f32], out: &mut [f32]) -> Result<()> {
        assert_eq!(out.len(), self.world_size * local.len(), "all_gather: `out` holds one part per rank");
        let (mut state, len, mut done) = (self.state(), local.len(), 0);
        for piece in local.chunks(self.segment.buffer_len) {
            let parts = self.exchange(&mut state, CollectiveKind::AllGather, len, piece)?;
            for rank in 0..self.world_size {
                out[rank * len + done..][..piece.len()].copy_from_slice(parts.of(rank));
            }
            done += piece.len();
        }
        Ok(())
    }

    fn barrier(&self) -> Result<()> {
        self.exchange(&mut self.state(), CollectiveKind::Barrier, 0, &[]).map(drop)
    }

    fn abort(&self) {
        self.aborted.store(true, Ordering::SeqCst);
        // The rank may sleep on a peer's word.
        for peer in 0..self.world_size {
            let line = self.segment.line(peer);
            futex_wake(&line.published);
            futex_wake(&line.lobby);
        }
    }

    fn resume(&self) {
        let mut state = self.state();
        self.leave_epoch();
        (state.failed, state.outside) = (false, true);
        self.aborted.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn unique_name() -> String {
        static COUNTER: AtomicUsize = AtomicUsize::new(0);
        format!("/tgi-shm-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed))
    }

    /// Runs `f` as every rank, each on its own thread. Buffers hold 32 values, so that most collectives go in pieces.
    fn group<T: Send>(world_size: usize, timeout: Duration, f: impl Fn(&Shm) -> T + Sync) -> Vec<T> {
        let name = unique_name();
        let options = ShmOptions { capacity_bytes: 128, timeout, ..ShmOptions::default() };
        std::thread::scope(|scope| {
            let (name, f) = (&name, &f);
            let start = |rank| scope.spawn(move || f(&Shm::open_with(name, rank, world_size, options).unwrap()));
            let ranks: Vec<_> = (0..world_size).map(start).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    const PATIENT: Duration = Duration::from_secs(60);

    #[test]
    fn sums_run_in_rank_order_in_f32() {
        // Any other order or a wider accumulator gives another sum.
        let parts = [1e8_f32, 1.0, -1e8, 0.25];
        for world_size in [1, 2, 4] {
            for len in [0, 1, 31, 32, 33, 1000] {
                let sums = group(world_size, PATIENT, |comm| {
                    let mut values = vec![parts[comm.rank()]; len];
                    comm.all_reduce(&mut values).unwrap();
                    values
                });
                let expected = parts[1..world_size].iter().fold(parts[0], |sum, part| sum + part);
                assert!(sums.iter().all(|sum| *sum == vec![expected; len]), "{world_size} ranks, {len} values");
            }
        }
    }

    #[test]
    fn parts_are_gathered_in_rank_order() {
        for (world_size, len) in [(1, 5), (2, 32), (4, 77)] {
            let gathered = group(world_size, PATIENT, |comm| {
                let local: Vec<f32> = (0..len).map(|i| (comm.rank() * 1000 + i) as f32).collect();
                let mut out = vec![0.0; world_size * len];
                comm.all_gather(&local, &mut out).unwrap();
                out
            });
            let expected: Vec<f32> =
                (0..world_size).flat_map(|rank| (0..len).map(move |i| (rank * 1000 + i) as f32)).collect();
            assert!(gathered.iter().all(|out| *out == expected));
        }
    }

    #[test]
    fn a_fast_rank_never_overwrites_what_a_slow_one_still_reads() {
        let sums = group(4, PATIENT, |comm| {
            let mut total = 0.0_f64;
            for round in 0..2000 {
                let mut values = [(round * 4 + comm.rank()) as f32; 20];
                comm.all_reduce(&mut values).unwrap();
                assert_eq!(values, [(round * 16 + 6) as f32; 20], "round {round}");
                // Ranks take turns at being slow.
                (0..(round + comm.rank()) % 4 * 50).for_each(|_| std::hint::spin_loop());
                total += f64::from(values[0]);
            }
            comm.barrier().unwrap();
            total
        });
        assert!(sums.iter().all(|sum| *sum == sums[0]));
    }

    #[test]
    fn the_rank_with_another_plan_is_named_by_all() {
        let errors = group(3, PATIENT, |comm| {
            let plan_hash = if comm.rank() == 1 { 0xbad } else { 0xcafe };
            comm.begin_step(StepTag { epoch: 2, seq: 9, plan_hash }).unwrap();
            let error = comm.all_reduce(&mut [0.0; 4]).unwrap_err();
            assert!(matches!(comm.barrier(), Err(Error::GroupFailed)), "nothing works after a mismatch");
            error.to_string()
        });
        let expected = "rank 1 is at epoch 2, step 9, plan 0000000000000bad, collective 0 (AllReduce of 4 values), the \
                        others at epoch 2, step 9, plan 000000000000cafe, collective 0 (AllReduce of 4 values)";
        assert_eq!(errors, [expected; 3]);
    }

    #[test]
    fn different_collectives_and_lengths_are_a_mismatch() {
        let mismatch = |f: fn(&Shm) -> Result<()>| {
            let guilty = |error| matches!(error, Err(Error::RankMismatch { guilty: 1, .. }));
            group(2, PATIENT, |comm| guilty(f(comm))) == [true, true]
        };
        assert!(mismatch(|comm| comm.all_reduce(&mut vec![0.0; 4 + comm.rank()])));
        assert!(mismatch(|comm| match comm.rank() {
            0 => comm.all_reduce(&mut [0.0; 4]),
            _ => comm.barrier(),
        }));
    }

    #[test]
    fn a_rank_that_stalls_is_named_after_the_timeout() {
        let (done, wait) = std::sync::mpsc::channel::<()>();
        let (done, wait) = (Mutex::new(Some(done)), Mutex::new(wait));
        let errors = group(2, Duration::from_millis(20), |comm| {
            if comm.rank() == 1 {
                // Stalls until the other has given up.
                let _ = wait.lock().unwrap().recv();
                return None;
            }
            let error = comm.barrier().unwrap_err();
            done.lock().unwrap().take();
            Some(error)
        });
        let Some(Error::PeerTimeout { peer: 1, waited_ms, .. }) = errors[0] else { panic!("{errors:?}") };
        assert!(waited_ms >= 20);
    }

    #[test]
    fn a_rank_that_leaves_is_named_at_once() {
        let errors = group(2, PATIENT, |comm| match comm.rank() {
            1 => None,
            _ => comm.barrier().err(),
        });
        assert!(matches!(errors[0], Some(Error::PeerDead { peer: 1, .. })), "{errors:?}");
    }

    #[test]
    fn a_rank_that_never_comes_is_named_and_the_name_removed() {
        let name = unique_name();
        let options = ShmOptions { attach_timeout: Duration::from_millis(10), ..ShmOptions::default() };
        let error = Shm::open_with(&name, 0, 2, options).err();
        assert!(matches!(error, Some(Error::PeerTimeout { peer: 1, .. })), "{error:?}");
        assert!(!std::path::Path::new("/dev/shm").join(&name[1..]).exists());
    }

    #[test]
    fn a_rank_cannot_be_held_twice() {
        let name = unique_name();
        std::thread::scope(|scope| {
            let first = scope.spawn(|| Shm::open(&name, 0, 2, 4096).map(drop));
            while !std::path::Path::new("/dev/shm").join(&name[1..]).exists() {
                std::thread::yield_now();
            }
            // The segment exists before its rank 0 is claimed, so this may be the first; the other is then refused.
            let second = scope.spawn(|| Shm::open(&name, 0, 2, 4096).map(drop));
            while !first.is_finished() && !second.is_finished() {
                std::thread::yield_now();
            }
            Shm::open(&name, 1, 2, 4096).map(drop).unwrap();
            let results = [first.join().unwrap(), second.join().unwrap()];
            let refused = |result: &&Result<()>| matches!(result, Err(Error::SegmentInUse { .. }));
            assert_eq!(results.iter().filter(refused).count(), 1, "{results:?}");
        });
    }
}
