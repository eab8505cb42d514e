//! Real clients: `huggingface_hub` and `openai` from PyPI, in a virtual environment that this test makes by itself.
//!
//! The assertions are in `python/clients.py`. Without python3 the test says so and passes: a machine that only serves
//! has none.

#![allow(clippy::unwrap_used, reason = "every function of a test file is part of a test")]

use std::path::{Path, PathBuf};
use std::process::Command;

use integration_tests::{Setup, workspace_root};

#[tokio::test]
async fn huggingface_hub_and_openai_work_unchanged() {
    if Command::new("python3").arg("--version").output().is_err() {
        println!("skipped: python3 is not installed");
        return;
    }
    let python = virtual_environment();
    let server = Setup::new().args(&["--num-shard", "2"]).start();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/clients.py");
    let output = Command::new(python).arg(script).arg(server.url("")).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{stdout}");
    assert!(output.status.success(), "the clients failed:\n{stdout}{stderr}");
}

/// The interpreter of a virtual environment with exactly the packages of `python/requirements.txt`. It is made once and
/// kept under `target`; a marker that holds the list makes it anew when the list changes or a making was interrupted.
fn virtual_environment() -> PathBuf {
    let requirements = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/requirements.txt");
    let wanted = std::fs::read_to_string(&requirements).unwrap();
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace_root().join("target"), PathBuf::from);
    let venv = target.join("client-venv");
    let marker = venv.join("installed.txt");
    let python = venv.join("bin/python");
    if std::fs::read_to_string(&marker).is_ok_and(|installed| installed == wanted) {
        return python;
    }
    let _ = std::fs::remove_dir_all(&venv);
    run(Command::new("python3").args(["-m", "venv"]).arg(&venv));
    let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--requirement"];
    run(Command::new(&python).args(install).arg(&requirements));
    std::fs::write(marker, wanted).unwrap();
    python
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}:\n{}", String::from_utf8_lossy(&output.stderr));
}
