//! Python with pinned packages, in virtual environments that the tests make by themselves.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use crate::workspace_root;

/// An interpreter that has exactly the packages of one requirements file.
#[derive(Clone, Debug)]
pub struct Python(PathBuf);

impl Python {
    /// The environment of `python/{requirements}`; `None`, with a printed reason, on a machine without a fitting Python.
    ///
    /// It is made once and kept under `target`; a marker that holds the list makes it anew when the list changes or a
    /// making was interrupted.
    ///
    /// # Panics
    /// If the packages cannot be installed.
    pub fn with(requirements: &str) -> Option<Python> {
        // Tests of one file run at the same time and may want the same environment.
        static TURN: Mutex<()> = Mutex::new(());
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);

        let Some(interpreter) = interpreter() else {
            println!("skipped: none of {INTERPRETERS:?} is a Python from {OLDEST} to {NEWEST}");
            return None;
        };
        let requirements = Python::dir().join(requirements);
        let wanted = std::fs::read_to_string(&requirements).unwrap_or_else(|error| panic!("{requirements:?}: {error}"));
        let venv = target().join(requirements.with_extension("venv").file_name().expect("it is a file"));
        let marker = venv.join("installed.txt");
        let python = venv.join("bin/python");
        if std::fs::read_to_string(&marker).is_ok_and(|installed| installed == wanted) {
            return Some(Python(python));
        }
        let _ = std::fs::remove_dir_all(&venv);
        succeed(Command::new(interpreter).args(["-m", "venv"]).arg(&venv));
        // Compiling thousands of modules takes longer than compiling those that are imported.
        let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile"];
        succeed(Command::new(&python).args(install).arg("--requirement").arg(&requirements));
        std::fs::write(marker, wanted).expect("the folder has just been made");
        Some(Python(python))
    }

    /// A command that runs `python {args}` in [`Python::dir`].
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.0);
        command.args(args).current_dir(Python::dir()).env("PYTHONUNBUFFERED", "1").env("NO_COLOR", "1");
        command
    }

    /// Where the packages are installed.
    ///
    /// # Panics
    /// If the interpreter does not say.
    pub fn packages(&self) -> PathBuf {
        let output = self.command(&["-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).output();
        let output = output.expect("it has just been made");
        PathBuf::from(String::from_utf8(output.stdout).expect("a path").trim_end())
    }

    /// The folder of the scripts.
    pub fn dir() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("python")
    }
}

/// The pinned packages have wheels for these versions, all of them for no other.
const OLDEST: &str = "3.11";
const NEWEST: &str = "3.13";
/// The machine's own first.
const INTERPRETERS: [&str; 4] = ["python3", "python3.13", "python3.12", "python3.11"];

fn interpreter() -> Option<&'static str> {
    INTERPRETERS.into_iter().find(|interpreter| {
        let version = "import sys; print('%d.%d' % sys.version_info[:2])";
        let output = Command::new(interpreter).args(["-c", version]).output();
        // Versions of equal length are in the order of their text.
        output.is_ok_and(|output| (OLDEST..=NEWEST).contains(&String::from_utf8_lossy(&output.stdout).trim()))
    })
}

/// Cargo's folder for what is built: installed packages go beside it.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace_root().join("target"), PathBuf::from)
}

/// Runs a command to its end.
///
/// # Panics
/// If it fails; with what it wrote.
pub(crate) fn succeed(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}:\n{stdout}{stderr}");
}
