//! CUDA's libraries, looked for at run time: the driver, and NVRTC, which is its compiler.
//!
//! cudarc, which declares the driver's functions, opens it by name, first of all by `libcuda.so`, and panics where it finds none. So
//! the driver is opened here before: from then on the system's loader gives it to whoever asks for its soname, and [`load`] makes sure
//! that this is also what cudarc gets. A file that stands in for the driver (`TGI_CUDA_DRIVER`) has the soname `libcuda.so`, and is
//! found before every other one on the machine. NVRTC's functions are taken from the handle itself (`images/nvrtc.rs`), so any file is
//! as good as another.

use std::error::Error as _;
use std::ffi::{CStr, OsString, c_int, c_uint, c_void};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cudarc::driver::sys;
use libloading::os::unix::{self, RTLD_LOCAL, RTLD_NOW};

use crate::{Error, Result};

/// A library of CUDA.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Library {
    /// The driver, which is installed with the machine or mapped into its containers.
    Driver,
    /// The compiler.
    Nvrtc,
}

/// Where a library is looked for, and what is said if it is not there.
struct Search {
    /// The environment variable that names its file. That file is the only one tried.
    variable: &'static str,
    /// Its sonames, the best first.
    names: &'static [&'static str],
    /// How files beside it begin that it opens by name when it is used, without knowing where it lies itself.
    companions: Option<&'static str>,
    /// Folders of a CUDA toolkit.
    in_toolkit: &'static [&'static str],
    /// Folders of the whole machine.
    in_machine: &'static [&'static str],
    /// Folders of a Python environment's packages.
    in_packages: &'static [&'static str],
    missing: &'static str,
}

const DRIVER: Search = Search {
    variable: "TGI_CUDA_DRIVER",
    names: &["libcuda.so.1"],
    companions: None,
    in_toolkit: &[],
    // Google's Kubernetes, WSL 2 and NixOS, whose loaders are not told of them. Where one of them exists it is the driver, whatever a
    // distribution's package has left elsewhere.
    in_machine: &["/usr/local/nvidia/lib64", "/usr/lib/wsl/lib", "/run/opengl-driver/lib"],
    in_packages: &[],
    missing: "no NVIDIA driver was found (libcuda.so.1); install one, or serve on the CPU with --device cpu",
};

const NVRTC: Search = Search {
    variable: "TGI_NVRTC",
    names: &["libnvrtc.so.13", "libnvrtc.so.12"],
    companions: Some("libnvrtc-builtins.so"),
    in_toolkit: &["lib64"],
    in_machine: &["/usr/local/cuda/lib64"],
    // As NVIDIA's packages lay it out for CUDA 13, and for 12.
    in_packages: &["nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib"],
    missing: "this build has no kernels for this GPU in it, and NVRTC, which would compile them, was not found (libnvrtc.so.13); \
              build with nvcc on the PATH, or `pip install nvidia-cuda-nvrtc==13.0.88` into the Python environment that \
              VIRTUAL_ENV names, or set TGI_NVRTC to its file",
};

/// Makes a library usable: the file that its environment variable names, or else the first one found in the folders of a CUDA toolkit
/// (`CUDA_HOME`, `CUDA_PATH`), of the machine and of a Python environment (`VIRTUAL_ENV`, `CONDA_PREFIX`, `PYTHONPATH`), then where
/// the system's loader looks. Whatever the first call found holds for the life of the process.
///
/// # Errors
/// [`Error::CudaUnavailable`].
pub(crate) fn load(library: Library) -> Result<()> {
    open(library).map(|_| ())
}

