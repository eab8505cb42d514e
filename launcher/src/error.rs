//! Why the launcher ended without serving. Every variant is exit code 1; texts of argument rules are TGI's.

use std::path::PathBuf;
use std::time::Duration;

use crate::supervisor::Member;

/// What ends the launcher with an error.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LauncherError {
    /// Flags that contradict each other or the model.
    #[error("Invalid argument: {0}")]
    ArgumentValidation(String),
    /// A flag of TGI that this version cannot honour, so starting without it would be a silent lie.
    #[error("`{flag}` (or {env}) is not supported yet: {reason}")]
    NotSupported {
        /// The flag.
        flag: String,
        /// Its environment variable.
        env: &'static str,
        /// What is missing, and what to do meanwhile.
        reason: &'static str,
    },
    /// `--model-id` names no folder.
    #[error("`--model-id {model_id}`: {reason}")]
    ModelNotFound {
        /// The value of `--model-id`.
        model_id: String,
        /// What was looked for, and how to give a folder instead.
        reason: String,
    },
    /// The model folder lacks a file or holds a damaged one.
    #[error("model folder {}: {reason}", dir.display())]
    ModelFiles {
        /// The model folder.
        dir: PathBuf,
        /// Which file, and what is wrong with it.
        reason: String,
    },
    /// The embedded demo model could not be unpacked.
    #[error("cannot unpack the embedded demo model to {}: {source} (set XDG_CACHE_HOME to a writable folder, or give --model-id)", path.display())]
    Demo {
        /// The file or folder that could not be written.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The HTTP address is not free.
    #[error("cannot listen on {address}: {reason}; choose another one with `--port` or `--hostname`")]
    Address {
        /// `ip:port`.
        address: String,
        /// What the operating system said.
        reason: String,
    },
    /// The shards' sockets cannot be created.
    #[error("cannot create the shards' sockets at {}: {reason}", path.display())]
    Sockets {
        /// The folder or prefix.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A signal mask, a thread or this executable's own path could not be had.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A child ended before the server was ready.
    #[error("{member} failed to start ({status}){}", indented(.lines))]
    ChildCannotStart {
        /// Which one.
        member: Member,
        /// "exit code 1" or "killed by SIGSEGV".
        status: String,
        /// Its own last error lines.
        lines: Vec<String>,
    },
    /// The router ended while serving. It is not restarted: it holds the truth of every request, so nothing could be
    /// resumed, and whoever runs the launcher should see it end.
    #[error("router failed ({status}){}", indented(.lines))]
    RouterFailed {
        /// How it ended.
        status: String,
        /// Its own last error lines.
        lines: Vec<String>,
    },
    /// The shards keep dying.
    #[error("the shards failed {failures} times within {} s; last: {member} ({status}){}", window.as_secs(), indented(.lines))]
    ShardsKeepFailing {
        /// Failures within the window.
        failures: usize,
        /// The window.
        window: Duration,
        /// The shard that failed last.
        member: Member,
        /// How it ended.
        status: String,
        /// Its own last error lines.
        lines: Vec<String>,
    },
    /// A second Ctrl-C: everything was killed without draining.
    #[error("stopped without draining: a second SIGINT came before the first was obeyed")]
    Forced,
}

impl LauncherError {
    /// A rule about arguments that does not hold.
    pub(crate) fn argument(text: impl Into<String>) -> LauncherError {
        LauncherError::ArgumentValidation(text.into())
    }
}

/// The lines of a dead child, set off from our own sentence.
fn indented(lines: &[String]) -> String {
    match lines {
        [] => String::new(),
        [line] => format!(": {line}"),
        lines => lines.iter().fold(", its last lines:".to_owned(), |text, line| text + "\n    " + line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_child_speaks_for_itself() {
        let error = |lines: &[&str]| {
            LauncherError::ChildCannotStart {
                member: Member::Shard(1),
                status: "exit code 1".to_owned(),
                lines: lines.iter().map(|&line| line.to_owned()).collect(),
            }
            .to_string()
        };
        assert_eq!(error(&[]), "shard-1 failed to start (exit code 1)");
        assert_eq!(error(&["no such tensor"]), "shard-1 failed to start (exit code 1): no such tensor");
        assert_eq!(error(&["one", "two"]), "shard-1 failed to start (exit code 1), its last lines:\n    one\n    two");
    }
}
