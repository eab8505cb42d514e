//! Every CUDA kernel compiles for every architecture that has its instructions, without a warning and without a spilled register. What
//! each takes of a multiprocessor is a golden file: `UPDATE_EXPECT=1 cargo test -p integration-tests --release --test cuda_compiles`
//! writes it anew.

#![allow(clippy::unwrap_used, reason = "every function of a test file is part of a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use expect_test::expect_file;
use integration_tests::{Python, workspace_root};

/// A100; L4 and RTX 40; H100 and H200; B200. With an `a`, instructions of that architecture alone.
const ARCHITECTURES: [&str; 4] = ["sm_80", "sm_89", "sm_90a", "sm_100a"];

/// What a kernel takes, as the table prints it.
type Resources = String;

#[test]
fn kernels_compile_without_spills_and_take_what_they_took() {
    let Some(python) = Python::with("requirements-cuda.txt") else { return };
    let nvcc = python.packages().join("nvidia/cu13/bin/nvcc");
    let sources = workspace_root().join("kernels/cuda");
    let files = std::fs::read_dir(&sources).unwrap().map(|file| file.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "cu"));
    let queue: Vec<(PathBuf, &str)> = files.flat_map(|file| ARCHITECTURES.map(|name| (file.clone(), name))).collect();
    assert!(!queue.is_empty());

    let mut without: BTreeSet<PathBuf> = queue.iter().map(|(source, _)| source.clone()).collect();
    let (queue, table) = (Mutex::new(queue), Mutex::new(BTreeMap::<String, BTreeMap<&str, Resources>>::new()));
    let compiled = Mutex::new(BTreeSet::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, |cores| cores.get()) {
            scope.spawn(|| {
                loop {
                    let Some((source, architecture)) = queue.lock().unwrap().pop() else { return };
                    for (kernel, resources) in compile(&nvcc, &source, architecture) {
                        compiled.lock().unwrap().insert(source.clone());
                        table.lock().unwrap().entry(kernel).or_default().insert(architecture, resources);
                    }
                }
            });
        }
    });

    // A file may be for some architectures only.
    without.retain(|source| !compiled.lock().unwrap().contains(source));
    assert!(without.is_empty(), "{without:?} have no kernels for any architecture");

    let mut page = String::from(
        "What each kernel takes, by architecture: registers of a thread, bytes of static shared memory of a block.\n\n",
    );
    let mut line = |name: &str, cells: [&str; 4]| {
        let cells = cells.map(|cell| format!("{cell:>12}")).concat();
        writeln!(page, "{name:<32}{cells}").unwrap();
    };
    line("", ARCHITECTURES);
    for (kernel, resources) in &table.into_inner().unwrap() {
        line(kernel, ARCHITECTURES.map(|name| resources.get(name).map_or("-", |resources| resources)));
    }
    expect_file![sources.join("resources.txt")].assert_eq(&page);
}

/// Compiles a file; what the assembler says of each of its kernels, of none where the architecture lacks their instructions.
///
/// # Panics
/// If the compiler warns, a register is spilled, a kernel has a stack, or products of warpgroups wait where the source has no wait.
fn compile(nvcc: &Path, source: &Path, architecture: &str) -> Vec<(String, Resources)> {
    let name = format!("{}-{architecture}.cubin", source.file_stem().unwrap().to_str().unwrap());
    let output = Command::new(nvcc)
        .args(["-std=c++17", "-O3", "-cubin", "-Werror", "all-warnings", "-Xptxas", "-v,-warn-spills,-warn-lmem-usage"])
        .args(["-arch", architecture, "-o"])
        .arg(Path::new(env!("CARGO_TARGET_TMPDIR")).join(name))
        .arg(source)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{} for {architecture}:\n{said}", source.display());

    // Where the assembler cannot tell that nobody touches registers of products under way, it adds waits, and calls that information.
    for remark in ["serialized", "is injected"] {
        assert!(!said.contains(remark), "{} for {architecture}:\n{said}", source.display());
    }

    // "Used 22 registers, used 1 barriers, 32 bytes smem": what is not mentioned is none.
    let before = |line: &str, unit: &str| {
        let (number, _) = line.split_once(unit).unwrap_or(("0", ""));
        number.trim_end().rsplit(' ').next().and_then(|number| number.parse::<usize>().ok()).unwrap()
    };
    let mut kernels = Vec::new();
    let mut current = None;
    for line in said.lines() {
        if let Some((_, name)) = line.split_once("Compiling entry function '") {
            current = name.split('\'').next();
        } else if line.contains("bytes stack frame") {
            assert!(
                line.trim_start().starts_with("0 bytes stack frame, 0 bytes spill"),
                "{current:?} for {architecture}: {line}"
            );
        } else if line.contains("Used ") {
            let resources = format!("{} / {}", before(line, "registers"), before(line, "bytes smem"));
            kernels.push((current.take().expect("a kernel is named before its resources").to_owned(), resources));
        }
    }
    kernels
}
