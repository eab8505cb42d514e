//! A fork-join thread pool: the caller is worker 0, every worker has its own share of a job's pieces, and whoever is through
//! with its share takes from the others'. Workers sleep when nothing comes.
//!
//! An operation of a small model takes ten microseconds, so handing it to a sleeping thread would cost as much as it
//! saves: workers look for the next job for [`SPIN`] before they sleep.
//!
//! A server's threads share the cores with each other: a worker may lose its core at any time, for longer than a whole
//! operation. So a job is over when its pieces are done, not when every worker has come by: whoever is away is not waited for.

use std::any::Any;
use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::thread::{self, JoinHandle, Thread};
use std::time::Instant;

use crate::limits::{PATIENCE, PIECES_PER_THREAD, SPIN};

/// The threads of a device.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held by the caller whose job is running. Whoever finds it taken (a second caller, or a job that calls an
    /// operation) computes alone: no result depends on the number of threads.
    running: Mutex<()>,
}

struct Shared {
    job: UnsafeCell<Option<Job>>,
    /// Raised by one for every job; what workers wait for.
    epoch: AtomicUsize,
    /// One per worker, the caller's first.
    shares: Box<[Share]>,
    /// Pieces of the current job that are done.
    done: AtomicUsize,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// What is left of a worker's share: the number of its job in the upper half, so that nobody takes a piece of the job after
/// the one it knows; the pieces that nobody has taken in the lower. On a cache line of its own.
#[repr(align(64))]
#[derive(Default)]
struct Share(AtomicU64);

#[derive(Clone)]
struct Job {
    /// The caller's closure. It outlives every use: `Pool::run` does not return, nor unwind, before all pieces are done.
    call: &'static (dyn Fn(usize) + Sync),
    pieces: usize,
    caller: Thread,
}

// SAFETY: `job` is written only by the holder of `running` while no piece is left or unfinished; a worker reads it only
// between taking a piece (Acquire, of a share that was released after the write) and reporting it done, and until then
// there is no other job. The other fields are atomic or locked.
unsafe impl Sync for Shared {}

impl Pool {
    pub(crate) fn new(threads: usize) -> Pool {
        let shared = Arc::new(Shared {
            job: UnsafeCell::new(None),
            epoch: AtomicUsize::new(0),
            shares: (0..threads).map(|_| Share::default()).collect(),
            done: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let spawn = |index: usize| {
            let shared = shared.clone();
            thread::Builder::new()
                .name(format!("cpu-worker-{index}"))
                .spawn(move || shared.work(index))
                .expect("the system can start as many threads as it has cores")
        };
        let workers = (1..threads).map(spawn).collect();
        Pool { shared, workers, running: Mutex::new(()) }
    }

    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `f(0)` to `f(pieces - 1)` and returns when all have returned. Neighbouring pieces go to one worker as long as
    /// every worker keeps up. A panic of one piece is raised here after the others have ended.
    pub(crate) fn run(&self, pieces: usize, f: impl Fn(usize) + Sync) {
        if pieces <= 1 || self.workers.is_empty() {
            return (0..pieces).for_each(f);
        }
        let _running = match self.running.try_lock() {
            Ok(guard) => guard,
            // A job that panicked poisons the lock and leaves nothing behind.
            Err(TryLockError::Poisoned(guard)) => guard.into_inner(),
            Err(TryLockError::WouldBlock) => return (0..pieces).for_each(f),
        };
        let shared = &*self.shared;
        let call: &(dyn Fn(usize) + Sync) = &f;
        // SAFETY: only the lifetime changes. The reference is used by whoever has taken a piece, before reporting it done,
        // and `run` stays in this frame until all are done: panics of pieces are caught, and nothing else here panics.
        let call = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(call) };
        // SAFETY: `running` is held and all pieces of the job before are done, so no other thread touches `job`.
        unsafe { *shared.job.get() = Some(Job { call, pieces, caller: thread::current() }) };
        shared.done.store(0, Ordering::Relaxed);
        let epoch = shared.epoch.load(Ordering::Relaxed).wrapping_add(1);
        for worker in 0..self.threads() {
            let share = share(pieces, self.threads(), worker);
            shared.shares[worker].0.store(ticket(epoch, share.len()), Ordering::Release);
        }
        shared.epoch.store(epoch, Ordering::Release);
        self.workers.iter().for_each(|worker| worker.thread().unpark());

        shared.help(0);
        wait_until(|| shared.done.load(Ordering::Acquire) == pieces);
        let panic = shared.panic.lock().expect("no panic happens while the slot is locked").take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Calls `f` on contiguous parts of `0..units`, a few per worker, none smaller than `grain` unless it is the only one.
    pub(crate) fn split(&self, units: usize, grain: usize, f: impl Fn(Range<usize>) + Sync) {
        let (threads, most) = (self.threads(), units / grain.max(1));
        let pieces = match most.min(threads * PIECES_PER_THREAD) {
            // As many for each.
            several if several >= threads => several - several % threads,
            few => few.max(1),
        };
        self.run(pieces, |piece| {
            let part = share(units, pieces, piece);
            if !part.is_empty() {
                f(part);
            }
        });
    }

    /// [`split`](Pool::split) over the rows of `out`: `f(first_row, rows)`.
    pub(crate) fn for_rows<T: Send>(
        &self,
        out: &mut [T],
        row_len: usize,
        grain: usize,
        f: impl Fn(usize, &mut [T]) + Sync,
    ) {
        let rows = out.len().checked_div(row_len).unwrap_or(0);
        let base = SendPtr(out.as_mut_ptr());
        self.split(rows, grain, |piece| {
            // SAFETY: pieces of `split` are disjoint and lie in 0..rows, so these are disjoint parts of `out`, which is
            // borrowed mutably until every worker has returned.
            let part =
                unsafe { std::slice::from_raw_parts_mut(base.get().add(piece.start * row_len), piece.len() * row_len) };
            f(piece.start, part);
        });
    }

    /// Calls `f(index, part)` on parts of `part_len` elements, of which the last may be shorter.
    pub(crate) fn for_parts<T: Send>(&self, out: &mut [T], part_len: usize, f: impl Fn(usize, &mut [T]) + Sync) {
        let len = out.len();
        let base = SendPtr(out.as_mut_ptr());
        self.run(len.div_ceil(part_len), |index| {
            let start = index * part_len;
            // SAFETY: `run` gives every index below ceil(len / part_len) once, so these are disjoint parts inside of `out`, which
            // is borrowed mutably until every worker has returned.
            let part = unsafe { std::slice::from_raw_parts_mut(base.get().add(start), part_len.min(len - start)) };
            f(index, part);
        });
    }

    /// [`for_rows`](Pool::for_rows) over two buffers of the same shape: `f(first_row, rows_of_a, rows_of_b)`.
    pub(crate) fn for_rows_of_two<T: Send>(
        &self,
        a: &mut [T],
        b: &mut [T],
        row_len: usize,
        grain: usize,
        f: impl Fn(usize, &mut [T], &mut [T]) + Sync,
    ) {
        assert_eq!(a.len(), b.len(), "the operation checked that both have the same shape");
        let base = SendPtr(b.as_mut_ptr());
        self.for_rows(a, row_len, grain, |first, a| {
            // SAFETY: the parts of `a` are disjoint, so are those at the same place of `b`, which is as long as `a` and
            // borrowed mutably until every worker has returned.
            let b = unsafe { std::slice::from_raw_parts_mut(base.get().add(first * row_len), a.len()) };
            f(first, a, b);
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.epoch.fetch_add(1, Ordering::Release);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches the panics of its jobs, so it cannot have died of one.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn work(&self, index: usize) {
        let mut seen = 0;
        loop {
            wait_until(|| self.epoch.load(Ordering::Acquire) != seen);
            seen = self.epoch.load(Ordering::Acquire);
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            self.help(index);
        }
    }

    /// Does the pieces of worker `index`, then those that others have not got to.
    fn help(&self, index: usize) {
        let workers = self.shares.len();
        for turn in 0..workers {
            let owner = (index + turn) % workers;
            while let Some(left) = self.shares[owner].take() {
                // SAFETY: a piece was taken and is not done, so nobody writes `job`; the share it came from was released
                // after `job` was written.
                let job = unsafe { (*self.job.get()).clone() }.expect("a job is set before its pieces can be taken");
                let piece = share(job.pieces, workers, owner).end - left;
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (job.call)(piece))) {
                    *self.panic.lock().expect("no panic happens while the slot is locked") = Some(panic);
                }
                if self.done.fetch_add(1, Ordering::AcqRel) + 1 == job.pieces {
                    job.caller.unpark();
                }
            }
        }
    }
}

impl Share {
    /// Takes a piece. Returns how many there were.
    fn take(&self) -> Option<usize> {
        let less = |ticket: u64| (ticket as u32 != 0).then(|| ticket - 1);
        let before = self.0.fetch_update(Ordering::AcqRel, Ordering::Relaxed, less).ok()?;
        Some(before as u32 as usize)
    }
}

/// The state of a share of `pieces` in the job `epoch`.
fn ticket(epoch: usize, pieces: usize) -> u64 {
    let pieces = u32::try_from(pieces).expect("a job has fewer than 2^32 pieces");
    (epoch as u64) << 32 | u64::from(pieces)
}

/// The part of `0..units` that belongs to `owner` of `owners`.
pub(crate) fn share(units: usize, owners: usize, owner: usize) -> Range<usize> {
    units * owner / owners..units * (owner + 1) / owners
}

/// A pointer that worker threads may share; each of them takes its own part.
pub(crate) struct SendPtr<T>(pub(crate) *mut T);

impl<T> SendPtr<T> {
    pub(crate) fn get(&self) -> *mut T {
        self.0
    }
}

// SAFETY: a `SendPtr` is only made from a mutable borrow that outlives the job, and each use takes a disjoint part and
// says so; `T: Send` lets those parts move to other threads.
unsafe impl<T: Send> Send for SendPtr<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SendPtr<T> {}

/// Waits for `done`: looks for it for [`SPIN`], offers the core to other threads between looks for [`PATIENCE`], then
/// sleeps until unparked. Whoever makes it true unparks this thread afterwards; an early or stale wake-up only looks again.
fn wait_until(done: impl Fn() -> bool) {
    let start = Instant::now();
    loop {
        // A clock reading costs as much as a few looks, so look several times between two of them.
        for _ in 0..8 {
            if done() {
                return;
            }
            std::hint::spin_loop();
        }
        let waited = start.elapsed();
        if waited >= PATIENCE {
            break;
        }
        if waited >= SPIN {
            thread::yield_now();
        }
    }
    while !done() {
        thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_visited_once() {
        for threads in [1, 2, 3, 5] {
            let pool = Pool::new(threads);
            for units in [0, 1, 2, 7, 100] {
                let visits: Vec<_> = (0..units).map(|_| AtomicUsize::new(0)).collect();
                pool.split(units, 1, |piece| {
                    piece.for_each(|at| {
                        visits[at].fetch_add(1, Ordering::Relaxed);
                    })
                });
                pool.run(units, |at| {
                    visits[at].fetch_add(1, Ordering::Relaxed);
                });
                assert!(
                    visits.iter().all(|count| count.load(Ordering::Relaxed) == 2),
                    "{threads} threads, {units} units"
                );
                let mut out = vec![0; units * 3];
                pool.for_rows(&mut out, 3, 1, |first, rows| {
                    rows.iter_mut().enumerate().for_each(|(at, x)| *x = first * 3 + at);
                });
                assert!(out.iter().enumerate().all(|(at, x)| at == *x));
                pool.for_parts(&mut out, 4, |index, part| part.iter_mut().for_each(|x| *x += index));
                assert!(out.iter().enumerate().all(|(at, x)| at + at / 4 == *x));
            }
        }
    }

    #[test]
    fn a_panic_of_any_piece_reaches_the_caller_and_the_pool_survives() {
        let pool = Pool::new(3);
        for bad in 0..7 {
            let visits = AtomicUsize::new(0);
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(7, |piece| {
                    visits.fetch_add(1, Ordering::Relaxed);
                    assert_ne!(piece, bad, "on purpose");
                });
            }));
            assert!(result.is_err());
            assert_eq!(visits.into_inner(), 7, "the others were done all the same");
            let sum = AtomicUsize::new(0);
            pool.run(3, |piece| {
                sum.fetch_add(piece, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 3);
        }
    }

    #[test]
    fn whoever_is_away_is_not_waited_for() {
        let pool = Pool::new(2);
        let (is_in, may_leave) = (AtomicBool::new(false), AtomicBool::new(false));
        let wait_for = |flag: &AtomicBool| {
            while !flag.load(Ordering::Acquire) {
                thread::yield_now();
            }
        };
        // The worker is held in the first piece of its share; the caller does all others and only then lets it go.
        let others = AtomicUsize::new(0);
        pool.run(8, |piece| match piece {
            0 => wait_for(&is_in),
            4 => {
                is_in.store(true, Ordering::Release);
                wait_for(&may_leave);
            }
            _ => {
                if others.fetch_add(1, Ordering::AcqRel) + 1 == 6 {
                    may_leave.store(true, Ordering::Release);
                }
            }
        });
        assert_eq!(others.into_inner(), 6);
    }

    #[test]
    fn nested_and_concurrent_jobs_compute_alone() {
        let pool = Pool::new(2);
        let visits = AtomicUsize::new(0);
        pool.run(2, |_| {
            pool.run(2, |_| {
                visits.fetch_add(1, Ordering::Relaxed);
            })
        });
        assert_eq!(visits.load(Ordering::Relaxed), 4);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        pool.run(2, |_| {
                            visits.fetch_add(1, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(visits.load(Ordering::Relaxed), 4 + 4 * 200 * 2);
    }
}
