//! How much memory this process may still take: the machine's, or its control group's if that is less.

use std::fs;
use std::path::{Path, PathBuf};

/// Bytes that can be allocated without swapping or being killed; `None` where the system does not tell.
pub fn available_bytes() -> Option<u64> {
    available_under(Path::new("/"))
}

/// The same, with /proc and /sys below `root`.
fn available_under(root: &Path) -> Option<u64> {
    let machine = meminfo_available(&fs::read_to_string(root.join("proc/meminfo")).ok()?)?;
    Some(cgroup_available(root).map_or(machine, |cgroup| machine.min(cgroup)))
}

/// `MemAvailable` of /proc/meminfo: free memory and what the page cache can give back (proc(5)).
fn meminfo_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}

/// The least that any limit on the way from our control group to the root leaves: version 2, else version 1.
fn cgroup_available(root: &Path) -> Option<u64> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let of_controller = |wanted: &str| {
        groups.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let controllers = fields.next()?;
            let matches = controllers == wanted || controllers.split(',').any(|controller| controller == wanted);
            matches.then(|| fields.next()).flatten()
        })
    };
    let v2 = of_controller("").map(|group| Hierarchy {
        mount: root.join("sys/fs/cgroup"),
        group: group.into(),
        limit: "memory.max",
        usage: "memory.current",
        reclaimable: "inactive_file",
    });
    let v1 = of_controller("memory").map(|group| Hierarchy {
        mount: root.join("sys/fs/cgroup/memory"),
        group: group.into(),
        limit: "memory.limit_in_bytes",
        usage: "memory.usage_in_bytes",
        reclaimable: "total_inactive_file",
    });
    [v2, v1].into_iter().flatten().filter_map(|hierarchy| hierarchy.available()).min()
}

/// One mounted hierarchy of control groups and our place in it.
struct Hierarchy {
    mount: PathBuf,
    group: PathBuf,
    limit: &'static str,
    usage: &'static str,
    reclaimable: &'static str,
}

impl Hierarchy {
    fn available(&self) -> Option<u64> {
        let group = self.group.strip_prefix("/").unwrap_or(&self.group);
        // In a container the path may be the host's while the mount is our own group: missing directories are skipped.
        group.ancestors().filter_map(|directory| self.available_in(&self.mount.join(directory))).min()
    }

    fn available_in(&self, directory: &Path) -> Option<u64> {
        let number = |file: &str| fs::read_to_string(directory.join(file)).ok()?.trim().parse::<u64>().ok();
        // "max" (version 2) does not parse; version 1 says a number near 2^63, which no minimum picks.
        let limit = number(self.limit)?;
        let usage = number(self.usage)?;
        let stat = fs::read_to_string(directory.join("memory.stat")).unwrap_or_default();
        // Clean file pages count as used, but go first when memory is short; the weights are such pages.
        let reclaimable =
            stat.lines().find_map(|line| line.strip_prefix(self.reclaimable)?.trim().parse::<u64>().ok()).unwrap_or(0);
        Some(limit.saturating_sub(usage.saturating_sub(reclaimable)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:       24000000 kB\nMemAvailable:   10000 kB\n";

    /// Writes `files` below a fresh directory and asks there.
    #[track_caller]
    fn check(name: &str, files: &[(&str, &str)], expected: Option<u64>) {
        let root = std::env::temp_dir().join(format!("shard-memory-{name}-{}", std::process::id()));
        for (path, text) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let actual = available_under(&root);
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(actual, expected);
    }

    #[test]
    fn without_a_limit_it_is_the_machines() {
        check("machine", &[("proc/meminfo", MEMINFO)], Some(10_000 << 10));
        let unlimited = [
            ("proc/meminfo", MEMINFO),
            ("proc/self/cgroup", "0::/a\n"),
            ("sys/fs/cgroup/a/memory.max", "max\n"),
            ("sys/fs/cgroup/a/memory.current", "5\n"),
        ];
        check("unlimited", &unlimited, Some(10_000 << 10));
    }

    #[test]
    fn the_tightest_group_of_version_2_counts() {
        let files = [
            ("proc/meminfo", MEMINFO),
            ("proc/self/cgroup", "0::/a/b\n"),
            ("sys/fs/cgroup/a/b/memory.max", "3000000\n"),
            ("sys/fs/cgroup/a/b/memory.current", "1000000\n"),
            ("sys/fs/cgroup/a/b/memory.stat", "anon 1\ninactive_file 400000\n"),
            ("sys/fs/cgroup/a/memory.max", "2000000\n"),
            ("sys/fs/cgroup/a/memory.current", "1100000\n"),
        ];
        check("v2", &files, Some(900_000));
    }

    #[test]
    fn version_1_counts_too() {
        let files = [
            ("proc/meminfo", MEMINFO),
            ("proc/self/cgroup", "4:memory:/x\n1:cpu,cpuacct:/x\n0::/\n"),
            ("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "1000000\n"),
            ("sys/fs/cgroup/memory/x/memory.usage_in_bytes", "400000\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "400000\n"),
        ];
        check("v1", &files, Some(600_000));
    }

    #[test]
    fn a_group_over_its_limit_has_nothing_left() {
        let files = [
            ("proc/meminfo", MEMINFO),
            ("proc/self/cgroup", "0::/a\n"),
            ("sys/fs/cgroup/a/memory.max", "100\n"),
            ("sys/fs/cgroup/a/memory.current", "200\n"),
        ];
        check("over", &files, Some(0));
    }

    #[test]
    fn an_unreadable_system_is_unknown() {
        check("unknown", &[("proc/other", "")], None);
    }
}
