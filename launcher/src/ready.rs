//! Readiness and liveness by asking: an answered RPC of a shard, an answered GET /health of the router. Never a file.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use proto::v1::shard_client::ShardClient;
use proto::v1::{HealthRequest, InfoRequest};
use tonic::transport::Channel;

use crate::limits::{HEALTH_FAILURES, HEALTH_INTERVAL, HEALTH_TIMEOUT, PROBE_INTERVAL, PROBE_TIMEOUT};

/// What a watched shard can turn out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ShardState {
    /// It answered: the weights are loaded and plans can be sent.
    Ready,
    /// It was ready, and has not answered for a long time, or says that its engine makes no progress.
    Unresponsive {
        /// What the last probe met.
        reason: String,
    },
}

/// Watches the shard behind `socket` from a thread of its own, as long as `alive` holds.
///
/// # Errors
/// If the thread cannot be started.
pub(crate) fn watch_shard(
    socket: PathBuf,
    alive: Arc<AtomicBool>,
    on_change: impl Fn(ShardState) + Send + 'static,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("watch-shard".to_owned()).spawn(move || {
        runtime.block_on(async {
            let Some(mut shard) = first_answer(&socket, &alive).await else { return };
            on_change(ShardState::Ready);
            if let Some(reason) = first_silence(&mut shard, &alive).await {
                on_change(ShardState::Unresponsive { reason });
            }
        });
    })?;
    Ok(())
}

/// Watches for the router's first healthy answer on `address`, as long as `alive` holds.
///
/// # Errors
/// If the thread cannot be started.
pub(crate) fn watch_router(
    address: SocketAddr,
    alive: Arc<AtomicBool>,
    on_ready: impl FnOnce() + Send + 'static,
) -> io::Result<()> {
    let address = reachable(address);
    std::thread::Builder::new().name("watch-router".to_owned()).spawn(move || {
        while alive.load(Ordering::Acquire) {
            if is_healthy(address).unwrap_or(false) {
                return on_ready();
            }
            std::thread::sleep(PROBE_INTERVAL);
        }
    })?;
    Ok(())
}

/// Where a client on this machine reaches a server that listens on `address`.
pub(crate) fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// Polls until the shard answers `Info`; `None` if it dies first.
async fn first_answer(socket: &Path, alive: &AtomicBool) -> Option<ShardClient<Channel>> {
    while alive.load(Ordering::Acquire) {
        if let Ok(channel) = proto::connect(socket).await {
            let mut shard = ShardClient::new(channel);
            // A socket exists before its server: an unanswered probe is given up and repeated.
            if let Ok(Ok(_)) = tokio::time::timeout(PROBE_TIMEOUT, shard.info(InfoRequest {})).await {
                return Some(shard);
            }
        }
        tokio::time::sleep(PROBE_INTERVAL).await;
    }
    None
}

/// Probes until one goes unanswered, or [`HEALTH_FAILURES`] in a row say that the engine is stalled, and returns why; `None`
/// if the process dies first, which is reported by whoever waits for it.
async fn first_silence(shard: &mut ShardClient<Channel>, alive: &AtomicBool) -> Option<String> {
    let mut failures = 0;
    loop {
        pause_while(alive, HEALTH_INTERVAL).await;
        let answer = tokio::time::timeout(HEALTH_TIMEOUT, shard.health(HealthRequest {})).await;
        if !alive.load(Ordering::Acquire) {
            return None;
        }
        let reason = match answer {
            Ok(Ok(_)) => {
                failures = 0;
                continue;
            }
            Ok(Err(status)) => status.message().to_owned(),
            Err(_) => return Some(format!("no answer within {} s", HEALTH_TIMEOUT.as_secs())),
        };
        failures += 1;
        if failures == HEALTH_FAILURES {
            return Some(reason);
        }
    }
}

/// Sleeps, but not longer than the process lives.
async fn pause_while(alive: &AtomicBool, pause: Duration) {
    let end = tokio::time::Instant::now() + pause;
    while alive.load(Ordering::Acquire) && tokio::time::Instant::now() < end {
        tokio::time::sleep(pause / 20).await;
    }
}

/// One `GET /health`, by hand: the launcher needs no HTTP client for a status line.
fn is_healthy(address: SocketAddr) -> io::Result<bool> {
    let mut stream = TcpStream::connect_timeout(&address, PROBE_TIMEOUT)?;
    stream.set_read_timeout(Some(PROBE_TIMEOUT))?;
    stream.set_write_timeout(Some(PROBE_TIMEOUT))?;
    let request = format!("GET /health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut status = [0; 12];
    stream.read_exact(&mut status)?;
    Ok(&status == b"HTTP/1.1 200")
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Answers one probe after the other with `status_lines`.
    fn scripted_router(status_lines: &'static [&'static str]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for status_line in status_lines {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).unwrap();
                write!(stream, "{status_line}\r\nContent-Length: 0\r\n\r\n").unwrap();
            }
        });
        address
    }

    #[test]
    fn an_unhealthy_router_is_not_ready_yet() {
        let address = scripted_router(&["HTTP/1.1 503 Service Unavailable", "HTTP/1.1 200 OK"]);
        assert!(!is_healthy(address).unwrap());
        assert!(is_healthy(address).unwrap());
    }

    #[test]
    fn a_dead_process_is_not_watched_any_longer() {
        let alive = Arc::new(AtomicBool::new(false));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        assert!(runtime.block_on(first_answer(Path::new("/nonexistent/socket-0"), &alive)).is_none());
    }

    #[test]
    fn unspecified_addresses_are_reached_over_loopback() {
        for (listen, reach) in [("0.0.0.0:80", "127.0.0.1:80"), ("[::]:80", "[::1]:80"), ("10.0.0.1:80", "10.0.0.1:80")]
        {
            assert_eq!(reachable(listen.parse().unwrap()), reach.parse().unwrap());
        }
    }
}
