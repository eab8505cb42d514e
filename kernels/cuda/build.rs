//! Gathers the CUDA kernels: their sources, which NVRTC compiles at run time, and where nvcc is at hand their machine code for every
//! architecture, so that nothing is left to compile (`kernels/src/cuda/images.rs`).
//!
//! nvcc is `$NVCC`, or one in `$CUDA_HOME/bin`, `$CUDA_PATH/bin` or on the `PATH`. `TGI_CUDA_ARCHITECTURES` (`sm_90a,sm_100a`) replaces
//! the list of architectures; an empty one embeds nothing.

use std::collections::BTreeSet;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::sync::Mutex;

/// A100 and what else is 8.x; L4 and RTX 40; H100 and H200; B200. With an `a`, instructions of that architecture alone.
const ARCHITECTURES: [&str; 4] = ["sm_80", "sm_89", "sm_90a", "sm_100a"];

const OPTIONS: [&str; 3] = ["-std=c++17", "-O3", "-cubin"];

fn main() {
    // A folder stands for all files in it, and for those that come and go. PATH is not watched: it differs between a shell and an
    // editor, which would build this crate in turns.
    println!("cargo:rerun-if-changed=.");
    for variable in ["NVCC", "CUDA_HOME", "CUDA_PATH", "TGI_CUDA_ARCHITECTURES"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    let (headers, sources) = (read("cuh"), read("cu"));
    let cubins = match nvcc() {
        Some(nvcc) => compile_all(&nvcc, &architectures(&nvcc), &headers, &sources, &out.join("cubins")),
        None => Vec::new(),
    };
    fs::write(out.join("kernels.rs"), table(&headers, &sources, &cubins)).expect("OUT_DIR is writable");
}

/// Name and text of a file.
type File = (String, String);

/// The files of this folder with this extension, by name.
fn read(extension: &str) -> Vec<File> {
    let entries = fs::read_dir(".").expect("the package is a folder");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("it is readable").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|found| found == extension));
    paths.sort();
    let file = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).expect("our files have plain names");
        (name.to_owned(), fs::read_to_string(path).expect("it is readable"))
    };
    paths.iter().map(file).collect()
}

/// The compiler, if there is one.
fn nvcc() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(nvcc) = set("NVCC") {
        return Some(nvcc.into());
    }
    let toolkits = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(|name| Some(Path::new(&set(name)?).join("bin")));
    let path = set("PATH").unwrap_or_default();
    toolkits.chain(std::env::split_paths(&path)).map(|folder| folder.join("nvcc")).find(|nvcc| nvcc.is_file())
}

/// For what to compile: what was asked for, or else all that this nvcc knows.
fn architectures(nvcc: &Path) -> Vec<String> {
    if let Ok(wanted) = std::env::var("TGI_CUDA_ARCHITECTURES") {
        let names: Vec<String> =
            wanted.split([',', ';', ' ']).filter(|name| !name.is_empty()).map(str::to_owned).collect();
        if let Some(name) = names.iter().find(|name| parsed(name).is_none()) {
            eprintln!("TGI_CUDA_ARCHITECTURES: {name} is no architecture such as {}", ARCHITECTURES.join(", "));
            exit(1)
        }
        return names;
    }
    let known = run(Command::new(nvcc).arg("--list-gpu-code"));
    // The list has no names with an `a`.
    let is_known = |name: &&str| known.split_whitespace().any(|known| known == name.trim_end_matches('a'));
    let (found, unknown): (Vec<&str>, Vec<&str>) = ARCHITECTURES.into_iter().partition(is_known);
    if !unknown.is_empty() {
        let unknown = unknown.join(", ");
        println!("cargo:warning={} does not know {unknown}: kernels for it are compiled at run time", nvcc.display());
    }
    found.into_iter().map(str::to_owned).collect()
}

/// A file of machine code: its source's name, its architecture, its own name.
type Cubin = (String, String, String);

