//! The scheduler thread: one loop around the pure scheduler, woken by commands and by the watchdog's clock.
//!
//! Each turn takes what has arrived, sends the plans that are due, and only then tells the clients: while 256 tasks are
//! being woken, the shards are already at the next step.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use proto::v1::StepResult;
use proto::v1::from_shard::Message;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};

use super::admission::{Admission, Permit, ServiceRate};
use super::command::{Command, Commands, Submission};
use super::error::{EngineError, RequestError};
use super::link::{Address, Group, LinkRuntime};
use super::liveness::Liveness;
use super::mask_workers::MaskWorkers;
use super::masks::{Computed, Masks};
use super::metrics::{self, Method};
use super::response::Event;
use super::{EngineConfig, Health, capacity, wire};
use crate::limits;
use crate::scheduler::{Failure, OutputEvent, RequestId, Scheduler, SchedulerConfig};

/// What the thread starts with.
pub(super) struct Setup {
    pub(super) config: EngineConfig,
    pub(super) address: Address,
    pub(super) scheduler: SchedulerConfig,
    pub(super) group: Group,
    pub(super) admission: Arc<Admission>,
    pub(super) health: watch::Sender<Health>,
    pub(super) commands: Commands,
    pub(super) receiver: Receiver<Command>,
    pub(super) links: LinkRuntime,
}

/// Starts the thread.
///
/// # Errors
/// [`EngineError::Thread`] if the system has none left.
pub(super) fn spawn(setup: Setup) -> Result<(), EngineError> {
    let scheduler = Scheduler::new(setup.scheduler.clone(), capacity(&setup.group.facts));
    let mask_workers = MaskWorkers::new(setup.config.max_concurrent_requests, &setup.commands)?;
    let now = Instant::now();
    let engine = EngineThread {
        epoch: setup.group.epoch,
        liveness: Liveness::new(setup.group.world_size(), now),
        group: Some(setup.group),
        scheduler,
        masks: Masks::new(setup.scheduler.vocab_size, &setup.scheduler.eos_token_ids),
        mask_workers,
        config: setup.config,
        address: setup.address,
        vocabulary: (setup.scheduler.vocab_size, setup.scheduler.block_size, setup.scheduler.eos_token_ids),
        admission: setup.admission,
        health: setup.health,
        commands: setup.commands,
        links: setup.links,
        clients: HashMap::new(),
        steps: VecDeque::new(),
        last_result: now,
        worked: Duration::ZERO,
        rate: ServiceRate::default(),
        pings: 0,
        drain: None,
        is_stopped: false,
    };
    let receiver = setup.receiver;
    let spawned = std::thread::Builder::new().name("scheduler".into()).spawn(move || engine.run(&receiver));
    spawned.map(|_| ()).map_err(|error| EngineError::Thread { reason: error.to_string() })
}

struct EngineThread {
    scheduler: Scheduler,
    masks: Masks,
    mask_workers: MaskWorkers,
    /// The ranks of `epoch`; `None` while they are being reconnected.
    group: Option<Group>,
    epoch: u64,
    liveness: Liveness,
    config: EngineConfig,
    address: Address,
    /// What a returning group must agree on: vocabulary and block size, and the tokens that end a sequence.
    vocabulary: (u32, u32, Vec<u32>),
    admission: Arc<Admission>,
    health: watch::Sender<Health>,
    commands: Commands,
    links: LinkRuntime,
    clients: HashMap<RequestId, Client>,
    /// Plans without a result, oldest first.
    steps: VecDeque<SentStep>,
    last_result: Instant,
    /// Time the shards have worked since the rate was last measured.
    worked: Duration,
    rate: ServiceRate,
    pings: u64,
    drain: Option<oneshot::Sender<()>>,
    is_stopped: bool,
}

/// The other end of a [`ResponseStream`](super::ResponseStream).
struct Client {
    events: mpsc::Sender<Event>,
    permit: Permit,
    submitted: Instant,
}

struct SentStep {
    at: Instant,
    method: Method,
}

/// Turns liveness red if the thread ends without having been told to.
struct EndGuard(watch::Sender<Health>);

impl Drop for EndGuard {
    fn drop(&mut self) {
        let reason = Some("the scheduler thread has ended".to_owned());
        self.0.send_replace(Health { live: !std::thread::panicking(), ready: false, reason });
    }
}

