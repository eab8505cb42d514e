//! `just gpu-check` on a machine without a GPU: its own tests, and its pieces as far as they go there. Nothing is timed.

#![allow(clippy::unwrap_used, reason = "every function of a test file is part of a test")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use integration_tests::{Python, benchmark_executable, executable, workspace_root};
use serde_json::Value;
use tempfile::TempDir;

fn script(name: &str) -> PathBuf {
    workspace_root().join("integration-tests/gpu-check").join(name)
}

#[test]
fn figures_goals_and_limits() {
    let Some(python) = Python::with("requirements.txt") else { return };
    let output = python.command(&[]).arg(script("tests.py")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_server_is_measured_on_the_processor_and_what_cannot_be_says_why() {
    let Some(python) = Python::with("requirements.txt") else { return };
    let folder = TempDir::new().unwrap();
    let programs = folder.path().join("programs");
    fs::create_dir(&programs).unwrap();
    symlink(executable(), programs.join("text-generation-launcher")).unwrap();
    symlink(benchmark_executable(), programs.join("text-generation-benchmark")).unwrap();
    let json = folder.path().join("gpu-check.json");
    let mut command = python.command(&[]);
    command.arg(script("run.py")).args(["--device", "cpu", "--commit", "of a test", "--programs"]).arg(&programs);
    // The script finds whatever it is told to be Python with torch: none.
    command.args(["--python", "/bin/false", "--json"]).arg(&json).env("TMPDIR", folder.path());
    let output = command.output().unwrap();
    let [printed, log] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    assert!(output.status.success(), "{printed}\n{log}");

    let report: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    let unit = |name: &str| &report["units"][name];
    assert_eq!(unit("served/tiny")["state"], "done", "{printed}\n{log}");
    let figures = &unit("served/tiny")["figures"];
    assert!(figures["ours/tiny/ready"]["seconds"].as_f64().unwrap() > 0.0, "{figures}");
    for streams in [2, 4] {
        let served = &figures[format!("ours/tiny/served/{streams}/24+8")];
        assert!(served["tokens_per_second"].as_f64().unwrap() > 0.0, "{figures}");
    }
    for (name, why) in [
        ("correct/cuda", "cuda is not among the programs"),
        ("shapes/tiny/bfloat16", "gpu_check measures GPUs"),
        ("peers/ceilings", "/bin/false has no torch"),
    ] {
        assert_eq!(unit(name)["state"], "skipped", "{name}: {log}");
        assert!(unit(name)["why"].as_str().unwrap().contains(why), "{name}: {}", unit(name)["why"]);
        assert!(printed.contains(&format!("{name}: skipped: ")), "{printed}");
    }
    assert!(printed.contains("tiny/served/4/24+8"), "{printed}");
}
