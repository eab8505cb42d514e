//! The library: where it is, and its functions.

use std::error::Error as _;
use std::ffi::{CStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use crate::ffi::{self, CommPtr, RawResult};
use crate::{Code, Error, Result, UniqueId};

/// The environment variable that names the library's file.
const VARIABLE: &str = "NCCL_LIB";

/// Where the system's loader is asked to look. Never the unversioned name first: it belongs to development packages, and may be a
/// version of another major number one day.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// The first version with non-blocking communicators whose errors name a reason.
const OLDEST: u32 = 21_800;

/// NCCL, loaded. Clones are handles on the same one; it stays loaded for the life of the process, because the threads that it starts
/// run its code.
#[derive(Clone)]
pub struct Nccl {
    pub(crate) functions: Arc<Functions>,
}

/// The functions that are used, all present.
pub(crate) struct Functions {
    path: String,
    version: u32,
    pub(crate) get_unique_id: ffi::GetUniqueId,
    pub(crate) comm_init_rank_config: ffi::CommInitRankConfig,
    pub(crate) comm_finalize: ffi::CommCall,
    pub(crate) comm_destroy: ffi::CommCall,
    pub(crate) comm_abort: ffi::CommCall,
    pub(crate) comm_get_async_error: ffi::CommGetAsyncError,
    get_error_string: ffi::GetErrorString,
    get_last_error: ffi::GetLastError,
    pub(crate) group_start: ffi::Group,
    pub(crate) group_end: ffi::Group,
    pub(crate) all_reduce: ffi::Reduce,
    pub(crate) reduce_scatter: ffi::Reduce,
    pub(crate) all_gather: ffi::AllGather,
    pub(crate) broadcast: ffi::Broadcast,
    pub(crate) send: ffi::Send,
    pub(crate) recv: ffi::Recv,
}

impl Nccl {
    /// Finds and loads the library: the file that `NCCL_LIB` names and no other, or else `libnccl.so.2` in one of `folders`, then
    /// where the system's loader looks.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::MissingFunction`], [`Error::TooOld`].
    pub fn load(folders: &[PathBuf]) -> Result<Nccl> {
        let mut attempts = Vec::new();
        for path in candidates(std::env::var_os(VARIABLE), folders) {
            match Nccl::open(&path) {
                Err(Error::NotFound { attempts: of_path }) => attempts.extend(of_path),
                found => return found,
            }
        }
        Err(Error::NotFound { attempts })
    }

    /// Loads this file and no other.
    ///
    /// # Errors
    /// As [`load`](Nccl::load).
    pub fn open(path: &Path) -> Result<Nccl> {
        // SAFETY: initialisers of the library run; it is the system's, or one that the operator named, and NCCL's do nothing but
        // prepare its own data. `RTLD_LOCAL`: its symbols become nobody else's.
        match unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) } {
            Ok(library) => Nccl::with(library, &path.to_string_lossy()),
            Err(error) => {
                // The system's loader says it, with the file's name; the error around it says only that it spoke.
                let words = error.source().map_or_else(|| error.to_string(), ToString::to_string);
                Err(Error::NotFound { attempts: vec![words] })
            }
        }
    }

    /// The version as the library counts: 22809 is 2.28.9.
    pub fn version(&self) -> u32 {
        self.functions.version
    }

    /// The library's file, as it was found.
    pub fn path(&self) -> &str {
        &self.functions.path
    }

    /// The name of a new group of ranks, which one process makes and hands to all others.
    ///
    /// # Errors
    /// [`Error::Failed`].
    pub fn unique_id(&self) -> Result<UniqueId> {
        let mut id = ffi::RawUniqueId([0; ffi::UNIQUE_ID_BYTES]);
        // SAFETY: the function writes one id to a place that is one.
        let result = unsafe { (self.functions.get_unique_id)(&raw mut id) };
        self.functions.check("ncclGetUniqueId", result, None)?;
        Ok(UniqueId(id.0))
    }

    fn with(library: Library, path: &str) -> Result<Nccl> {
        /// The function of that name.
        ///
        /// # Safety
        /// `F` is the type of the function that the library has under this name.
        unsafe fn find<F: Copy>(library: &Library, path: &str, function: &'static str) -> Result<F> {
            // SAFETY: the caller's obligation.
            match unsafe { library.get::<F>(function) } {
                Ok(symbol) => Ok(*symbol),
                Err(_) => Err(Error::MissingFunction { path: path.to_owned(), function }),
            }
        }
        macro_rules! find {
            ($name:literal) => {
                // SAFETY: the types in `ffi` are those that nccl.h declares under these names, since 2.18 and unchanged; that it
                // is NCCL is what the caller relies on for a library of this name.
                unsafe { find(&library, path, $name) }
            };
        }
        let get_version: ffi::GetVersion = find!("ncclGetVersion")?;
        let mut version = 0;
        // SAFETY: the function writes one integer to a place that is one.
        let result = unsafe { get_version(&raw mut version) };
        let version = u32::try_from(version).unwrap_or(0);
        if result == ffi::SUCCESS && version < OLDEST {
            return Err(Error::TooOld { path: path.to_owned(), version, oldest: OLDEST });
        }
        let functions = Functions {
            path: path.to_owned(),
            version,
            get_unique_id: find!("ncclGetUniqueId")?,
            comm_init_rank_config: find!("ncclCommInitRankConfig")?,
            comm_finalize: find!("ncclCommFinalize")?,
            comm_destroy: find!("ncclCommDestroy")?,
            comm_abort: find!("ncclCommAbort")?,
            comm_get_async_error: find!("ncclCommGetAsyncError")?,
            get_error_string: find!("ncclGetErrorString")?,
            get_last_error: find!("ncclGetLastError")?,
            group_start: find!("ncclGroupStart")?,
            group_end: find!("ncclGroupEnd")?,
            all_reduce: find!("ncclAllReduce")?,
            reduce_scatter: find!("ncclReduceScatter")?,
            all_gather: find!("ncclAllGather")?,
            broadcast: find!("ncclBroadcast")?,
            send: find!("ncclSend")?,
            recv: find!("ncclRecv")?,
        };
        functions.check("ncclGetVersion", result, None)?;
        // Never unloaded, see `Nccl`.
        std::mem::forget(library);
        Ok(Nccl { functions: Arc::new(functions) })
    }
}

