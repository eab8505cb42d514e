//! The loop of the engine thread.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::v1::{Ack, Fatal, InspectResponse, Plan, StepResult, Timings, Welcome, from_shard};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, watch};

use super::mask_box::{MaskBox, StreamMasks};
use super::{Answers, Command, Heartbeat, StreamId};
use crate::executor::{Executor, StepError, StepInFlight, panic_message};
use crate::limits::{DEVICE_POLL_PERIOD, MAX_STEPS_IN_FLIGHT};

/// Starts the thread. It ends when all handles are dropped, at `Stop`, or by a panic outside of a step.
pub(super) fn spawn(
    executor: Executor,
    commands: mpsc::Receiver<Command>,
    latest: watch::Receiver<StreamId>,
    heartbeat: Arc<Heartbeat>,
    masks: Arc<MaskBox>,
) {
    let engine = EngineThread {
        executor,
        latest,
        heartbeat: heartbeat.clone(),
        masks,
        stream: None,
        in_flight: VecDeque::with_capacity(MAX_STEPS_IN_FLIGHT),
        last_finished: Instant::now(),
        per_token: Duration::ZERO,
        last_timings: Timings::default(),
        lost: None,
    };
    let body = move || {
        let reason = match catch_unwind(AssertUnwindSafe(|| engine.run(commands))) {
            Ok(reason) => reason,
            Err(panic) => format!("it panicked: {}", panic_message(&*panic)),
        };
        heartbeat.end(reason);
    };
    std::thread::Builder::new().name("engine".to_owned()).spawn(body).expect("a process can start one more thread");
}

/// What the engine thread owns.
pub(super) struct EngineThread {
    pub(super) executor: Executor,
    pub(super) latest: watch::Receiver<StreamId>,
    pub(super) heartbeat: Arc<Heartbeat>,
    masks: Arc<MaskBox>,
    /// The router that is served.
    pub(super) stream: Option<Stream>,
    /// The router's steps that were asked for, the oldest first.
    in_flight: VecDeque<StepInFlight>,
    last_finished: Instant,
    /// What a token of the last step took.
    per_token: Duration,
    last_timings: Timings,
    /// Why only a new process can go on.
    lost: Option<String>,
}

/// The epoch of one router.
pub(super) struct Stream {
    id: StreamId,
    epoch: u64,
    answers: Answers,
}

impl EngineThread {
    /// Returns why it ends.
    fn run(mut self, mut commands: mpsc::Receiver<Command>) -> String {
        while let Some(command) = self.next(&mut commands) {
            match command {
                Command::Plan { stream, plan, arrived } => self.plan(stream, &plan, arrived),
                command => {
                    self.finish_all();
                    match command {
                        Command::Begin { stream, epoch, answers } => self.begin(Stream { id: stream, epoch, answers }),
                        Command::End { stream } => self.end(stream),
                        // A client that went away needs no answer.
                        Command::Generate { request, reply } => drop(reply.send(self.generate(&request))),
                        Command::Inspect { reply } => drop(reply.send(self.inspect())),
                        Command::Plan { .. } | Command::Stop => break,
                    }
                }
            }
            if let Some(reason) = self.lost {
                return reason;
            }
        }
        "it was stopped".to_owned()
    }

