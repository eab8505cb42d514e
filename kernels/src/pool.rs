//! A fork-join thread pool: the caller is worker 0, work is cut statically, workers sleep when nothing comes.
//!
//! An operation of a small model takes ten microseconds, so handing it to a sleeping thread would cost as much as it
//! saves: workers look for the next job for [`SPIN`] before they sleep.

use std::any::Any;
use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::thread::{self, JoinHandle, Thread};
use std::time::Instant;

use crate::limits::{PATIENCE, SPIN};

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
    /// Workers that have not finished the current job.
    pending: AtomicUsize,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

#[derive(Clone)]
struct Job {
    /// The caller's closure. It outlives every use: `Pool::run` does not return, nor unwind, before `pending` is 0.
    call: &'static (dyn Fn(usize) + Sync),
    caller: Thread,
}

// SAFETY: `job` is written only by the holder of `running` while `pending` is 0, before it raises `epoch` (Release);
// workers read it only between seeing the new epoch (Acquire) and lowering `pending`. The other fields are atomic.
unsafe impl Sync for Shared {}

impl Pool {
    pub(crate) fn new(threads: usize) -> Pool {
        let shared = Arc::new(Shared {
            job: UnsafeCell::new(None),
            epoch: AtomicUsize::new(0),
            pending: AtomicUsize::new(0),
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

    /// Calls `f(worker)` once for every worker `0..threads`, and returns when all have returned. A panic of one is
    /// raised here after the others have finished.
    pub(crate) fn run(&self, f: impl Fn(usize) + Sync) {
        let _running = match self.running.try_lock() {
            Ok(guard) if !self.workers.is_empty() => guard,
            // A job that panicked poisons the lock and leaves nothing behind.
            Err(TryLockError::Poisoned(guard)) if !self.workers.is_empty() => guard.into_inner(),
            _ => return (0..self.threads()).for_each(f),
        };
        let call: &(dyn Fn(usize) + Sync) = &f;
        // SAFETY: only the lifetime changes. The reference is used by workers before they lower `pending`, and `run`
        // stays in this frame until `pending` is 0, whether or not `f(0)` panics (it is caught below).
        let call = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(call) };
        // SAFETY: `running` is held and `pending` is 0, so no other thread touches `job`.
        unsafe { *self.shared.job.get() = Some(Job { call, caller: thread::current() }) };
        self.shared.pending.store(self.workers.len(), Ordering::Relaxed);
        self.shared.epoch.fetch_add(1, Ordering::Release);
        self.workers.iter().for_each(|worker| worker.thread().unpark());

        let own = catch_unwind(AssertUnwindSafe(|| f(0)));
        wait_until(|| self.shared.pending.load(Ordering::Acquire) == 0);
        let theirs = self.shared.panic.lock().expect("no panic happens while the slot is locked").take();
        if let Some(panic) = own.err().or(theirs) {
            resume_unwind(panic);
        }
    }

    /// Calls `f` on contiguous pieces of `0..units`, one per worker, none smaller than `grain` unless it is the only one.
    pub(crate) fn split(&self, units: usize, grain: usize, f: impl Fn(Range<usize>) + Sync) {
        let pieces = self.threads().min(units / grain.max(1)).max(1);
        if pieces == 1 {
            return f(0..units);
        }
        self.run(|worker| {
            let piece = units * worker / pieces..units * (worker + 1) / pieces;
            if worker < pieces && !piece.is_empty() {
                f(piece);
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

    /// Calls `f(0)` to `f(count - 1)`, each on the next free worker: for units whose costs differ.
    pub(crate) fn for_each(&self, count: usize, f: impl Fn(usize) + Sync) {
        let next = AtomicUsize::new(0);
        let drain = |_worker: usize| {
            loop {
                let unit = next.fetch_add(1, Ordering::Relaxed);
                if unit >= count {
                    return;
                }
                f(unit);
            }
        };
        if count <= 1 { drain(0) } else { self.run(drain) }
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
            // SAFETY: the epoch was raised after `job` was written, and the caller does not write it again before this
            // worker lowers `pending`.
            let job = unsafe { (*self.job.get()).clone() }.expect("a job is set before the epoch is raised");
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (job.call)(index))) {
                *self.panic.lock().expect("no panic happens while the slot is locked") = Some(panic);
            }
            if self.pending.fetch_sub(1, Ordering::AcqRel) == 1 {
                job.caller.unpark();
            }
        }
    }
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
                pool.for_each(units, |at| {
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
            }
        }
    }

    #[test]
    fn a_panic_of_any_worker_reaches_the_caller_and_the_pool_survives() {
        let pool = Pool::new(3);
        for bad in 0..3 {
            let result = catch_unwind(AssertUnwindSafe(|| pool.run(|worker| assert_ne!(worker, bad, "on purpose"))));
            assert!(result.is_err());
            let sum = AtomicUsize::new(0);
            pool.run(|worker| {
                sum.fetch_add(worker, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 3);
        }
    }

    #[test]
    fn nested_and_concurrent_jobs_compute_alone() {
        let pool = Pool::new(2);
        let visits = AtomicUsize::new(0);
        pool.run(|_| {
            pool.run(|_| {
                visits.fetch_add(1, Ordering::Relaxed);
            })
        });
        assert_eq!(visits.load(Ordering::Relaxed), 4);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        pool.run(|_| {
                            visits.fetch_add(1, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(visits.load(Ordering::Relaxed), 4 + 4 * 200 * 2);
    }
}
