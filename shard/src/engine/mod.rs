//! The engine: the executor on a thread of its own, and the handle through which the service speaks to it.
//!
//! Nothing on the engine thread is asynchronous. It waits for commands, which come over one bounded queue, and for the grammar
//! masks of a step that needs them (`mask_box.rs`); results leave through bounded channels that are never waited on.

mod generate;
mod heartbeat;
mod mask_box;
mod thread;

pub use generate::GenerateError;
pub use heartbeat::{Heartbeat, Stall};

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use proto::v1::{FromShard, GenerateRequest, GenerateResponse, InspectResponse, Masks, Plan, from_shard};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::comm::Comm;
use crate::executor::Executor;
use crate::limits::{BY_HAND_COMMANDS, ENGINE_COMMANDS, MAX_PLANS_IN_FLIGHT};
use crate::violation::Violation;
use mask_box::MaskBox;

/// Everything that can wake the engine.
pub(crate) enum Command {
    /// A router opened a stream: an epoch begins.
    Begin { stream: StreamId, epoch: u64, answers: Answers },
    /// A step of this stream's epoch.
    Plan { stream: StreamId, plan: Plan, arrived: Instant },
    /// The stream is gone.
    End { stream: StreamId },
    /// A person wants a completion.
    Generate { request: GenerateRequest, reply: oneshot::Sender<Result<GenerateResponse, GenerateError>> },
    /// A person wants to look.
    Inspect { reply: oneshot::Sender<InspectResponse> },
    /// The process ends.
    Stop,
}

/// Counts the `Run` streams of this process; the largest is the one that is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StreamId(u64);

impl StreamId {
    /// No stream was opened yet.
    const NONE: StreamId = StreamId(0);
    /// No stream will be served any more.
    pub(crate) const STOPPED: StreamId = StreamId(u64::MAX);
}

/// The way from the engine to one router.
#[derive(Clone)]
pub struct Answers {
    messages: mpsc::Sender<FromShard>,
    in_flight: Arc<AtomicUsize>,
}

/// The router reads too slowly, or is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotRead;

impl Answers {
    /// Answers that go to `messages`.
    pub fn new(messages: mpsc::Sender<FromShard>) -> Answers {
        Answers { messages, in_flight: Arc::default() }
    }

    /// Sends one message without waiting.
    ///
    /// # Errors
    /// [`NotRead`] if the channel is full or closed.
    pub fn send(&self, message: from_shard::Message) -> Result<(), NotRead> {
        self.messages.try_send(FromShard { message: Some(message) }).map_err(|_| NotRead)
    }

    /// Returns once the router's side is gone.
    pub async fn closed(&self) {
        self.messages.closed().await;
    }

    /// Counts one more plan in flight; false if the router has too many.
    fn admit_plan(&self) -> bool {
        self.in_flight.fetch_add(1, Ordering::Relaxed) < MAX_PLANS_IN_FLIGHT
    }

