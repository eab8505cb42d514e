//! Real clients, unchanged: the pinned packages that people use, from PyPI and npm, against the demo model.
//!
//! What a client must be able to do stands in its script, `python/clients/*.py` and `node/*.js`: a list of promises, each
//! of which passes or fails by itself. What is kept is published, `docs/clients.md`: a promise that is not run any more,
//! or one that is not listed, fails these tests as well. Without python3 or node a test says so and passes: a machine
//! that only serves has none.

#![allow(clippy::unwrap_used, reason = "every function of a test file is part of a test")]

use std::process::{Command, Output};
use std::time::Duration;

use futures::StreamExt;
use integration_tests::{Node, Python, Setup, workspace_root};

/// Modules of `python/clients`, and the requirements they need.
const PYTHON: &[(&str, &str)] = &[
    ("huggingface_hub", "requirements.txt"),
    ("text_generation", "requirements-text-generation.txt"),
    ("openai", "requirements.txt"),
    ("anthropic", "requirements.txt"),
    ("langchain_openai", "requirements.txt"),
    ("langchain_huggingface", "requirements.txt"),
    ("litellm", "requirements.txt"),
    ("instructor", "requirements.txt"),
    ("outlines", "requirements.txt"),
];
/// Scripts of `node`.
const NODE: &[&str] = &["openai", "huggingface_inference", "ai_sdk"];

/// A client that hangs is broken. Most of the time is Python importing packages, on a machine that may be busy.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(180);

#[tokio::test]
async fn python_clients_work_unchanged() {
    let mut clients = Vec::new();
    for (module, requirements) in PYTHON {
        let Some(python) = Python::with(requirements) else { return };
        clients.push((format!("python/clients/{module}.py"), python, format!("clients.{module}")));
    }
    let server = Setup::new().args(&["--num-shard", "2"]).start();
    let url = server.url("");
    check(clients.into_iter().map(|(script, python, module)| (script, python.command(&["-m", &module, &url])))).await;
}

#[tokio::test]
async fn node_clients_work_unchanged() {
    let Some(node) = Node::installed() else { return };
    let server = Setup::new().start();
    let url = server.url("");
    check(NODE.iter().map(|name| (format!("node/{name}.js"), node.command(&[&format!("{name}.js"), &url])))).await;
}

/// The table has a row for each client and no other; the rows themselves are compared with what ran, above.
#[test]
fn the_table_of_clients_is_complete() {
    let scripts = PYTHON.iter().map(|(module, _)| format!("python/clients/{module}.py"));
    let scripts: Vec<String> = scripts.chain(NODE.iter().map(|name| format!("node/{name}.js"))).collect();
    let table = table();
    let rows: Vec<&str> = table.lines().filter(|line| line.contains("](../integration-tests/")).collect();
    assert_eq!(rows.len(), scripts.len(), "{rows:#?}");
    for script in scripts {
        assert!(
            rows.iter().any(|row| row.contains(&format!("(../integration-tests/{script})"))),
            "{script} is missing"
        );
    }
}

/// What a client's script has printed.
#[derive(Debug, Default)]
struct Report {
    client: String,
    passed: Vec<String>,
    failed: Vec<String>,
}

impl Report {
    fn parse(output: &str) -> Report {
        let mut report = Report::default();
        for line in output.lines() {
            match line.split_once(' ') {
                Some(("CLIENT", client)) => report.client = client.to_owned(),
                Some(("PASS", name)) => report.passed.push(name.to_owned()),
                Some(("FAIL", name)) => report.failed.push(name.to_owned()),
                _ => {}
            }
        }
        report
    }

    /// The row of `docs/clients.md`.
    fn row(&self, script: &str) -> String {
        let (name, version) = self.client.split_once(' ').unwrap_or((&self.client, "?"));
        format!("| [{name}](../integration-tests/{script}) | {version} | {} |", self.passed.join(", "))
    }
}

/// Runs all clients, as many at a time as the smallest machine has cores, and fails with everything that went wrong.
async fn check(clients: impl Iterator<Item = (String, Command)>) {
    let reports: Vec<(String, Report, Output)> = futures::stream::iter(clients)
        .map(|(script, command)| async move {
            let output = run(&script, command).await;
            (script, Report::parse(&String::from_utf8_lossy(&output.stdout)), output)
        })
        .buffered(2)
        .collect()
        .await;

    let table = table();
    let mut wrong = Vec::new();
    for (script, report, output) in &reports {
        let row = report.row(script);
        println!("{row}");
        wrong.extend(report.failed.iter().map(|failure| format!("{script}: {failure}")));
        if report.failed.is_empty() && !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            wrong.push(format!("{script} broke off after {:?} ({}):\n{errors}", report.passed, output.status));
        } else if report.failed.is_empty() && !table.lines().any(|line| line == row) {
            wrong.push(format!("docs/clients.md does not have the row\n{row}"));
        }
    }
    assert!(wrong.is_empty(), "{} of the promises to clients are broken:\n{}", wrong.len(), wrong.join("\n"));
}

async fn run(script: &str, command: Command) -> Output {
    let output = tokio::process::Command::from(command).kill_on_drop(true).output();
    tokio::time::timeout(CLIENT_TIMEOUT, output)
        .await
        .unwrap_or_else(|_| panic!("{script} did not end within {CLIENT_TIMEOUT:?}"))
        .unwrap_or_else(|error| panic!("{script}: {error}"))
}

fn table() -> String {
    std::fs::read_to_string(workspace_root().join("docs/clients.md")).unwrap()
}
