//! Machine code of the kernels for one GPU: what the program's build embedded, or else what NVRTC compiles at the first start and
//! a folder keeps for the next.

mod cache;
mod nvrtc;

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::mpsc;
use std::thread;

use self::cache::Cache;
use self::nvrtc::Nvrtc;
use crate::{Error, Result};

/// The least compute capability: A100 has it. Before it there are no matrix instructions for bfloat16.
const OLDEST: (u32, u32) = (8, 0);

/// Files that are compiled at a time. 4: a compilation takes about 200 MB, and a rank has as many cores to itself on most machines.
const MAX_THREADS: usize = 4;

/// Stack of a thread that compiles. Left alone, NVRTC raises the limit of the whole process while it works; it is told not to
/// (`Target::options`) and given more than the 8 MiB that it has in a program's main thread. Only what is touched is used.
const STACK_BYTES: usize = 32 << 20;

/// A file of kernels, compiled for the GPU.
#[derive(Debug)]
pub(crate) struct Image {
    /// Its source: `rms_norm.cu`.
    pub(crate) file: &'static str,
    /// A cubin, as `cuModuleLoadData` takes it.
    pub(crate) code: Cow<'static, [u8]>,
}

/// What a start that takes longer than usual says meanwhile; prints as a sentence for the log.
#[derive(Debug)]
pub(crate) enum Progress {
    /// Sent before the first file and after each.
    Compiling {
        /// What for: `sm_90a`.
        architecture: String,
        /// Files that are compiled.
        done: usize,
        /// Files that had to be.
        total: usize,
        /// Where they are kept for the next start, if anywhere.
        folder: Option<PathBuf>,
    },
    /// What was compiled cannot be kept. Sent once.
    NotKept {
        /// Where, and why not.
        reason: String,
    },
}

/// All kernels, as a program carries them (`kernels/cuda/lib.rs`).
#[derive(Debug)]
pub struct CudaCode {
    /// What sources include: name and text.
    pub headers: &'static [(&'static str, &'static str)],
    /// Files of kernels.
    pub sources: &'static [CudaSource],
}

/// A file of kernels.
#[derive(Debug)]
pub struct CudaSource {
    /// Its name: `rms_norm.cu`.
    pub file: &'static str,
    /// What NVRTC compiles.
    pub text: &'static str,
    /// Its machine code (cubin), at multiples of 16 bytes, for the architectures of the build.
    pub embedded: &'static [(CudaArchitecture, &'static [u8])],
}

/// What machine code was compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CudaArchitecture {
    /// Of the compute capability.
    pub major: u32,
    /// Of the compute capability.
    pub minor: u32,
    /// With instructions of this one alone (`sm_90a`): it runs on no other.
    pub specific: bool,
}

/// The kernels for a GPU of this compute capability, one image for each file.
///
/// # Errors
/// [`Error::CudaUnavailable`] if the GPU is too old, or nothing was embedded for it and there is no NVRTC; [`Error::Cuda`] if NVRTC
/// refuses a file.
pub(crate) fn load(code: &CudaCode, capability: (u32, u32), progress: &dyn Fn(Progress)) -> Result<Vec<Image>> {
    let (major, minor) = capability;
    if capability < OLDEST {
        let reason =
            format!("the GPU has compute capability {major}.{minor}; the kernels need 8.0 (A100, L4, RTX 30) or newer");
        return Err(Error::CudaUnavailable { reason });
    }
    let (mut images, mut rest) = (Vec::new(), Vec::new());
    for source in code.sources {
        match best(source.embedded, capability) {
            Some(code) => images.push(Image { file: source.file, code: code.into() }),
            None => rest.push(source),
        }
    }
    if !rest.is_empty() {
        let nvrtc = Nvrtc::open()?;
        let target = Target::new(capability, nvrtc.version());
        let compile = |source: &CudaSource, target: &Target| nvrtc.compile(code.headers, source, target);
        images.extend(compiled(&rest, code.headers, &target, Cache::of_user(), compile, progress)?);
    }
    Ok(images)
}

impl CudaArchitecture {
    /// Machine code runs on the architecture it was compiled for and on later ones of the same major number.
    fn runs_on(self, (major, minor): (u32, u32)) -> bool {
        self.major == major && if self.specific { self.minor == minor } else { self.minor <= minor }
    }
}

