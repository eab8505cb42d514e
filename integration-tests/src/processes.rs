//! Processes as the kernel sees them: who is whose child, and who is still there.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::PATIENCE;

/// A process, told apart from a later one with the same id by its start time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Process id.
    pub pid: i32,
    /// Its command line.
    pub argv: Vec<String>,
    started: u64,
}

impl Process {
    /// The children of process `parent`, in the order of their ids.
    pub fn children_of(parent: u32) -> Vec<Process> {
        let mut children: Vec<Process> = fs::read_dir("/proc")
            .expect("/proc is mounted")
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|&pid| Stat::read(pid).is_some_and(|stat| stat.parent == parent))
            .filter_map(Process::find)
            .collect();
        children.sort_by_key(|child| child.pid);
        children
    }

    /// The process `pid`, if there is one.
    pub fn of(pid: u32) -> Option<Process> {
        Process::find(i32::try_from(pid).ok()?)
    }

    /// Time its threads have computed, to the nanosecond. Threads that have ended are not counted, nor is what was computed in
    /// the scheduler tick that is not over yet.
    pub fn cpu_time(&self) -> Duration {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid)).expect("the process runs").flatten();
        let nanoseconds = |thread: fs::DirEntry| -> Option<u64> {
            // A thread may end between the two calls.
            let schedstat = fs::read_to_string(thread.path().join("schedstat")).ok()?;
            schedstat.split_ascii_whitespace().next()?.parse().ok()
        };
        Duration::from_nanos(threads.filter_map(nanoseconds).sum())
    }

    /// Bytes of memory it holds, its executable's pages included.
    pub fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).expect("the process runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
        let kilobytes = line.trim().trim_end_matches(" kB").parse::<u64>().expect("the kernel writes a number");
        kilobytes * 1024
    }

    /// The role of a child of the launcher: "router", "shard".
    pub fn role(&self) -> &str {
        self.argv.get(1).map_or("", String::as_str)
    }

    /// Whether the process still runs. A zombie does not.
    pub fn is_alive(&self) -> bool {
        Stat::read(self.pid).is_some_and(|stat| stat.started == self.started && !matches!(stat.state, 'Z' | 'X'))
    }

    /// Sends `signal`.
    pub fn signal(&self, signal: Signal) {
        assert!(self.is_alive(), "{self:?} has ended, its id may belong to another process");
        kill(Pid::from_raw(self.pid), signal).unwrap_or_else(|error| panic!("cannot signal {self:?}: {error}"));
    }

    fn find(pid: i32) -> Option<Process> {
        let argv = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let argv = argv.split(|&byte| byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        Some(Process { pid, argv, started: Stat::read(pid)?.started })
    }
}

/// Waits until `condition` holds.
///
/// # Panics
/// If it does not within [`PATIENCE`].
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What `/proc/<pid>/stat` says (proc(5)).
struct Stat {
    state: char,
    parent: u32,
    started: u64,
}

impl Stat {
    fn read(pid: i32) -> Option<Stat> {
        let line = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The command name is in parentheses and may hold spaces and parentheses itself.
        let mut fields = line[line.rfind(')')? + 1..].split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        let parent = fields.next()?.parse().ok()?;
        Some(Stat { state, parent, started: fields.nth(17)?.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn time_and_memory_grow_with_what_is_done() {
        let own = Process::of(std::process::id()).unwrap();
        let (time, memory) = (own.cpu_time(), own.resident_bytes());
        let bytes = vec![1_u8; 64 << 20];
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(50) {
            std::hint::black_box(&bytes);
        }
        assert!(own.resident_bytes() >= memory + (60 << 20));
        wait_until("the time to be counted", || own.cpu_time() >= time + Duration::from_millis(10));
    }

    #[test]
    fn children_are_found_and_their_end_is_noticed() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let find = || Process::children_of(std::process::id()).into_iter().find(|found| found.pid as u32 == child.id());
        // Between fork and exec the child still has our command line.
        wait_until("the child to run sleep", || find().is_some_and(|found| found.argv[0] == "sleep"));
        let found = find().unwrap();
        assert!(found.is_alive());
        found.signal(Signal::SIGKILL);
        child.wait().unwrap();
        assert!(!found.is_alive());
    }
}
