//! The linear layers of a shape by themselves, with more weights than any cache holds: what is between them and a step, the rest of
//! the step takes.

use kernels::machine::median_duration;
use kernels::ops::linear;
use kernels::{DType, Device, LinearWeight, MatrixView, Tensor};
use serde_json::{Value, json};

use crate::shape::{Shape, random_bytes};

/// Bytes of the copies of a weight that are multiplied in turn: several times the level-2 cache of any GPU.
const ROTATED_BYTES: usize = 512 << 20;
/// Products of a graph, so that the host's part is small beside them.
const PRODUCTS: usize = 20;

/// Every layer at every number of rows: printed, and returned as JSON.
pub(crate) fn measure(shape: &Shape, rows: &[usize], device: &Device, bandwidth: f64) -> anyhow::Result<Vec<Value>> {
    println!("\n{}: linear layers in bfloat16", shape.name);
    println!(
        "{:>9} {:>15} {:>6} {:>10} {:>10} {:>10} {:>9}",
        "layer", "N x K", "rows", "us", "TB/s", "TFLOP/s", "of copy"
    );
    let mut entries = Vec::new();
    for (name, n, k) in shape.linears() {
        let numbers = random_bytes(2 * n * k);
        let matrix = MatrixView::dense(&numbers, DType::Bf16, n, k);
        let copies = if shape.name == "tiny" { 2 } else { (ROTATED_BYTES / numbers.len()).clamp(1, PRODUCTS - 1) + 1 };
        let weights: Vec<LinearWeight> =
            (0..copies).map(|_| LinearWeight::pack(device, &[matrix])).collect::<kernels::Result<_>>()?;
        for &rows in rows {
            let x = Tensor::from_bytes(device, &[rows, k], DType::Bf16, &random_bytes(2 * rows * k))?;
            let mut out = Tensor::zeros(device, &[rows, n], DType::Bf16)?;
            let mut ask =
                || weights.iter().cycle().take(PRODUCTS).try_for_each(|weight| linear(&mut out, &x, weight, None));
            // Once as it is: what the driver loads when a kernel first runs cannot be part of a graph.
            ask()?;
            let (_, graph) = device.capture(ask)?.expect("it is a GPU");
            let run = || -> kernels::Result<()> {
                // SAFETY: weights, rows and results live until the end of this turn, and `synchronize` waits for what reads them; linear
                // layers read no lists.
                unsafe { graph.launch() }?;
                device.synchronize()
            };
            run()?;
            let seconds = median_duration(|| run().expect("it ran once")).as_secs_f64() / PRODUCTS as f64;
            let (bytes, flops) = ((2 * (n * k + rows * (n + k))) as f64, (2 * rows * n * k) as f64);
            println!(
                "{name:>9} {:>15} {rows:>6} {:>10.1} {:>10.3} {:>10.1} {:>8.0} %",
                format!("{n} x {k}"),
                seconds * 1e6,
                bytes / seconds / 1e12,
                flops / seconds / 1e12,
                100.0 * bytes / seconds / bandwidth,
            );
            entries.push(json!({ "shape": shape.name, "layer": name, "n": n, "k": k, "rows": rows,
                "seconds": seconds, "bytes": bytes, "flops": flops }));
        }
    }
    Ok(entries)
}
