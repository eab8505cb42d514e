//! The threads that compute grammar masks: neither the scheduler's thread nor the async threads wait for a grammar.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender};

use super::command::{Command, Commands};
use super::error::EngineError;
use super::masks::{Computed, Job};
use super::metrics;
use crate::limits;

/// A few threads behind one queue. Results come back as commands; the threads end with the workers.
pub(super) struct MaskWorkers {
    jobs: Sender<Job>,
}

impl MaskWorkers {
    /// Starts the threads. Each of `max_requests` requests has at most one job at a time, so the queue is never full.
    ///
    /// # Errors
    /// [`EngineError::Thread`] if the system has none left.
    pub(super) fn new(max_requests: usize, commands: &Commands) -> Result<Self, EngineError> {
        // A job of a request that was forgotten may still wait when its successor in the bound is queued.
        let (jobs, queue) = crossbeam_channel::bounded::<Job>(2 * max_requests);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        for index in 0..cores.min(limits::MASK_WORKERS) {
            let (queue, commands) = (queue.clone(), commands.clone());
            let spawned =
                std::thread::Builder::new().name(format!("mask-{index}")).spawn(move || work(&queue, &commands));
            spawned.map_err(|error| EngineError::Thread { reason: error.to_string() })?;
        }
        Ok(Self { jobs })
    }

    /// Queues a job. If there is no room, it is done with an error: the request fails alone.
    pub(super) fn submit(&self, job: Job) -> Result<(), Computed> {
        self.jobs.try_send(job).map_err(|error| Computed {
            request: error.into_inner().request(),
            outcome: Err("the mask workers are overloaded".to_owned()),
        })
    }
}

/// Does jobs until the engine is gone. A step wants the masks of all its rows, and every command wakes the scheduler's
/// thread: what is done while more jobs wait is sent together.
fn work(queue: &Receiver<Job>, commands: &Commands) {
    while let Ok(first) = queue.recv() {
        let started = Instant::now();
        let mut computed = vec![run(first)];
        while started.elapsed() < limits::MASK_BATCH_TIME
            && let Ok(next) = queue.try_recv()
        {
            computed.push(run(next));
        }
        if !commands.send_blocking(Command::Computed(computed)) {
            return;
        }
    }
}

fn run(job: Job) -> Computed {
    let (request, started) = (job.request(), Instant::now());
    // The job owns everything it touches, so nothing half-done survives a panic.
    let computed = catch_unwind(AssertUnwindSafe(|| job.run()));
    metrics::mask_computed(started.elapsed());
    computed.unwrap_or_else(|_| Computed { request, outcome: Err("it panicked".to_owned()) })
}
