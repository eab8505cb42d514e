//! What this machine can do at most and what linears reach, as one JSON object: `machine [threads]`.
//!
//! `integration-tests/bench` holds what engines reach against it.

use kernels::machine::{fma_peak, median_duration, read_bandwidth};
use kernels::ops::linear;
use kernels::{DType, Device, LinearWeight, MatrixView, Result, Tensor};

/// Far beyond any cache.
const MEMORY_BYTES: usize = 512 << 20;
/// Rows, outputs and inputs of large linears: a step's budget, and the MLP of a model of one billion parameters.
const PRODUCTS: [(usize, usize, usize); 2] = [(512, 16384, 2048), (512, 2048, 8192)];

fn main() -> Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let threads = std::env::args().nth(1).and_then(|arg| arg.parse().ok()).unwrap_or(cores);
    let device = Device::cpu(threads);
    let bandwidth = read_bandwidth(&device, MEMORY_BYTES)?.expect("a processor reads");
    let fma = fma_peak(&device).expect("a processor computes");
    let gemm = bf16_gemm(&device)?;
    println!(
        r#"{{"device": "{}", "read_bytes_per_second": {bandwidth:.0}, "fma_flops_per_second": {fma:.0}, "bf16_gemm_flops_per_second": {gemm:.0}}}"#,
        device.describe()
    );
    Ok(())
}

/// FLOPs per second of the fastest of [`PRODUCTS`].
fn bf16_gemm(device: &Device) -> Result<f64> {
    let mut best = 0.0_f64;
    for (m, n, k) in PRODUCTS {
        let bytes = vec![0_u8; n * k * DType::Bf16.size_bytes()];
        let weight = LinearWeight::pack(device, &[MatrixView::dense(&bytes, DType::Bf16, n, k)])?;
        let x = Tensor::zeros(device, &[m, k], DType::F32)?;
        let mut out = Tensor::zeros(device, &[m, n], DType::F32)?;
        let median = median_duration(|| linear(&mut out, &x, &weight, None).expect("the shapes agree"));
        best = best.max((2 * m * n * k) as f64 / median.as_secs_f64());
    }
    Ok(best)
}
