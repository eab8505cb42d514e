//! Tells the crate's own tests which instruction sets the building machine lacks: they are not compiled for what they cannot run, which
//! is half of all their code. The library itself is compiled for all of them, on every machine.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-check-cfg=cfg(lacks_avx512, lacks_avx512_bf16, lacks_avx512_vnni)");
    for (cfg, has) in instruction_sets() {
        if !has {
            println!("cargo:rustc-cfg={cfg}");
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn instruction_sets() -> [(&'static str, bool); 3] {
    [
        ("lacks_avx512", is_x86_feature_detected!("avx512f")),
        ("lacks_avx512_bf16", is_x86_feature_detected!("avx512bf16")),
        ("lacks_avx512_vnni", is_x86_feature_detected!("avx512vnni")),
    ]
}

#[cfg(not(target_arch = "x86_64"))]
fn instruction_sets() -> [(&'static str, bool); 0] {
    []
}
