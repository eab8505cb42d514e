//! Shards in this process, served over real unix sockets, and a router's side of a stream.

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use proto::v1::shard_client::ShardClient;
use proto::v1::{Chunk, FromShard, Hello, NewSlot, Plan, ToShard, from_shard, to_shard};
use proto::{PROTOCOL_VERSION, Sample, pack_u32};
use shard::comm::{Comm, Shm, ShmOptions, Single, StepTag};
use shard::engine::Engine;
use shard::{service, start};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::{TinyModel, temp_path};

/// Nothing here takes that long; whatever does hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A rank that is served until it is dropped.
pub struct Server {
    pub engine: Engine,
    pub channel: Channel,
    socket: PathBuf,
    shutdown: Option<oneshot::Sender<()>>,
    served: Option<tokio::task::JoinHandle<()>>,
}

impl Server {
    pub async fn start(model: &TinyModel, comm: Arc<dyn Comm>) -> Server {
        let args = model.args(&["--threads", "1"]);
        let started = tokio::task::spawn_blocking(move || start::start_with(&args, comm)).await.unwrap().unwrap();
        let engine = Engine::start(started.executor, started.comm);
        let socket = temp_path("socket");
        let listener = proto::bind(&socket).unwrap();
        let (shutdown, stopped) = oneshot::channel::<()>();
        let serving = service::serve(engine.clone(), started.info, listener, async {
            let _ = stopped.await;
        });
        let served = tokio::spawn(async { serving.await.unwrap() });
        let channel = proto::connect(&socket).await.unwrap();
        Server { engine, channel, socket, shutdown: Some(shutdown), served: Some(served) }
    }

    /// A shard of one rank.
    pub async fn single(model: &TinyModel) -> Server {
        Server::start(model, Arc::new(Single)).await
    }

    /// Two ranks over shared memory that would wait for each other far longer than any test runs.
    pub async fn pair(model: &TinyModel) -> [Server; 2] {
        let name = format!("/{}", temp_path("comm").file_name().unwrap().to_str().unwrap());
        let open = |rank| {
            let name = name.clone();
            tokio::task::spawn_blocking(move || {
                let options = ShmOptions { timeout: Duration::from_secs(3600), ..ShmOptions::default() };
                Arc::new(Shm::open_with(&name, rank, 2, options).unwrap())
            })
        };
        let (first, second) = tokio::join!(open(0), open(1));
        let (first, second) = tokio::join!(Server::start(model, first.unwrap()), Server::start(model, second.unwrap()));
        [first, second]
    }

    pub fn client(&self) -> ShardClient<Channel> {
        ShardClient::new(self.channel.clone())
    }

    /// A stream that has said nothing yet.
    pub async fn open(&self) -> Router {
        let (messages, receiver) = mpsc::channel(64);
        let answers = self.client().run(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        Router { messages: Some(messages), answers }
    }

    /// A stream that has been welcomed.
    pub async fn welcomed(&self, epoch: u64) -> Router {
        let mut router = self.open().await;
        router.hello(epoch).await;
        match router.answer().await {
            Some(from_shard::Message::Welcome(welcome)) => assert_eq!(welcome.epoch, epoch),
            other => panic!("{other:?} instead of Welcome"),
        }
        router
    }

    /// Ends the server and waits for it.
    pub async fn stop(&mut self) {
        drop(self.shutdown.take());
        tokio::time::timeout(PATIENCE, self.served.take().unwrap()).await.expect("the server stops").unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// A router's side of one stream.
pub struct Router {
    messages: Option<mpsc::Sender<ToShard>>,
    answers: Streaming<FromShard>,
}

impl Router {
    pub async fn send(&self, message: to_shard::Message) {
        self.messages.as_ref().unwrap().send(ToShard { message: Some(message) }).await.unwrap();
    }

    pub async fn hello(&self, epoch: u64) {
        self.send(to_shard::Message::Hello(Hello { epoch, protocol_version: PROTOCOL_VERSION })).await;
    }

    pub async fn plan(&self, plan: Plan) {
        self.send(to_shard::Message::Plan(plan)).await;
    }

    /// The next message; `None` at the end of the stream.
    pub async fn answer(&mut self) -> Option<from_shard::Message> {
        let answer = tokio::time::timeout(PATIENCE, self.answers.message()).await.expect("an answer");
        answer.unwrap().map(|answer| answer.message.unwrap())
    }

    pub async fn result(&mut self) -> proto::v1::StepResult {
        match self.answer().await {
            Some(from_shard::Message::Result(result)) => result,
            other => panic!("{other:?} instead of Result"),
        }
    }

    /// Tokens of the next result.
    pub async fn tokens(&mut self) -> Vec<u32> {
        let result = self.result().await;
        assert!(result.row_errors.is_empty(), "{:?}", result.row_errors);
        Sample::unpack(&result.samples).unwrap().map(|sample| sample.token_id).collect()
    }

    /// The reason of the Fatal that comes next, after which the stream must end.
    pub async fn fatal(&mut self) -> String {
        let reason = match self.answer().await {
            Some(from_shard::Message::Fatal(fatal)) => fatal.reason,
            other => panic!("{other:?} instead of Fatal"),
        };
        assert_eq!(self.answer().await, None, "a stream ends after Fatal");
        reason
    }

    /// Says no more. The shard ends the stream.
    pub async fn close(mut self) {
        self.messages = None;
        while self.answer().await.is_some() {}
    }
}

/// Plan 1: a prompt in slot 0 with blocks 0..4.
pub fn prompt(ids: &[u32]) -> Plan {
    Plan {
        seq: 1,
        new_slots: vec![NewSlot { block_table: pack_u32(0..4), request_id: 77, ..NewSlot::default() }],
        chunks: vec![Chunk { slot: 0, start_position: 0, ids: pack_u32(ids.iter().copied()), sample: true }],
        ..Plan::default()
    }
}

/// A plan in which slot 0 continues.
pub fn continue_slot_0(seq: u64) -> Plan {
    Plan { seq, continues: pack_u32([0]), ..Plan::default() }
}

/// A group of one whose steps wait at a gate, or panic.
#[derive(Default)]
pub struct Gate {
    closed: Mutex<bool>,
    opened: Condvar,
    pub panics: std::sync::atomic::AtomicBool,
}

impl Gate {
    pub fn close(&self) {
        *self.closed.lock().unwrap() = true;
    }

    pub fn open(&self) {
        *self.closed.lock().unwrap() = false;
        self.opened.notify_all();
    }
}

impl Comm for Gate {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn begin_step(&self, _tag: StepTag) -> shard::error::Result<()> {
        assert!(!self.panics.load(std::sync::atomic::Ordering::SeqCst), "on purpose");
        drop(self.opened.wait_while(self.closed.lock().unwrap(), |closed| *closed).unwrap());
        Ok(())
    }

    fn all_reduce(&self, values: &mut [f32]) -> shard::error::Result<()> {
        Single.all_reduce(values)
    }

    fn all_gather(&self, local: &[f32], out: &mut [f32]) -> shard::error::Result<()> {
        Single.all_gather(local, out)
    }

    fn barrier(&self) -> shard::error::Result<()> {
        Ok(())
    }
}
