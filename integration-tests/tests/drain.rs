//! Stopping: what runs is finished, nothing new is taken, nothing is left.

use integration_tests::{Setup, TinyModel, wait_until};
use nix::sys::signal::Signal;
use serde_json::json;

const TOKENS: u64 = 300;

#[tokio::test]
async fn running_streams_are_finished_on_sigterm() {
    let model = TinyModel::default().write();
    let server = Setup::new().model(model.path()).args(&["--num-shard", "2"]).start();
    let children = server.children();
    assert_eq!(children.len(), 3, "two shards and a router: {children:?}");

    let body = json!({ "inputs": "abc", "parameters": { "max_new_tokens": TOKENS, "details": true } });
    let mut streams = Vec::new();
    for _ in 0..8 {
        let mut stream = server.stream("/generate_stream", &body).await;
        stream.next_json().await.expect("the stream runs");
        streams.push(stream);
    }
    server.signal(Signal::SIGTERM);
    for stream in streams {
        let events = stream.collect().await;
        let last = events.last().expect("the stream goes on");
        assert_eq!(last["details"]["generated_tokens"], TOKENS, "{last}");
        assert_eq!(last["details"]["finish_reason"], "length");
    }

    let exit = server.wait();
    assert_eq!(exit.code, Some(0), "{}", exit.log);
    assert!(exit.leftovers.is_empty(), "{:?}", exit.leftovers);
    assert!(children.iter().all(|child| !child.is_alive()), "{children:?}");
}

#[tokio::test]
async fn ctrl_c_and_a_closed_terminal_stop_as_well() {
    for signal in [Signal::SIGINT, Signal::SIGHUP] {
        let server = Setup::new().start();
        server.signal(signal);
        let exit = server.wait();
        assert_eq!(exit.code, Some(0), "{signal}: {}", exit.log);
    }
}

#[tokio::test]
async fn a_second_ctrl_c_does_not_wait() {
    let model = TinyModel::default().write();
    let server = Setup::new().model(model.path()).start();
    // Far longer than the test waits for the exit.
    let body = json!({ "inputs": "abc", "parameters": { "max_new_tokens": 8000 } });
    let mut streams = Vec::new();
    for _ in 0..64 {
        streams.push(server.stream("/generate_stream", &body).await);
    }
    server.signal(Signal::SIGINT);
    wait_until("the drain to begin", || server.log().contains("Finishing requests in flight"));
    server.signal(Signal::SIGINT);
    let exit = server.wait();
    assert_eq!(exit.code, Some(1), "{}", exit.log);
    assert!(exit.log.contains("stopped without draining"), "{}", exit.log);
    assert!(exit.leftovers.is_empty(), "{:?}", exit.leftovers);
}

#[tokio::test]
async fn patience_with_running_streams_is_limited() {
    let model = TinyModel::default().write();
    let server = Setup::new().model(model.path()).args(&["--graceful-termination-timeout", "1"]).start();
    let body = json!({ "inputs": "abc", "parameters": { "max_new_tokens": 8000 } });
    let mut streams = Vec::new();
    for _ in 0..64 {
        streams.push(server.stream("/generate_stream", &body).await);
    }
    let exit = server.stop();
    assert_eq!(exit.code, Some(0), "{}", exit.log);
    assert!(exit.log.contains("router ended (killed by SIGKILL)"), "{}", exit.log);
}
