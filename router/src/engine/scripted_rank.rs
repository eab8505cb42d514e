//! Ranks in this process: real sockets and gRPC around whatever a test wants a rank to do with its plans.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use proto::v1::shard_server::{Shard, ShardServer};
use proto::v1::{self, FromShard, InfoResponse, Mask, Plan, ToShard, from_shard, to_shard};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Messages of a rank on their way to the router.
pub(crate) type Sender = mpsc::Sender<Result<FromShard, Status>>;

/// What the ranks of a group do.
pub(crate) trait Script: Send + Sync + 'static {
    /// What a rank holds while a stream is open.
    type Slots: Send;

    /// What a rank says of itself.
    fn info(&self, rank: u32) -> InfoResponse;

    /// A stream to `rank` was opened.
    fn open(self: &Arc<Self>, rank: u32) -> Self::Slots;

    /// The router said Hello.
    fn greet(&self, _slots: &mut Self::Slots, _epoch: u64) {}

    /// Whether `plan` can be executed now.
    fn is_ready(&self, slots: &Self::Slots, plan: &Plan, has_masks: bool) -> bool;

    /// Executes `plan`; `None` if the router went away meanwhile.
    fn execute(
        &self,
        slots: &mut Self::Slots,
        plan: Plan,
        masks: Vec<Mask>,
        sender: &Sender,
    ) -> impl Future<Output = Result<Option<from_shard::Message>, Status>> + Send;
}

/// A group of ranks, each behind its own socket. Dropping it ends the servers.
pub(crate) struct Ranks {
    /// Of the sockets' paths.
    pub(crate) prefix: String,
    servers: Vec<tokio::task::JoinHandle<()>>,
}

impl Ranks {
    /// Starts `world_size` ranks.
    pub(crate) fn start<S: Script>(world_size: u32, script: &Arc<S>) -> Self {
        static GROUPS: AtomicU32 = AtomicU32::new(0);
        let number = GROUPS.fetch_add(1, Ordering::Relaxed);
        let prefix = std::env::temp_dir().join(format!("tgi-router-test-{}-{number}", std::process::id()));
        let prefix = prefix.to_str().expect("temp_dir is UTF-8 in tests").to_owned();
        let serve = |rank| {
            let incoming = proto::bind(&proto::socket_path(&prefix, rank)).unwrap();
            let service = ShardServer::new(Rank { rank, script: script.clone() });
            let server = tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming);
            tokio::spawn(async move { server.await.unwrap() })
        };
        let servers = (0..world_size).map(serve).collect();
        Self { prefix, servers }
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        for (rank, server) in self.servers.iter().enumerate() {
            server.abort();
            let _ = std::fs::remove_file(PathBuf::from(format!("{}-{rank}", self.prefix)));
        }
    }
}

struct Rank<S> {
    rank: u32,
    script: Arc<S>,
}

#[tonic::async_trait]
impl<S: Script> Shard for Rank<S> {
    type RunStream = ReceiverStream<Result<FromShard, Status>>;

    async fn run(&self, request: Request<Streaming<ToShard>>) -> Result<Response<Self::RunStream>, Status> {
        let (sender, receiver) = mpsc::channel(8);
        let (rank, script) = (self.rank, self.script.clone());
        tokio::spawn(async move {
            // An error is a dead stream; the router sees its end.
            if let Err(status) = serve(rank, &script, request.into_inner(), &sender).await {
                let _ = sender.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn info(&self, _: Request<v1::InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        Ok(Response::new(self.script.info(self.rank)))
    }

    async fn health(&self, _: Request<v1::HealthRequest>) -> Result<Response<v1::HealthResponse>, Status> {
        Ok(Response::new(v1::HealthResponse { steps: 0 }))
    }

    async fn generate(&self, _: Request<v1::GenerateRequest>) -> Result<Response<v1::GenerateResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn inspect(&self, _: Request<v1::InspectRequest>) -> Result<Response<v1::InspectResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }
}

/// Answers the messages of one stream, plans in their order and not before their masks.
async fn serve<S: Script>(
    rank: u32,
    script: &Arc<S>,
    mut incoming: Streaming<ToShard>,
    sender: &Sender,
) -> Result<(), Status> {
    let mut slots = script.open(rank);
    let info = script.info(rank);
    let (mut waiting, mut masks) = (VecDeque::new(), HashMap::new());
    while let Some(message) = incoming.message().await? {
        let answer = match message.message {
            Some(to_shard::Message::Hello(hello)) => {
                script.greet(&mut slots, hello.epoch);
                let info = Some(info.clone());
                Some(from_shard::Message::Welcome(v1::Welcome { epoch: hello.epoch, info }))
            }
            Some(to_shard::Message::Plan(plan)) => {
                waiting.push_back(plan);
                None
            }
            Some(to_shard::Message::Masks(of_plan)) => {
                masks.insert(of_plan.seq, of_plan.masks);
                None
            }
            Some(to_shard::Message::Ping(ping)) => Some(from_shard::Message::Pong(v1::Pong { nonce: ping.nonce })),
            None => return Err(Status::invalid_argument("unexpected message")),
        };
        if let Some(message) = answer
            && sender.send(Ok(FromShard { message: Some(message) })).await.is_err()
        {
            return Ok(());
        }
        while let Some(plan) = waiting.pop_front_if(|plan| script.is_ready(&slots, plan, masks.contains_key(&plan.seq)))
        {
            let masks = masks.remove(&plan.seq).unwrap_or_default();
            let Some(message) = script.execute(&mut slots, plan, masks, sender).await? else { return Ok(()) };
            if sender.send(Ok(FromShard { message: Some(message) })).await.is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}
