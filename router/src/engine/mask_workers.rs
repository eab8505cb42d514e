//! The threads that compute grammar masks: neither the scheduler's thread nor the async threads wait for a grammar.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use super::command::{Command, Commands};
use super::error::EngineError;
use super::masks::{Computed, Job};
use super::metrics;
use crate::limits;

/// A few threads behind one queue. Results come back as commands; the threads end with the workers.
pub(super) struct MaskWorkers {
    parts: Sender<Vec<Job>>,
}

impl MaskWorkers {
    /// Starts the threads. Each of `max_requests` requests has at most one job at a time, and no part of jobs is empty, so the
    /// queue is never full.
    ///
    /// # Errors
    /// [`EngineError::Thread`] if the system has none left.
    pub(super) fn new(max_requests: usize, commands: &Commands) -> Result<Self, EngineError> {
        // A job of a request that was forgotten may still wait when its successor in the bound is queued.
        let (parts, queue) = crossbeam_channel::bounded(2 * max_requests);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        for index in 0..cores.min(limits::MASK_WORKERS) {
            let (queue, commands) = (queue.clone(), commands.clone());
            let spawned =
                std::thread::Builder::new().name(format!("mask-{index}")).spawn(move || work(&queue, &commands));
            spawned.map_err(|error| EngineError::Thread { reason: error.to_string() })?;
        }
        Ok(Self { parts })
    }

    /// Queues jobs. Those for which there is no room are done with an error: their requests fail alone.
    pub(super) fn submit(&self, jobs: Vec<Job>) -> Vec<Computed> {
        let mut refused = Vec::new();
        for part in parts(jobs, |job| job.expected) {
            if let Err(error) = self.parts.try_send(part) {
                refused.extend(error.into_inner().into_iter().map(|job| Computed {
                    request: job.request(),
                    outcome: Err("the mask workers are overloaded".to_owned()),
                    took: Duration::ZERO,
                }));
            }
        }
        refused
    }
}

/// Jobs in parts that are worth waking a thread for: the masks of a step usually take less than handing them out one by one.
fn parts<J>(jobs: Vec<J>, expected: impl Fn(&J) -> Duration) -> Vec<Vec<J>> {
    let mut parts: Vec<Vec<J>> = Vec::new();
    let mut room = Duration::ZERO;
    for job in jobs {
        if room.is_zero() {
            parts.push(Vec::new());
            room = limits::MASK_PART_TIME;
        }
        room = room.saturating_sub(expected(&job));
        parts.last_mut().expect("a part was begun").push(job);
    }
    parts
}

/// Does jobs until the engine is gone. A step wants the masks of all its rows, and every command wakes the scheduler's
/// thread: what is done within [`limits::MASK_BATCH_TIME`] is sent together.
fn work(queue: &Receiver<Vec<Job>>, commands: &Commands) {
    while let Ok(first) = queue.recv() {
        let mut jobs = first.into_iter();
        while jobs.len() > 0 {
            let started = Instant::now();
            let mut computed = Vec::with_capacity(jobs.len());
            while started.elapsed() < limits::MASK_BATCH_TIME
                && let Some(job) = jobs.next().or_else(|| {
                    jobs = queue.try_recv().ok()?.into_iter();
                    jobs.next()
                })
            {
                computed.push(run(job));
            }
            if !commands.send_blocking(Command::Computed(computed)) {
                return;
            }
        }
    }
}

fn run(job: Job) -> Computed {
    let request = job.request();
    // The job owns everything it touches, so nothing half-done survives a panic.
    let computed = catch_unwind(AssertUnwindSafe(|| job.run()));
    let panicked = |_| Computed { request, outcome: Err("it panicked".to_owned()), took: Duration::ZERO };
    let computed = computed.unwrap_or_else(panicked);
    metrics::mask_computed(computed.took);
    computed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_worth_waking_a_thread_for() {
        let cut = |micros: &[u64]| parts(micros.to_vec(), |job| Duration::from_micros(*job));
        assert_eq!(cut(&[]), Vec::<Vec<u64>>::new());
        assert_eq!(cut(&[10; 16]), [[10; 16]]);
        assert_eq!(cut(&[100, 100, 100, 100]), [vec![100, 100, 100], vec![100]]);
        assert_eq!(cut(&[5000, 7, 5000, 7]), [vec![5000], vec![7, 5000], vec![7]]);
    }
}