/// The code that fits this GPU and was compiled for the one nearest to it.
fn best(embedded: &[(CudaArchitecture, &'static [u8])], capability: (u32, u32)) -> Option<&'static [u8]> {
    let fitting = embedded.iter().filter(|(architecture, _)| architecture.runs_on(capability));
    fitting.max_by_key(|(architecture, _)| (architecture.minor, architecture.specific)).map(|(_, code)| *code)
}

/// What sources are compiled for at run time, and by what.
struct Target {
    /// `sm_90a`: this GPU and no other, so all of its instructions.
    architecture: String,
    /// Of NVRTC: `13.0`.
    version: String,
    options: Vec<String>,
}

impl Target {
    fn new((major, minor): (u32, u32), version: String) -> Target {
        // Architectures before Hopper have no instructions of their own.
        let architecture = format!("sm_{major}{minor}{}", if major >= 9 { "a" } else { "" });
        let options = vec![
            format!("--gpu-architecture={architecture}"),
            "-std=c++17".to_owned(),
            "--modify-stack-limit=false".to_owned(),
        ];
        Target { architecture, version, options }
    }
}

/// Images of `sources` from the cache, or compiled on several threads and then kept.
///
/// Ranks that start together compile the same files at the same time, which costs them no time that waiting for each other would not.
fn compiled(
    sources: &[&'static CudaSource],
    headers: &[(&str, &str)],
    target: &Target,
    cache: Result<Cache, String>,
    compile: impl Fn(&CudaSource, &Target) -> Result<Vec<u8>> + Sync,
    progress: &dyn Fn(Progress),
) -> Result<Vec<Image>> {
    let (mut images, mut rest) = (Vec::new(), Vec::new());
    for source in sources {
        let entry = cache::entry(source, headers, target);
        match cache.as_ref().ok().and_then(|cache| cache.find(&entry)) {
            Some(code) => images.push(Image { file: source.file, code: code.into() }),
            None => rest.push((*source, entry)),
        }
    }
    let total = rest.len();
    if total == 0 {
        return Ok(images);
    }

    let (cache, mut obstacle) = match cache {
        Ok(cache) => (Some(cache), None),
        Err(reason) => (None, Some(reason)),
    };
    let say = |done| {
        let folder = cache.as_ref().map(|cache| cache.folder().to_owned());
        progress(Progress::Compiling { architecture: target.architecture.clone(), done, total, folder });
    };
    say(0);
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS).min(total);
    let queue = Mutex::new(rest.into_iter());
    let outcome = thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        for _ in 0..threads {
            let (sender, queue, compile) = (sender.clone(), &queue, &compile);
            let work = move || loop {
                let next = queue.lock().expect("nothing panics under this lock").next();
                let Some((source, entry)) = next else { return };
                let result = compile(source, target);
                // Nobody listens any more after another file has failed.
                if sender.send((source, entry, result)).is_err() {
                    return;
                }
            };
            let spawned = thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, work);
            if let Err(error) = spawned {
                return Err(Error::CudaUnavailable { reason: format!("no thread to compile kernels on: {error}") });
            }
        }
        drop(sender);
        for (done, (source, entry, result)) in receiver.iter().enumerate() {
            let code = result?;
            if let Some(Err(error)) = cache.as_ref().map(|cache| cache.keep(&entry, &code)) {
                obstacle.get_or_insert(error);
            }
            images.push(Image { file: source.file, code: code.into() });
            say(done + 1);
        }
        Ok(())
    });
    if let Some(reason) = obstacle {
        progress(Progress::NotKept { reason });
    }
    outcome.map(|()| images)
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Progress::Compiling { architecture, done, total, folder } => {
                write!(f, "compiling CUDA kernels for {architecture}: {done} of {total}")?;
                match folder {
                    Some(folder) => write!(f, " (first start; kept in {})", folder.display()),
                    None => Ok(()),
                }
            }
            Progress::NotKept { reason } => {
                write!(
                    f,
                    "every start compiles the CUDA kernels anew: {reason}; TGI_CUDA_CACHE may name another folder"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const fn architecture(major: u32, minor: u32, specific: bool) -> CudaArchitecture {
        CudaArchitecture { major, minor, specific }
    }

    #[test]
    fn a_gpu_gets_the_code_that_is_nearest_to_it() {
        let of_build: &[(CudaArchitecture, &'static [u8])] = &[
            (architecture(8, 0, false), b"80"),
            (architecture(8, 9, false), b"89"),
            (architecture(9, 0, true), b"90a"),
            (architecture(10, 0, true), b"100a"),
        ];
        let table: [(_, Option<&[u8]>); 11] = [
            ((7, 5), None),
            ((8, 0), Some(b"80")),
            ((8, 6), Some(b"80")),
            ((8, 9), Some(b"89")),
            ((9, 0), Some(b"90a")),
            ((9, 1), None),
            ((10, 0), Some(b"100a")),
            ((10, 3), None),
            ((11, 0), None),
            ((12, 0), None),
            ((0, 8), None),
        ];
        for (capability, expected) in table {
            assert_eq!(best(of_build, capability), expected, "{capability:?}");
        }
        let both: &[(CudaArchitecture, &'static [u8])] =
            &[(architecture(9, 0, true), b"90a"), (architecture(9, 0, false), b"90")];
        assert_eq!(best(both, (9, 0)), Some(&b"90a"[..]));
        assert_eq!(best(both, (9, 1)), Some(&b"90"[..]));
        assert_eq!(best(&[], (9, 0)), None);
    }

    #[test]
    fn an_old_gpu_is_refused() {
        let error = load(&CudaCode { headers: HEADERS, sources: &[] }, (7, 5), &|_| {}).unwrap_err();
        assert!(error.to_string().contains("compute capability 7.5; the kernels need 8.0"), "{error}");
    }

    static A: CudaSource = CudaSource { file: "a.cu", text: "kernel a", embedded: &[] };
    static B: CudaSource = CudaSource { file: "a_b.cu", text: "kernel b", embedded: &[] };
    static C: CudaSource = CudaSource { file: "c.cu", text: "kernel c", embedded: &[] };
    static OTHER_A: CudaSource = CudaSource { file: "a.cu", text: "another kernel", embedded: &[] };
    const HEADERS: &[(&str, &str)] = &[("launch.cuh", "what all share")];

    /// A cache in a folder of its own, and a compiler that counts and answers with the source's text.
    struct Case {
        folder: PathBuf,
        calls: AtomicUsize,
        said: Mutex<Vec<String>>,
    }

    impl Case {
        fn new(name: &str) -> Case {
            let folder = std::env::temp_dir().join(format!("kernels-images-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&folder);
            Case { folder, calls: AtomicUsize::new(0), said: Mutex::default() }
        }

        /// How many of the sources had to be compiled.
        #[track_caller]
        fn compile(&self, sources: &[&'static CudaSource], headers: &[(&str, &str)], target: &Target) -> usize {
            let compile = |source: &CudaSource, target: &Target| {
                self.calls.fetch_add(1, Ordering::Relaxed);
                Ok(format!("{} for {}", source.text, target.architecture).into_bytes())
            };
            let before = self.calls.load(Ordering::Relaxed);
            let progress = |progress: Progress| self.said.lock().unwrap().push(progress.to_string());
            let cache = Ok(Cache::at(self.folder.clone()));
            let images = compiled(sources, headers, target, cache, compile, &progress).unwrap();
            assert_eq!(images.len(), sources.len());
            for source in sources {
                let image = images.iter().find(|image| image.file == source.file).unwrap();
                let expected = format!("{} for {}", source.text, target.architecture);
                assert_eq!(image.code, expected.as_bytes(), "{}", source.file);
            }
            self.calls.load(Ordering::Relaxed) - before
        }

        fn entries(&self) -> Vec<PathBuf> {
            let mut entries: Vec<_> = fs::read_dir(&self.folder).unwrap().map(|entry| entry.unwrap().path()).collect();
            entries.sort();
            entries
        }
    }

    impl Drop for Case {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }

    fn target(capability: (u32, u32), version: &str) -> Target {
        Target::new(capability, version.to_owned())
    }

    #[test]
    fn only_the_first_start_compiles() {
        let case = Case::new("hit");
        let hopper = target((9, 0), "13.0");
        assert_eq!(case.compile(&[&A, &B, &C], HEADERS, &hopper), 3);
        let folder = case.folder.display();
        let line = |done| format!("compiling CUDA kernels for sm_90a: {done} of 3 (first start; kept in {folder})");
        assert_eq!(*case.said.lock().unwrap(), [0, 1, 2, 3].map(line));
        assert_eq!(case.compile(&[&A, &B, &C], HEADERS, &hopper), 0);
        assert_eq!(case.said.lock().unwrap().len(), 4, "nothing is said where nothing is compiled");
        assert_eq!(case.entries().len(), 3);
    }

    #[test]
    fn whatever_the_code_depends_on_is_part_of_the_key() {
        let case = Case::new("key");
        let hopper = target((9, 0), "13.0");
        assert_eq!(case.compile(&[&A], HEADERS, &hopper), 1);
        assert_eq!(case.compile(&[&OTHER_A], HEADERS, &hopper), 1, "source");
        assert_eq!(case.compile(&[&A], &[("launch.cuh", "what changed")], &hopper), 1, "header");
        assert_eq!(case.compile(&[&A], &[], &hopper), 1, "no header");
        assert_eq!(case.compile(&[&A], HEADERS, &target((8, 9), "13.0")), 1, "architecture");
        assert_eq!(case.compile(&[&A], HEADERS, &target((9, 0), "13.1")), 1, "version");
        let mut other = target((9, 0), "13.0");
        other.options.push("--use_fast_math".to_owned());
        assert_eq!(case.compile(&[&A], HEADERS, &other), 1, "options");
        assert_eq!(case.compile(&[&A], HEADERS, &hopper), 0, "the first one is still there");
    }

    #[test]
    fn a_damaged_entry_is_compiled_anew() {
        let case = Case::new("damage");
        let hopper = target((9, 0), "13.0");
        assert_eq!(case.compile(&[&A, &C], HEADERS, &hopper), 2);
        let [of_a, of_c] = case.entries().try_into().unwrap();
        let whole = fs::read(&of_a).unwrap();
        let flipped: Vec<u8> =
            whole.iter().enumerate().map(|(at, byte)| if at == 40 { byte ^ 1 } else { *byte }).collect();
        let other = fs::read(&of_c).unwrap();
        for (damage, contents) in [
            ("torn", &whole[..whole.len() - 1]),
            ("shorter than its checksum", &whole[..7]),
            ("empty", &[]),
            ("flipped", &flipped),
            ("another entry's", &other),
        ] {
            fs::write(&of_a, contents).unwrap();
            assert_eq!(case.compile(&[&A, &C], HEADERS, &hopper), 1, "{damage}");
            assert_eq!(fs::read(&of_a).unwrap(), whole, "{damage}");
        }
        assert_eq!(case.entries().len(), 2, "no partial files are left");
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_said_once() {
        let case = Case::new("unwritable");
        // A file where the folder should be: everything else root may write to.
        fs::write(&case.folder, "").unwrap();
        assert_eq!(case.compile(&[&A, &C], HEADERS, &target((9, 0), "13.0")), 2);
        let said = case.said.lock().unwrap();
        let warnings: Vec<_> = said.iter().filter(|line| line.contains("every start compiles")).collect();
        assert_eq!(warnings.len(), 1, "{said:?}");
        assert!(warnings[0].contains(case.folder.to_str().unwrap()), "{said:?}");
        fs::remove_file(&case.folder).unwrap();
    }

    #[test]
    fn a_file_that_does_not_compile_is_an_error() {
        let case = Case::new("failure");
        let broken = Error::Cuda { call: "nvrtcCompileProgram", code: "a_b.cu".to_owned() };
        let compile = |source: &CudaSource, _: &Target| match source.file {
            "a_b.cu" => Err(broken.clone()),
            _ => Ok(Vec::new()),
        };
        let cache = Ok(Cache::at(case.folder.clone()));
        let result = compiled(&[&A, &B, &C], HEADERS, &target((9, 0), "13.0"), cache, compile, &|_| {});
        assert_eq!(result.unwrap_err(), broken);
    }

    #[test]
    fn the_target_is_the_gpu_itself() {
        let named =
            [((8, 0), "sm_80"), ((8, 9), "sm_89"), ((9, 0), "sm_90a"), ((10, 3), "sm_103a"), ((12, 0), "sm_120a")];
        for (capability, expected) in named {
            let target = target(capability, "13.0");
            assert_eq!(target.architecture, expected);
            assert_eq!(target.options[0], format!("--gpu-architecture={expected}"));
        }
    }
}
