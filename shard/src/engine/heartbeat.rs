//! Whether the engine makes progress, readable from any thread without waiting.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::limits::{STALL_AFTER, STALL_FACTOR};

/// What the engine thread leaves behind while it works.
#[derive(Debug)]
pub struct Heartbeat {
    born: Instant,
    /// When the step in flight began, in ns after `born`; 0 while idle.
    step_began: AtomicU64,
    /// How long the step in flight may take, in ns.
    step_bound: AtomicU64,
    paused: AtomicBool,
    steps: AtomicU64,
    ended: OnceLock<String>,
}

/// A step that waits.
#[derive(Debug)]
pub(super) struct Pause {
    step_began: u64,
    since: Instant,
}

/// Why the engine makes no progress.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stall {
    /// A step takes far longer than the ones before.
    #[error("the step in flight has taken {} ms; it should take less than {} ms", taken.as_millis(), bound.as_millis())]
    Slow {
        /// Since its start.
        taken: Duration,
        /// What it may take.
        bound: Duration,
    },
    /// The thread is gone.
    #[error("the engine thread has ended: {0}")]
    Ended(String),
}

impl Default for Heartbeat {
    fn default() -> Heartbeat {
        Heartbeat {
            born: Instant::now(),
            step_began: AtomicU64::new(0),
            step_bound: AtomicU64::new(0),
            paused: AtomicBool::new(false),
            steps: AtomicU64::new(0),
            ended: OnceLock::new(),
        }
    }
}

impl Heartbeat {
    /// Plans executed so far.
    pub fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    /// Whether the step in flight waits for its router.
    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    /// Whether the engine makes progress.
    ///
    /// # Errors
    /// [`Stall`] if it does not.
    pub fn check(&self) -> Result<(), Stall> {
        self.check_at(Instant::now())
    }

    /// A step begins; rows like its own took `per_token` lately.
    pub(super) fn step_begins(&self, tokens: usize, per_token: Duration) {
        let predicted = per_token.saturating_mul(tokens.try_into().unwrap_or(u32::MAX));
        let bound = STALL_AFTER.max(predicted.saturating_mul(STALL_FACTOR));
        self.step_bound.store(nanos(bound), Ordering::Relaxed);
        self.step_began.store(nanos(self.born.elapsed()).max(1), Ordering::Relaxed);
    }

    /// The step in flight waits for its router from now on, which is no fault of the engine.
    pub(super) fn step_pauses(&self) -> Pause {
        self.paused.store(true, Ordering::Relaxed);
        Pause { step_began: self.step_began.swap(0, Ordering::Relaxed), since: Instant::now() }
    }

    /// It goes on, as if the time between had not been. Returns that time.
    pub(super) fn step_resumes(&self, Pause { step_began, since }: Pause) -> Duration {
        let paused = since.elapsed();
        self.paused.store(false, Ordering::Relaxed);
        self.step_began.store(step_began.saturating_add(nanos(paused)), Ordering::Relaxed);
        paused
    }

    /// The step is over, well or not.
    pub(super) fn step_ends(&self) {
        self.step_began.store(0, Ordering::Relaxed);
        self.steps.fetch_add(1, Ordering::Relaxed);
    }

    /// The thread ends.
    pub(super) fn end(&self, reason: String) {
        // The first reason is the cause.
        let _ = self.ended.set(reason);
    }

    fn check_at(&self, now: Instant) -> Result<(), Stall> {
        if let Some(reason) = self.ended.get() {
            return Err(Stall::Ended(reason.clone()));
        }
        let began = self.step_began.load(Ordering::Relaxed);
        let taken = now.duration_since(self.born).saturating_sub(Duration::from_nanos(began));
        let bound = Duration::from_nanos(self.step_bound.load(Ordering::Relaxed));
        if began != 0 && taken > bound { Err(Stall::Slow { taken, bound }) } else { Ok(()) }
    }
}

fn nanos(duration: Duration) -> u64 {
    duration.as_nanos().try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_engine_is_well_however_long_it_idles() {
        let heartbeat = Heartbeat::default();
        heartbeat.step_begins(1, Duration::ZERO);
        heartbeat.step_ends();
        assert_eq!(heartbeat.check_at(heartbeat.born + Duration::from_secs(3600)), Ok(()));
        assert_eq!(heartbeat.steps(), 1);
    }

    #[test]
    fn a_step_stalls_beyond_its_bound() {
        let heartbeat = Heartbeat::default();
        heartbeat.step_begins(1, Duration::from_millis(1));
        assert_eq!(heartbeat.check_at(Instant::now() + STALL_AFTER / 2), Ok(()));
        let stalled = heartbeat.check_at(Instant::now() + 2 * STALL_AFTER);
        assert!(matches!(stalled, Err(Stall::Slow { bound: STALL_AFTER, .. })), "{stalled:?}");
        // 1000 tokens of 100 ms may take 20 times 100 s.
        heartbeat.step_begins(1000, Duration::from_millis(100));
        assert_eq!(heartbeat.check_at(Instant::now() + Duration::from_secs(1900)), Ok(()));
        assert!(heartbeat.check_at(Instant::now() + Duration::from_secs(2100)).is_err());
    }

    #[test]
    fn a_pause_does_not_count() {
        let heartbeat = Heartbeat::default();
        heartbeat.step_begins(1, Duration::ZERO);
        let pause = heartbeat.step_pauses();
        let resumed = heartbeat.born + Duration::from_secs(3600);
        assert_eq!(heartbeat.check_at(resumed), Ok(()));
        // As if the pause had begun long ago.
        let began = pause.step_began;
        heartbeat.step_resumes(Pause { since: Instant::now() - Duration::from_millis(20), ..pause });
        assert!(heartbeat.step_began.load(Ordering::Relaxed) >= began + 20_000_000);
        assert!(heartbeat.check_at(Instant::now() + 2 * STALL_AFTER).is_err());
    }

    #[test]
    fn a_dead_thread_says_why() {
        let heartbeat = Heartbeat::default();
        heartbeat.end("it panicked: oh".to_owned());
        assert_eq!(heartbeat.check().unwrap_err().to_string(), "the engine thread has ended: it panicked: oh");
    }
}