/// Files to try, in order.
fn candidates(named: Option<OsString>, folders: &[PathBuf]) -> Vec<PathBuf> {
    match named {
        Some(path) => vec![PathBuf::from(path)],
        None => folders.iter().map(|folder| folder.join(NAMES[0])).chain(NAMES.map(PathBuf::from)).collect(),
    }
}

impl Functions {
    /// A failure in NCCL's own words, those of the communicator if there is one.
    pub(crate) fn check(&self, call: &'static str, result: RawResult, comm: Option<CommPtr>) -> Result<()> {
        if result == ffi::SUCCESS {
            return Ok(());
        }
        // SAFETY: both functions take any value of their first argument that NCCL has given out (`comm` is null or a communicator
        // that was not destroyed), and return null or a string that lives as long as the thread.
        let words = unsafe {
            let text = |words: *const std::ffi::c_char| match words.is_null() {
                true => String::new(),
                false => CStr::from_ptr(words).to_string_lossy().trim().to_owned(),
            };
            let general = text((self.get_error_string)(result));
            let last = text((self.get_last_error)(comm.unwrap_or(std::ptr::null_mut())));
            if last.is_empty() { general } else { format!("{general}: {last}") }
        };
        Err(Error::Failed { call, code: Code::of(result), reason: words })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_named_is_the_only_one_that_is_tried() {
        let folders = [PathBuf::from("/wheels/nccl/lib")];
        assert_eq!(candidates(Some("/opt/nccl.so".into()), &folders), [PathBuf::from("/opt/nccl.so")]);
        let found = ["/wheels/nccl/lib/libnccl.so.2", "libnccl.so.2", "libnccl.so"].map(PathBuf::from);
        assert_eq!(candidates(None, &folders), found);
    }
}
