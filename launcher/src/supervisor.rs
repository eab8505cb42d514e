//! Who has to run, who has to stop, and when: the launcher's decisions, without processes and without a clock.
//!
//! Events go in, actions come out; `serve.rs` carries them out. The shards form one group that lives and dies together:
//! after a rank's death the others wait in a collective for ever, and the router starts a new epoch anyway.

use std::collections::VecDeque;
use std::time::Duration;

use crate::limits::{FAILURE_WINDOW, MAX_FAILURES, RESTART_BACKOFF};

/// A child process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Member {
    /// The rank of a shard.
    Shard(u32),
    /// The one router.
    Router,
}

impl std::fmt::Display for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Member::Shard(rank) => f.pad(&format!("shard-{rank}")),
            Member::Router => f.pad("router"),
        }
    }
}

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A child answered its readiness probe.
    Ready(Member),
    /// A child has ended, for whatever reason.
    Exited(Member),
    /// A child runs but does not answer.
    Unresponsive(Member),
    /// Somebody asked for an orderly stop.
    Stop,
    /// Somebody asked for a stop at once.
    ForceStop,
    /// Time has passed.
    Tick,
}

/// What has to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start every rank of the shard group.
    StartShards,
    /// Start the router.
    StartRouter,
    /// Ask a child to end (SIGTERM).
    Terminate(Member),
    /// End a child (SIGKILL).
    Kill(Member),
    /// Tell the user that everything runs, for the first time.
    AnnounceReady,
    /// Tell the user that the shards run again.
    AnnounceRecovered,
    /// Tell the user that a rank died and the group will be started again.
    AnnounceRestart {
        /// The rank that died first.
        member: Member,
        /// The pause before the restart.
        pause: Duration,
        /// Failures within the window, this one included.
        failures: usize,
    },
    /// Tell the user that requests in flight are being finished.
    AnnounceDraining,
    /// Everything has ended: leave.
    Finish(End),
}

/// Why the launcher ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// As asked.
    Stopped,
    /// As asked, without waiting for requests.
    Forced,
    /// A child ended before everything was ready.
    StartupFailed(Member),
    /// The router ended while serving.
    RouterFailed,
    /// The shards failed [`MAX_FAILURES`] times within [`FAILURE_WINDOW`]; the last one is named.
    ShardsKeepFailing(Member),
}

/// The state of one child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Down,
    Starting,
    Ready,
}

/// What the launcher is after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    /// Everything ready for the first time.
    Start,
    /// Everything running.
    Serve,
    /// The router finishes its requests; the shards still serve it, and are still restarted for it. The deadline is
    /// gone once it has passed.
    Drain { deadline: Option<Duration> },
    /// The shards end in order.
    StopShards { deadline: Option<Duration> },
    /// Everything was killed and only has to be reaped.
    Leave(End),
}

/// The state machine. Times are durations since any fixed moment.
#[derive(Debug)]
pub(crate) struct Supervisor {
    goal: Goal,
    shards: Vec<Life>,
    router: Life,
    /// When the group has to be started again; set from its failure on.
    restart_at: Option<Duration>,
    /// Times of failures within the window, oldest first.
    failures: VecDeque<Duration>,
    grace: Duration,
}

impl Supervisor {
    /// A supervisor of `num_shard` shards and a router, and its first actions. `grace` is how long requests may take to
    /// finish after [`Event::Stop`], and how long the shards may take afterwards.
    pub(crate) fn start(num_shard: u32, grace: Duration) -> (Supervisor, Vec<Action>) {
        let supervisor = Supervisor {
            goal: Goal::Start,
            shards: vec![Life::Starting; num_shard as usize],
            router: Life::Starting,
            restart_at: None,
            failures: VecDeque::new(),
            grace,
        };
        (supervisor, vec![Action::StartShards, Action::StartRouter])
    }

