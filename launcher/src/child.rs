//! One child process: started so that it cannot outlive the launcher, its output forwarded, its end reported.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::signal::{self, SigSet, Signal};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use crate::limits::{LINE_BYTES, PIPE_TIMEOUT, REPORTED_LINES, TAIL_LINES};
use crate::log_line::{Level, LogLine};
use crate::logs::Logs;
use crate::supervisor::Member;

/// A running child. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Child {
    process: std::process::Child,
    tail: Arc<Tail>,
    alive: Arc<AtomicBool>,
}

/// When CUDA's driver loads the kernels of a module.
const MODULE_LOADING: &str = "CUDA_MODULE_LOADING";

impl Child {
    /// Starts `executable` with `argv`, and with API_KEY set to `api_keys` or absent. Its output goes to `logs`; `on_exit` is called once it has ended and its pipes
    /// are read.
    ///
    /// Must be called from a thread that lives as long as the process: Linux sends the parent-death signal when the
    /// thread that started the child ends.
    ///
    /// # Errors
    /// If the process or its threads cannot be started.
    pub(crate) fn start(
        member: Member,
        executable: &Path,
        argv: &[OsString],
        api_keys: Option<OsString>,
        logs: &Logs,
        on_exit: impl FnOnce() + Send + 'static,
    ) -> io::Result<Child> {
        let mut command = Command::new(executable);
        command.args(argv).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Never the launcher's own variable: a shard has no use for keys, and a flag may have overruled it.
        command.env_remove("API_KEY").envs(api_keys.map(|keys| ("API_KEY", keys)));
        // On a GPU kernels are loaded at the start, not by the first request that needs one, which would wait for them.
        if std::env::var_os(MODULE_LOADING).is_none() {
            command.env(MODULE_LOADING, "EAGER");
        }
        // A group of its own: Ctrl-C in a terminal reaches only the launcher, which then stops everything in order.
        command.process_group(0);
        tie_to_launcher(&mut command);
        let mut process = command.spawn()?;

        let tail = Arc::new(Tail::default());
        let alive = Arc::new(AtomicBool::new(true));
        // One sender per pipe; the waiter sees the channel closed once both threads have read everything.
        let (open_pipe, pipes_closed) = mpsc::channel::<()>();
        let stdout = process.stdout.take().expect("stdout is piped (above)");
        let stderr = process.stderr.take().expect("stderr is piped (above)");
        forward(stdout, member, Level::Info, logs, &tail, open_pipe.clone())?;
        forward(stderr, member, Level::Error, logs, &tail, open_pipe)?;

        let pid = process_id(&process);
        let waiter_alive = alive.clone();
        std::thread::Builder::new().name(format!("wait-{member}")).spawn(move || {
            // WNOWAIT leaves the process unreaped, so that its id stays valid for signals until `reap`.
            while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(nix::Error::EINTR) {}
            waiter_alive.store(false, Ordering::Release);
            let _ = pipes_closed.recv_timeout(PIPE_TIMEOUT);
            on_exit();
        })?;
        Ok(Child { process, tail, alive })
    }

    /// Whether the process has not ended yet. For threads that watch it.
    pub(crate) fn alive(&self) -> Arc<AtomicBool> {
        self.alive.clone()
    }

