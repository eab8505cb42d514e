//! The process of a shard: start, serve, stop.

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::Args;
use crate::engine::Engine;
use crate::{limits, service, start, telemetry};

/// Runs a shard until a signal ends it.
///
/// # Errors
/// One line for the operator: what is wrong with the model, the machine or the arguments.
pub fn run(args: Args) -> anyhow::Result<()> {
    telemetry::init(args.json_output);
    // The ranks of a group meet while they load, so this comes before anything that a router could see.
    let started = start::start(&args)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("grpc")
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(serve(&args, started))
}

/// Serves until SIGTERM or SIGINT, or until the parent is gone; then lets the step in flight finish.
async fn serve(args: &Args, started: start::Started) -> anyhow::Result<()> {
    let start::Started { executor, comm, info } = started;
    let path = proto::socket_path(&args.uds_path, args.rank as u32);
    let listener = proto::bind(&path)?;
    let engine = Engine::start(executor, comm);
    let (stopped, stopping) = tokio::sync::oneshot::channel();
    let shutdown = {
        let (engine, parent_pid) = (engine.clone(), args.parent_pid);
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        async move {
            tokio::select! {
                _ = terminate.recv() => tracing::info!("SIGTERM: shutting down"),
                _ = interrupt.recv() => tracing::info!("SIGINT: shutting down"),
                () = orphaned(parent_pid) => tracing::warn!("the parent process is gone: shutting down"),
            }
            if !engine.stop(limits::SHUTDOWN_TIMEOUT).await {
                tracing::warn!("the step in flight did not end within {} s", limits::SHUTDOWN_TIMEOUT.as_secs());
            }
            // The receiver lives as long as the server runs.
            let _ = stopped.send(());
        }
    };
    let too_late = async {
        // An error means that the server ended without a signal; then there is nothing to cut short.
        match stopping.await {
            Ok(()) => tokio::time::sleep(limits::CLOSE_TIMEOUT).await,
            Err(_) => std::future::pending().await,
        }
    };
    let lost = {
        let engine = engine.clone();
        async move {
            let reason = engine.lost().await;
            // The router reads the reason too.
            tokio::time::sleep(limits::LAST_WORDS).await;
            reason
        }
    };
    tracing::info!("Server started at unix://{}", path.display());
    let served = tokio::select! {
        served = service::serve(engine, info, listener, shutdown) => served.context("the gRPC server failed"),
        reason = lost => Err(anyhow::anyhow!(reason)),
        () = too_late => {
            tracing::warn!("a client keeps its connection open: closing it");
            Ok(())
        }
    };
    // A stale file would be replaced by the next shard anyway.
    let _ = std::fs::remove_file(&path);
    served
}

/// Returns when this process has another parent than `expected`.
async fn orphaned(expected: Option<u32>) {
    let Some(expected) = expected else { return std::future::pending().await };
    let mut period = tokio::time::interval(limits::PARENT_CHECK_PERIOD);
    while std::os::unix::process::parent_id() == expected {
        period.tick().await;
    }
}
