//! `text-generation-benchmark` as its users run it: on shards, over HTTP, and where it must refuse.

#![allow(clippy::unwrap_used, reason = "every function of a test file is part of a test")]

use std::path::Path;
use std::process::{Command, Stdio};

use integration_tests::{LoneShards, Server, Setup, benchmark_executable};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// What a run wrote, and how it ended.
struct Run {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// Runs the benchmark without a terminal and without the developer's environment.
async fn run(args: &[&str]) -> Run {
    let mut command = Command::new(benchmark_executable());
    command.args(args).env_clear().env("LOG_LEVEL", "warn").stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Run { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// The JSON of a run that must succeed.
async fn measure(args: &[&str]) -> Value {
    let Run { code, stdout, stderr } = run(&[args, &["--output", "json"]].concat()).await;
    assert_eq!((code, stderr.as_str()), (Some(0), ""), "{args:?}\n{stdout}");
    serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}"))
}

/// The one line with which a run refuses.
async fn refusal(args: &[&str]) -> String {
    let Run { code, stdout, stderr } = run(args).await;
    assert_eq!((code, stdout.as_str()), (Some(1), ""), "{args:?}\n{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    stderr
}

fn prefix(folder: &Path, name: &str) -> String {
    folder.join(name).to_string_lossy().into_owned()
}

/// A summary must have this many values, in order.
#[track_caller]
fn check_summary(summary: &Value, count: u64) {
    let figure = |name: &str| summary[name].as_f64().unwrap_or_else(|| panic!("no {name}: {summary}"));
    assert_eq!(summary["count"], count, "{summary}");
    let ascending = ["lowest", "p50", "p90", "p99", "highest"].map(figure);
    assert!(ascending[0] > 0.0 && ascending.is_sorted(), "{summary}");
    assert!((ascending[0]..=ascending[4]).contains(&figure("average")), "{summary}");
}

fn setup(folder: &Path) -> Setup {
    Setup::new().args(&["--shard-uds-path", &prefix(folder, "served")])
}

#[tokio::test]
async fn one_and_two_shards_are_measured_and_left_empty() {
    for shards in ["1", "2"] {
        let folder = tempfile::TempDir::new().unwrap();
        let server = setup(folder.path()).args(&["--num-shard", shards, "--max-batch-prefill-tokens", "64"]).start();
        let lone_prefix = prefix(folder.path(), "lone");
        let lone = LoneShards::start(&server, &lone_prefix).await;
        let socket = format!("{lone_prefix}-0");
        // 3 prompts of 40 tokens take two steps of 64.
        let lengths = ["-m", &socket, "-b", "1", "-b", "3", "-s", "40", "-d", "5", "-r", "2"];
        let report = measure(&[&lengths[..], &["--do-sample", "--top-k", "4", "--top-n-tokens", "2"]].concat()).await;
        assert_eq!(
            (&report["mode"], &report["complete"], &report["schema_version"]),
            (&json!("shards"), &json!(true), &json!(1))
        );
        assert_eq!(report["parameters"]["world_size"].to_string(), shards);
        let sizes: Vec<_> = report["points"].as_array().unwrap().iter().map(|point| &point["batch_size"]).collect();
        assert_eq!(sizes, [1, 3]);
        for point in report["points"].as_array().unwrap() {
            check_summary(&point["latency_seconds"]["prefill"], 2);
            check_summary(&point["latency_seconds"]["decode_token"], 2 * 4);
            check_summary(&point["latency_seconds"]["decode_total"], 2);
            check_summary(&point["throughput_tokens_per_second"]["prefill"], 2);
            check_summary(&point["throughput_tokens_per_second"]["decode"], 2);
        }
        let inspect = lone.connect(0).await.inspect(proto::v1::InspectRequest {}).await.unwrap().into_inner();
        assert!(inspect.slots.is_empty(), "{inspect:?}");

        let tables = run(&["-m", &socket, "-b", "2", "-s", "4", "-d", "2", "-r", "1", "-w", "0"]).await;
        assert_eq!(tables.code, Some(0), "{}", tables.stderr);
        assert!(
            tables.stdout.contains("| Decode (token) | 2 "),
            "without a terminal it prints Markdown: {}",
            tables.stdout
        );

        let beyond = refusal(&["-m", &socket, "-b", "100000"]).await;
        assert!(beyond.contains("--batch-size is 100000; the shards' max_slots is"), "{beyond}");
        let beyond = refusal(&["-m", &socket, "-s", "1000000000"]).await;
        assert!(
            beyond.contains("--sequence-length 1000000000 + --decode-length 8 is 1000000008; the shards'"),
            "{beyond}"
        );
        if shards == "2" {
            let second = refusal(&["-m", &format!("{lone_prefix}-1")]).await;
            assert!(second.contains("is the socket of rank 1"), "{second}");
        }
        drop(lone);
        let gone = refusal(&["-m", &socket]).await;
        assert!(gone.contains("Connection refused"), "killed, they leave their sockets behind: {gone}");
        assert_eq!(server.stop().code, Some(0));
    }
}

#[tokio::test]
async fn shards_with_a_router_are_refused_and_can_be_taken_over() {
    let folder = tempfile::TempDir::new().unwrap();
    let server = setup(folder.path()).start();
    let socket = format!("{}-0", prefix(folder.path(), "served"));
    let tiny = ["-m", &socket, "-b", "1", "-s", "4", "-d", "2", "-r", "2"];
    let refused = refusal(&tiny).await;
    assert!(refused.contains("serve a router (epoch 1)") && refused.contains("--take-over"), "{refused}");
    answers(&server).await;

    // A router that stands still cannot take its shard back.
    server.router().signal(Signal::SIGSTOP);
    let report = measure(&[&tiny[..], &["--take-over"]].concat()).await;
    check_summary(&report["points"][0]["latency_seconds"]["prefill"], 2);
    server.router().signal(Signal::SIGCONT);
    answers(&server).await;
    assert_eq!(server.stop().code, Some(0));
}

async fn answers(server: &Server) {
    server.generate(&json!({ "inputs": "What is two plus three?", "parameters": { "max_new_tokens": 2 } })).await;
}

#[tokio::test]
async fn a_server_is_measured_in_closed_and_open_loops() {
    let server = Setup::new().args(&["--api-key", "secret"]).start();
    let url = server.url("");
    let base = ["--url", &url, "--api-key", "secret", "-s", "12", "-d", "4", "--requests", "6"];
    for api in ["generate", "chat", "completions"] {
        let loads = ["--concurrency", "1", "--concurrency", "3"];
        let report = measure(&[&base[..], &loads, &["--api", api]].concat()).await;
        assert_eq!((&report["mode"], &report["complete"]), (&json!("http"), &json!(true)));
        for (point, clients) in report["points"].as_array().unwrap().iter().zip([1, 3]) {
            assert_eq!(point["concurrency"], clients);
            assert_eq!((&point["completed"], &point["failed"]), (&json!(6), &json!(0)), "{point}");
            assert_eq!(point["output_tokens"], 6 * 4, "every reply is as long as asked: {point}");
            let prompt_tokens = point["prompt_tokens"].as_u64().unwrap();
            assert!((6 * 9..6 * 30).contains(&prompt_tokens), "{prompt_tokens} instead of about 72");
            check_summary(&point["latency_seconds"]["time_to_first_token"], 6);
            check_summary(&point["latency_seconds"]["end_to_end"], 6);
            assert!(point["output_tokens_per_second"].as_f64().unwrap() > 0.0);
        }
    }
    let report = measure(&[&base[..], &["--rate", "50", "--do-sample", "--temperature", "0.7"]].concat()).await;
    let point = &report["points"][0];
    assert_eq!((&point["rate"], &point["completed"]), (&json!(50.0), &json!(6)));
    check_summary(&point["latency_seconds"]["inter_token"], 6 * 3);

    let prompts = server.dir().join("prompts.jsonl");
    std::fs::write(&prompts, "{\"prompt\": \"What is two plus three?\"}\n").unwrap();
    let report = measure(&[&base[..], &["--prompts", prompts.to_str().unwrap()]].concat()).await;
    assert_eq!(report["points"][0]["completed"], 6);

    let keyless = refusal(&["--url", &url]).await;
    assert!(keyless.contains("HTTP 401"), "{keyless}");
    // What every request would fail of, the warm-up request says.
    let long = refusal(&["--url", &url, "--api-key", "secret", "-s", "3000"]).await;
    assert!(long.contains("must be <= 2048. Given: 30"), "{long}");
    assert_eq!(server.stop().code, Some(0));
    let gone = refusal(&["--url", &url]).await;
    assert!(gone.contains("connection refused"), "{gone}");
}

#[tokio::test]
async fn what_fails_under_load_is_counted_by_kind() {
    let server = Setup::new().args(&["--max-concurrent-requests", "1"]).start();
    let url = server.url("");
    // `/generate_stream` has begun its answer before it is refused, as TGI's; OpenAI's routes have not.
    for (api, kind) in [("generate", "error event: overloaded"), ("chat", "HTTP 429")] {
        // Arrivals far faster than one place can serve.
        let load = ["--rate", "2000", "--requests", "40", "-d", "16", "--api", api];
        let report = measure(&[&["--url", &url][..], &load].concat()).await;
        let point = &report["points"][0];
        let (completed, refused) =
            (point["completed"].as_u64().unwrap(), point["failures"][kind].as_u64().unwrap_or(0));
        assert!(completed >= 1 && refused >= 1, "{point}");
        assert_eq!(completed + refused, 40, "{point}");
        assert_eq!(point["failed"], refused);
    }
    assert_eq!(server.stop().code, Some(0));
}

#[tokio::test]
async fn a_stopped_run_prints_what_it_has() {
    let server = Setup::new().start();
    let mut command = tokio::process::Command::new(benchmark_executable());
    command.args(["--url", &server.url(""), "--duration", "600", "--output", "json"]);
    command.env_clear().env("LOG_LEVEL", "info").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let process = command.kill_on_drop(true).spawn().unwrap();
    let pid = nix::unistd::Pid::from_raw(process.id().unwrap() as i32);
    server
        .metrics_until("some requests are done", |metrics| {
            metrics.get("tgi_request_success").is_some_and(|count| count >= 3.0)
        })
        .await;
    nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
    let output = process.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("stopped before the end"));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["complete"], false);
    assert!(report["points"][0]["completed"].as_u64().unwrap() >= 1, "{report}");
    assert_eq!(server.stop().code, Some(0));
}
