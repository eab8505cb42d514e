//! The connection to a shard group: one `Run` stream per rank, opened together for one epoch.

use std::time::{Duration, Instant};

use futures::future::try_join_all;
use proto::v1::shard_client::ShardClient;
use proto::v1::{FromShard, Hello, InfoResponse, Masks, Ping, Plan, ToShard, from_shard, to_shard};
use tokio::runtime::{self, Runtime};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;

use super::command::{Command, Commands};
use super::error::EngineError;
use super::facts::ShardFacts;
use crate::limits;

/// All ranks of an epoch, each of which has said Welcome.
pub(super) struct Group {
    pub(super) epoch: u64,
    pub(super) facts: ShardFacts,
    links: Vec<Link>,
}

/// The sending half of one rank's stream. Dropping it closes the stream.
struct Link {
    messages: mpsc::Sender<ToShard>,
    /// Ends with the link, so a reader of an old epoch cannot outlive it.
    reader: JoinHandle<()>,
}

/// Where the shards are.
#[derive(Clone, Debug)]
pub(super) struct Address {
    pub(super) uds_prefix: String,
    pub(super) world_size: u32,
}

/// The one thread that all streams to the shards live on: what steps wait for does not queue behind what clients are sent.
pub(super) struct LinkRuntime(Option<Runtime>);

impl LinkRuntime {
    /// # Errors
    /// [`EngineError::Thread`] if the system has none left.
    pub(super) fn new() -> Result<Self, EngineError> {
        let runtime =
            runtime::Builder::new_multi_thread().worker_threads(1).thread_name("shard-link").enable_all().build();
        Ok(Self(Some(runtime.map_err(|error| EngineError::Thread { reason: error.to_string() })?)))
    }

    /// Runs `task` there, and whatever it spawns.
    pub(super) fn spawn<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.0.as_ref().expect("it is there until it is dropped").spawn(task)
    }
}

impl Drop for LinkRuntime {
    fn drop(&mut self) {
        // It may be dropped on an async thread, which must not wait for its end.
        self.0.take().into_iter().for_each(Runtime::shutdown_background);
    }
}

impl Group {
    /// Connects to every rank and says Hello. What the ranks send from then on arrives as commands.
    ///
    /// # Errors
    /// The first rank that cannot be reached or does not fit the group.
    pub(super) async fn open(address: &Address, epoch: u64, commands: &Commands) -> Result<Self, EngineError> {
        let ranks = (0..address.world_size).map(|rank| open_rank(address, rank, epoch, commands.clone()));
        let (links, infos): (Vec<Link>, Vec<InfoResponse>) = try_join_all(ranks).await?.into_iter().unzip();
        Ok(Self { epoch, facts: ShardFacts::merge(&infos)?, links })
    }