/// Compiles what has changed since the last build: a cubin's name has a hash of all that it depends on.
fn compile_all(nvcc: &Path, architectures: &[String], headers: &[File], sources: &[File], folder: &Path) -> Vec<Cubin> {
    fs::create_dir_all(folder).expect("OUT_DIR is writable");
    let version = run(Command::new(nvcc).arg("--version"));
    let cubin = |(file, text): &File, architecture: &String| {
        let mut hasher = DefaultHasher::new();
        (nvcc, &version, OPTIONS, headers, text).hash(&mut hasher);
        let name = format!("{file}.{architecture}.{:016x}.cubin", hasher.finish());
        (file.clone(), architecture.clone(), name)
    };
    let cubins: Vec<Cubin> =
        sources.iter().flat_map(|source| architectures.iter().map(move |name| cubin(source, name))).collect();

    let queue = Mutex::new(cubins.iter().filter(|(.., name)| !folder.join(name).exists()).rev().collect::<Vec<_>>());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, |cores| cores.get()) {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().expect("a failing compilation ends the process").pop();
                    let Some((file, architecture, name)) = next else { return };
                    // Renamed when it is whole: an interrupted build leaves nothing that the next one would take.
                    let partial = folder.join(format!("{name}.partial"));
                    let mut command = Command::new(nvcc);
                    run(command.args(OPTIONS).args(["-arch", architecture, "-o"]).arg(&partial).arg(file));
                    fs::rename(&partial, folder.join(name)).expect("nvcc wrote it to a folder of ours");
                }
            });
        }
    });

    let current: BTreeSet<&str> = cubins.iter().map(|(.., name)| name.as_str()).collect();
    for entry in fs::read_dir(folder).expect("it is readable").flatten() {
        if entry.file_name().to_str().is_none_or(|name| !current.contains(name)) {
            // One that stays costs space and nothing else.
            let _ = fs::remove_file(entry.path());
        }
    }
    cubins
}

/// What a command printed. If it fails, so does the build, with its words.
fn run(command: &mut Command) -> String {
    match command.output() {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).into_owned(),
        Ok(output) => {
            let words = [output.stdout, output.stderr].concat();
            let words = String::from_utf8_lossy(&words);
            eprintln!("{command:?} failed; TGI_CUDA_ARCHITECTURES= builds without it, for NVRTC.\n{words}");
            exit(1)
        }
        Err(error) => {
            eprintln!("{command:?}: {error}; TGI_CUDA_ARCHITECTURES= builds without it, for NVRTC.");
            exit(1)
        }
    }
}

/// The Rust file that `lib.rs` includes.
fn table(headers: &[File], sources: &[File], cubins: &[Cubin]) -> String {
    let mut rust = String::from("pub(super) static HEADERS: &[(&str, &str)] = &[\n");
    let text = |file: &str| format!("include_str!(concat!(env!(\"CARGO_MANIFEST_DIR\"), \"/{file}\"))");
    for (file, _) in headers {
        rust += &format!("    ({file:?}, {}),\n", text(file));
    }
    rust += "];\n\npub(super) static SOURCES: &[CudaSource] = &[\n";
    for (file, _) in sources {
        rust += &format!("    CudaSource {{ file: {file:?}, text: {}, embedded: &[\n", text(file));
        for (_, architecture, name) in cubins.iter().filter(|(of, ..)| of == file) {
            let architecture = parsed(architecture).expect("nvcc compiled for it");
            let bytes = format!("include_bytes!(concat!(env!(\"OUT_DIR\"), \"/cubins/{name}\"))");
            rust += &format!("        ({architecture}, &Aligned(*{bytes}).0),\n");
        }
        rust += "    ] },\n";
    }
    rust + "];\n"
}

/// `sm_100a` as Rust, if it is an architecture.
fn parsed(architecture: &str) -> Option<String> {
    let name = architecture.strip_prefix("sm_")?;
    let (digits, specific) = name.strip_suffix('a').map_or((name, false), |digits| (digits, true));
    let number: u32 = digits.parse().ok()?;
    let (major, minor) = (number / 10, number % 10);
    Some(format!("CudaArchitecture {{ major: {major}, minor: {minor}, specific: {specific} }}"))
}
