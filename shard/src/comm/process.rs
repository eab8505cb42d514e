//! Is the process of another rank still running?

use std::fs;

/// A process, told apart from a later one with the same id by its start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Process {
    /// Process id; 0 for none.
    pub(super) pid: u32,
    /// Clock ticks after boot, from /proc; 0 where /proc cannot be read.
    pub(super) started: u64,
}

impl Process {
    /// The calling process.
    pub(super) fn current() -> Process {
        let pid = std::process::id();
        Process { pid, started: stat(pid).map_or(0, |(_, started)| started) }
    }

    /// Whether it still runs. A zombie does not: it is dead, only nobody has asked for its exit status yet, and
    /// `kill(pid, 0)` would call it alive.
    ///
    /// Without a readable /proc (`started` is 0) this answers true, and a dead rank is only found by the timeout.
    pub(super) fn is_alive(self) -> bool {
        self.started == 0
            || stat(self.pid).is_some_and(|(state, started)| started == self.started && !matches!(state, 'Z' | 'X'))
    }
}

/// State letter and start time of a process, from `/proc/<pid>/stat` (proc(5): fields 3 and 22).
fn stat(pid: u32) -> Option<(char, u64)> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name (field 2) is in parentheses and may hold spaces and parentheses itself.
    let mut fields = line[line.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let started = fields.nth(18)?.parse().ok()?;
    Some((state, started))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_alive_and_an_ended_child_is_not() {
        assert!(Process::current().is_alive());
        assert_ne!(Process::current().started, 0);

        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        // SAFETY: `waitid` fills `info`, a local of its type; WNOWAIT leaves the child a zombie, which is the case to test.
        let rc = unsafe {
            let mut info = std::mem::zeroed::<libc::siginfo_t>();
            libc::waitid(libc::P_PID, pid, &mut info, libc::WEXITED | libc::WNOWAIT)
        };
        assert_eq!(rc, 0);
        let zombie = Process { pid, started: stat(pid).unwrap().1 };
        assert!(!zombie.is_alive(), "a zombie is dead");
        child.wait().unwrap();
        assert!(!zombie.is_alive(), "a reaped process is dead");
    }

    #[test]
    fn a_reused_process_id_is_another_process() {
        let current = Process::current();
        assert!(!Process { started: current.started + 1, ..current }.is_alive());
    }
}
