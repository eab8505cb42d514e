//! Connections: accepting them, how many, how long one may be silent, and how they end.
//!
//! `axum::serve` would do but for the bounds: it has no limit on connections and none on the time a client takes to
//! send a request's head, so a few idle clients could hold every file descriptor (the attack known as slowloris).

use std::io;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::limits::{ACCEPT_PAUSE, HEADER_READ_TIMEOUT, MAX_CONNECTIONS};

/// Serves `router` until `stop` turns true; then closes the listener and returns when the last request is answered.
pub(crate) async fn serve(listener: TcpListener, router: Router, mut stop: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            // At the limit nobody is accepted: newcomers wait in the kernel's queue.
            stream = accept(&listener), if connections.len() < MAX_CONNECTIONS => {
                connections.spawn(serve_connection(stream, router.clone(), stop.clone(), HEADER_READ_TIMEOUT));
            }
            Some(_) = connections.join_next() => {}
            () = stopped(&mut stop) => break,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// The next connection.
async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Without it a stream's first token waits up to 40 ms for the client's delayed acknowledgement.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "cannot set TCP_NODELAY");
                }
                return stream;
            }
            // The client left before it was accepted.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            // File descriptors or memory have run out: the connections that there are must end first.
            Err(error) => {
                tracing::error!(%error, "cannot accept connections");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // The sender is gone only if the process ends anyway.
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn serve_connection(stream: TcpStream, router: Router, mut stop: watch::Receiver<bool>, head_timeout: Duration) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_timeout)
        // An event is smaller than what the kernel does to gather its frame from three places: copied into one buffer it costs a
        // tenth less of a streamed token.
        .writev(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stopped(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        // Clients that vanish or time out: nothing the operator could do about.
        tracing::debug!(%error, "connection ended");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::Notify;

    use super::*;

    async fn listener() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").await.unwrap()
    }

    #[tokio::test]
    async fn accepted_connections_send_small_packets_at_once() {
        let listener = listener().await;
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        assert!(accept(&listener).await.nodelay().unwrap());
    }

    /// Everything the server sends until it closes the connection.
    async fn rest(client: &mut TcpStream) -> String {
        let mut text = String::new();
        client.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn half_a_head_is_not_waited_for_forever() {
        let listener = listener().await;
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (_stop, stopped) = watch::channel(false);
        let stream = accept(&listener).await;
        client.write_all(b"GET /health HTTP/1.1\r\nhost:").await.unwrap();
        serve_connection(stream, Router::new(), stopped, Duration::from_millis(20)).await;
        assert_eq!(rest(&mut client).await, "");
    }

    #[tokio::test]
    async fn a_stop_lets_the_running_request_finish_and_closes_idle_connections() {
        let listener = listener().await;
        let address = listener.local_addr().unwrap();
        let (entered, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (enter, going) = (entered.clone(), go.clone());
        let slow = get(async move || {
            enter.notify_one();
            going.notified().await;
            "done"
        });
        let (stop, stopped) = watch::channel(false);
        let serving = tokio::spawn(serve(listener, Router::new().route("/slow", slow), stopped));
        let mut idle = TcpStream::connect(address).await.unwrap();
        let mut busy = TcpStream::connect(address).await.unwrap();
        idle.write_all(b"GET /none HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut first = [0; 12];
        idle.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 404");
        busy.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        entered.notified().await;
        stop.send_replace(true);
        rest(&mut idle).await;
        assert!(!serving.is_finished());
        go.notify_one();
        assert!(rest(&mut busy).await.ends_with("done"));
        serving.await.unwrap();
        assert!(TcpStream::connect(address).await.is_err(), "the listener is closed");
    }
}