/// The library itself, loaded as by [`load`].
///
/// # Errors
/// [`Error::CudaUnavailable`].
pub(crate) fn open(library: Library) -> Result<&'static unix::Library> {
    static DRIVER_LIBRARY: OnceLock<Result<unix::Library>> = OnceLock::new();
    static NVRTC_LIBRARY: OnceLock<Result<unix::Library>> = OnceLock::new();
    let opened = match library {
        Library::Driver => DRIVER_LIBRARY.get_or_init(|| {
            let driver = DRIVER.open(|name| std::env::var_os(name))?;
            is_what_cudarc_opens(&driver)?;
            Ok(driver)
        }),
        Library::Nvrtc => NVRTC_LIBRARY.get_or_init(|| NVRTC.open(|name| std::env::var_os(name))),
    };
    opened.as_ref().map_err(Error::clone)
}

impl Search {
    fn open(&self, variable: impl Fn(&str) -> Option<OsString>) -> Result<unix::Library> {
        let mut obstacles = Vec::new();
        for path in self.candidates(&variable) {
            match open_file(&path) {
                Ok(library) => {
                    self.open_companions(&path);
                    return Ok(library);
                }
                Err(words) if self.named(&variable).is_some() => {
                    let reason = format!("{} names a file that cannot be loaded: {words}", self.variable);
                    return Err(Error::CudaUnavailable { reason });
                }
                // The loader says this of a file that is not there, and names another file if it is a dependency that is not.
                Err(words) if words.starts_with(&format!("{}: cannot open", path.display())) => {}
                Err(words) => obstacles.push(words),
            }
        }
        let obstacles = match obstacles.is_empty() {
            true => String::new(),
            false => format!(" (there is one that cannot be loaded: {})", obstacles.join("; ")),
        };
        Err(Error::CudaUnavailable { reason: format!("{}{obstacles}", self.missing) })
    }

    /// Files to try, in order. Relative folders are not looked into: what runs would depend on where the server was started.
    fn candidates(&self, variable: &impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
        if let Some(file) = self.named(variable) {
            return vec![file];
        }
        let folder = |name: &str| variable(name).map(PathBuf::from).filter(|folder| folder.is_absolute());
        let toolkits = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(folder);
        let mut folders: Vec<PathBuf> =
            toolkits.flat_map(|toolkit| self.in_toolkit.iter().map(move |inside| toolkit.join(inside))).collect();
        folders.extend(self.in_machine.iter().map(PathBuf::from));
        folders.extend(in_python(self.in_packages, variable));
        let in_folders = folders.iter().flat_map(|folder| self.names.iter().map(|name| folder.join(name)));
        in_folders.chain(self.names.iter().map(PathBuf::from)).collect()
    }

    /// Opens what lies beside the library, so that it is found by name too. Where the loader found the one, it finds the others.
    fn open_companions(&self, library: &Path) {
        let (Some(beginning), Some(folder)) = (self.companions, library.parent()) else { return };
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_name().to_str().is_none_or(|name| !name.starts_with(beginning)) {
                continue;
            }
            // One that cannot be opened is missed, with its name, when it is needed.
            if let Ok(companion) = open_file(&entry.path()) {
                // Never closed, like the library.
                std::mem::forget(companion);
            }
        }
    }

    fn named(&self, variable: &impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
        variable(self.variable).filter(|file| !file.is_empty()).map(PathBuf::from)
    }
}

/// Folders in which NCCL is looked for before the system's loader is asked: those of a Python environment's packages.
pub(crate) fn nccl_folders() -> Vec<PathBuf> {
    in_python(&["nvidia/nccl/lib"], &|name| std::env::var_os(name))
}

/// Folders inside the packages of the Python environment that the variables name.
fn in_python(inside: &[&str], variable: &impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let folder = |name: &str| variable(name).map(PathBuf::from).filter(|folder| folder.is_absolute());
    let environments = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(folder);
    let mut packages: Vec<PathBuf> = environments.flat_map(|environment| python_packages(&environment)).collect();
    if let Some(paths) = variable("PYTHONPATH") {
        packages.extend(std::env::split_paths(&paths).filter(|path| path.is_absolute()));
    }
    packages.iter().flat_map(|packages| inside.iter().map(|inside| packages.join(inside))).collect()
}

