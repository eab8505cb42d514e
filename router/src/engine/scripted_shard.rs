//! A shard group in this process: real sockets and gRPC in front of the [`TinyShard`], with accidents by script.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use proto::v1::shard_server::{Shard, ShardServer};
use proto::v1::{self, FromShard, InfoResponse, ToShard, from_shard, to_shard};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::scheduler::Capacity;
use crate::scheduler::tiny_shard::{EOS, Refusal, TinyShard, VOCAB_SIZE};

/// What a rank does instead of executing a plan.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Accident {
    /// Its stream ends.
    StreamDies,
    /// It says Fatal.
    Fatal,
    /// It acknowledges another plan (not for rank 0).
    WrongAck,
    /// It answers with a result of garbage.
    Garbage,
}

/// A group of ranks, each behind its own socket. Dropping it ends the servers.
pub(super) struct ScriptedGroup {
    pub(super) prefix: String,
    pub(super) script: Arc<Script>,
    servers: Vec<tokio::task::JoinHandle<()>>,
}

/// What the ranks share with the test.
pub(super) struct Script {
    world_size: u32,
    block_size: u32,
    max_slots: u32,
    max_step_tokens: u32,
    /// KV blocks that the next Welcome announces.
    pub(super) num_blocks: AtomicU32,
    /// (epoch, rank, plan) → what happens there.
    pub(super) accidents: Mutex<HashMap<(u64, u32, u64), Accident>>,
    /// The (epoch, plan) that each rank has come to.
    reached: Mutex<Vec<(u64, u64)>>,
    /// Rank 0 takes one permit per plan.
    pub(super) steps: Semaphore,
    /// `Run` streams that are open.
    pub(super) open_streams: AtomicU64,
    /// The last epoch that was greeted.
    pub(super) epoch: AtomicU64,
    /// Rules of the protocol that the router broke.
    pub(super) broken: Mutex<Vec<String>>,
}

impl ScriptedGroup {
    /// Starts `world_size` ranks with `num_blocks` blocks of 4 tokens and `max_slots` slots, free to run.
    pub(super) fn start(world_size: u32, num_blocks: u32, max_slots: u32) -> Self {
        static GROUPS: AtomicU32 = AtomicU32::new(0);
        let number = GROUPS.fetch_add(1, Ordering::Relaxed);
        let prefix = std::env::temp_dir().join(format!("tgi-engine-test-{}-{number}", std::process::id()));
        let script = Arc::new(Script {
            world_size,
            block_size: 4,
            max_slots,
            max_step_tokens: 16,
            num_blocks: AtomicU32::new(num_blocks),
            accidents: Mutex::default(),
            reached: Mutex::new(vec![(0, 0); world_size as usize]),
            steps: Semaphore::new(Semaphore::MAX_PERMITS / 2),
            open_streams: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
            broken: Mutex::default(),
        });
        let prefix = prefix.to_str().expect("temp_dir is UTF-8 in tests").to_owned();
        let serve = |rank| {
            let incoming = proto::bind(&proto::socket_path(&prefix, rank)).unwrap();
            let service = ShardServer::new(ScriptedRank { rank, script: script.clone() });
            let server = tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming);
            tokio::spawn(async move { server.await.unwrap() })
        };
        let servers = (0..world_size).map(serve).collect();
        Self { prefix, script, servers }
    }

    /// Number of ranks.
    pub(super) fn servers(&self) -> u32 {
        self.script.world_size
    }

    /// Something happens to `rank` at a plan of an epoch.
    pub(super) fn plan_accident(&self, epoch: u64, rank: u32, seq: u64, accident: Accident) {
        self.script.accidents.lock().unwrap().insert((epoch, rank, seq), accident);
    }

    /// From now on rank 0 executes only as many plans as it is allowed.
    pub(super) fn hold(&self) {
        self.script.steps.forget_permits(Semaphore::MAX_PERMITS);
    }

    /// Allows rank 0 this many plans more.
    pub(super) fn allow(&self, plans: usize) {
        self.script.steps.add_permits(plans);
    }
}

impl Drop for ScriptedGroup {
    fn drop(&mut self) {
        self.servers.iter().for_each(tokio::task::JoinHandle::abort);
        for rank in 0..self.script.world_size {
            let _ = std::fs::remove_file(PathBuf::from(format!("{}-{rank}", self.prefix)));
        }
        let broken = self.script.broken.lock().unwrap();
        assert!(broken.is_empty() || std::thread::panicking(), "the router broke the protocol: {broken:?}");
    }
}

struct ScriptedRank {
    rank: u32,
    script: Arc<Script>,
}

#[tonic::async_trait]
impl Shard for ScriptedRank {
    type RunStream = ReceiverStream<Result<FromShard, Status>>;

