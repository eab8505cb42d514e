//! A shard that computes nothing: it speaks the step protocol and answers every plan with tokens from a list.
//!
//! What a router costs is measured against it: its steps take exactly as long as asked for, in a process whose time is not
//! the router's. It trusts the router and checks nothing.

use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use proto::v1::shard_server::{Shard, ShardServer};
use proto::v1::{self, FromShard, Hello, InfoResponse, Plan, Pong, StepResult, ToShard, Welcome, from_shard, to_shard};
use proto::{PROTOCOL_VERSION, Sample, unpack_u32};
use tokio::sync::mpsc as async_mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Rows of one step: as many streams as are measured at once, and room for those that end while others begin.
const MAX_SLOTS: u32 = 1024;
/// KV blocks of 16 tokens. 32 768: what an 8B model leaves free on a large GPU, so that the router's books are of a real size.
const NUM_BLOCKS: u32 = 32_768;
/// Answers on their way to the router. 8: twice the plans and pings that can wait for one.
const ANSWERS: usize = 8;

/// What the shard says and how long it takes.
#[derive(Clone, Debug)]
pub struct FakeShard {
    /// Size of the vocabulary.
    pub vocab_size: u32,
    /// The token that would end a reply; it is not among `reply`.
    pub eos_token_id: u32,
    /// What every row says, over and over, each from a place of its own.
    pub reply: Vec<u32>,
    /// How long a step takes.
    pub step: Duration,
    /// What stands in place of log-probabilities.
    pub logprobs: Logprobs,
}

/// What a sample's log-probability says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logprobs {
    /// As if a model had said it: seven digits.
    Plausible,
    /// When the result left, so that who reads the event knows its age: [`age_of_stamp`].
    Stamps,
}

/// Microseconds after which stamps begin again: what an f32 can count exactly.
const STAMP_MODULUS: u64 = 1 << 23;