impl EngineThread {
    fn run(mut self, receiver: &Receiver<Command>) {
        let guard = EndGuard(self.health.clone());
        while !self.is_over() {
            match receiver.recv_timeout(limits::WATCHDOG_TICK) {
                Ok(command) => {
                    self.handle(command);
                    receiver.try_iter().for_each(|command| self.handle(command));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => unreachable!("the thread holds a sender itself"),
            }
            self.watch();
            self.masks.hear(self.scheduler.outputs());
            self.queue_masks();
            self.send_plans();
            self.send_masks();
            let finished = self.deliver();
            // Clients that are found gone leave rows behind.
            self.send_masks();
            self.publish(finished);
        }
        // Closes the streams to the shards before anybody is told.
        self.group = None;
        drop(guard);
        if let Some(done) = self.drain.take() {
            let _ = done.send(());
        }
    }

    fn is_over(&self) -> bool {
        self.is_stopped || (self.drain.is_some() && self.scheduler.is_idle() && self.clients.is_empty())
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Submit(submission) => self.submit(submission),
            Command::Cancel(id) => self.cancel(id),
            Command::FromShard { epoch, rank, message } if epoch == self.epoch => {
                if let Err(error) = self.hear(rank, message) {
                    self.end_epoch(error);
                }
            }
            Command::Closed { epoch, error } if epoch == self.epoch => self.end_epoch(error),
            // Late words of an epoch that is over.
            Command::FromShard { .. } | Command::Closed { .. } => {}
            Command::Reconnected(group) => self.begin_epoch(group),
            Command::Computed(computed) => computed.into_iter().for_each(|computed| self.mask_computed(computed)),
            Command::Drain(done) => {
                self.drain = Some(done);
                self.health.send_modify(|health| {
                    (health.ready, health.reason) = (false, Some("the engine is draining".to_owned()));
                });
            }
            Command::Stop => self.is_stopped = true,
        }
    }

    fn submit(&mut self, Submission { id, request, events, permit, at }: Submission) {
        self.masks.begin(id, &request);
        match self.scheduler.submit(id, request) {
            Ok(()) => {
                self.clients.insert(id, Client { events, permit, submitted: at });
            }
            // The handle checks against the first epoch's capacity; this one may be smaller.
            Err(misfit) => {
                self.masks.forget(id);
                let _ = events.try_send(Event::Failed(RequestError::Failure(Failure::Misfit(misfit))));
            }
        }
    }

    fn cancel(&mut self, id: RequestId) {
        self.scheduler.cancel(id);
        self.masks.forget(id);
        self.clients.remove(&id);
    }

    /// A rank has spoken.
    fn hear(&mut self, rank: u32, message: Message) -> Result<(), EngineError> {
        let now = Instant::now();
        let protocol = |reason: &str| EngineError::Protocol { rank, seq: 0, reason: reason.to_owned() };
        match message {
            Message::Result(result) if rank == 0 => self.apply(result, now),
            Message::Ack(ack) if rank != 0 => self.liveness.answered(rank, ack.seq, now),
            Message::Pong(pong) => {
                self.liveness.pong(rank, pong.nonce, now);
                Ok(())
            }
            Message::Fatal(fatal) => Err(EngineError::Fatal { rank, reason: fatal.reason }),
            Message::Result(_) => Err(protocol("only rank 0 returns results")),
            Message::Ack(_) => Err(protocol("rank 0 returns results, not acknowledgements")),
            Message::Welcome(_) => Err(protocol("a second Welcome")),
        }
    }

    fn apply(&mut self, result: StepResult, now: Instant) -> Result<(), EngineError> {
        let seq = result.seq;
        self.liveness.answered(0, seq, now)?;
        let protocol = |reason: String| EngineError::Protocol { rank: 0, seq, reason };
        let timings = result.timings.unwrap_or_default();
        let outcome = wire::decode(&result).map_err(protocol)?;
        if self.config.max_draft_tokens > 0 {
            let rows = outcome.samples.chunk_by(|one, next| one.slot == next.slot);
            rows.for_each(|row| metrics::tokens_skipped(row.len() - 1));
        }
        self.scheduler.apply(outcome).map_err(|error| protocol(error.to_string()))?;
        self.masks.answered(seq);
        let step = self.steps.pop_front().expect("the scheduler has accepted the result of a sent plan");
        // A plan starts when the one before it has ended.
        let duration = now.duration_since(step.at.max(self.last_result));
        self.last_result = now;
        self.worked += duration;
        self.liveness.step_took(duration);
        metrics::step_answered(step.method, duration, &timings, self.steps.len());
        Ok(())
    }

    /// The shards have lost everything, or may have. Whoever runs will wait, and then go on where they were.
    fn end_epoch(&mut self, error: EngineError) {
        tracing::error!(epoch = self.epoch, %error, "the shard epoch is over; requests continue after the restart");
        self.group = None;
        self.steps.drain(..).for_each(|step| metrics::step_lost(step.method));
        self.scheduler.reset(self.scheduler.capacity());
        self.masks.end_epoch();
        self.health.send_replace(Health { live: true, ready: false, reason: Some(error.to_string()) });
        self.epoch += 1;
        self.reconnect();
    }

    fn reconnect(&self) {
        let (address, epoch, commands) = (self.address.clone(), self.epoch, self.commands.clone());
        self.links.spawn(async move {
            // Without a limit of patience the only way out is success: when to give up is the launcher's decision.
            if let Ok(group) = Group::open_patiently(&address, epoch, &commands, None).await {
                commands.send(Command::Reconnected(group)).await;
            }
        });
    }