    /// Tries until it succeeds or `patience` is over; the last error is returned then.
    ///
    /// # Errors
    /// As [`Group::open`].
    pub(super) async fn open_patiently(
        address: &Address,
        epoch: u64,
        commands: &Commands,
        patience: Option<Duration>,
    ) -> Result<Self, EngineError> {
        let started = Instant::now();
        let (mut pause, longest) = limits::RECONNECT_BACKOFF;
        loop {
            match Self::open(address, epoch, commands).await {
                Ok(group) => return Ok(group),
                Err(error) if patience.is_some_and(|patience| started.elapsed() >= patience) => {
                    return Err(match error {
                        EngineError::Unreachable { rank, reason, .. } => {
                            EngineError::Unreachable { rank, waited: started.elapsed(), reason }
                        }
                        other => other,
                    });
                }
                // A group that does not fit stays so, and at the start somebody should hear of it at once.
                Err(error @ EngineError::Group { .. }) if patience.is_some() => return Err(error),
                Err(error) => tracing::debug!(epoch, %error, "the shard group is not there yet"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
    }

    /// Number of ranks.
    pub(super) fn world_size(&self) -> u32 {
        self.links.len() as u32
    }

    /// Sends a plan to every rank.
    ///
    /// # Errors
    /// The rank that does not take it.
    pub(super) fn send_plan(&self, plan: &Plan) -> Result<(), EngineError> {
        // Cloning shares the packed fields.
        (0..self.world_size()).try_for_each(|rank| self.send(rank, plan.seq, to_shard::Message::Plan(plan.clone())))
    }

    /// Sends the masks of a plan to every rank.
    ///
    /// # Errors
    /// The rank that does not take them.
    pub(super) fn send_masks(&self, masks: &Masks) -> Result<(), EngineError> {
        (0..self.world_size()).try_for_each(|rank| self.send(rank, masks.seq, to_shard::Message::Masks(masks.clone())))
    }

    /// Asks a rank for a sign of life.
    ///
    /// # Errors
    /// If it does not take it.
    pub(super) fn ping(&self, rank: u32, nonce: u64) -> Result<(), EngineError> {
        self.send(rank, 0, to_shard::Message::Ping(Ping { nonce }))
    }

    fn send(&self, rank: u32, seq: u64, message: to_shard::Message) -> Result<(), EngineError> {
        use mpsc::error::TrySendError;
        self.links[rank as usize].messages.try_send(ToShard { message: Some(message) }).map_err(|error| match error {
            TrySendError::Full(_) => EngineError::Protocol { rank, seq, reason: "it does not read its stream".into() },
            TrySendError::Closed(_) => {
                EngineError::StreamClosed { rank, reason: "it closed its receiving half".into() }
            }
        })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

async fn open_rank(
    address: &Address,
    rank: u32,
    epoch: u64,
    commands: Commands,
) -> Result<(Link, InfoResponse), EngineError> {
    let unreachable = |reason: String| EngineError::Unreachable { rank, waited: Duration::ZERO, reason };
    let handshake = async {
        let path = proto::socket_path(&address.uds_prefix, rank);
        let channel = proto::connect(&path).await.map_err(|error| unreachable(error.to_string()))?;
        let mut client = ShardClient::new(channel)
            .max_decoding_message_size(proto::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(proto::MAX_MESSAGE_BYTES);
        let (messages, receiver) = mpsc::channel(limits::MESSAGES_TO_RANK);
        let hello = Hello { epoch, protocol_version: proto::PROTOCOL_VERSION };
        let hello = ToShard { message: Some(to_shard::Message::Hello(hello)) };
        messages.try_send(hello).expect("a fresh channel has room and its receiver is here");
        let stream =
            client.run(ReceiverStream::new(receiver)).await.map_err(|status| unreachable(status.to_string()))?;
        let mut stream = stream.into_inner();
        let first = stream.message().await.map_err(|status| unreachable(status.to_string()))?;
        match first.and_then(|message| message.message) {
            Some(from_shard::Message::Welcome(welcome)) if welcome.epoch == epoch => {
                let info = welcome.info.ok_or_else(|| unreachable("its Welcome has no info".into()))?;
                Ok((messages, stream, info))
            }
            Some(from_shard::Message::Welcome(welcome)) => {
                Err(EngineError::Group { rank, field: "epoch", value: welcome.epoch, expected: epoch })
            }
            Some(from_shard::Message::Fatal(fatal)) => Err(unreachable(fatal.reason)),
            other => Err(unreachable(format!("it said {other:?} instead of Welcome"))),
        }
    };
    let late = |_| unreachable(format!("no Welcome within {}s", limits::WELCOME_TIMEOUT.as_secs()));
    let (messages, stream, info) = tokio::time::timeout(limits::WELCOME_TIMEOUT, handshake).await.map_err(late)??;
    let reader = tokio::spawn(read(stream, epoch, rank, commands));
    Ok((Link { messages, reader }, info))
}

/// Forwards what a rank says until it ends.
async fn read(mut stream: tonic::Streaming<FromShard>, epoch: u64, rank: u32, commands: Commands) {
    let reason = loop {
        match stream.message().await {
            Ok(Some(FromShard { message: Some(message) })) => {
                if !commands.send(Command::FromShard { epoch, rank, message }).await {
                    return;
                }
            }
            Ok(Some(FromShard { message: None })) => break "a message of an unknown kind".to_owned(),
            Ok(None) => break "end of stream".to_owned(),
            Err(status) => break status.to_string(),
        }
    };
    commands.send(Command::Closed { epoch, error: EngineError::StreamClosed { rank, reason } }).await;
}
