//! For tests: CUDA's driver and compiler and NCCL simulated on the processor, as shared libraries that the server loads like the real
//! ones.
//!
//! `kernels/cuda/sim/driver.cc` and `nccl.cc` say what they model. They are compiled from the kernels' own sources when a test first asks for
//! them, by the C++ compiler that the README asks for, and kept until a source changes.
//!
//! On a machine with a GPU, `TGI_TEST_GPU=real` lets the same tests run on it.

use std::collections::hash_map::DefaultHasher;
use std::ffi::OsStr;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// Where the server looks for the driver, and for the compiler of kernels (`kernels/src/cuda/libraries.rs`).
pub const DRIVER_VARIABLE: &str = "TGI_CUDA_DRIVER";
/// As [`DRIVER_VARIABLE`].
pub const NVRTC_VARIABLE: &str = "TGI_NVRTC";
/// Where it looks for NCCL (`kernels/nccl-rs/src/library.rs`).
pub const NCCL_VARIABLE: &str = "NCCL_LIB";
/// Where it keeps what the compiler made.
pub const CACHE_VARIABLE: &str = "TGI_CUDA_CACHE";

/// How many GPUs the simulated driver has.
const DEVICES_VARIABLE: &str = "CUSIM_DEVICES";
/// As many as a test needs; they take no memory before it is used.
pub const MAX_DEVICES: usize = 4;

/// Set to `real`, tests use the machine's own GPU.
pub const TEST_VARIABLE: &str = "TGI_TEST_GPU";

/// The GPU of a test.
#[derive(Clone, Debug)]
pub struct Simulation {
    /// The folder that holds the simulated libraries; `None` for the machine's own GPU.
    folder: Option<PathBuf>,
}

impl Simulation {
    /// Compiles them if they are not there.
    ///
    /// # Panics
    /// If they do not compile.
    pub fn build() -> Simulation {
        if std::env::var_os(TEST_VARIABLE).is_some_and(|gpu| gpu == "real") {
            return Simulation { folder: None };
        }
        Simulation { folder: Some(compiled(&Sources::find())) }
    }

    /// Whether it is simulated: then its driver obeys the variables `CUSIM_...`.
    pub fn is_simulated(&self) -> bool {
        self.folder.is_some()
    }

    /// The environment of a server that is to use it: variables and their values.
    pub fn environment(&self) -> Vec<(&'static str, PathBuf)> {
        let files = [
            (DRIVER_VARIABLE, "libcuda.so"),
            (NVRTC_VARIABLE, "libnvrtc.so.13"),
            (NCCL_VARIABLE, NCCL_FILE),
            (CACHE_VARIABLE, "cache"),
        ];
        let Some(folder) = &self.folder else { return Vec::new() };
        let files = files.map(|(variable, file)| (variable, folder.join(file)));
        files.into_iter().chain([(DEVICES_VARIABLE, MAX_DEVICES.to_string().into())]).collect()
    }

    /// Makes it the GPU of this process, which has not looked for one yet.
    pub fn enter(&self) {
        for (variable, value) in self.environment() {
            // SAFETY: tests call this before they open a device, from behind a lock of their own; what reads the environment
            // meanwhile is Rust's, which has a lock of its own.
            unsafe { std::env::set_var(variable, value) };
        }
    }
}

/// The objects of all kernels and of what runs them, for a program of a test's own.
///
/// # Panics
/// If they do not compile.
pub fn kernel_objects() -> Vec<PathBuf> {
    let sources = Sources::find();
    let folder = compiled(&sources);
    sources.kernels.iter().chain([&sources.runtime]).map(|unit| object(&folder, unit)).collect()
}

/// Compiles files with these flags, as many at a time as there are processors. Their objects, in `folder`.
///
/// # Panics
/// If they do not compile.
pub fn compile(units: &[PathBuf], flags: &[&str], folder: &Path) -> Vec<PathBuf> {
    let sources = Sources::folder();
    let queue = Mutex::new(units.to_vec());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, |cores| cores.get()) {
            scope.spawn(|| {
                loop {
                    let Some(unit) = queue.lock().expect("nobody panics with it").pop() else { return };
                    let mut compiler = Command::new("c++");
                    compiler.args(FLAGS).args(flags).arg("-I").arg(sources.join("sim")).arg("-I").arg(&sources);
                    compiler.arg("-c").args(["-x", "c++"]).arg(&unit).arg("-o").arg(object(folder, &unit));
                    run(compiler);
                }
            });
        }
    });
    units.iter().map(|unit| object(folder, unit)).collect()
}