    /// Called when a plan's result is sent.
    fn plan_done(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Speaks to the engine thread. Cloning it gives another handle.
#[derive(Clone)]
pub struct Engine {
    commands: mpsc::Sender<Command>,
    latest: Arc<watch::Sender<StreamId>>,
    heartbeat: Arc<Heartbeat>,
    masks: Arc<MaskBox>,
    by_hand: Arc<Semaphore>,
    comm: Arc<dyn Comm>,
}

/// The engine thread is gone; [`Heartbeat::check`] says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the engine thread has ended")]
pub struct EngineGone;

/// Why a plan was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The router ran too far ahead.
    #[error("more than {MAX_PLANS_IN_FLIGHT} plans in flight")]
    TooManyPlans,
    /// There is nobody to take it.
    #[error(transparent)]
    Gone(#[from] EngineGone),
}

impl Engine {
    /// Starts the thread that owns `executor` from now on.
    pub fn start(executor: Executor, comm: Arc<dyn Comm>) -> Engine {
        let (commands, queue) = mpsc::channel(ENGINE_COMMANDS);
        let latest = Arc::new(watch::Sender::new(StreamId::NONE));
        let heartbeat = Arc::new(Heartbeat::default());
        let masks = Arc::new(MaskBox::new(executor.slots().limits()));
        thread::spawn(executor, queue, latest.subscribe(), heartbeat.clone(), masks.clone());
        let by_hand = Arc::new(Semaphore::new(BY_HAND_COMMANDS));
        Engine { commands, latest, heartbeat, masks, by_hand, comm }
    }

    /// Whether the engine makes progress.
    pub fn heartbeat(&self) -> &Heartbeat {
        &self.heartbeat
    }

    /// The newest stream: whoever holds an older one is superseded.
    pub fn latest_stream(&self) -> watch::Receiver<StreamId> {
        self.latest.subscribe()
    }

    /// Makes a new stream the one that is served. The engine clears its slots, then answers Welcome.
    ///
    /// # Errors
    /// [`EngineGone`].
    pub async fn begin(&self, epoch: u64, answers: Answers) -> Result<StreamId, EngineGone> {
        let mut stream = StreamId::NONE;
        self.latest.send_if_modified(|latest| {
            if *latest == StreamId::STOPPED {
                return false;
            }
            latest.0 += 1;
            stream = *latest;
            // A step of the stream before may wait for a rank that will never get it, or for masks.
            self.comm.abort();
            self.masks.serve(stream);
            true
        });
        if stream == StreamId::NONE {
            return Err(EngineGone);
        }
        self.send(Command::Begin { stream, epoch, answers }).await?;
        Ok(stream)
    }

    /// Queues a plan.
    ///
    /// # Errors
    /// [`SubmitError`].
    pub async fn submit(&self, stream: StreamId, plan: Plan, answers: &Answers) -> Result<(), SubmitError> {
        if !answers.admit_plan() {
            return Err(SubmitError::TooManyPlans);
        }
        Ok(self.send(Command::Plan { stream, plan, arrived: Instant::now() }).await?)
    }

    /// Hands over grammar masks of a plan, before or after it, also while its step runs.
    ///
    /// # Errors
    /// The [`Violation`] that must end the stream.
    pub fn deliver(&self, stream: StreamId, masks: Masks) -> Result<(), Violation> {
        self.masks.deliver(stream, masks)
    }

    /// Ends a stream's epoch, if it is still the present one.
    pub async fn end(&self, stream: StreamId) {
        {
            // The borrow keeps a newer stream from beginning before the abort, which then would hit that one.
            let latest = self.latest.borrow();
            if *latest == stream {
                self.comm.abort();
                self.masks.serve(StreamId::NONE);
            }
        }
        // A dead engine has no epoch to end.
        let _ = self.send(Command::End { stream }).await;
    }

    /// Completes token ids by hand.
    ///
    /// # Errors
    /// [`GenerateError`].
    pub async fn generate(&self, request: GenerateRequest) -> Result<GenerateResponse, GenerateError> {
        let _permit = self.by_hand.acquire().await.expect("never closed");
        let (reply, answer) = oneshot::channel();
        self.send(Command::Generate { request, reply }).await?;
        answer.await.unwrap_or(Err(GenerateError::Gone(EngineGone)))
    }

    /// What the engine holds, between two steps.
    ///
    /// # Errors
    /// [`EngineGone`].
    pub async fn inspect(&self) -> Result<InspectResponse, EngineGone> {
        let _permit = self.by_hand.acquire().await.expect("never closed");
        let (reply, answer) = oneshot::channel();
        self.send(Command::Inspect { reply }).await?;
        answer.await.map_err(|_| EngineGone)
    }

    /// Returns when the engine has ended without having been stopped, and why: only a new process can go on.
    pub async fn lost(&self) -> String {
        self.commands.closed().await;
        if *self.latest.borrow() == StreamId::STOPPED {
            return std::future::pending().await;
        }
        // The thread says why right after it has dropped its queue.
        loop {
            match self.heartbeat.check() {
                Err(stall @ Stall::Ended(_)) => return stall.to_string(),
                _ => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }

    /// Ends all streams, lets the step in flight finish and ends the thread. False if that took longer than `patience`.
    pub async fn stop(&self, patience: Duration) -> bool {
        self.latest.send_replace(StreamId::STOPPED);
        // A step that waits for masks will not get them any more.
        self.masks.serve(StreamId::STOPPED);
        let stopped = async {
            let _ = self.send(Command::Stop).await;
            self.commands.closed().await;
        };
        tokio::time::timeout(patience, stopped).await.is_ok()
    }

    async fn send(&self, command: Command) -> Result<(), EngineGone> {
        self.commands.send(command).await.map_err(|_| EngineGone)
    }
}
