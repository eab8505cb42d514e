//! Who may enter: the only state that request handlers share with the scheduler thread.
//!
//! A [`Permit`] is taken before a request is queued and lives until the scheduler has let go of it. Beyond the bounds the
//! answer is 429 with a `Retry-After` from the measured rate at which requests end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use super::error::SubmitError;
use crate::limits;

/// The bounds and what has been taken of them.
pub(super) struct Admission {
    max_requests: usize,
    max_queued_tokens: u64,
    requests: AtomicUsize,
    queued_requests: AtomicUsize,
    queued_tokens: AtomicU64,
    /// Requests that end per second of work, as f64 bits; 0 until one has ended.
    finished_per_second: AtomicU64,
}

/// One admitted request.
pub(super) struct Permit {
    admission: Arc<Admission>,
    /// Its prompt's tokens while it waits.
    queued_tokens: Option<u64>,
}

impl Admission {
    pub(super) fn new(max_requests: usize, max_queued_tokens: u64) -> Arc<Self> {
        Arc::new(Self {
            max_requests,
            max_queued_tokens,
            requests: AtomicUsize::new(0),
            queued_requests: AtomicUsize::new(0),
            queued_tokens: AtomicU64::new(0),
            finished_per_second: AtomicU64::new(0),
        })
    }

    /// Takes a place for a prompt of `tokens` tokens. An empty queue takes a prompt of any size.
    ///
    /// # Errors
    /// [`SubmitError::Overloaded`].
    pub(super) fn admit(self: &Arc<Self>, tokens: u64) -> Result<Permit, SubmitError> {
        let one_more = |requests| (requests < self.max_requests).then_some(requests + 1);
        if self.requests.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_err() {
            return Err(self.overloaded());
        }
        let enqueue =
            |queued: u64| (queued == 0 || queued + tokens <= self.max_queued_tokens).then_some(queued + tokens);
        if self.queued_tokens.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enqueue).is_err() {
            self.requests.fetch_sub(1, Ordering::Relaxed);
            return Err(self.overloaded());
        }
        self.queued_requests.fetch_add(1, Ordering::Relaxed);
        Ok(Permit { admission: self.clone(), queued_tokens: Some(tokens) })
    }

    /// Tells the rate at which requests end.
    pub(super) fn set_rate(&self, finished_per_second: f64) {
        self.finished_per_second.store(finished_per_second.to_bits(), Ordering::Relaxed);
    }

    fn overloaded(&self) -> SubmitError {
        // The queue and the one who asks must be served first.
        let ahead = self.queued_requests.load(Ordering::Relaxed) as f64 + 1.0;
        let rate = f64::from_bits(self.finished_per_second.load(Ordering::Relaxed));
        let seconds = if rate > 0.0 { (ahead / rate).ceil() } else { 0.0 };
        let (least, most) = (*limits::RETRY_AFTER.start(), *limits::RETRY_AFTER.end());
        SubmitError::Overloaded {
            requests: self.requests.load(Ordering::Relaxed),
            queued_tokens: self.queued_tokens.load(Ordering::Relaxed),
            retry_after: Duration::from_secs_f64(seconds.min(most.as_secs_f64())).max(least),
        }
    }
}

impl Permit {
    /// The request has left the queue for a batch. Later stays in the queue (after a preemption) are the engine's doing
    /// and do not count.
    pub(super) fn leave_queue(&mut self) {
        if let Some(tokens) = self.queued_tokens.take() {
            self.admission.queued_tokens.fetch_sub(tokens, Ordering::Relaxed);
            self.admission.queued_requests.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.leave_queue();
        self.admission.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The rate at which requests end, averaged over the last seconds of work; idle time does not count.
#[derive(Default)]
pub(super) struct ServiceRate {
    finished_per_second: f64,
    worked: f64,
}

impl ServiceRate {
    /// Seconds of work after which an observation has lost two thirds of its weight: long enough to see several replies
    /// end, short enough to follow a change of load within a client's retry.
    const MEMORY_SECONDS: f64 = 10.0;

    /// `finished` requests ended in a step that took `duration`.
    pub(super) fn observe(&mut self, duration: Duration, finished: usize) {
        let seconds = duration.as_secs_f64().max(1e-6);
        self.worked += seconds;
        // A plain mean until there is enough work to forget any of it.
        let weight = 1.0 - (-seconds / Self::MEMORY_SECONDS.min(self.worked)).exp();
        self.finished_per_second += weight * (finished as f64 / seconds - self.finished_per_second);
    }

    pub(super) fn per_second(&self) -> f64 {
        self.finished_per_second
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retry_after(error: SubmitError) -> u64 {
        match error {
            SubmitError::Overloaded { retry_after, .. } => retry_after.as_secs(),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn requests_and_queued_tokens_are_bounded_and_come_back() {
        let admission = Admission::new(3, 100);
        let mut first = admission.admit(90).unwrap();
        assert!(admission.admit(20).is_err(), "110 queued tokens");
        first.leave_queue();
        let _second = admission.admit(500).expect("an empty queue takes any prompt");
        assert!(admission.admit(1).is_err(), "501 queued tokens");
        drop(_second);
        let _rest = [admission.admit(50).unwrap(), admission.admit(50).unwrap()];
        assert!(admission.admit(0).is_err(), "a fourth request");
        drop(first);
        admission.admit(0).unwrap();
    }

    #[test]
    fn retry_after_is_the_queue_over_the_rate_within_bounds() {
        let admission = Admission::new(4, 100);
        let _permits: Vec<Permit> = (0..4).map(|_| admission.admit(1).unwrap()).collect();
        assert_eq!(retry_after(admission.admit(1).err().unwrap()), 1, "nothing measured yet");
        admission.set_rate(0.5);
        assert_eq!(retry_after(admission.admit(1).err().unwrap()), 10, "(4 queued + 1) / 0.5");
        admission.set_rate(0.001);
        assert_eq!(retry_after(admission.admit(1).err().unwrap()), 60);
    }

    #[test]
    fn the_rate_follows_the_work() {
        let mut rate = ServiceRate::default();
        (0..1000).for_each(|step| rate.observe(Duration::from_millis(50), usize::from(step % 10 == 0)));
        assert!((1.5..2.5).contains(&rate.per_second()), "one reply per half second: {}", rate.per_second());
        (0..1000).for_each(|_| rate.observe(Duration::from_millis(50), 1));
        assert!((19.0..21.0).contains(&rate.per_second()), "{}", rate.per_second());
    }
}
