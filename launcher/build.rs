//! Facts about the build that `--env` reports.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=GIT_SHA");
    println!("cargo:rerun-if-env-changed=DOCKER_LABEL");
    let var = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name} for build scripts"));
    println!("cargo:rustc-env=BUILD_TARGET={}", var("TARGET"));

    let rustc = Command::new(var("RUSTC")).arg("--version").output().expect("the compiler that builds this runs");
    let version = String::from_utf8_lossy(&rustc.stdout);
    // "rustc 1.95.0 (…)": TGI prints the number alone.
    println!("cargo:rustc-env=BUILD_RUSTC={}", version.split_whitespace().nth(1).unwrap_or("unknown"));
}
