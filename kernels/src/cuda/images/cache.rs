//! Compiled kernels in a folder of the user's, from one start to the next.
//!
//! An entry's name is a hash of all that its code depends on, so nothing has to be invalidated, and any number of versions and ranks
//! share the folder. An entry begins with a checksum: one that is torn or damaged is not there.

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use super::{CudaSource, Target};

/// Counts up when the contents of an entry change.
const FORMAT: u32 = 1;

/// Entries of one kernel file: a few GPUs' and a few versions'. Beyond, the oldest is removed.
const MAX_ENTRIES: usize = 8;

const CHECKSUM_BYTES: usize = blake3::OUT_LEN;

/// A folder of entries. It is created with the first of them.
#[derive(Debug)]
pub(super) struct Cache {
    folder: PathBuf,
}

/// The name of an entry: `rms_norm.cu-` and 64 hexadecimal digits.
pub(super) fn entry(source: &CudaSource, headers: &[(&str, &str)], target: &Target) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&FORMAT.to_le_bytes());
    let mut add = |field: &str| {
        hasher.update(&(field.len() as u64).to_le_bytes()).update(field.as_bytes());
    };
    [source.file, source.text, &target.architecture, &target.version].into_iter().for_each(&mut add);
    target.options.iter().for_each(|option| add(option));
    headers.iter().flat_map(|(name, text)| [*name, *text]).for_each(&mut add);
    format!("{}-{}", source.file, hasher.finalize().to_hex())
}

impl Cache {
    pub(super) fn at(folder: PathBuf) -> Cache {
        Cache { folder }
    }

    /// The folder that `TGI_CUDA_CACHE` names, or one in the user's cache folder; or why there is none.
    pub(super) fn of_user() -> Result<Cache, String> {
        folder(|name| std::env::var_os(name))
            .map(Cache::at)
            .ok_or_else(|| "none of TGI_CUDA_CACHE, XDG_CACHE_HOME and HOME names a folder to keep them in".to_owned())
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The code of an entry, if it is there and whole.
    pub(super) fn find(&self, entry: &str) -> Option<Vec<u8>> {
        let mut contents = fs::read(self.folder.join(entry)).ok()?;
        let (found, code) = contents.split_at_checked(CHECKSUM_BYTES)?;
        (*found == checksum(entry, code)).then(|| contents.split_off(CHECKSUM_BYTES))
    }

    /// Keeps the code of an entry; or says where and why not.
    pub(super) fn keep(&self, entry: &str, code: &[u8]) -> Result<(), String> {
        self.write(entry, code)
            .and_then(|()| self.remove_old(entry))
            .map_err(|error| format!("they cannot be kept in {}: {error}", self.folder.display()))
    }

    fn write(&self, entry: &str, code: &[u8]) -> io::Result<()> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        // Whoever could write here could run code on the GPU.
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        // Written beside its place and renamed: nobody finds half of it, and of several writers the last one wins.
        let (process, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let partial = self.folder.join(format!(".{entry}.{process}.{count}"));
        let written = fs::write(&partial, [&checksum(entry, code), code].concat())
            .and_then(|()| fs::rename(&partial, self.folder.join(entry)));
        if written.is_err() {
            // A full disk: the little that was written would stay.
            let _ = fs::remove_file(&partial);
        }
        written
    }

    /// Removes the oldest entries of this one's kernel file, and what processes that were killed left of some.
    fn remove_old(&self, entry: &str) -> io::Result<()> {
        let mut entries: Vec<(SystemTime, PathBuf)> = Vec::new();
        for found in fs::read_dir(&self.folder)? {
            let found = found?;
            if found.file_name().to_str().is_some_and(|name| file_of(name) == file_of(entry)) {
                // One that another rank has removed or renamed meanwhile has no time any more.
                let modified = found.metadata().and_then(|metadata| metadata.modified());
                entries.extend(modified.map(|modified| (modified, found.path())));
            }
        }
        entries.sort();
        for (_, path) in entries.iter().rev().skip(MAX_ENTRIES) {
            let _ = fs::remove_file(path);
        }
        Ok(())
    }
}

/// The kernel file of an entry, or of a partial one.
fn file_of(entry: &str) -> Option<&str> {
    entry.trim_start_matches('.').rsplit_once('-').map(|(file, _)| file)
}

/// With the name, so that an entry under another's name is found out too.
fn checksum(entry: &str, code: &[u8]) -> [u8; CHECKSUM_BYTES] {
    *blake3::Hasher::new().update(entry.as_bytes()).update(code).finalize().as_bytes()
}

fn folder(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let absolute = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("TGI_CUDA_CACHE").or_else(|| {
        let cache = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))?;
        Some(cache.join("text-generation/cuda"))
    })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_folder_is_the_one_that_is_named_or_the_user_s() {
        #[track_caller]
        fn check(variables: &[(&str, &str)], expected: Option<&str>) {
            let variable = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into());
            assert_eq!(folder(variable), expected.map(PathBuf::from));
        }
        check(&[("TGI_CUDA_CACHE", "/kept"), ("XDG_CACHE_HOME", "/cache"), ("HOME", "/home/me")], Some("/kept"));
        check(&[("XDG_CACHE_HOME", "/cache"), ("HOME", "/home/me")], Some("/cache/text-generation/cuda"));
        check(&[("XDG_CACHE_HOME", "relative"), ("HOME", "/home/me")], Some("/home/me/.cache/text-generation/cuda"));
        check(&[("TGI_CUDA_CACHE", "")], None);
    }

    #[test]
    fn the_newest_entries_of_a_file_stay() {
        let cache = Cache::at(std::env::temp_dir().join(format!("kernels-cache-{}", std::process::id())));
        let age = |name: &str, seconds: u64| {
            let file = File::options().append(true).create(true).open(cache.folder.join(name)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
        };
        cache.keep("rms_norm.cu-0", b"code").unwrap();
        age("rms_norm.cu-0", 1000);
        for of_another in ["rope.cu-0", "head_rms_norm.cu-0", "notes.txt"] {
            age(of_another, 5000);
        }
        age(".rms_norm.cu-0.17.0", 2000);
        for number in 1..MAX_ENTRIES {
            let entry = format!("rms_norm.cu-{number}");
            cache.keep(&entry, b"code").unwrap();
            age(&entry, 100 - number as u64);
        }
        assert_eq!(cache.find("rms_norm.cu-0").unwrap(), b"code", "{MAX_ENTRIES} entries are not too many");
        assert!(!cache.folder.join(".rms_norm.cu-0.17.0").exists(), "a partial one is the oldest");
        cache.keep("rms_norm.cu-8", b"code").unwrap();
        assert_eq!(cache.find("rms_norm.cu-0"), None);
        for name in ["rms_norm.cu-1", "rms_norm.cu-8", "rope.cu-0", "head_rms_norm.cu-0", "notes.txt"] {
            assert!(cache.folder.join(name).exists(), "{name}");
        }
        assert_eq!(fs::metadata(&cache.folder).unwrap().permissions().mode() & 0o777, 0o700);
        fs::remove_dir_all(&cache.folder).unwrap();
    }
}
