//! The gRPC service of one rank, with grpc.health.v1 and server reflection beside it.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use proto::v1::shard_server::{Shard, ShardServer};
use proto::v1::{
    FromShard, GenerateRequest, GenerateResponse, HealthRequest, HealthResponse, InfoRequest, InfoResponse,
    InspectRequest, InspectResponse, ToShard, from_shard,
};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::engine::{Answers, Engine, EngineGone, GenerateError};
use crate::limits::{HEALTH_PERIOD, STREAM_MESSAGES};
use crate::session;

/// Serves `engine` on `listener` until `shutdown` completes and all streams have ended.
///
/// # Errors
/// If the transport fails.
pub async fn serve(
    engine: Engine,
    info: InfoResponse,
    listener: UnixListenerStream,
    shutdown: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let (reporter, health) = tonic_health::server::health_reporter();
    let watch = tokio::spawn(report_health(engine.clone(), reporter));
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let invariant = "the descriptors were checked when they were compiled";
    let shard = ShardServer::new(Service { engine, info })
        .max_decoding_message_size(proto::MAX_MESSAGE_BYTES)
        .max_encoding_message_size(proto::MAX_MESSAGE_BYTES);
    let served = Server::builder()
        .add_service(shard)
        .add_service(health)
        .add_service(reflection().build_v1().expect(invariant))
        // Published grpcurl versions ask for v1alpha first.
        .add_service(reflection().build_v1alpha().expect(invariant))
        .serve_with_incoming_shutdown(listener, shutdown)
        .await;
    watch.abort();
    served
}

/// Keeps grpc.health.v1 in step with the engine's heartbeat, for the whole server ("") and for the shard's service.
async fn report_health(engine: Engine, reporter: HealthReporter) {
    let mut period = tokio::time::interval(HEALTH_PERIOD);
    let mut last = None;
    loop {
        let health = engine.heartbeat().check();
        let status = if health.is_ok() { ServingStatus::Serving } else { ServingStatus::NotServing };
        if last.as_ref() != Some(&status) {
            if let Err(stall) = &health {
                tracing::error!("not serving: {stall}");
            }
            for service in ["", <ShardServer<Service> as tonic::server::NamedService>::NAME] {
                reporter.set_service_status(service, status).await;
            }
            last = Some(status);
        }
        period.tick().await;
    }
}

struct Service {
    engine: Engine,
    info: InfoResponse,
}

#[tonic::async_trait]
impl Shard for Service {
    type RunStream = AnswerStream;

    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        Ok(Response::new(self.info.clone()))
    }

    async fn health(&self, _: Request<HealthRequest>) -> Result<Response<HealthResponse>, Status> {
        self.engine.heartbeat().check().map_err(|stall| Status::unavailable(stall.to_string()))?;
        Ok(Response::new(HealthResponse { steps: self.engine.heartbeat().steps() }))
    }

    async fn run(&self, request: Request<Streaming<ToShard>>) -> Result<Response<AnswerStream>, Status> {
        // The handshake happens behind the response, so that a client that waits for it before it speaks does not wait
        // for ever.
        let (messages, answers) = mpsc::channel(STREAM_MESSAGES);
        tokio::spawn(session::serve(self.engine.clone(), request.into_inner(), Answers::new(messages)));
        Ok(Response::new(AnswerStream { answers, info: self.info.clone(), ended: false }))
    }

    async fn generate(&self, request: Request<GenerateRequest>) -> Result<Response<GenerateResponse>, Status> {
        Ok(Response::new(self.engine.generate(request.into_inner()).await?))
    }

    async fn inspect(&self, _: Request<InspectRequest>) -> Result<Response<InspectResponse>, Status> {
        Ok(Response::new(self.engine.inspect().await?))
    }
}

/// The answers of one `Run` stream: ends after `Fatal`, and completes `Welcome` with what this rank is.
pub struct AnswerStream {
    answers: mpsc::Receiver<FromShard>,
    info: InfoResponse,
    ended: bool,
}

impl Stream for AnswerStream {
    type Item = Result<FromShard, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let mut answer = ready!(self.answers.poll_recv(context));
        match answer.as_mut().and_then(|answer| answer.message.as_mut()) {
            Some(from_shard::Message::Welcome(welcome)) => welcome.info = Some(self.info.clone()),
            Some(from_shard::Message::Fatal(_)) => {
                self.ended = true;
                // Tells the session, which ends on a closed channel.
                self.answers.close();
            }
            _ => {}
        }
        Poll::Ready(answer.map(Ok))
    }
}

impl From<EngineGone> for Status {
    fn from(error: EngineGone) -> Status {
        Status::unavailable(error.to_string())
    }
}

impl From<GenerateError> for Status {
    fn from(error: GenerateError) -> Status {
        let message = error.to_string();
        match error {
            GenerateError::Busy | GenerateError::Ranks { .. } => Status::failed_precondition(message),
            GenerateError::EmptyPrompt | GenerateError::TooLong { .. } | GenerateError::Invalid(_) => {
                Status::invalid_argument(message)
            }
            GenerateError::Interrupted => Status::aborted(message),
            GenerateError::Failed(_) => Status::internal(message),
            GenerateError::Gone(_) => Status::unavailable(message),
        }
    }
}
