//! Is every rank making progress? Pure: the clock is an argument.
//!
//! A plan must be answered by every rank (rank 0 with a result, the others with an acknowledgement) in order, within
//! max(10 s, 20 predicted steps) from the moment it could start and had its grammar masks: until the router has sent
//! those, the ranks may wait. An idle rank must answer a ping in the same time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::error::EngineError;
use crate::limits;

/// What has been sent to the ranks of one epoch and what they have answered.
pub(super) struct Liveness {
    /// Plans that some rank has not answered, oldest first.
    plans: VecDeque<SentPlan>,
    ranks: Vec<Rank>,
    predicted_step: Duration,
}

struct SentPlan {
    seq: u64,
    /// When the ranks had all they need for it; `None` while they wait for masks.
    complete: Option<Instant>,
}

struct Rank {
    /// The last plan it has answered.
    answered: u64,
    /// When it said anything last.
    heard: Instant,
    /// The ping it has not answered.
    ping: Option<(u64, Instant)>,
}

impl Liveness {
    pub(super) fn new(world_size: u32, now: Instant) -> Self {
        let rank = |_| Rank { answered: 0, heard: now, ping: None };
        Self { plans: VecDeque::new(), ranks: (0..world_size).map(rank).collect(), predicted_step: Duration::ZERO }
    }

    pub(super) fn plan_sent(&mut self, seq: u64, now: Instant) {
        self.plans.push_back(SentPlan { seq, complete: Some(now) });
    }

    /// The plan that was sent last lacks its masks.
    pub(super) fn masks_owed(&mut self) {
        if let Some(plan) = self.plans.back_mut() {
            plan.complete = None;
        }
    }

    /// A plan has got its masks.
    pub(super) fn masks_sent(&mut self, seq: u64, now: Instant) {
        if let Some(plan) = self.plans.iter_mut().find(|plan| plan.seq == seq) {
            plan.complete = Some(now);
        }
    }

    /// A rank has answered a plan.
    ///
    /// # Errors
    /// [`EngineError::Protocol`] if it is not the next one.
    pub(super) fn answered(&mut self, rank: u32, seq: u64, now: Instant) -> Result<(), EngineError> {
        let state = &mut self.ranks[rank as usize];
        let was_sent = self.plans.back().is_some_and(|last| seq <= last.seq);
        if seq != state.answered + 1 || !was_sent {
            let reason = format!("it answers plan {seq} after plan {}", state.answered);
            return Err(EngineError::Protocol { rank, seq, reason });
        }
        (state.answered, state.heard) = (seq, now);
        let by_all = self.ranks.iter().map(|rank| rank.answered).min().expect("a group has at least one rank");
        while self.plans.pop_front_if(|plan| plan.seq <= by_all).is_some() {}
        Ok(())
    }

    /// A rank has answered a ping.
    pub(super) fn pong(&mut self, rank: u32, nonce: u64, now: Instant) {
        let state = &mut self.ranks[rank as usize];
        state.heard = now;
        state.ping = state.ping.filter(|(sent, _)| *sent != nonce);
    }

    /// A step took so long. The prediction jumps up at once and comes down slowly, because a full-budget step may follow
    /// many small ones.
    pub(super) fn step_took(&mut self, duration: Duration) {
        self.predicted_step = duration.max(self.predicted_step * 127 / 128);
    }

    /// The ranks that should be pinged now. They are taken to have been.
    pub(super) fn due_pings(&mut self, nonce: u64, now: Instant) -> Vec<u32> {
        let mut due = Vec::new();
        for (rank, state) in self.ranks.iter_mut().enumerate() {
            if state.ping.is_none() && now.duration_since(state.heard) >= limits::PING_INTERVAL {
                state.ping = Some((nonce, now));
                due.push(rank as u32);
            }
        }
        due
    }

    /// Whether every rank is still believed to live.
    ///
    /// # Errors
    /// [`EngineError::Stalled`] with the rank that is furthest behind.
    pub(super) fn check(&self, now: Instant) -> Result<(), EngineError> {
        let patience = self.patience();
        let (rank, slowest) = self.slowest();
        if let Some(SentPlan { seq, complete: Some(sent) }) = self.plans.front() {
            // A plan can start when the one before it has been answered.
            let waited = now.duration_since((*sent).max(slowest.heard));
            if waited >= patience {
                return Err(EngineError::Stalled { rank, seq: *seq, waited });
            }
        }
        for (rank, state) in self.ranks.iter().enumerate() {
            if let Some((_, sent)) = state.ping
                && now.duration_since(sent.max(state.heard)) >= patience
            {
                return Err(EngineError::Stalled { rank: rank as u32, seq: 0, waited: now.duration_since(sent) });
            }
        }
        Ok(())
    }

