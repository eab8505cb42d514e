//! The shards' sockets: in a private folder that lives as long as the launcher, or under a prefix of the user's choice.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::error::LauncherError;
use crate::limits::{CREATE_ATTEMPTS, SOCKET_PATH_BYTES};

/// Names of private folders begin so; process id and a number follow.
const FOLDER_PREFIX: &str = "text-generation-";
/// The file whose lock says that the folder's launcher is alive.
const LOCK_FILE: &str = "lock";

/// Where the sockets are. Dropping it removes them.
#[derive(Debug)]
pub(crate) struct Sockets {
    prefix: String,
    num_shard: u32,
    private: Option<PrivateFolder>,
}

#[derive(Debug)]
struct PrivateFolder {
    path: PathBuf,
    /// Held until the end. The kernel releases it however this process ends, so a lock that can be had marks a folder
    /// left behind by `kill -9`.
    _lock: File,
}

impl Sockets {
    /// The sockets of `num_shard` shards under `prefix`, or in a private folder without one.
    ///
    /// # Errors
    /// [`LauncherError::Sockets`] if the place is not writable or its path too long for a socket.
    pub(crate) fn prepare(prefix: Option<&str>, num_shard: u32) -> Result<Sockets, LauncherError> {
        let private = match prefix {
            Some(_) => None,
            None => {
                let base = base_dir();
                remove_abandoned(&base);
                Some(PrivateFolder::create(&base).map_err(|error| failure(&base, &error))?)
            }
        };
        let prefix = match (prefix, &private) {
            (Some(prefix), _) => prefix.to_owned(),
            (None, Some(folder)) => folder.path.join("shard").to_string_lossy().into_owned(),
            (None, None) => unreachable!("a private folder was made because there is no prefix"),
        };
        let sockets = Sockets { prefix, num_shard, private };
        sockets.check()?;
        Ok(sockets)
    }

    /// What the children get as `--uds-path` and `--shard-uds-path`.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The socket of a rank.
    pub(crate) fn path(&self, rank: u32) -> PathBuf {
        proto::socket_path(&self.prefix, rank)
    }

    fn check(&self) -> Result<(), LauncherError> {
        let longest = self.path(self.num_shard - 1);
        if longest.as_os_str().len() > SOCKET_PATH_BYTES {
            return Err(LauncherError::Sockets {
                path: longest,
                reason: format!(
                    "a socket's path may have {SOCKET_PATH_BYTES} bytes; give a shorter `--shard-uds-path`"
                ),
            });
        }
        let parent = longest.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // Asking the kernel by doing: mode bits say nothing about read-only mounts, ACLs and capabilities.
        let probe = parent.join(format!(".{FOLDER_PREFIX}{}", std::process::id()));
        File::create(&probe).and_then(|_| fs::remove_file(&probe)).map_err(|error| failure(parent, &error))
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        match &self.private {
            Some(folder) => drop(fs::remove_dir_all(&folder.path)),
            None => (0..self.num_shard).for_each(|rank| drop(fs::remove_file(self.path(rank)))),
        }
    }
}

impl PrivateFolder {
    fn create(base: &Path) -> io::Result<PrivateFolder> {
        // mkdir fails on a name that is taken, even by a link, so the folder is ours whatever others put beside it.
        let path = (0..CREATE_ATTEMPTS)
            .map(|attempt| base.join(format!("{FOLDER_PREFIX}{}-{attempt}", std::process::id())))
            .map(|path| DirBuilder::new().mode(0o700).create(&path).map(|()| path))
            .find(|created| !matches!(created, Err(error) if error.kind() == io::ErrorKind::AlreadyExists))
            .unwrap_or_else(|| Err(io::ErrorKind::AlreadyExists.into()))?;
        // The lock file gets its name only once it is locked: another launcher's sweep never sees it free.
        let unnamed = path.join("lock.new");
        let lock = File::create(&unnamed)?;
        lock.lock()?;
        fs::rename(&unnamed, path.join(LOCK_FILE))?;
        Ok(PrivateFolder { path, _lock: lock })
    }
}

/// XDG_RUNTIME_DIR is the user's own and in memory; containers rarely have one.
fn base_dir() -> PathBuf {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    runtime.filter(|path| path.is_absolute() && path.is_dir()).unwrap_or_else(std::env::temp_dir)
}

/// Removes folders of launchers that were killed. Best effort: those of other users fail and stay.
fn remove_abandoned(base: &Path) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let is_ours = entry.file_name().to_string_lossy().starts_with(FOLDER_PREFIX)
            && entry.metadata().is_ok_and(|metadata| metadata.is_dir() && metadata.permissions().mode() & 0o077 == 0);
        if is_ours
            && let Ok(lock) = File::open(entry.path().join(LOCK_FILE))
            && lock.try_lock().is_ok()
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn failure(path: &Path, error: &io::Error) -> LauncherError {
    LauncherError::Sockets { path: path.to_owned(), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("launcher-runtime-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn a_private_folder_is_private_and_removed() {
        let sockets = Sockets::prepare(None, 2).unwrap();
        let folder = sockets.path(1).parent().unwrap().to_owned();
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(sockets.path(1), folder.join("shard-1"));
        drop(sockets);
        assert!(!folder.exists());
    }

    #[test]
    fn abandoned_folders_are_swept_and_live_ones_kept() {
        let base = scratch("sweep");
        let live = PrivateFolder::create(&base).unwrap();
        let abandoned = PrivateFolder::create(&base).unwrap().path;
        remove_abandoned(&base);
        assert!(live.path.exists());
        assert!(!abandoned.exists(), "its lock was released when the value was dropped, as by a killed process");
        fs::remove_dir_all(&base).unwrap();
    }

    #[test]
    fn a_prefix_follows_tgi_and_its_sockets_are_removed() {
        let base = scratch("prefix");
        let prefix = base.join("tgi").to_string_lossy().into_owned();
        let sockets = Sockets::prepare(Some(&prefix), 2).unwrap();
        assert_eq!(sockets.path(0), base.join("tgi-0"));
        fs::write(sockets.path(1), "").unwrap();
        drop(sockets);
        assert_eq!(fs::read_dir(&base).unwrap().count(), 0);
        fs::remove_dir_all(&base).unwrap();
    }

    #[test]
    fn unusable_prefixes_are_refused_with_the_reason() {
        let error = Sockets::prepare(Some("/no/such/folder/tgi"), 1).unwrap_err().to_string();
        assert_eq!(
            error,
            "cannot create the shards' sockets at /no/such/folder: No such file or directory (os error 2)"
        );
        let long = format!("/tmp/{}", "x".repeat(120));
        assert!(Sockets::prepare(Some(&long), 1).unwrap_err().to_string().contains("may have 107 bytes"));
    }
}