/// The folder of what is compiled from these sources, once.
fn compiled(sources: &Sources) -> PathBuf {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock().expect("whoever failed to compile has said so");
    let all = target_folder().join("tmp").join("cusim");
    let folder = all.join(format!("{:016x}", sources.hash()));
    if !folder.exists() {
        // Of other sources.
        let _ = fs::remove_dir_all(&all);
        let unfinished = all.join(format!("unfinished-{}", std::process::id()));
        fs::create_dir_all(&unfinished).expect("the target folder can be written");
        sources.compile(&unfinished);
        fs::rename(&unfinished, &folder).expect("both are in one folder");
    }
    folder
}

/// What the libraries are made of.
struct Sources {
    /// The kernels, what runs them, and the driver and the compiler around both.
    kernels: Vec<PathBuf>,
    runtime: PathBuf,
    driver: PathBuf,
    /// NCCL's, a library of its own.
    nccl: PathBuf,
    headers: Vec<PathBuf>,
}

const NCCL_FILE: &str = "libnccl.so.2";

const FLAGS: [&str; 11] = [
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-pthread",
    "-fvisibility=hidden",
    "-fno-strict-aliasing",
    "-DCUSIM",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",
];

impl Sources {
    fn folder() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("it lies in kernels/").join("cuda")
    }

    fn find() -> Sources {
        let folder = Sources::folder();
        let files = |folder: &Path, extensions: &[&str]| {
            let entries = fs::read_dir(folder).expect("it is part of the repository");
            let paths = entries.map(|entry| entry.expect("it can be listed").path());
            let is_wanted =
                |path: &PathBuf| extensions.iter().any(|wanted| path.extension() == Some(OsStr::new(wanted)));
            let mut paths: Vec<PathBuf> = paths.filter(is_wanted).collect();
            paths.sort();
            paths
        };
        let sim = folder.join("sim");
        let [runtime, driver, nccl] = ["cusim.cc", "driver.cc", "nccl.cc"].map(|name| sim.join(name));
        let headers = [files(&folder, &["cuh"]), files(&sim, &["h"])].concat();
        Sources { kernels: files(&folder, &["cu"]), runtime, driver, nccl, headers }
    }

    fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        FLAGS.hash(&mut hasher);
        for path in self.units().iter().chain([&self.nccl]).chain(&self.headers) {
            path.file_name().hash(&mut hasher);
            fs::read(path).expect("it was listed").hash(&mut hasher);
        }
        hasher.finish()
    }

    /// Those of the driver's library.
    fn units(&self) -> Vec<PathBuf> {
        [&self.kernels[..], &[self.runtime.clone(), self.driver.clone()]].concat()
    }

    fn compile(&self, folder: &Path) {
        let units = self.units();
        compile(&[&units[..], std::slice::from_ref(&self.nccl)].concat(), &[], folder);
        let link = |file: &str, units: &[PathBuf], libraries: &[&str]| {
            let objects = units.iter().map(|unit| object(folder, unit));
            let mut linker = Command::new("c++");
            linker.args(["-shared", "-pthread"]).arg(format!("-Wl,-soname,{file}")).arg("-o").arg(folder.join(file));
            linker.args(objects).args(libraries);
            run(linker);
        };
        // The name by which whoever looks for the driver looks first.
        link("libcuda.so", &units, &[]);
        link(NCCL_FILE, std::slice::from_ref(&self.nccl), &["-ldl", "-lrt"]);
        // The same library under the other name: its symbols are those of both.
        std::os::unix::fs::symlink("libcuda.so", folder.join("libnvrtc.so.13")).expect("the folder is new");
    }
}

fn object(folder: &Path, unit: &Path) -> PathBuf {
    folder.join(unit.file_name().expect("it is a file")).with_extension("o")
}

fn run(mut command: Command) {
    let output = command.output().expect("the C++ compiler that the README asks for");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Where cargo builds: the folder above that of this executable's profile.
fn target_folder() -> PathBuf {
    let executable = std::env::current_exe().expect("a process has an executable");
    let profile = executable.ancestors().find(|folder| folder.ends_with("deps")).and_then(Path::parent);
    profile.and_then(Path::parent).expect("tests run from target/PROFILE/deps").to_owned()
}
