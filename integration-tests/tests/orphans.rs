//! Nothing outlives the launcher, however it ends.

use integration_tests::{Setup, wait_until};
use nix::sys::signal::Signal;
use serde_json::json;

#[tokio::test]
async fn kill_9_of_the_launcher_ends_its_children() {
    let server = Setup::new().args(&["--num-shard", "2"]).start();
    server.generate(&json!({ "inputs": "hello", "parameters": { "max_new_tokens": 2 } })).await;
    let children = server.children();
    assert_eq!(children.len(), 3, "{children:?}");
    server.signal(Signal::SIGKILL);
    wait_until("the children to end", || children.iter().all(|child| !child.is_alive()));
}

#[test]
fn kill_9_during_start_up_ends_the_children_too() {
    let server = Setup::new().args(&["--num-shard", "2"]).spawn();
    wait_until("the first child", || !server.children().is_empty());
    let children = server.children();
    server.signal(Signal::SIGKILL);
    wait_until("the children to end", || children.iter().all(|child| !child.is_alive()));
}

#[test]
fn the_next_launcher_sweeps_what_a_killed_one_left() {
    let folder = tempfile::TempDir::new().unwrap();
    let setup = || Setup::new().env("XDG_RUNTIME_DIR", folder.path());
    let count = || std::fs::read_dir(folder.path()).unwrap().count();

    let killed = setup().start();
    killed.signal(Signal::SIGKILL);
    killed.wait();
    assert_eq!(count(), 1, "a killed launcher cannot tidy up");
    let next = setup().start();
    assert_eq!(count(), 1, "its successor has swept the old folder and has its own");
    assert_eq!(next.stop().code, Some(0));
    assert_eq!(count(), 0);
}

#[test]
fn sigterm_during_start_up_stops_at_once() {
    let server = Setup::new().args(&["--num-shard", "2"]).spawn();
    wait_until("the children to be started", || server.children().len() == 3);
    let children = server.children();
    let exit = server.stop();
    assert_eq!(exit.code, Some(0), "{}", exit.log);
    assert!(children.iter().all(|child| !child.is_alive()));
    assert!(exit.leftovers.is_empty(), "{:?}", exit.leftovers);
}

#[test]
fn a_router_that_dies_ends_the_server_with_an_error() {
    let server = Setup::new().args(&["--num-shard", "2"]).start();
    server.router().signal(Signal::SIGKILL);
    let exit = server.wait();
    assert_eq!(exit.code, Some(1), "{}", exit.log);
    assert!(exit.log.contains("Error: router failed (killed by SIGKILL)"), "{}", exit.log);
    assert!(exit.leftovers.is_empty(), "{:?}", exit.leftovers);
}