    async fn run(&self, request: Request<Streaming<ToShard>>) -> Result<Response<Self::RunStream>, Status> {
        let (sender, receiver) = mpsc::channel(8);
        let (rank, script) = (self.rank, self.script.clone());
        tokio::spawn(async move {
            script.open_streams.fetch_add(1, Ordering::SeqCst);
            // An error is a dead stream; the router sees its end.
            if let Err(status) = script.serve(rank, request.into_inner(), &sender).await {
                let _ = sender.send(Err(status)).await;
            }
            script.open_streams.fetch_sub(1, Ordering::SeqCst);
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn info(&self, _: Request<v1::InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        Ok(Response::new(self.script.info(self.rank)))
    }

    async fn health(&self, _: Request<v1::HealthRequest>) -> Result<Response<v1::HealthResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn generate(&self, _: Request<v1::GenerateRequest>) -> Result<Response<v1::GenerateResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn inspect(&self, _: Request<v1::InspectRequest>) -> Result<Response<v1::InspectResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }
}

impl Script {
    fn info(&self, rank: u32) -> InfoResponse {
        InfoResponse {
            protocol_version: proto::PROTOCOL_VERSION,
            rank,
            world_size: self.world_size,
            vocab_size: VOCAB_SIZE,
            max_position_embeddings: 4096,
            block_size: self.block_size,
            num_blocks: self.num_blocks.load(Ordering::SeqCst),
            max_slots: self.max_slots,
            max_step_tokens: self.max_step_tokens,
            max_logit_rows: self.max_slots + 2,
            eos_token_ids: vec![EOS],
            max_top_n_tokens: 5,
            ..Default::default()
        }
    }

    async fn serve(
        &self,
        rank: u32,
        mut incoming: Streaming<ToShard>,
        sender: &mpsc::Sender<Result<FromShard, Status>>,
    ) -> Result<(), Status> {
        let mut epoch = 0;
        let info = self.info(rank);
        let mut is_wrecked = false;
        let capacity = Capacity {
            num_blocks: info.num_blocks,
            max_slots: info.max_slots,
            max_step_tokens: info.max_step_tokens,
            max_logit_rows: info.max_logit_rows,
        };
        let mut shard = TinyShard::new(capacity, info.block_size);
        let (mut waiting, mut masks) = (VecDeque::new(), HashMap::new());
        while let Some(message) = incoming.message().await? {
            let answer = match message.message {
                Some(to_shard::Message::Hello(hello)) => {
                    epoch = hello.epoch;
                    self.epoch.store(epoch, Ordering::SeqCst);
                    Some(from_shard::Message::Welcome(v1::Welcome { epoch, info: Some(info.clone()) }))
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
            // After its accident a rank executes nothing more; the router must have ended the epoch.
            while let Some(plan) = waiting.pop_front_if(|_| !is_wrecked) {
                let is_unmasked = shard.masked_rows(&plan).is_empty();
                let masks = match masks.remove(&plan.seq) {
                    Some(masks) => masks,
                    None if is_unmasked => Vec::new(),
                    None => {
                        waiting.push_front(plan);
                        break;
                    }
                };
                self.reached.lock().unwrap()[rank as usize] = (epoch, plan.seq);
                if rank == 0 {
                    self.steps.acquire().await.expect("never closed").forget();
                    if !self.collective((epoch, plan.seq), sender).await {
                        return Ok(());
                    }
                }
                let accident = self.accidents.lock().unwrap().get(&(epoch, rank, plan.seq)).copied();
                is_wrecked = accident.is_some();
                let message = self.answer(&mut shard, rank, &plan, &masks, accident)?;
                if sender.send(Ok(FromShard { message: Some(message) })).await.is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Waits, as a collective does, until every rank has come to `plan`. False if the router went away meanwhile.
    async fn collective(&self, plan: (u64, u64), sender: &mpsc::Sender<Result<FromShard, Status>>) -> bool {
        while self.reached.lock().unwrap().iter().any(|reached| *reached < plan) {
            if sender.is_closed() {
                return false;
            }
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        true
    }

    fn answer(
        &self,
        shard: &mut TinyShard,
        rank: u32,
        plan: &v1::Plan,
        masks: &[v1::Mask],
        accident: Option<Accident>,
    ) -> Result<from_shard::Message, Status> {
        Ok(match accident {
            Some(Accident::StreamDies) => return Err(Status::aborted("killed by the script")),
            Some(Accident::Fatal) => from_shard::Message::Fatal(v1::Fatal { reason: "by the script".into() }),
            Some(Accident::WrongAck) => from_shard::Message::Ack(v1::Ack { seq: plan.seq + 1 }),
            Some(Accident::Garbage) => {
                let samples = vec![1, 2, 3].into();
                from_shard::Message::Result(v1::StepResult { seq: plan.seq, samples, ..Default::default() })
            }
            None => match shard.execute(plan, masks) {
                Ok(result) if rank == 0 => from_shard::Message::Result(result),
                Ok(_) => from_shard::Message::Ack(v1::Ack { seq: plan.seq }),
                Err(Refusal::Crash) => return Err(Status::aborted("poisoned")),
                Err(Refusal::Broken(rule)) => {
                    self.broken.lock().unwrap().push(rule.clone());
                    from_shard::Message::Fatal(v1::Fatal { reason: rule })
                }
            },
        })
    }
}