    /// What follows from `event` at time `now`.
    pub(crate) fn handle(&mut self, now: Duration, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Ready(member) => self.ready(member, &mut actions),
            Event::Exited(member) => self.exited(now, member, &mut actions),
            Event::Unresponsive(member) if self.life(member) != Life::Down => actions.push(Action::Kill(member)),
            Event::Unresponsive(_) => {}
            Event::Stop => self.stop(now, &mut actions),
            Event::ForceStop => self.leave(End::Forced, &mut actions),
            Event::Tick => self.tick(now, &mut actions),
        }
        self.finish_if_all_down(&mut actions);
        actions
    }

    /// When [`Event::Tick`] is due, if ever.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        let goal = match self.goal {
            Goal::Drain { deadline } | Goal::StopShards { deadline } => deadline,
            _ => None,
        };
        [goal, self.restart_at.filter(|_| self.shards_are(Life::Down))].into_iter().flatten().min()
    }

    /// Whether an orderly or forced stop has begun.
    pub(crate) fn is_stopping(&self) -> bool {
        !matches!(self.goal, Goal::Start | Goal::Serve)
    }

    fn ready(&mut self, member: Member, actions: &mut Vec<Action>) {
        if self.life(member) != Life::Starting {
            return;
        }
        *self.life_mut(member) = Life::Ready;
        if self.goal == Goal::Start && self.router == Life::Ready && self.shards_are(Life::Ready) {
            self.goal = Goal::Serve;
            actions.push(Action::AnnounceReady);
        } else if self.goal != Goal::Start && matches!(member, Member::Shard(_)) && self.shards_are(Life::Ready) {
            actions.push(Action::AnnounceRecovered);
        }
    }

    fn exited(&mut self, now: Duration, member: Member, actions: &mut Vec<Action>) {
        *self.life_mut(member) = Life::Down;
        match (self.goal, member) {
            (Goal::Leave(_), _) | (Goal::StopShards { .. }, _) => {}
            (Goal::Start, member) => self.leave(End::StartupFailed(member), actions),
            (Goal::Serve, Member::Router) => self.leave(End::RouterFailed, actions),
            (Goal::Drain { .. }, Member::Router) => self.stop_shards(now, actions),
            (Goal::Serve | Goal::Drain { .. }, Member::Shard(_)) => self.shard_failed(now, member, actions),
        }
        self.restart_if_due(now, actions);
    }

    /// The first death of a group counts; those that follow are our own kills.
    fn shard_failed(&mut self, now: Duration, member: Member, actions: &mut Vec<Action>) {
        if self.restart_at.is_some() {
            return;
        }
        self.failures.push_back(now);
        while self.failures.front().is_some_and(|&then| now.saturating_sub(then) > FAILURE_WINDOW) {
            self.failures.pop_front();
        }
        let failures = self.failures.len();
        if failures >= MAX_FAILURES {
            self.leave(End::ShardsKeepFailing(member), actions);
            return;
        }
        let pause = RESTART_BACKOFF[(failures - 1).min(RESTART_BACKOFF.len() - 1)];
        self.restart_at = Some(now + pause);
        actions.push(Action::AnnounceRestart { member, pause, failures });
        self.kill_shards(actions);
    }

    /// Starts the group once its pause is over and its last rank gone: two lives of a rank never share a socket.
    fn restart_if_due(&mut self, now: Duration, actions: &mut Vec<Action>) {
        let serving = matches!(self.goal, Goal::Serve | Goal::Drain { .. });
        if serving && self.shards_are(Life::Down) && self.restart_at.is_some_and(|at| now >= at) {
            self.restart_at = None;
            self.shards.fill(Life::Starting);
            actions.push(Action::StartShards);
        }
    }

    fn stop(&mut self, now: Duration, actions: &mut Vec<Action>) {
        match self.goal {
            // No request was accepted yet, so there is nothing to wait for.
            Goal::Start => self.leave(End::Stopped, actions),
            Goal::Serve => {
                self.goal = Goal::Drain { deadline: Some(now + self.grace) };
                actions.extend([Action::AnnounceDraining, Action::Terminate(Member::Router)]);
            }
            Goal::Drain { .. } | Goal::StopShards { .. } | Goal::Leave(_) => {}
        }
    }

    fn stop_shards(&mut self, now: Duration, actions: &mut Vec<Action>) {
        self.goal = Goal::StopShards { deadline: Some(now + self.grace) };
        self.restart_at = None;
        actions.extend(self.live_shards().map(Action::Terminate));
    }

    fn tick(&mut self, now: Duration, actions: &mut Vec<Action>) {
        match &mut self.goal {
            Goal::Drain { deadline } if deadline.is_some_and(|deadline| now >= deadline) => {
                *deadline = None;
                actions.push(Action::Kill(Member::Router));
            }
            Goal::StopShards { deadline } if deadline.is_some_and(|deadline| now >= deadline) => {
                *deadline = None;
                self.kill_shards(actions);
            }
            _ => {}
        }
        self.restart_if_due(now, actions);
    }

    /// Kills whatever lives. An earlier reason to leave stays the reason.
    fn leave(&mut self, end: End, actions: &mut Vec<Action>) {
        if !matches!(self.goal, Goal::Leave(_)) {
            self.goal = Goal::Leave(end);
        }
        self.restart_at = None;
        if self.router != Life::Down {
            actions.push(Action::Kill(Member::Router));
        }
        self.kill_shards(actions);
    }

    fn finish_if_all_down(&self, actions: &mut Vec<Action>) {
        let end = match self.goal {
            Goal::Leave(end) => end,
            Goal::StopShards { .. } => End::Stopped,
            Goal::Start | Goal::Serve | Goal::Drain { .. } => return,
        };
        if self.router == Life::Down && self.shards_are(Life::Down) {
            actions.push(Action::Finish(end));
        }
    }

    fn kill_shards(&self, actions: &mut Vec<Action>) {
        actions.extend(self.live_shards().map(Action::Kill));
    }

    fn live_shards(&self) -> impl Iterator<Item = Member> + '_ {
        (0..).zip(&self.shards).filter(|&(_, &life)| life != Life::Down).map(|(rank, _)| Member::Shard(rank))
    }

    fn shards_are(&self, life: Life) -> bool {
        self.shards.iter().all(|&shard| shard == life)
    }

    fn life(&self, member: Member) -> Life {
        match member {
            Member::Shard(rank) => self.shards[rank as usize],
            Member::Router => self.router,
        }
    }

    fn life_mut(&mut self, member: Member) -> &mut Life {
        match member {
            Member::Shard(rank) => &mut self.shards[rank as usize],
            Member::Router => &mut self.router,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Member::{Router, Shard};
    use super::*;

    const GRACE: Duration = Duration::from_secs(90);

    /// Runs a script and returns the actions of its last event. Times are in seconds.
    #[track_caller]
    fn after(script: &[(u64, Event)]) -> Vec<Action> {
        let (mut supervisor, first) = Supervisor::start(2, GRACE);
        assert_eq!(first, [Action::StartShards, Action::StartRouter]);
        let mut actions = first;
        for &(second, event) in script {
            actions = supervisor.handle(Duration::from_secs(second), event);
        }
        actions
    }

    const SERVING: [(u64, Event); 3] =
        [(0, Event::Ready(Shard(1))), (0, Event::Ready(Router)), (0, Event::Ready(Shard(0)))];

    #[track_caller]
    fn serving_then(script: &[(u64, Event)]) -> Vec<Action> {
        after(&[&SERVING, script].concat())
    }

    #[test]
    fn ready_is_announced_once_everything_is_ready() {
        assert_eq!(after(&SERVING[..2]), []);
        assert_eq!(after(&SERVING), [Action::AnnounceReady]);
        assert_eq!(serving_then(&[(1, Event::Ready(Shard(0)))]), []);
    }

    #[test]
    fn a_child_that_dies_at_start_ends_everything() {
        let script = [(0, Event::Ready(Shard(0))), (1, Event::Exited(Shard(1)))];
        assert_eq!(after(&script), [Action::Kill(Router), Action::Kill(Shard(0))]);
        let script = [&script[..], &[(1, Event::Exited(Shard(0))), (1, Event::Exited(Router))]].concat();
        assert_eq!(after(&script), [Action::Finish(End::StartupFailed(Shard(1)))], "the first one is the guilty one");
    }

    #[test]
    fn an_orderly_stop_drains_the_router_first() {
        let mut script = vec![(5, Event::Stop)];
        assert_eq!(serving_then(&script), [Action::AnnounceDraining, Action::Terminate(Router)]);
        script.push((9, Event::Exited(Router)));
        assert_eq!(serving_then(&script), [Action::Terminate(Shard(0)), Action::Terminate(Shard(1))]);
        script.push((9, Event::Exited(Shard(1))));
        assert_eq!(serving_then(&script), []);
        script.push((9, Event::Exited(Shard(0))));
        assert_eq!(serving_then(&script), [Action::Finish(End::Stopped)]);
    }

    #[test]
    fn patience_ends_with_the_grace_period() {
        let script = [(5, Event::Stop), (95, Event::Tick)];
        assert_eq!(serving_then(&script), [Action::Kill(Router)]);
        let script = [(5, Event::Stop), (9, Event::Exited(Router)), (99, Event::Tick)];
        assert_eq!(serving_then(&script), [Action::Kill(Shard(0)), Action::Kill(Shard(1))]);
    }

    #[test]
    fn a_forced_stop_kills_everything() {
        let script = [(5, Event::Stop), (6, Event::ForceStop)];
        assert_eq!(serving_then(&script), [Action::Kill(Router), Action::Kill(Shard(0)), Action::Kill(Shard(1))]);
    }

    #[test]
    fn stopping_before_ready_waits_for_nobody() {
        let script = [(0, Event::Stop)];
        assert_eq!(after(&script), [Action::Kill(Router), Action::Kill(Shard(0)), Action::Kill(Shard(1))]);
    }

    #[test]
    fn a_dead_rank_restarts_the_whole_group_after_its_last_rank_is_gone() {
        let mut script = vec![(5, Event::Exited(Shard(1)))];
        let announced = Action::AnnounceRestart { member: Shard(1), pause: Duration::ZERO, failures: 1 };
        assert_eq!(serving_then(&script), [announced, Action::Kill(Shard(0))]);
        script.push((5, Event::Exited(Shard(0))));
        assert_eq!(serving_then(&script), [Action::StartShards]);
        script.push((6, Event::Ready(Shard(0))));
        script.push((6, Event::Ready(Shard(1))));
        assert_eq!(serving_then(&script), [Action::AnnounceRecovered]);
    }

    #[test]
    fn repeated_failures_back_off_and_end() {
        let mut script = Vec::new();
        for (failures, pause) in [(1, 0), (2, 1), (3, 2), (4, 4)] {
            let second = 10 * failures as u64;
            script.extend([(second, Event::Exited(Shard(0))), (second, Event::Exited(Shard(1)))]);
            let actions = serving_then(&script);
            let expected: &[Action] = if pause == 0 { &[Action::StartShards] } else { &[] };
            assert_eq!(actions, expected, "failure {failures}");
            if pause > 0 {
                script.push((second + pause - 1, Event::Tick));
                assert_eq!(serving_then(&script), [], "not before its pause is over");
                script.push((second + pause, Event::Tick));
                assert_eq!(serving_then(&script), [Action::StartShards]);
            }
        }
        script.push((60, Event::Exited(Shard(1))));
        assert_eq!(serving_then(&script), [Action::Kill(Router), Action::Kill(Shard(0))]);
        script.extend([(60, Event::Exited(Shard(0))), (60, Event::Exited(Router))]);
        assert_eq!(serving_then(&script), [Action::Finish(End::ShardsKeepFailing(Shard(1)))]);
    }

    #[test]
    fn old_failures_are_forgiven() {
        let mut script = Vec::new();
        for failure in 0..10 {
            let second = 1 + failure * 301;
            script.extend([(second, Event::Exited(Shard(0))), (second, Event::Exited(Shard(1)))]);
            assert_eq!(serving_then(&script), [Action::StartShards]);
        }
    }

    #[test]
    fn shards_are_restarted_for_a_draining_router() {
        let mut script = vec![(5, Event::Stop), (6, Event::Exited(Shard(0))), (6, Event::Exited(Shard(1)))];
        assert_eq!(serving_then(&script), [Action::StartShards]);
        script.push((7, Event::Exited(Router)));
        assert_eq!(serving_then(&script), [Action::Terminate(Shard(0)), Action::Terminate(Shard(1))]);
    }

    #[test]
    fn a_router_that_dies_while_serving_ends_everything() {
        let script = [(5, Event::Exited(Router))];
        assert_eq!(serving_then(&script), [Action::Kill(Shard(0)), Action::Kill(Shard(1))]);
    }

    #[test]
    fn a_hung_rank_is_killed_like_a_dead_one() {
        assert_eq!(serving_then(&[(5, Event::Unresponsive(Shard(1)))]), [Action::Kill(Shard(1))]);
        let script = [(5, Event::Exited(Shard(1))), (5, Event::Unresponsive(Shard(1)))];
        assert_eq!(serving_then(&script), []);
    }

    #[test]
    fn deadlines_are_those_of_the_goal_and_the_restart() {
        let (mut supervisor, _) = Supervisor::start(1, GRACE);
        assert_eq!(supervisor.deadline(), None);
        for event in [Event::Ready(Shard(0)), Event::Ready(Router)] {
            supervisor.handle(Duration::ZERO, event);
        }
        supervisor.handle(Duration::from_secs(1), Event::Exited(Shard(0)));
        supervisor.handle(Duration::from_secs(2), Event::Exited(Shard(0)));
        assert_eq!(supervisor.deadline(), Some(Duration::from_secs(3)), "the second failure pauses for 1 s");
        supervisor.handle(Duration::from_secs(2), Event::Stop);
        assert_eq!(supervisor.deadline(), Some(Duration::from_secs(3)), "draining does not postpone it");
    }
}
