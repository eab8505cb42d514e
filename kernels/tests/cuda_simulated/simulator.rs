//! The simulator of CUDA kernels (`cuda/sim/`) as a process per launch: what a kernel does to it, a test reads as its error.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;

/// The kernels compiled for this processor.
pub(crate) struct Simulator {
    executable: PathBuf,
}

/// An argument of a kernel.
#[derive(Clone, Copy)]
pub(crate) enum Argument<'a> {
    /// A pointer to a buffer with these bytes.
    Buffer(&'a [u8]),
    /// A float.
    F32(f32),
    /// An unsigned.
    U32(usize),
    /// A pointer to nothing.
    Null,
}

/// Plain, and with AddressSanitizer, which also sees what is read beyond a buffer.
pub(crate) static SIMULATORS: LazyLock<[Simulator; 2]> = LazyLock::new(|| {
    let plain = Simulator::link("plain", &[], cusim::kernel_objects());
    [plain, Simulator::build("sanitized", SANITIZED, &Simulator::kernels())]
});

/// What compiles with AddressSanitizer.
pub(crate) const SANITIZED: &[&str] = &["-g", "-O1", "-fsanitize=address"];

impl Simulator {
    /// Compiles files of kernels.
    pub(crate) fn build(name: &str, flags: &[&str], kernels: &[PathBuf]) -> Simulator {
        let units = [&[sources().join("sim/cusim.cc")], kernels].concat();
        Simulator::link(name, flags, cusim::compile(&units, flags, &objects_of(name)))
    }

    /// Makes a program of kernels and what runs them, which are compiled.
    fn link(name: &str, flags: &[&str], mut objects: Vec<PathBuf>) -> Simulator {
        objects.extend(cusim::compile(&[sources().join("sim/program.cc")], flags, &objects_of(name)));
        let executable = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cusim-{name}"));
        let mut linker = Command::new("c++");
        let run = linker.args(flags).arg("-pthread").arg("-o").arg(&executable).args(objects).output();
        let run = run.expect("the C++ compiler that the README asks for");
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        Simulator { executable }
    }

    /// Every file of kernels of this crate.
    fn kernels() -> Vec<PathBuf> {
        let files = std::fs::read_dir(sources()).expect("it is part of the crate");
        let paths = files.map(|file| file.expect("it is there").path());
        paths.filter(|path| path.extension().is_some_and(|extension| extension == "cu")).collect()
    }

    /// Runs a kernel. Returns the bytes of all buffers afterwards.
    pub(crate) fn run(
        &self,
        kernel: &str,
        grid: [usize; 3],
        threads: usize,
        arguments: &[Argument<'_>],
    ) -> Vec<Vec<u8>> {
        let Output { status, stdout, stderr } = self.try_run(kernel, grid, threads, arguments);
        assert!(status.success(), "{kernel}: {}", String::from_utf8_lossy(&stderr));
        let mut rest = &stdout[..];
        let buffers = arguments.iter().filter_map(|argument| match argument {
            Argument::Buffer(bytes) => Some(bytes.len()),
            Argument::F32(_) | Argument::U32(_) | Argument::Null => None,
        });
        let buffers =
            buffers.map(|len| rest.split_off(..len).expect("the answer holds all buffers").to_vec()).collect();
        assert!(rest.is_empty(), "{kernel}: {} bytes more than its buffers have", rest.len());
        buffers
    }

    /// [`run`](Simulator::run), whatever comes of it.
    pub(crate) fn try_run(&self, kernel: &str, grid: [usize; 3], threads: usize, arguments: &[Argument<'_>]) -> Output {
        let mut launch = Vec::new();
        let mut number = |number: usize| launch.extend((number as u64).to_le_bytes());
        number(kernel.len());
        launch.extend(kernel.as_bytes());
        let mut number = |number: usize| launch.extend((number as u64).to_le_bytes());
        [grid[0], grid[1], grid[2], threads, 1, 1].into_iter().for_each(&mut number);
        number(arguments.len());
        for argument in arguments {
            let (kind, bytes) = match argument {
                Argument::Buffer(bytes) => (1, bytes.to_vec()),
                Argument::F32(x) => (0, [x.to_le_bytes(), [0; 4]].concat()),
                Argument::U32(x) => (0, [u32::try_from(*x).expect("it is an unsigned").to_le_bytes(), [0; 4]].concat()),
                Argument::Null => (0, vec![0; 8]),
            };
            launch.extend(u64::to_le_bytes(kind));
            if kind == 1 {
                launch.extend((bytes.len() as u64).to_le_bytes());
            }
            launch.extend(bytes);
        }
        let mut process = Command::new(&self.executable)
            // Fibers have stacks of their own, and a launch ends with its process.
            .env("ASAN_OPTIONS", "detect_leaks=0:detect_stack_use_after_return=0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it was just compiled");
        // It reads the whole launch before it answers, unless it has refused it.
        let _ = process.stdin.take().expect("it is a pipe").write_all(&launch);
        process.wait_with_output().expect("it is a child of this process")
    }
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda")
}

/// A folder for the objects of a program.
fn objects_of(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cusim-{name}-objects"));
    std::fs::create_dir_all(&folder).expect("the target folder can be written");
    folder
}