    /// The next command. Until it comes, steps are finished as they get ready.
    fn next(&mut self, commands: &mut mpsc::Receiver<Command>) -> Option<Command> {
        while let Some(oldest) = self.in_flight.front() {
            match commands.try_recv() {
                Ok(command) => return Some(command),
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) => {}
            }
            match self.executor.is_ready(oldest) {
                Ok(false) => std::thread::sleep(DEVICE_POLL_PERIOD),
                // Finishing it finds the error again.
                Ok(true) | Err(_) => self.finish_oldest(),
            }
        }
        if self.lost.is_some() { None } else { commands.blocking_recv() }
    }

    fn begin(&mut self, stream: Stream) {
        self.executor.begin_epoch();
        self.stream = None;
        if *self.latest.borrow() == stream.id {
            tracing::info!(epoch = stream.epoch, "a router opened epoch {}", stream.epoch);
            // The service adds what this rank is. A router that is gone already will be noticed at its first plan.
            let _ = stream.answers.send(from_shard::Message::Welcome(Welcome { epoch: stream.epoch, info: None }));
            self.stream = Some(stream);
        }
    }

    fn end(&mut self, id: StreamId) {
        if self.stream.as_ref().is_some_and(|stream| stream.id == id) {
            self.executor.clear();
            self.stream = None;
        }
    }

    fn plan(&mut self, id: StreamId, plan: &Plan, arrived: Instant) {
        let may_follow = |engine: &EngineThread| {
            let newest = engine.in_flight.back();
            engine.in_flight.len() < MAX_STEPS_IN_FLIGHT
                && newest.is_none_or(|newest| engine.executor.can_follow(newest, plan))
        };
        while !may_follow(self) {
            self.finish_oldest();
        }
        // A plan of a stream that was superseded, or that ended with an error, while the plan was queued.
        let Some(stream) = self.stream.as_ref().filter(|stream| *self.latest.borrow() == id && stream.id == id) else {
            return;
        };
        // An upper bound: packed ids take four bytes each.
        let tokens = self.executor.slots().limits().max_slots
            + plan.draft_limits.iter().map(|&limit| usize::from(limit)).sum::<usize>()
            + plan.chunks.iter().map(|chunk| chunk.ids.len() / 4).sum::<usize>();
        if self.in_flight.is_empty() {
            self.heartbeat.step_begins(tokens, self.per_token);
        }
        match self.executor.submit(stream.epoch, plan, arrived.elapsed()) {
            Ok(step) => {
                let is_on_device = step.is_on_device();
                self.in_flight.push_back(step);
                if !is_on_device {
                    self.finish_all();
                }
            }
            Err(error) => {
                // What came before it is still answered.
                self.finish_all();
                self.heartbeat.step_ends();
                self.fail(&error);
            }
        }
    }

    fn finish_all(&mut self) {
        while !self.in_flight.is_empty() {
            self.finish_oldest();
        }
    }

    /// Finishes the oldest step in flight and answers its router, if that is still there.
    fn finish_oldest(&mut self) {
        let Some(step) = self.in_flight.pop_front() else { return };
        let id = self.stream.as_ref().map(|stream| stream.id);
        let outcome = self.finish(step, id);
        if let Some(next) = self.in_flight.front() {
            self.heartbeat.step_begins(next.tokens(), self.per_token);
        }
        let Some(stream) = self.stream.as_ref() else { return };
        let answer = match outcome {
            Ok(result) if self.executor.is_first_rank() => from_shard::Message::Result(result),
            Ok(result) => from_shard::Message::Ack(Ack { seq: result.seq }),
            Err(error) => return self.fail(&error),
        };
        stream.answers.plan_done();
        if stream.answers.send(answer).is_err() {
            tracing::warn!("epoch {} ends: the router does not read its results", stream.epoch);
            self.stream = None;
            self.finish_all();
            self.executor.clear();
        }
    }

    /// A step has failed, and the epoch with it.
    fn fail(&mut self, error: &StepError) {
        if self.executor.is_lost(error) {
            self.lost.get_or_insert_with(|| error.to_string());
        }
        if let Some(Stream { epoch, answers, .. }) = self.stream.take() {
            if matches!(error, StepError::Interrupted { .. }) {
                // The stream's session, which ended it, tells the router why.
                tracing::info!("epoch {epoch} ends: {error}");
            } else {
                tracing::error!("epoch {epoch} ends: {error}");
                // If it cannot be delivered, the end of the stream says enough.
                let _ = answers.send(from_shard::Message::Fatal(Fatal { reason: error.to_string() }));
            }
        }
        // Later steps have nobody left who reads them.
        self.finish_all();
        self.executor.clear();
    }

    /// Finishes a step under the eyes of the heartbeat.
    fn finish(&mut self, step: StepInFlight, stream: Option<StreamId>) -> Result<StepResult, StepError> {
        let (tokens, began) = (step.tokens(), step.asked().max(self.last_finished));
        let mut masks = StreamMasks { masks: &self.masks, stream, heartbeat: &self.heartbeat, waited: Duration::ZERO };
        let result = self.executor.finish(step, &mut masks);
        self.last_finished = Instant::now();
        let took = began.elapsed().saturating_sub(masks.waited);
        self.heartbeat.step_ends();
        if let Ok(result) = &result {
            self.per_token = took / tokens.max(1) as u32;
            self.last_timings = result.timings.unwrap_or_default();
        }
        result
    }

    /// One step by hand.
    pub(super) fn step(&mut self, plan: &Plan) -> Result<StepResult, StepError> {
        self.heartbeat.step_begins(self.executor.slots().limits().max_step_tokens, self.per_token);
        match self.executor.submit(0, plan, Duration::ZERO) {
            Ok(step) => self.finish(step, None),
            Err(error) => {
                self.heartbeat.step_ends();
                Err(error)
            }
        }
    }

    fn inspect(&self) -> InspectResponse {
        let slots = self.executor.slots();
        InspectResponse {
            epoch: self.stream.as_ref().map_or(0, |stream| stream.epoch),
            last_seq: slots.last_seq(),
            slots: slots.inspect(),
            num_blocks: slots.limits().num_blocks as u32,
            last_timings: Some(self.last_timings),
        }
    }
}
