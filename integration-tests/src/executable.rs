//! The executable under test, never stale.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

/// The executable that users run, in the profile of this test.
///
/// Cargo builds it once per test process, which takes a moment when nothing has changed: a test of yesterday's executable
/// proves nothing. `TEXT_GENERATION_LAUNCHER` names another one, for instance of an installed package.
pub fn executable() -> &'static Path {
    static EXECUTABLE: OnceLock<PathBuf> = OnceLock::new();
    EXECUTABLE.get_or_init(|| find("TEXT_GENERATION_LAUNCHER", "text-generation-launcher"))
}

/// The benchmark that users run. `TEXT_GENERATION_BENCHMARK` names another one.
pub fn benchmark_executable() -> &'static Path {
    static EXECUTABLE: OnceLock<PathBuf> = OnceLock::new();
    EXECUTABLE.get_or_init(|| find("TEXT_GENERATION_BENCHMARK", "text-generation-benchmark"))
}

/// The folder of the workspace.
pub fn workspace_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate lives in a folder of the workspace")
}

fn find(variable: &str, name: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| build(name), PathBuf::from)
}

fn build(name: &str) -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--bin", name, "--message-format=json-render-diagnostics"]);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    let output = command
        .current_dir(workspace_root())
        .stderr(Stdio::inherit())
        .output()
        .unwrap_or_else(|error| panic!("cannot run cargo: {error}"));
    assert!(output.status.success(), "`{command:?}` failed");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find(|message| message["target"]["name"] == name && message["executable"].is_string())
        .map(|message| PathBuf::from(message["executable"].as_str().expect("checked to be a string")))
        .expect("cargo reports the executable it has built")
}
