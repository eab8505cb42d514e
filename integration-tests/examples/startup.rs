//! From the start of the built executable to its ready line, beside the time that reading the weights once takes.
//!
//! `just bench-startup [--model DIR] [--num-shard N] [--rounds N] [--cold] [LAUNCHER ARGUMENTS]`. Without `--model` the demo
//! model. Files are read from the page cache; with `--cold` they are dropped from it before every start and every reading.
//! Goals: the demo model in 0.5 s; any model from a cold disk in 1.3 × the reading; 1B parameters in bf16 in 3 s from the cache.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use integration_tests::{Process, Setup, executable};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

/// Threads that read, and bytes they ask for at a time.
const READERS: usize = 2;
const READ_BYTES: u64 = 1 << 20;

struct Options {
    model: Option<PathBuf>,
    rounds: usize,
    is_cold: bool,
    launcher: Vec<String>,
}

fn main() {
    let options = Options::parse();
    // Built before the clock starts.
    executable();
    let files = options.model.as_deref().map(weight_files).unwrap_or_default();
    let bytes: u64 = files.iter().map(|file| fs::metadata(file).expect("it exists").len()).sum();
    let (mut readings, mut starts, mut peaks) = (Vec::new(), Vec::new(), Vec::new());
    if !options.is_cold {
        read(&files);
    }
    for _ in 0..options.rounds {
        readings.push(options.timed(&files, || read(&files)));
        let mut server = None;
        starts.push(options.timed(&files, || server = Some(options.setup().start())));
        let server = server.expect("it is ready");
        let shards = server.children().into_iter().filter(|child| child.role() == "shard");
        peaks.push(shards.map(|shard| peak_mib(&shard)).collect::<Vec<_>>());
        assert_eq!(server.stop().code, Some(0));
    }
    let cache = if options.is_cold { "dropped from" } else { "in" };
    println!("{} weight files, {} MiB, {cache} the page cache; {} rounds", files.len(), bytes >> 20, options.rounds);
    print("start to ready line", &mut starts);
    // The demo model's weights are part of the executable: there is nothing to read.
    if !files.is_empty() {
        print("reading the weights once", &mut readings);
        println!("  ratio of the medians: {:.2}", median(&starts) / median(&readings));
    }
    println!("  peak resident memory of each shard in MiB: {:?}", peaks.last().expect("there are rounds"));
}

impl Options {
    fn parse() -> Options {
        let mut options = Options { model: None, rounds: 5, is_cold: false, launcher: Vec::new() };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            match word.as_str() {
                "--model" => options.model = Some(words.next().expect("--model DIR").into()),
                "--rounds" => {
                    options.rounds = words.next().and_then(|word| word.parse().ok()).expect("--rounds NUMBER");
                }
                "--cold" => options.is_cold = true,
                _ => options.launcher.push(word),
            }
        }
        assert!(options.rounds > 0, "--rounds is at least 1");
        options
    }

    fn setup(&self) -> Setup {
        let setup = Setup::new().args(&self.launcher.iter().map(String::as_str).collect::<Vec<_>>());
        match &self.model {
            Some(dir) => setup.model(dir),
            None => setup,
        }
    }

    /// Seconds that `f` takes, from the asked for state of the page cache.
    fn timed(&self, files: &[PathBuf], f: impl FnOnce()) -> f64 {
        if self.is_cold {
            files.iter().for_each(|file| drop_from_cache(file));
        }
        let start = Instant::now();
        f();
        start.elapsed().as_secs_f64()
    }
}

fn weight_files(dir: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(dir).expect("the model's folder can be read").flatten().map(|entry| entry.path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "safetensors")).collect()
}

/// Reads all of the files once.
fn read(files: &[PathBuf]) {
    for file in files {
        let file = File::open(file).expect("it can be opened");
        let (len, next) = (file.metadata().expect("it is a file").len(), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..READERS {
                scope.spawn(|| {
                    let mut buffer = vec![0; READ_BYTES as usize];
                    loop {
                        let at = next.fetch_add(READ_BYTES, Ordering::Relaxed);
                        if at >= len {
                            return;
                        }
                        let part = &mut buffer[..READ_BYTES.min(len - at) as usize];
                        file.read_exact_at(part, at).expect("it can be read");
                    }
                });
            }
        });
    }
}

/// Written pages only: a file that was just made has to reach the disk first.
fn drop_from_cache(path: &Path) {
    let file = File::open(path).expect("it can be opened");
    file.sync_all().expect("it can be written back");
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).expect("advice is taken");
}

/// `VmHWM` of /proc/PID/status (proc(5)).
fn peak_mib(process: &Process) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid)).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("every process has a peak");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("it is a number") >> 10
}

fn median(seconds: &[f64]) -> f64 {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn print(what: &str, seconds: &mut [f64]) {
    seconds.sort_by(f64::total_cmp);
    let (fastest, slowest) = (seconds[0], seconds[seconds.len() - 1]);
    println!("  {what:<26} fastest {fastest:.3} s   median {:.3} s   slowest {slowest:.3} s", median(seconds));
}
