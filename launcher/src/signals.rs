//! SIGTERM, SIGINT and SIGHUP as messages: blocked in every thread, taken by one that waits for them.
//!
//! No handler runs anywhere, so nothing has to be async-signal-safe. Children would inherit the mask: `child.rs` clears it.

use std::io;

use nix::sys::signal::{SigSet, Signal};

/// Blocks the stop signals in this thread and in those it starts; then `on_signal` is called with each one that comes.
/// Must run before other threads are started.
///
/// # Errors
/// If the mask cannot be set or the thread not be started.
pub(crate) fn forward(on_signal: impl Fn(Signal) + Send + 'static) -> io::Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block()?;
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        while let Ok(signal) = signals.wait() {
            on_signal(signal);
        }
    })?;
    Ok(())
}
