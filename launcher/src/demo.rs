//! The demo model that is embedded in this executable, and its unpacked copy in a private cache folder.
//!
//! Shards map weights from a file, so the bytes have to be one. The folder's name is the hash of the contents: two
//! versions of this executable never share a copy. Every file is compared before use and replaced atomically where it
//! differs, so an interrupted or tampered copy heals itself, and launchers that start together do no harm.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::error::LauncherError;

/// Name of the demo model, in `--model-id` and towards clients.
pub(crate) const MODEL_ID: &str = "demo";

macro_rules! embedded {
    ($($name:literal),*) => {
        &[$(($name, include_bytes!(concat!("../demo-model/", $name)))),*]
    };
}

/// Name and contents of every file of the demo model.
const FILES: &[(&str, &[u8])] =
    embedded!("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors");

/// Makes sure that an exact copy of the demo model is on disk; returns its folder.
///
/// # Errors
/// [`LauncherError::Demo`] if no folder of ours can be written.
pub(crate) fn unpack() -> Result<PathBuf, LauncherError> {
    let dir = cache_dir().join(format!("demo-{}", contents_hash()));
    unpack_to(&dir).map_err(|(path, source)| LauncherError::Demo { path, source })?;
    Ok(dir)
}

fn unpack_to(dir: &Path) -> Result<(), (PathBuf, io::Error)> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |error| (path, error)
    };
    create_private(dir).map_err(at(dir))?;
    for (name, contents) in FILES {
        let path = dir.join(name);
        if fs::read(&path).is_ok_and(|found| found == *contents) {
            continue;
        }
        // Written beside its place and renamed, so that nobody ever maps half a file.
        let partial = dir.join(format!(".{name}.{}", std::process::id()));
        fs::write(&partial, contents).and_then(|()| fs::rename(&partial, &path)).map_err(at(&path))?;
    }
    Ok(())
}

/// XDG_CACHE_HOME, else ~/.cache, else the folder for temporary files (a container's user may have no home).
fn cache_dir() -> PathBuf {
    let from = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let user_cache = from("XDG_CACHE_HOME")
        .or_else(|| from("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("text-generation-launcher"));
    match user_cache {
        Some(dir) if create_private(&dir).is_ok() => dir,
        _ => std::env::temp_dir().join(format!("text-generation-launcher-{}", effective_uid())),
    }
}

/// Creates `dir` and its parents with mode 0700. An existing one must belong to this user and be closed to writers from
/// outside: in a shared folder for temporary files anyone could have put it there.
fn create_private(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let metadata = fs::symlink_metadata(dir)?;
    if !metadata.is_dir() || metadata.uid() != effective_uid() || metadata.mode() & 0o022 != 0 {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "not a folder that only this user can write to"));
    }
    Ok(())
}

/// 16 hex digits over names and contents.
fn contents_hash() -> String {
    let mut hasher = blake3::Hasher::new();
    for (name, contents) in FILES {
        hasher.update(name.as_bytes()).update(&(contents.len() as u64).to_le_bytes()).update(contents);
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

fn effective_uid() -> u32 {
    // SAFETY: geteuid takes no argument, touches no memory and cannot fail.
    unsafe { libc::geteuid() }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_damaged_copy_heals() {
        let dir = std::env::temp_dir().join(format!("launcher-demo-{}", std::process::id()));
        unpack_to(&dir).unwrap();
        assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
        fs::write(dir.join("model.safetensors"), "damaged").unwrap();
        fs::remove_file(dir.join("config.json")).unwrap();
        unpack_to(&dir).unwrap();
        for (name, contents) in FILES {
            assert_eq!(fs::read(dir.join(name)).unwrap(), *contents, "{name}");
        }
        assert_eq!(fs::read_dir(&dir).unwrap().count(), FILES.len(), "no partial files are left");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_folder_that_others_can_write_to_is_refused() {
        let dir = std::env::temp_dir().join(format!("launcher-demo-open-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(unpack_to(&dir).is_err());
        fs::remove_dir_all(&dir).unwrap();
    }
}