    fn patience(&self) -> Duration {
        limits::WATCHDOG_FLOOR.max(self.predicted_step * limits::WATCHDOG_STEPS)
    }

    fn slowest(&self) -> (u32, &Rank) {
        let slowest = self.ranks.iter().enumerate().min_by_key(|(_, rank)| rank.answered);
        let (rank, state) = slowest.expect("a group has at least one rank");
        (rank as u32, state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_plan_may_take_ten_seconds_from_when_it_could_start() {
        let start = Instant::now();
        let mut liveness = Liveness::new(1, start);
        liveness.plan_sent(1, start);
        liveness.plan_sent(2, start);
        liveness.check(start + 9 * SECOND).unwrap();
        liveness.answered(0, 1, start + 9 * SECOND).unwrap();
        liveness.check(start + 18 * SECOND).unwrap();
        let stalled = liveness.check(start + 19 * SECOND).unwrap_err();
        assert_eq!(stalled, EngineError::Stalled { rank: 0, seq: 2, waited: 10 * SECOND });
    }

    #[test]
    fn a_rank_may_wait_for_masks_as_long_as_it_has_none() {
        let start = Instant::now();
        let mut liveness = Liveness::new(1, start);
        liveness.plan_sent(1, start);
        liveness.masks_owed();
        liveness.check(start + 60 * SECOND).unwrap();
        liveness.masks_sent(1, start + 60 * SECOND);
        liveness.check(start + 69 * SECOND).unwrap();
        let stalled = liveness.check(start + 70 * SECOND).unwrap_err();
        assert_eq!(stalled, EngineError::Stalled { rank: 0, seq: 1, waited: 10 * SECOND });
    }

    #[test]
    fn long_steps_are_given_twenty_times_their_time() {
        let start = Instant::now();
        let mut liveness = Liveness::new(1, start);
        liveness.step_took(2 * SECOND);
        liveness.plan_sent(1, start);
        liveness.check(start + 39 * SECOND).unwrap();
        liveness.check(start + 40 * SECOND).unwrap_err();
    }

    #[test]
    fn the_rank_that_lags_is_named() {
        let start = Instant::now();
        let mut liveness = Liveness::new(3, start);
        liveness.plan_sent(1, start);
        liveness.answered(0, 1, start).unwrap();
        liveness.answered(2, 1, start).unwrap();
        let stalled = liveness.check(start + 10 * SECOND).unwrap_err();
        assert_eq!(stalled, EngineError::Stalled { rank: 1, seq: 1, waited: 10 * SECOND });
    }

    #[test]
    fn answers_come_in_order_and_only_to_what_was_sent() {
        let now = Instant::now();
        let mut liveness = Liveness::new(2, now);
        assert!(liveness.answered(1, 1, now).is_err(), "nothing was sent");
        liveness.plan_sent(1, now);
        liveness.plan_sent(2, now);
        assert!(liveness.answered(1, 2, now).is_err(), "plan 1 was skipped");
        liveness.answered(1, 1, now).unwrap();
        assert!(liveness.answered(1, 1, now).is_err(), "answered twice");
    }

    #[test]
    fn an_idle_rank_is_pinged_once_and_must_answer() {
        let start = Instant::now();
        let mut liveness = Liveness::new(2, start);
        assert_eq!(liveness.due_pings(1, start + 4 * SECOND), Vec::<u32>::new());
        assert_eq!(liveness.due_pings(2, start + 5 * SECOND), [0, 1]);
        assert_eq!(liveness.due_pings(3, start + 6 * SECOND), Vec::<u32>::new(), "one ping at a time");
        liveness.pong(0, 2, start + 6 * SECOND);
        liveness.check(start + 14 * SECOND).unwrap();
        assert!(matches!(liveness.check(start + 15 * SECOND), Err(EngineError::Stalled { rank: 1, seq: 0, .. })));
    }
}
