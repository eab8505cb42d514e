//! Every way the scheduler thread can be woken: one closed enum, one bounded channel.

use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, TrySendError};
use proto::v1::from_shard::Message;
use tokio::sync::{mpsc, oneshot};

use super::admission::Permit;
use super::error::{EngineError, SubmitError};
use super::link::Group;
use super::masks::Computed;
use super::response::Event;
use crate::limits;
use crate::request::GenerateRequest;
use crate::scheduler::RequestId;

/// What the scheduler thread can be told.
pub(super) enum Command {
    /// A new request.
    Submit(Submission),
    /// The client is gone.
    Cancel(RequestId),
    /// A rank has spoken.
    FromShard { epoch: u64, rank: u32, message: Message },
    /// A rank's stream has ended.
    Closed { epoch: u64, error: EngineError },
    /// All ranks have said Welcome to a new epoch.
    Reconnected(Group),
    /// A mask worker has done jobs.
    Computed(Vec<Computed>),
    /// Finish what runs, then end; answer when done.
    Drain(oneshot::Sender<()>),
    /// End now: nobody is left who could ask for anything.
    Stop,
}

/// A request on its way into the scheduler.
pub(super) struct Submission {
    pub(super) id: RequestId,
    pub(super) request: GenerateRequest,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) permit: Permit,
    pub(super) at: Instant,
}

/// The sending end, never blocking.
#[derive(Clone)]
pub(super) struct Commands(Sender<Command>);

/// The channel. Its bound: each of `max_concurrent_requests` can have a Submit, a Cancel and two Computed waiting (a
/// request keeps its permit until the thread has let go of it), every rank a few messages, and there is one Drain and one Stop.
pub(super) fn channel(max_concurrent_requests: usize, world_size: u32) -> (Commands, Receiver<Command>) {
    let bound = 4 * max_concurrent_requests + limits::SHARD_MESSAGES_PER_RANK * world_size as usize + 2;
    let (sender, receiver) = crossbeam_channel::bounded(bound);
    (Commands(sender), receiver)
}

impl Commands {
    pub(super) fn submit(&self, submission: Submission) -> Result<(), SubmitError> {
        self.0.try_send(Command::Submit(submission)).map_err(|_| SubmitError::Stopped)
    }

    pub(super) fn cancel(&self, id: RequestId) {
        // If the thread is gone there is nothing to cancel; if the channel were full, the thread would notice the closed
        // stream at the request's next token.
        let _ = self.0.try_send(Command::Cancel(id));
    }

    pub(super) fn stop(&self) {
        let _ = self.0.try_send(Command::Stop);
    }

    /// Sends from a thread that may wait. False if the scheduler thread is gone.
    pub(super) fn send_blocking(&self, command: Command) -> bool {
        self.0.send(command).is_ok()
    }

    /// Sends from a task: waits for room without holding a runtime thread. False if the scheduler thread is gone.
    pub(super) async fn send(&self, command: Command) -> bool {
        let mut command = command;
        loop {
            match self.0.try_send(command) {
                Ok(()) => return true,
                Err(TrySendError::Disconnected(_)) => return false,
                Err(TrySendError::Full(back)) => command = back,
            }
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }
}