/// `lib/python3.11/site-packages` of an environment, for every Python that it has.
fn python_packages(environment: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(environment.join("lib")).into_iter().flatten().flatten();
    let is_python = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("python3"))
    };
    let mut pythons: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_python).collect();
    pythons.sort();
    pythons.iter().map(|python| python.join("site-packages")).collect()
}

/// Opens a file, or what the system's loader knows by a bare name; or the loader's words.
fn open_file(path: &Path) -> Result<unix::Library, String> {
    // SAFETY: initialisers of the library run; it is the system's, or one that the operator named, and those of NVIDIA's libraries do
    // nothing but prepare their own data. It is never closed, see `open`. `RTLD_LOCAL`: its symbols become nobody else's, and who
    // asks for its name is given it all the same.
    unsafe { unix::Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.map_err(|error| {
        // The loader's words have the file's name; the error around them says only that it spoke.
        error.source().map_or_else(|| error.to_string(), ToString::to_string)
    })
}

/// Checks that what cudarc opens by name is this driver, not a stub or a second one that also lies in the loader's way.
fn is_what_cudarc_opens(driver: &unix::Library) -> Result<()> {
    type Init = unsafe extern "C" fn(c_uint) -> c_int;
    let unavailable = |reason| Err(Error::CudaUnavailable { reason });
    // SAFETY: this is the type that cuda.h declares for `cuInit`; it is not called here.
    let Ok(ours) = (unsafe { driver.get::<Init>("cuInit") }) else {
        return unavailable("what was found in place of the NVIDIA driver is none: it has no cuInit".to_owned());
    };
    let ours = *ours as *const c_void;
    // SAFETY: opens and closes libraries of the driver's name; their initialisers are as harmless as in `open_file`.
    if !unsafe { sys::is_culib_present() } {
        let reason = format!(
            "{} is not known to the loader as the NVIDIA driver: its soname has to be libcuda.so",
            file_of(ours)
        );
        return unavailable(reason);
    }
    // SAFETY: opens one of them for good, which does not panic, as one was there just now; the type is that of `ours`.
    match unsafe { sys::culib().get::<Init>("cuInit") } {
        Ok(theirs) if *theirs as *const c_void == ours => Ok(()),
        Ok(theirs) => unavailable(format!(
            "{} was chosen as the NVIDIA driver, but the loader finds {} before it; take that one's folder out of LD_LIBRARY_PATH, or \
             give the file that was chosen the soname libcuda.so",
            file_of(ours),
            file_of(*theirs as *const c_void),
        )),
        Err(_) => unavailable("what the loader finds as libcuda.so is no NVIDIA driver: it has no cuInit".to_owned()),
    }
}

/// The file that a function was loaded from.
fn file_of(function: *const c_void) -> String {
    let mut place = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: the function takes any address, and writes to a place that is a `Dl_info`.
    let found = unsafe { libc::dladdr(function, place.as_mut_ptr()) };
    // SAFETY: all zeroes, null pointers and numbers, are a `Dl_info` too.
    let place = unsafe { place.assume_init() };
    if found == 0 || place.dli_fname.is_null() {
        return "a file without a name".to_owned();
    }
    // SAFETY: not null, so the loader's string, which lives as long as the library; the only ones asked about are never closed.
    unsafe { CStr::from_ptr(place.dli_fname) }.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An environment of these variables.
    fn with<'a>(variables: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<OsString> + 'a {
        |name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into())
    }

    #[track_caller]
    fn check(search: &Search, variables: &[(&str, &str)], expected: &[&str]) {
        assert_eq!(search.candidates(&with(variables)), expected.iter().map(PathBuf::from).collect::<Vec<_>>());
    }

    #[test]
    fn a_file_that_is_named_is_the_only_one_that_is_tried() {
        check(&DRIVER, &[("TGI_CUDA_DRIVER", "/simulated/libcuda.so")], &["/simulated/libcuda.so"]);
        check(&NVRTC, &[("TGI_NVRTC", "/opt/nvrtc.so"), ("CUDA_HOME", "/opt/cuda")], &["/opt/nvrtc.so"]);
    }

    #[test]
    fn the_driver_is_the_machine_s() {
        let folders = ["/usr/local/nvidia/lib64", "/usr/lib/wsl/lib", "/run/opengl-driver/lib"];
        let found = folders.map(|folder| format!("{folder}/libcuda.so.1"));
        let expected = [&found[0], &found[1], &found[2], "libcuda.so.1"];
        check(&DRIVER, &[("CUDA_HOME", "/opt/cuda"), ("TGI_CUDA_DRIVER", "")], &expected);
    }

    #[test]
    fn folders_of_the_environment_come_before_the_loader_s() {
        let folder = std::env::temp_dir().join(format!("kernels-libraries-{}", std::process::id()));
        for python in ["python3.11", "python3.12", "pkgconfig"] {
            std::fs::create_dir_all(folder.join("lib").join(python)).unwrap();
        }
        let variables = [
            ("CUDA_HOME", "/opt/cuda"),
            ("CUDA_PATH", "relative/cuda"),
            ("VIRTUAL_ENV", folder.to_str().unwrap()),
            ("PYTHONPATH", "relative:/more"),
        ];
        let found = NVRTC.candidates(&with(&variables));
        let newest: Vec<_> = found.iter().filter(|path| path.ends_with("libnvrtc.so.13")).collect();
        let packages = |python: &str| folder.join("lib").join(python).join("site-packages");
        let expected = [
            "/opt/cuda/lib64".into(),
            "/usr/local/cuda/lib64".into(),
            packages("python3.11").join("nvidia/cu13/lib"),
            packages("python3.11").join("nvidia/cuda_nvrtc/lib"),
            packages("python3.12").join("nvidia/cu13/lib"),
            packages("python3.12").join("nvidia/cuda_nvrtc/lib"),
            "/more/nvidia/cu13/lib".into(),
            "/more/nvidia/cuda_nvrtc/lib".into(),
            PathBuf::new(),
        ];
        assert_eq!(newest, expected.each_ref().map(|folder| folder.join("libnvrtc.so.13")).each_ref());
        assert_eq!(found[1], Path::new("/opt/cuda/lib64/libnvrtc.so.12"), "a folder's older one before another folder");
        assert_eq!(found.last().unwrap(), Path::new("libnvrtc.so.12"));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn what_is_missing_is_said_in_one_sentence() {
        const ABSENT: Search = Search { names: &["libabsent.so.1"], in_machine: &["/absent"], ..DRIVER };
        let reason = |variables: &[(&str, &str)]| match ABSENT.open(with(variables)) {
            Err(Error::CudaUnavailable { reason }) => reason,
            other => panic!("{other:?}"),
        };
        assert_eq!(reason(&[]), DRIVER.missing);
        let named = reason(&[("TGI_CUDA_DRIVER", "/absent/libcuda.so")]);
        assert!(
            named.starts_with("TGI_CUDA_DRIVER names a file that cannot be loaded: /absent/libcuda.so: "),
            "{named}"
        );

        let folder = std::env::temp_dir().join(format!("kernels-no-library-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("nvidia/cu13/lib")).unwrap();
        std::fs::write(folder.join("nvidia/cu13/lib/libabsent.so.1"), "no library").unwrap();
        let search = Search { in_packages: NVRTC.in_packages, ..ABSENT };
        let Err(Error::CudaUnavailable { reason }) = search.open(with(&[("PYTHONPATH", folder.to_str().unwrap())]))
        else {
            panic!("that is no library");
        };
        assert!(
            reason.contains("(there is one that cannot be loaded: /") && reason.contains("libabsent.so.1"),
            "{reason}"
        );
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
