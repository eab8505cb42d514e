//! `--env`: the facts a bug report needs, in TGI's layout.

use std::process::Command;

/// The runtime block: build, machine and accelerators.
pub(crate) fn report() -> String {
    let or_missing = |value: Option<&str>| value.unwrap_or("N/A").to_owned();
    [
        "Runtime environment:".to_owned(),
        format!("Target: {}", env!("BUILD_TARGET")),
        format!("Cargo version: {}", env!("BUILD_RUSTC")),
        format!("Commit sha: {}", or_missing(option_env!("GIT_SHA"))),
        format!("Docker label: {}", or_missing(option_env!("DOCKER_LABEL"))),
        format!("CPU: {}", cpu()),
        format!("nvidia-smi:{}", output_of("nvidia-smi", &[])),
        format!("xpu-smi:{}", output_of("xpu-smi", &["discovery"])),
        format!("hpu-smi:{}", output_of("hl-smi", &[])),
    ]
    .join("\n")
}

/// Model name and threads.
fn cpu() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{}, {threads} threads", name.map_or(std::env::consts::ARCH, |(_, name)| name))
}

/// What a tool prints, indented; "N/A" if it is not installed or fails.
fn output_of(program: &str, args: &[&str]) -> String {
    match Command::new(program).args(args).output() {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout);
            text.trim_end().lines().fold(String::new(), |text, line| text + "\n   " + line)
        }
        _ => "\nN/A".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tool_is_not_an_error() {
        assert_eq!(output_of("no-such-tool", &[]), "\nN/A");
        assert_eq!(output_of("echo", &["hello"]), "\n   hello");
        assert!(report().starts_with("Runtime environment:\nTarget: "));
    }
}
