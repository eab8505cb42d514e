//! Node.js with pinned packages, in a folder that the tests make by themselves.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use crate::python::{succeed, target};

/// A folder with the scripts of `node/` and exactly the packages of its `package-lock.json`.
#[derive(Clone, Debug)]
pub struct Node(PathBuf);

impl Node {
    /// Installs the packages once and keeps them under `target`; `None`, with a printed reason, on a machine without Node.
    ///
    /// # Panics
    /// If the packages cannot be installed.
    pub fn installed() -> Option<Node> {
        static TURN: Mutex<()> = Mutex::new(());
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);

        for program in ["node", "npm"] {
            if Command::new(program).arg("--version").output().is_err() {
                println!("skipped: {program} is not installed");
                return None;
            }
        }
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("node");
        let dir = target().join("client-node");
        fs::create_dir_all(&dir).expect("the target folder is writable");
        // Node looks for packages beside the script that imports them.
        for entry in fs::read_dir(&source).expect("the folder exists").flatten() {
            if entry.path().is_file() {
                fs::copy(entry.path(), dir.join(entry.file_name())).expect("the folder has just been made");
            }
        }
        let wanted = fs::read_to_string(source.join("package-lock.json")).expect("the lock file is committed");
        let marker = dir.join("installed.json");
        if fs::read_to_string(&marker).is_ok_and(|installed| installed == wanted) {
            return Some(Node(dir));
        }
        let install = ["ci", "--ignore-scripts", "--no-audit", "--no-fund"];
        succeed(Command::new("npm").args(install).current_dir(&dir));
        fs::write(marker, wanted).expect("the folder is writable");
        Some(Node(dir))
    }

    /// A command that runs `node {args}` beside the scripts.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("node");
        command.args(args).current_dir(&self.0).env("NO_COLOR", "1");
        command
    }
}
