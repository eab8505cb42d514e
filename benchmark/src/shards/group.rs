//! The shards of a group: found from rank 0's socket, checked to be free, and driven in step.

use std::path::Path;
use std::time::Instant;

use futures::future::try_join_all;
use proto::v1::shard_client::ShardClient;
use proto::v1::{FromShard, Hello, InfoRequest, InfoResponse, InspectRequest, Plan, ToShard, from_shard, to_shard};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::error::Error;
use crate::limits::{HANDSHAKE_TIMEOUT, MESSAGES_TO_RANK, PLANS_IN_FLIGHT, STEP_TIMEOUT};

/// What the group is and can hold: the least of its ranks.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// In words.
    pub(super) target: String,
    pub(super) world_size: u32,
    pub(super) vocab_size: u32,
    pub(super) max_position_embeddings: u32,
    pub(super) block_size: u32,
    pub(super) num_blocks: u32,
    pub(super) max_slots: u32,
    pub(super) max_step_tokens: u32,
    pub(super) max_logit_rows: u32,
    pub(super) max_top_n_tokens: u32,
}

/// All ranks.
pub(super) struct Group {
    facts: Facts,
    clients: Vec<ShardClient<Channel>>,
    /// Of our streams: one more than that of any router before.
    epoch: u64,
    /// One per rank, once they are open.
    streams: Vec<Stream>,
    /// Number of the last plan.
    seq: u64,
}

/// A `Run` stream. Dropping it ends it, and the shard clears its slots.
struct Stream {
    messages: mpsc::Sender<ToShard>,
    answers: Streaming<FromShard>,
}

impl Group {
    /// Finds all ranks and asks them what they are; nothing has changed for anybody yet.
    ///
    /// # Errors
    /// If one is not there, or serves a router and `take_over` is not asked for.
    pub(super) async fn connect(master: &Path, take_over: bool) -> Result<Group, Error> {
        let mut first = ask(0, master).await?;
        if first.info.rank != 0 {
            return Err(Error::NotMaster { path: master.to_owned(), rank: first.info.rank });
        }
        let world_size = first.info.world_size;
        let prefix = master.to_str().and_then(|path| path.strip_suffix("-0"));
        let others = match prefix {
            Some(prefix) => {
                let paths = (1..world_size).map(|rank| (rank, proto::socket_path(prefix, rank)));
                try_join_all(paths.map(|(rank, path)| async move { ask(rank, &path).await })).await?
            }
            None if world_size == 1 => Vec::new(),
            None => return Err(Error::Unnumbered { path: master.to_owned(), world_size }),
        };
        let mut epoch = first.epoch;
        let mut infos = vec![std::mem::take(&mut first.info)];
        let mut clients = vec![first.client];
        for (rank, other) in (1..).zip(others) {
            if (other.info.rank, other.info.world_size) != (rank, world_size) {
                let reason =
                    format!("it is rank {} of {}, expected {world_size} ranks", other.info.rank, other.info.world_size);
                return Err(Error::Shard { rank, reason });
            }
            epoch = epoch.max(other.epoch);
            infos.push(other.info);
            clients.push(other.client);
        }
        if epoch != 0 && !take_over {
            return Err(Error::Live { epoch });
        }
        Ok(Group { facts: Facts::of(&infos), clients, epoch: epoch + 1, streams: Vec::new(), seq: 0 })
    }

    /// What the group can hold.
    pub(super) fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Opens the streams. From here on the shards are ours.
    ///
    /// # Errors
    /// If a rank does not say Welcome.
    pub(super) async fn open(&mut self) -> Result<(), Error> {
        let epoch = self.epoch;
        let opening = (0..).zip(&mut self.clients).map(|(rank, client)| open(rank, client, epoch));
        self.streams = try_join_all(opening).await?;
        Ok(())
    }

    /// Runs `plans` with up to [`PLANS_IN_FLIGHT`] on their way. `answered` hears when each was done by all ranks.
    ///
    /// # Errors
    /// If a rank fails or goes silent, or a row has an error.
    pub(super) async fn steps(
        &mut self,
        plans: impl IntoIterator<Item = Plan>,
        mut answered: impl FnMut(Instant),
    ) -> Result<(), Error> {
        let mut plans = plans.into_iter();
        let mut next = self.seq + 1;
        loop {
            while self.seq + 1 - next < PLANS_IN_FLIGHT {
                let Some(plan) = plans.next() else { break };
                self.seq += 1;
                self.send(Plan { seq: self.seq, ..plan })?;
            }
            if next > self.seq {
                return Ok(());
            }
            for rank in 0..self.streams.len() {
                self.answer(rank, next).await?;
            }
            answered(Instant::now());
            next += 1;
        }
    }

    fn send(&mut self, plan: Plan) -> Result<(), Error> {
        for (rank, stream) in (0..).zip(&self.streams) {
            // Cloning shares the packed fields.
            let message = ToShard { message: Some(to_shard::Message::Plan(plan.clone())) };
            // A closed stream is not the news: what the shard said before it closed it comes with the next answer.
            if let Err(mpsc::error::TrySendError::Full(_)) = stream.messages.try_send(message) {
                return Err(Error::Shard { rank, reason: "it does not read its stream".to_owned() });
            }
        }
        Ok(())
    }