    /// Sends `signal`. A process that has already ended is no error.
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = signal::kill(process_id(&self.process), signal);
    }

    /// Takes the exit status of an ended process.
    pub(crate) fn reap(mut self) -> Obituary {
        let status = self.process.wait().map_or_else(|error| error.to_string(), |status| describe(&status));
        Obituary { status, lines: self.tail.error_lines() }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Both are harmless after `reap`: std remembers the status and signals nobody.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// How a child ended.
#[derive(Clone, Debug)]
pub(crate) struct Obituary {
    /// "exit code 1", "killed by SIGSEGV".
    pub(crate) status: String,
    /// Its last error lines; without any, its last lines.
    pub(crate) lines: Vec<String>,
}

/// Makes the kernel kill the child when the launcher dies, even by `kill -9`, and unblocks the signals that the launcher
/// blocks (see `signals.rs`): a mask survives exec.
fn tie_to_launcher(command: &mut Command) {
    let launcher = std::process::id();
    let no_signals = SigSet::empty();
    let tie = move || {
        no_signals.thread_set_mask()?;
        // SAFETY: prctl with PR_SET_PDEATHSIG takes a signal number by value and touches no memory of ours.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: getppid takes no argument, touches no memory and cannot fail.
        if unsafe { libc::getppid() } as u32 != launcher {
            // It died between fork and prctl, so the signal will never come.
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        Ok(())
    };
    // SAFETY: the closure runs between fork and exec, where only async-signal-safe calls are allowed: sigmask, prctl and
    // getppid are plain system calls, and io::Error from a code does not allocate.
    unsafe { command.pre_exec(tie) };
}

fn process_id(process: &std::process::Child) -> Pid {
    Pid::from_raw(i32::try_from(process.id()).expect("process ids are positive i32 on Linux"))
}

fn forward(
    pipe: impl Read + Send + 'static,
    member: Member,
    raw_level: Level,
    logs: &Logs,
    tail: &Arc<Tail>,
    open_pipe: mpsc::Sender<()>,
) -> io::Result<()> {
    let (logs, tail) = (logs.clone(), tail.clone());
    std::thread::Builder::new().name(format!("log-{member}")).spawn(move || {
        let _open_pipe = open_pipe;
        read_lines(pipe, |line| {
            tail.push(line, raw_level);
            logs.forward(member, line, raw_level);
        });
    })?;
    Ok(())
}

/// Calls `on_line` with each line, without its end. Lines over [`LINE_BYTES`] come in pieces.
fn read_lines(pipe: impl Read, mut on_line: impl FnMut(&str)) {
    let mut reader = BufReader::new(pipe);
    let mut line = Vec::new();
    while matches!(reader.by_ref().take(LINE_BYTES as u64).read_until(b'\n', &mut line), Ok(read) if read > 0) {
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        if !text.is_empty() {
            on_line(text);
        }
        line.clear();
    }
}

/// The last lines of a child, understood.
#[derive(Debug, Default)]
struct Tail(Mutex<VecDeque<LogLine>>);

impl Tail {
    fn push(&self, line: &str, raw_level: Level) {
        let parsed = LogLine::parse(line).unwrap_or_else(|| LogLine::raw(line, raw_level));
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == TAIL_LINES {
            lines.pop_front();
        }
        lines.push_back(parsed);
    }

    /// The last error lines as text; without any, the last lines whatever they say.
    fn error_lines(&self) -> Vec<String> {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let has_errors = lines.iter().any(|line| line.level == Level::Error);
        let mut texts: Vec<String> = Vec::new();
        for line in lines.iter().filter(|line| !has_errors || line.level == Level::Error) {
            let text = line.text();
            let text = text.strip_prefix("Error: ").unwrap_or(&text);
            // A child that logs its last error may also print it while it leaves.
            if texts.last().is_none_or(|last| last != text) {
                texts.push(text.to_owned());
            }
        }
        texts.split_off(texts.len().saturating_sub(REPORTED_LINES))
    }
}

fn describe(status: &ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(number)) => match Signal::try_from(number) {
            Ok(signal) => format!("killed by {signal}"),
            Err(_) => format!("killed by signal {number}"),
        },
        (None, None) => "ended".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::Format;

    /// Runs a shell script as a child and returns how it ended.
    fn run(script: &str) -> Obituary {
        let (ended, end) = mpsc::channel();
        let argv = ["-c".into(), script.into()];
        let logs = Logs::to_stdout(Format::Json);
        let child = Child::start(Member::Shard(0), Path::new("/bin/sh"), &argv, None, &logs, move || {
            ended.send(()).unwrap();
        });
        end.recv().unwrap();
        child.unwrap().reap()
    }

    #[test]
    fn the_end_is_described_with_the_last_error_lines() {
        let obituary = run("echo fine; echo 'Error: no such tensor' >&2; exit 3");
        assert_eq!(obituary.status, "exit code 3");
        assert_eq!(obituary.lines, ["no such tensor"]);
        let obituary = run(r#"echo '{"level":"INFO","message":"loading"}'; kill -SEGV $$"#);
        assert_eq!(obituary.status, "killed by SIGSEGV");
        assert_eq!(obituary.lines, ["loading"], "without errors the last lines have to do");
    }

    #[test]
    fn signals_reach_the_child_although_the_launcher_blocks_them() {
        let mut blocked = SigSet::empty();
        blocked.add(Signal::SIGTERM);
        blocked.thread_block().unwrap();
        assert_eq!(run("kill -TERM $$; exit 7").status, "killed by SIGTERM");
    }

    #[test]
    fn long_lines_come_in_pieces_and_bad_utf8_is_replaced() {
        let mut input = vec![b'x'; LINE_BYTES + 10];
        input.extend(b"\n\nshort \xff\nunfinished");
        let mut lines = Vec::new();
        read_lines(&input[..], |line| lines.push(line.to_owned()));
        assert_eq!(lines.iter().map(String::len).collect::<Vec<_>>(), [LINE_BYTES, 10, 9, 10]);
        assert_eq!(lines[2], "short \u{fffd}");
    }

    #[test]
    fn the_tail_is_bounded_and_says_nothing_twice() {
        let tail = Tail::default();
        for number in 0..100 {
            tail.push(&format!("line {number}"), Level::Info);
        }
        assert_eq!(tail.0.lock().unwrap().len(), TAIL_LINES);
        assert_eq!(tail.error_lines().len(), REPORTED_LINES);
        tail.push(r#"{"level":"ERROR","message":"broken"}"#, Level::Info);
        tail.push("Error: broken", Level::Error);
        assert_eq!(tail.error_lines(), ["broken"]);
    }
}
