//! The executable: it says when it is ready, stops when told, and says in one line why it cannot start.

#![allow(clippy::unwrap_used, reason = "the exemption for tests does not reach helpers of integration tests")]

mod support;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};

use proto::v1::InfoRequest;
use proto::v1::shard_client::ShardClient;
use support::{TinyModel, temp_path};

const SHARD: &str = env!("CARGO_BIN_EXE_text-generation-shard");

/// A child that does not outlive its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn shard(model: &TinyModel, more: &[&str]) -> Command {
    let mut command = Command::new(SHARD);
    command.args(["--model-dir", model.dir.to_str().unwrap(), "--threads", "1"]).args(more);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn terminate(child: &Child) {
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
}

/// Reads log lines until one has `text`.
fn wait_for_line(lines: &mut impl Iterator<Item = std::io::Result<String>>, text: &str) -> String {
    lines.map(Result::unwrap).find(|line| line.contains(text)).unwrap_or_else(|| panic!("no line with {text:?}"))
}

#[tokio::test]
async fn it_serves_until_sigterm_and_leaves_nothing_behind() {
    let (model, prefix) = (TinyModel::new(), temp_path("uds"));
    let prefix = prefix.to_str().unwrap();
    let mut child = Running(shard(&model, &["--uds-path", prefix, "--json-output"]).spawn().unwrap());
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    let ready = wait_for_line(&mut lines, "Server started at unix://");
    let ready: serde_json::Value = serde_json::from_str(&ready).unwrap();
    assert_eq!(ready["fields"]["message"], format!("Server started at unix://{prefix}-0"));
    assert_eq!(ready["level"], "INFO");

    let socket = proto::socket_path(prefix, 0);
    let mut client = ShardClient::new(proto::connect(&socket).await.unwrap());
    assert_eq!(client.info(InfoRequest {}).await.unwrap().into_inner().max_slots, 64);
    terminate(&child.0);
    wait_for_line(&mut lines, "SIGTERM: shutting down");
    // `client` is still there and its runtime is blocked by this wait: a peer that hangs does not keep the shard.
    assert_eq!(child.0.wait().unwrap().code(), Some(0));
    assert!(!socket.exists(), "the socket is removed");
    drop(client);
}

#[tokio::test]
async fn an_open_stream_does_not_hold_up_the_end() {
    let (model, prefix) = (TinyModel::new(), temp_path("uds"));
    let prefix = prefix.to_str().unwrap();
    let mut child = Running(shard(&model, &["--uds-path", prefix]).spawn().unwrap());
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    wait_for_line(&mut lines, "Server started at unix://");
    let mut client = ShardClient::new(proto::connect(&proto::socket_path(prefix, 0)).await.unwrap());
    let (messages, receiver) = tokio::sync::mpsc::channel(1);
    let mut answers = client.run(tokio_stream::wrappers::ReceiverStream::new(receiver)).await.unwrap().into_inner();
    let hello = proto::v1::Hello { epoch: 1, protocol_version: proto::PROTOCOL_VERSION };
    let hello = proto::v1::ToShard { message: Some(proto::v1::to_shard::Message::Hello(hello)) };
    messages.send(hello).await.unwrap();
    answers.message().await.unwrap().expect("a Welcome");
    terminate(&child.0);
    // The stream stays open on this side until the shard ends it.
    while answers.message().await.is_ok_and(|answer| answer.is_some()) {}
    drop((client, messages));
    assert_eq!(child.0.wait().unwrap().code(), Some(0));
}

#[test]
fn it_ends_when_its_parent_is_another_one() {
    let (model, prefix) = (TinyModel::new(), temp_path("uds"));
    // Process 1 is not the parent of a test's child, so this shard is an orphan from the start.
    let arguments = ["--uds-path", prefix.to_str().unwrap(), "--parent-pid", "1"];
    let output = shard(&model, &arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).contains("the parent process is gone: shutting down"), "{}", text(&output.stdout));
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The shard exits with code 1 and this one line.
#[track_caller]
fn check_refused(model: &TinyModel, arguments: &[&str], expected: &str) {
    let prefix = temp_path("uds");
    let output: Output = shard(model, arguments).args(["--uds-path", prefix.to_str().unwrap()]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let stderr = text(&output.stderr);
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.starts_with(&format!("text-generation-shard: {expected}")), "{stderr}");
}

#[test]
fn what_cannot_start_says_why_in_one_line() {
    let model = TinyModel::new();
    check_refused(&model, &["--rank", "1"], "--rank 1 is not below --world-size 1");
    let no_name = "--world-size 2 needs --comm-name, the same for all ranks";
    check_refused(&model, &["--world-size", "2"], no_name);
    let context = "--max-total-tokens 513 is more than the 512 positions of this model";
    check_refused(&model, &["--max-total-tokens", "513"], context);
    let flags = "--max-batch-total-tokens 64 cannot hold one sequence of 512 tokens";
    check_refused(&model, &["--max-batch-total-tokens", "64"], flags);

    let empty = TinyModel::new();
    std::fs::remove_file(empty.dir.join("model.safetensors")).unwrap();
    check_refused(&empty, &[], &format!("{}: no model.safetensors", empty.dir.display()));
    std::fs::remove_file(empty.dir.join("config.json")).unwrap();
    check_refused(&empty, &[], &format!("cannot read {}/config.json", empty.dir.display()));
}