    /// Waits until `rank` has done plan `seq`.
    async fn answer(&mut self, rank: usize, seq: u64) -> Result<(), Error> {
        let answers = &mut self.streams[rank].answers;
        let rank = rank as u32;
        let answer = timeout(STEP_TIMEOUT, next(rank, answers)).await.map_err(|_| Error::silent(rank))??;
        let shard = |reason: String| Err(Error::Shard { rank, reason });
        match answer {
            from_shard::Message::Ack(ack) if rank != 0 && ack.seq == seq => Ok(()),
            from_shard::Message::Result(result) if rank == 0 && result.seq == seq => match result.row_errors.first() {
                Some(error) => shard(format!("row {}: {}", error.slot, error.reason)),
                None => Ok(()),
            },
            other => shard(format!("it said {other:?}, expected the end of plan {seq}")),
        }
    }
}

impl Facts {
    fn of(infos: &[InfoResponse]) -> Facts {
        let first = &infos[0];
        let least =
            |field: fn(&InfoResponse) -> u32| infos.iter().map(field).min().expect("a group has at least one rank");
        Facts {
            target: match first.quantize.as_str() {
                "" => format!("{}, {}, {}", first.model_type, first.dtype, first.device),
                mode => format!("{}, {} {mode}, {}", first.model_type, first.dtype, first.device),
            },
            world_size: first.world_size,
            vocab_size: least(|info| info.vocab_size),
            max_position_embeddings: least(|info| info.max_position_embeddings),
            block_size: least(|info| info.block_size).max(1),
            num_blocks: least(|info| info.num_blocks),
            max_slots: least(|info| info.max_slots),
            max_step_tokens: least(|info| info.max_step_tokens),
            max_logit_rows: least(|info| info.max_logit_rows),
            max_top_n_tokens: least(|info| info.max_top_n_tokens),
        }
    }
}

/// What one rank says about itself.
struct Asked {
    client: ShardClient<Channel>,
    info: InfoResponse,
    /// Of the router that is served; 0 if there is none.
    epoch: u64,
}

async fn ask(rank: u32, path: &Path) -> Result<Asked, Error> {
    let refused = |status: Status| Error::Shard { rank, reason: status.message().to_owned() };
    let asking = async {
        let mut client = ShardClient::new(proto::connect(path).await?)
            .max_decoding_message_size(proto::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(proto::MAX_MESSAGE_BYTES);
        let info = client.info(InfoRequest {}).await.map_err(refused)?.into_inner();
        if info.protocol_version != proto::PROTOCOL_VERSION {
            let reason = format!(
                "it speaks version {} of the step protocol, this benchmark {}",
                info.protocol_version,
                proto::PROTOCOL_VERSION
            );
            return Err(Error::Shard { rank, reason });
        }
        let epoch = client.inspect(InspectRequest {}).await.map_err(refused)?.into_inner().epoch;
        Ok(Asked { client, info, epoch })
    };
    timeout(HANDSHAKE_TIMEOUT, asking).await.map_err(|_| unwelcome(rank))?
}

async fn open(rank: u32, client: &mut ShardClient<Channel>, epoch: u64) -> Result<Stream, Error> {
    let opening = async {
        let (messages, receiver) = mpsc::channel(MESSAGES_TO_RANK);
        let hello = Hello { epoch, protocol_version: proto::PROTOCOL_VERSION };
        let hello = ToShard { message: Some(to_shard::Message::Hello(hello)) };
        messages.try_send(hello).expect("a fresh channel has room and its receiver is here");
        let refused = |status: Status| Error::Shard { rank, reason: status.message().to_owned() };
        let mut answers = client.run(ReceiverStream::new(receiver)).await.map_err(refused)?.into_inner();
        match next(rank, &mut answers).await? {
            from_shard::Message::Welcome(welcome) if welcome.epoch == epoch => Ok(Stream { messages, answers }),
            other => Err(Error::Shard { rank, reason: format!("it said {other:?} instead of Welcome") }),
        }
    };
    timeout(HANDSHAKE_TIMEOUT, opening).await.map_err(|_| unwelcome(rank))?
}

fn unwelcome(rank: u32) -> Error {
    Error::Shard { rank, reason: format!("no answer within {} s", HANDSHAKE_TIMEOUT.as_secs()) }
}

/// What a rank says next; the end of its stream is an error with the reason it gives.
async fn next(rank: u32, answers: &mut Streaming<FromShard>) -> Result<from_shard::Message, Error> {
    let ended = |reason: String| Err(Error::Shard { rank, reason });
    match answers.message().await {
        Ok(Some(FromShard { message: Some(from_shard::Message::Fatal(fatal)) })) => ended(fatal.reason),
        Ok(Some(FromShard { message: Some(message) })) => Ok(message),
        Ok(Some(FromShard { message: None })) => ended("a message of an unknown kind".to_owned()),
        Ok(None) => ended("it closed its stream".to_owned()),
        Err(status) => ended(format!("its stream broke: {}", status.message())),
    }
}
