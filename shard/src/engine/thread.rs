//! The loop of the engine thread.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::v1::{Ack, Fatal, InspectResponse, Plan, StepResult, Timings, Welcome, from_shard};
use tokio::sync::{mpsc, watch};

use super::mask_box::{MaskBox, StreamMasks};
use super::{Answers, Command, Heartbeat, StreamId};
use crate::executor::{Executor, StepError, panic_message};

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
        per_token: Duration::ZERO,
        last_timings: Timings::default(),
    };
    let body = move || {
        let reason = match catch_unwind(AssertUnwindSafe(|| engine.run(commands))) {
            Ok(()) => "it was stopped".to_owned(),
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
    /// What a token of the last step took.
    per_token: Duration,
    last_timings: Timings,
}

/// The epoch of one router.
pub(super) struct Stream {
    id: StreamId,
    epoch: u64,
    answers: Answers,
}

impl EngineThread {
    fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        while let Some(command) = commands.blocking_recv() {
            match command {
                Command::Begin { stream, epoch, answers } => self.begin(Stream { id: stream, epoch, answers }),
                Command::Plan { stream, plan, arrived } => self.plan(stream, &plan, arrived),
                Command::End { stream } => self.end(stream),
                // A client that went away needs no answer.
                Command::Generate { request, reply } => drop(reply.send(self.generate(&request))),
                Command::Inspect { reply } => drop(reply.send(self.inspect())),
                Command::Stop => break,
            }
        }
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
        // A plan of a stream that was superseded, or that ended with an error, while the plan was queued.
        if *self.latest.borrow() != id || self.stream.as_ref().is_none_or(|stream| stream.id != id) {
            return;
        }
        let stream = self.stream.take().expect("checked above");
        let answer = match self.step(Some(stream.id), stream.epoch, plan, arrived.elapsed()) {
            Ok(result) if self.executor.is_first_rank() => from_shard::Message::Result(result),
            Ok(result) => from_shard::Message::Ack(Ack { seq: result.seq }),
            Err(error @ StepError::Interrupted { .. }) => {
                // The stream's session, which ended it, tells the router why.
                tracing::info!("epoch {} ends: {error}", stream.epoch);
                self.executor.clear();
                return;
            }
            Err(error) => {
                tracing::error!("epoch {} ends: {error}", stream.epoch);
                self.executor.clear();
                // If it cannot be delivered, the end of the stream says enough.
                let _ = stream.answers.send(from_shard::Message::Fatal(Fatal { reason: error.to_string() }));
                return;
            }
        };
        stream.answers.plan_done();
        if stream.answers.send(answer).is_ok() {
            self.stream = Some(stream);
        } else {
            tracing::warn!("epoch {} ends: the router does not read its results", stream.epoch);
            self.executor.clear();
        }
    }

    /// One step under the eyes of the heartbeat, for a stream or by hand.
    pub(super) fn step(
        &mut self,
        stream: Option<StreamId>,
        epoch: u64,
        plan: &Plan,
        queued: Duration,
    ) -> Result<StepResult, StepError> {
        // An upper bound: packed ids take four bytes each.
        let tokens = self.executor.slots().limits().max_slots
            + plan.draft_limits.iter().map(|&limit| usize::from(limit)).sum::<usize>()
            + plan.chunks.iter().map(|chunk| chunk.ids.len() / 4).sum::<usize>();
        self.heartbeat.step_begins(tokens, self.per_token);
        let started = Instant::now();
        let mut masks = StreamMasks { masks: &self.masks, stream, heartbeat: &self.heartbeat, waited: Duration::ZERO };
        let result = self.executor.step(epoch, plan, queued, &mut masks);
        let took = started.elapsed().saturating_sub(masks.waited);
        self.heartbeat.step_ends();
        if let Ok(result) = &result {
            self.per_token = took / self.executor.last_step_tokens().max(1) as u32;
            self.last_timings = result.timings.unwrap_or_default();
        }
        result
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