    fn begin_epoch(&mut self, mut group: Group) {
        self.config.restrict(&mut group.facts);
        let facts = &group.facts;
        if self.vocabulary != (facts.vocab_size, facts.block_size, facts.eos_token_ids.clone()) {
            let reason = "the shards came back with another model".to_owned();
            tracing::error!(epoch = self.epoch, reason);
            self.health.send_replace(Health { live: true, ready: false, reason: Some(reason) });
            drop(group);
            self.epoch += 1;
            return self.reconnect();
        }
        tracing::info!(epoch = self.epoch, num_blocks = facts.num_blocks, "the shards are back");
        metrics::epoch_replaced();
        self.scheduler.reset(capacity(facts));
        self.liveness = Liveness::new(group.world_size(), Instant::now());
        self.group = Some(group);
        if self.drain.is_none() {
            self.health.send_replace(Health::ready());
        }
    }

    /// Ends the epoch if a rank is silent for too long, and asks silent ones for a sign of life.
    fn watch(&mut self) {
        let Some(group) = &self.group else { return };
        let now = Instant::now();
        self.pings += 1;
        let asked =
            self.liveness.due_pings(self.pings, now).into_iter().try_for_each(|rank| group.ping(rank, self.pings));
        if let Err(error) = asked.and_then(|()| self.liveness.check(now)) {
            self.end_epoch(error);
        }
    }

    fn send_plans(&mut self) {
        while let Some(group) = &self.group {
            let started = Instant::now();
            let running_before = self.scheduler.load().running;
            let Some(step) = self.scheduler.plan() else { return };
            let at = Instant::now();
            let method = if step.chunks.is_empty() { Method::Decode } else { Method::Prefill };
            metrics::step_sent(method, at - started, step.new_slots.len(), running_before);
            let seq = step.seq;
            let sent = group.send_plan(&wire::encode(step));
            self.liveness.plan_sent(seq, at);
            if !step.masked.is_empty() {
                self.liveness.masks_owed();
                self.masks.owe(seq, &step.masked);
            }
            self.steps.push_back(SentStep { at, method });
            if let Err(error) = sent {
                self.end_epoch(error);
            }
        }
    }

    /// Gives the workers what they can compute now.
    fn queue_masks(&mut self) {
        let jobs = self.masks.take_jobs(Instant::now());
        self.mask_workers.submit(jobs).into_iter().for_each(|refused| self.mask_computed(refused));
    }

    fn mask_computed(&mut self, computed: Computed) {
        if let Some((id, reason)) = self.masks.computed(computed) {
            self.fail_grammar(id, reason);
        }
    }

    fn fail_grammar(&mut self, id: RequestId, reason: String) {
        metrics::grammar_failed();
        self.masks.forget(id);
        self.scheduler.fail(id, Failure::Grammar { reason });
    }

    /// Sends the masks that are complete.
    fn send_masks(&mut self) {
        while let Some(group) = &self.group {
            if let Some(masks) = self.masks.next(&self.scheduler) {
                let sent = group.send_masks(&masks);
                self.liveness.masks_sent(masks.seq, Instant::now());
                if let Err(error) = sent {
                    self.end_epoch(error);
                }
            } else if let Some((id, waited)) = self.masks.overdue(Instant::now()) {
                self.fail_grammar(id, format!("no mask within {} s", waited.as_secs()));
            } else {
                return;
            }
        }
    }

    /// Tells the clients what has happened. Returns how many requests ended.
    fn deliver(&mut self) -> usize {
        let now = Instant::now();
        let mut finished = 0;
        let mut gone = Vec::new();
        for output in self.scheduler.take_outputs() {
            let id = output.request;
            let Some(client) = self.clients.get_mut(&id) else { continue };
            let event = match output.event {
                OutputEvent::Scheduled { cached_tokens } => {
                    client.permit.leave_queue();
                    metrics::request_scheduled(now - client.submitted);
                    Event::Scheduled { cached_tokens, at: now }
                }
                OutputEvent::Prompt { logprobs } => Event::Prompt { logprobs },
                OutputEvent::Token { id, logprob, top } => Event::Token { id, logprob, top },
                OutputEvent::Finished(reason) => Event::Finished { reason },
                OutputEvent::Failed(failure) => Event::Failed(RequestError::Failure(failure)),
            };
            let sent = if event.is_last() {
                finished += 1;
                // The permit goes first: whoever reads the end may ask for the next reply at once.
                self.masks.forget(id);
                let Client { events, permit, .. } = self.clients.remove(&id).expect("the client was just found");
                drop(permit);
                events.try_send(event)
            } else {
                client.events.try_send(event)
            };
            match sent {
                Ok(()) => {}
                Err(TrySendError::Closed(_)) => gone.push(id),
                Err(TrySendError::Full(_)) => unreachable!("a stream holds all the events a request can have"),
            }
        }
        gone.into_iter().for_each(|id| self.cancel(id));
        finished
    }

    fn publish(&mut self, finished: usize) {
        metrics::state(&self.scheduler.load(), &self.scheduler.counters());
        let worked = std::mem::take(&mut self.worked);
        if !worked.is_zero() {
            self.rate.observe(worked, finished);
            self.admission.set_rate(self.rate.per_second());
        }
    }
}
