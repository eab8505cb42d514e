//! The CUDA kernels as a program carries them: their sources and, where the build found nvcc (`build.rs`), their machine code.
//!
//! A crate of its own, which nothing of `kernels` depends on: an edit of a kernel does not compile the processor's operations again.

use kernels::{CudaArchitecture, CudaCode, CudaSource};

/// All kernels, for [`Device::cuda`](kernels::Device::cuda).
pub static CODE: CudaCode = CudaCode { headers: generated::HEADERS, sources: generated::SOURCES };

/// At a multiple of 16 bytes: the driver reads it in place, as the object file that it is.
#[repr(C, align(16))]
#[allow(dead_code, reason = "a build without nvcc embeds nothing")]
struct Aligned<Bytes>(Bytes);

mod generated {
    #[allow(unused_imports, reason = "a build without nvcc embeds nothing")]
    use super::{Aligned, CudaArchitecture, CudaSource};

    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}

#[cfg(test)]
mod tests {
    use super::CODE;

    #[test]
    fn everything_that_is_included_is_at_hand() {
        let texts = CODE.sources.iter().map(|source| (source.file, source.text));
        let mut seen = 0;
        for (file, text) in texts.chain(CODE.headers.iter().copied()) {
            for included in text.lines().filter_map(|line| line.trim().strip_prefix("#include")) {
                let name = included.trim().trim_matches('"');
                let found = CODE.headers.iter().any(|(header, _)| *header == name);
                assert!(found || name == "cusim.h", "{file} includes {name}, which NVRTC would not find");
                seen += 1;
            }
        }
        assert!(seen >= CODE.sources.len(), "each has its first header");
        assert!(CODE.sources.iter().all(|source| source.file.ends_with(".cu")));
    }
}