fn micros_now() -> u64 {
    // One clock for all processes of the machine; nobody sets it within a measurement.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

/// How long ago the result with this log-probability left the shard, up to 8 s.
pub fn age_of_stamp(logprob: f64) -> Duration {
    Duration::from_micros((micros_now() % STAMP_MODULUS + STAMP_MODULUS - logprob.abs() as u64) % STAMP_MODULUS)
}

impl FakeShard {
    /// Serves on `socket` until the process ends.
    ///
    /// # Errors
    /// If the socket cannot be bound or served.
    pub async fn serve(self, socket: &Path) -> anyhow::Result<()> {
        let incoming = proto::bind(socket)?;
        let service = ShardServer::new(Service(self));
        Ok(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await?)
    }

    fn info(&self) -> InfoResponse {
        InfoResponse {
            protocol_version: PROTOCOL_VERSION,
            rank: 0,
            world_size: 1,
            device: "cpu (nothing is computed)".into(),
            dtype: "bfloat16".into(),
            model_type: "llama".into(),
            vocab_size: self.vocab_size,
            max_position_embeddings: 8192,
            block_size: 16,
            num_blocks: NUM_BLOCKS,
            max_slots: MAX_SLOTS,
            max_step_tokens: 4096,
            max_logit_rows: MAX_SLOTS,
            eos_token_ids: vec![self.eos_token_id],
            max_top_n_tokens: 5,
            ..Default::default()
        }
    }
}

struct Service(FakeShard);

type Answer = Result<FromShard, Status>;

#[tonic::async_trait]
impl Shard for Service {
    type RunStream = ReceiverStream<Answer>;

    async fn run(&self, request: Request<Streaming<ToShard>>) -> Result<Response<Self::RunStream>, Status> {
        let (answers, receiver) = async_mpsc::channel(ANSWERS);
        // Steps are waited for on a thread: an async timer is up to a millisecond late.
        let (plans, queue) = mpsc::channel();
        let executor = Executor::new(self.0.clone(), answers.clone());
        std::thread::spawn(move || executor.run(&queue));
        tokio::spawn(relay(self.0.info(), request.into_inner(), plans, answers));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn info(&self, _: Request<v1::InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        Ok(Response::new(self.0.info()))
    }

    async fn health(&self, _: Request<v1::HealthRequest>) -> Result<Response<v1::HealthResponse>, Status> {
        Ok(Response::new(v1::HealthResponse { steps: 0 }))
    }

    async fn generate(&self, _: Request<v1::GenerateRequest>) -> Result<Response<v1::GenerateResponse>, Status> {
        Err(Status::unimplemented("a fake shard serves routers only"))
    }

    async fn inspect(&self, _: Request<v1::InspectRequest>) -> Result<Response<v1::InspectResponse>, Status> {
        Err(Status::unimplemented("a fake shard serves routers only"))
    }
}

/// Hands plans to the thread and answers everything else, until the router closes the stream.
async fn relay(
    info: InfoResponse,
    mut incoming: Streaming<ToShard>,
    plans: mpsc::Sender<(Plan, Instant)>,
    answers: async_mpsc::Sender<Answer>,
) {
    while let Ok(Some(ToShard { message: Some(message) })) = incoming.message().await {
        let answer = match message {
            to_shard::Message::Hello(Hello { epoch, .. }) => {
                from_shard::Message::Welcome(Welcome { epoch, info: Some(info.clone()) })
            }
            to_shard::Message::Ping(ping) => from_shard::Message::Pong(Pong { nonce: ping.nonce }),
            to_shard::Message::Plan(plan) => match plans.send((plan, Instant::now())) {
                Ok(()) => continue,
                Err(_) => return,
            },
            // No measured request has a grammar.
            to_shard::Message::Masks(_) => return,
        };
        if answers.send(Ok(FromShard { message: Some(answer) })).await.is_err() {
            return;
        }
    }
}

/// The thread that carries plans out.
struct Executor {
    shard: FakeShard,
    answers: async_mpsc::Sender<Answer>,
    /// The rows of the last plan that continue.
    continues: Vec<u32>,
    /// Tokens that each slot has sampled.
    sampled: Vec<usize>,
}

impl Executor {
    fn new(shard: FakeShard, answers: async_mpsc::Sender<Answer>) -> Self {
        // Rows begin at places of their own: what they say in one step differs.
        Self { shard, answers, continues: Vec::new(), sampled: (0..MAX_SLOTS as usize).map(|slot| slot * 7).collect() }
    }

    fn run(mut self, plans: &mpsc::Receiver<(Plan, Instant)>) {
        let mut free = Instant::now();
        for (plan, arrived) in plans {
            // A plan starts when it is there and the one before it has ended.
            free = free.max(arrived) + self.shard.step;
            std::thread::sleep(free.saturating_duration_since(Instant::now()));
            let Some(samples) = self.samples(&plan) else { return };
            let result = StepResult { seq: plan.seq, samples: Sample::pack(&samples), ..Default::default() };
            let message = Some(from_shard::Message::Result(result));
            if self.answers.blocking_send(Ok(FromShard { message })).is_err() {
                return;
            }
        }
    }

    /// `None` if a field is no list of slots, which ends the stream.
    fn samples(&mut self, plan: &Plan) -> Option<Vec<Sample>> {
        if !plan.same_rows {
            self.continues = unpack_u32(&plan.continues).ok()?.collect();
        }
        let ending = plan.chunks.iter().filter(|chunk| chunk.sample).map(|chunk| chunk.slot);
        let slots: Vec<u32> = self.continues.iter().copied().chain(ending).collect();
        slots.into_iter().map(|slot| self.sample(slot)).collect()
    }

    fn sample(&mut self, slot: u32) -> Option<Sample> {
        let sampled = self.sampled.get_mut(slot as usize)?;
        *sampled += 1;
        let token_id = self.shard.reply[*sampled % self.shard.reply.len()];
        let logprob = match self.shard.logprobs {
            Logprobs::Plausible => -((*sampled * 7919 % 100_003) as f32) / 31_337.0,
            Logprobs::Stamps => -((micros_now() % STAMP_MODULUS) as f32),
        };
        Some(Sample { slot, token_id, logprob })
    }
}
