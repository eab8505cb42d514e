//! Worker threads for work that must not run on the async threads: tokenizing all but short texts, and template rendering.
//!
//! The queue is bounded; a full one is overload, said at once. A job that panics fails alone: its worker goes on.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crossbeam_channel::{Sender, TrySendError, bounded};
use tokio::sync::oneshot;

use crate::limits::QUEUED_TEXT_JOBS_PER_WORKER;

type Job = Box<dyn FnOnce() + Send>;

/// A fixed number of worker threads behind one bounded queue. They end when the pool is dropped.
pub(crate) struct Pool {
    jobs: Sender<Job>,
}

/// Why a job has no result.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PoolError {
    #[error("the text workers' queue is full")]
    Full,
    #[error("a text worker panicked on this request")]
    Panicked,
}

impl Pool {
    /// Starts `workers` threads with a queue for `jobs`, or [`QUEUED_TEXT_JOBS_PER_WORKER`] if that is more.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub(crate) fn new(workers: usize, jobs: usize) -> std::io::Result<Self> {
        let (jobs, queue) = bounded::<Job>(jobs.max(workers * QUEUED_TEXT_JOBS_PER_WORKER));
        for index in 0..workers {
            let queue = queue.clone();
            std::thread::Builder::new().name(format!("text-{index}")).spawn(move || {
                for job in queue {
                    job();
                }
            })?;
        }
        Ok(Self { jobs })
    }

    /// Runs `work` on the caller's thread, for work that is shorter than waking a worker; a panic ends it as it would there.
    ///
    /// # Errors
    /// [`PoolError::Panicked`].
    pub(crate) fn run_here<T>(work: impl FnOnce() -> T) -> Result<T, PoolError> {
        // The closure owns everything it touches, so nothing half-done survives a panic.
        catch_unwind(AssertUnwindSafe(work)).map_err(|_| PoolError::Panicked)
    }

    /// Runs `work` on a worker and waits for it without blocking the caller's thread.
    ///
    /// # Errors
    /// [`PoolError`] if the queue is full or the work panicked.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, PoolError> {
        let (reply, result) = oneshot::channel();
        let job: Job = Box::new(move || {
            // A client that went away while its job waited needs no work.
            if reply.is_closed() {
                return;
            }
            if let Ok(value) = Self::run_here(work) {
                // The receiver may be gone; then nobody wants the value.
                let _ = reply.send(value);
            }
        });
        match self.jobs.try_send(job) {
            Ok(()) => result.await.map_err(|_| PoolError::Panicked),
            Err(TrySendError::Full(_)) => Err(PoolError::Full),
            Err(TrySendError::Disconnected(_)) => unreachable!("workers live as long as the pool"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_fails_its_own_job_only() {
        let pool = Pool::new(1, 0).unwrap();
        assert_eq!(pool.run(|| panic!("bad input")).await, Err::<(), _>(PoolError::Panicked));
        assert_eq!(pool.run(|| 7).await, Ok(7));
        assert_eq!(Pool::run_here(|| panic!("bad input")), Err::<(), _>(PoolError::Panicked));
        assert_eq!(Pool::run_here(|| 7), Ok(7));
    }

    #[tokio::test]
    async fn a_full_queue_is_refused_at_once() {
        fill(Pool::new(1, 0).unwrap(), QUEUED_TEXT_JOBS_PER_WORKER).await;
    }

    #[tokio::test]
    async fn as_many_jobs_wait_as_are_asked_for() {
        fill(Pool::new(1, QUEUED_TEXT_JOBS_PER_WORKER + 7).unwrap(), QUEUED_TEXT_JOBS_PER_WORKER + 7).await;
    }

    /// Gives `pool`, which has one worker, a job that does not end and `room` jobs that wait; one more is refused.
    async fn fill(pool: Pool, room: usize) {
        let pool = std::sync::Arc::new(pool);
        let (release, gate) = std::sync::mpsc::channel::<()>();
        let (started, has_started) = oneshot::channel();
        let blocker = tokio::spawn({
            let pool = pool.clone();
            async move {
                pool.run(move || {
                    started.send(()).unwrap();
                    gate.recv().unwrap();
                })
                .await
            }
        });
        has_started.await.unwrap();
        let mut waiting = Vec::new();
        for _ in 0..room {
            let mut job = Box::pin(pool.run(|| ()));
            assert!(futures::poll!(&mut job).is_pending());
            waiting.push(job);
        }
        assert_eq!(pool.run(|| ()).await, Err(PoolError::Full));
        release.send(()).unwrap();
        for job in waiting {
            assert_eq!(job.await, Ok(()));
        }
        blocker.await.unwrap().unwrap();
    }
}
