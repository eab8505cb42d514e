//! One `Run` stream: handshake, then messages until either side ends it.

use proto::PROTOCOL_VERSION;
use proto::v1::{Fatal, Hello, Plan, Pong, ToShard, from_shard, to_shard};
use tonic::Streaming;

use crate::engine::{Answers, Engine, EngineGone, NotRead, StreamId, SubmitError};
use crate::limits::HELLO_TIMEOUT;
use crate::violation::Violation;

/// Why a stream ended. Its text is the `Fatal` that the router reads, if it still reads.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("the router closed the stream")]
    Closed,
    #[error("the router does not read its answers")]
    NotRead,
    #[error("no Hello within {} s", HELLO_TIMEOUT.as_secs())]
    NoHello,
    #[error("protocol violation: the first message is {0}, expected Hello")]
    NotHello(&'static str),
    #[error("protocol version {router} of the router does not match {PROTOCOL_VERSION} of this shard")]
    Version { router: u32 },
    #[error("protocol violation: a second Hello")]
    SecondHello,
    #[error("protocol violation: a message without content")]
    Empty,
    #[error("protocol violation: {0}")]
    TooManyPlans(SubmitError),
    #[error("protocol violation: {0}")]
    Masks(#[from] Violation),
    #[error("superseded by a newer Run stream")]
    Superseded,
    #[error("the shard is shutting down")]
    Stopping,
    #[error(transparent)]
    Gone(#[from] EngineGone),
}

/// Serves a stream to its end.
pub(crate) async fn serve(engine: Engine, mut incoming: Streaming<ToShard>, answers: Answers) {
    let end = match open(&engine, &mut incoming, &answers).await {
        Err(end) => end,
        Ok(stream) => {
            let end = relay(&engine, stream, &mut incoming, &answers).await;
            engine.end(stream).await;
            end
        }
    };
    match end {
        End::Closed => tracing::info!("{end}"),
        _ => tracing::warn!("a Run stream ends: {end}"),
    }
    // Undeliverable if the router is gone or reads nothing; then the end of the stream says it.
    let _ = answers.send(from_shard::Message::Fatal(Fatal { reason: end.to_string() }));
}

/// Waits for Hello, then takes over from the stream before.
async fn open(engine: &Engine, incoming: &mut Streaming<ToShard>, answers: &Answers) -> Result<StreamId, End> {
    let first = tokio::time::timeout(HELLO_TIMEOUT, next(incoming)).await.map_err(|_| End::NoHello)??;
    let Hello { epoch, protocol_version } = match first {
        to_shard::Message::Hello(hello) => hello,
        to_shard::Message::Plan(_) => return Err(End::NotHello("Plan")),
        to_shard::Message::Masks(_) => return Err(End::NotHello("Masks")),
        to_shard::Message::Ping(_) => return Err(End::NotHello("Ping")),
    };
    if protocol_version != PROTOCOL_VERSION {
        return Err(End::Version { router: protocol_version });
    }
    Ok(engine.begin(epoch, answers.clone()).await?)
}

/// Passes messages on until the stream ends.
async fn relay(engine: &Engine, stream: StreamId, incoming: &mut Streaming<ToShard>, answers: &Answers) -> End {
    let mut latest = engine.latest_stream();
    loop {
        let message = tokio::select! {
            biased;
            newest = latest.wait_for(|&latest| latest != stream) => {
                return match newest.is_ok_and(|newest| *newest == StreamId::STOPPED) {
                    true => End::Stopping,
                    false => End::Superseded,
                };
            }
            () = answers.closed() => return End::Closed,
            message = next(incoming) => message,
        };
        let handled = match message {
            Ok(to_shard::Message::Plan(plan)) => submit(engine, stream, plan, answers).await,
            // Answered here and not by the engine, so that a long step delays no sign of life.
            Ok(to_shard::Message::Ping(ping)) => {
                answers.send(from_shard::Message::Pong(Pong { nonce: ping.nonce })).map_err(|NotRead| End::NotRead)
            }
            Ok(to_shard::Message::Masks(masks)) => {
                // Not queued behind the plans: the engine may be waiting for them.
                engine.deliver(stream, masks).map_err(End::Masks)
            }
            Ok(to_shard::Message::Hello(_)) => Err(End::SecondHello),
            Err(end) => Err(end),
        };
        if let Err(end) = handled {
            return end;
        }
    }
}

async fn submit(engine: &Engine, stream: StreamId, plan: Plan, answers: &Answers) -> Result<(), End> {
    engine.submit(stream, plan, answers).await.map_err(|error| match error {
        SubmitError::TooManyPlans => End::TooManyPlans(error),
        SubmitError::Gone(gone) => End::Gone(gone),
    })
}

async fn next(incoming: &mut Streaming<ToShard>) -> Result<to_shard::Message, End> {
    match incoming.message().await {
        Ok(Some(ToShard { message: Some(message) })) => Ok(message),
        Ok(Some(ToShard { message: None })) => Err(End::Empty),
        // A reset or a lost connection is a close without manners.
        Ok(None) | Err(_) => Err(End::Closed),
    }
}
