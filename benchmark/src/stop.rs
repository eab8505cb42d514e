//! The wish to end a run early, from the interface or by a signal.

use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Asked for once, heard by everybody.
#[derive(Clone, Debug)]
pub(crate) struct Stop(Arc<watch::Sender<bool>>);

impl Default for Stop {
    fn default() -> Stop {
        Stop(Arc::new(watch::Sender::new(false)))
    }
}

impl Stop {
    /// Ends the run.
    pub(crate) fn ask(&self) {
        self.0.send_replace(true);
    }

    /// Returns once somebody has asked.
    pub(crate) async fn asked(&self) {
        // It cannot end without a value: the sender is ours.
        let _ = self.0.subscribe().wait_for(|asked| *asked).await;
    }
}

/// Returns at the first SIGINT, SIGTERM or SIGHUP, so that the terminal is restored and the report printed.
pub(crate) async fn signalled() {
    let wait = |kind| async move {
        match signal(kind) {
            Ok(mut signals) => drop(signals.recv().await),
            // Then the signal does what it does by default: it ends the process.
            Err(error) => {
                tracing::warn!("signals cannot be handled: {error}");
                std::future::pending().await
            }
        }
    };
    tokio::select! {
        () = wait(SignalKind::interrupt()) => (),
        () = wait(SignalKind::terminate()) => (),
        () = wait(SignalKind::hangup()) => (),
    }
}
