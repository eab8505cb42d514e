//! What a GPU does with models of 1B and 8B, and as one of several with larger ones: needs nothing but this executable, neither a network nor weights.
//!
//! `cargo run --release -p shard --example gpu_check [1b|8b|70b|tiny ..]` (default: 1b and 8b; `--help` lists what makes it shorter). Models of
//! these shapes are made of random numbers in the folder for temporary files (2.5 and 16 GB) and kept for the next time. Prints the device's
//! copy bandwidth, then the linear layers alone, decode steps and prompts, with the share of that bandwidth which their bytes are, or their
//! arithmetic; each is the median of at least seven. Decode steps are graphs, and their weights bfloat16 and quantised. "of ten" is a
//! step's time where ten are asked for before anybody waits: what is between the two, the host makes. Keys and values are what a step of a
//! long context reads beside one of a short context, so the two together say what attention reaches.
//!
//! The same numbers go to a file of JSON, in seconds and bytes, after every model: what a time limit cuts off does not take the rest with it.
//! `integration-tests/gpu-check` holds them against peers and goals.
//!
//! The bytes and products are those that the plan device counts, the same for whoever computes them.
//!
//! `--rank-of 8 --sum-us 8` measures what one rank of eight takes for a step: its slice of the weights, its heads, its part of the vocabulary.
//! Instead of talking to others, every sum over ranks and the gathering of logits takes as long as that says, whatever it is of, in graphs
//! too. With `--sum-us 0` the step is what the GPU computes alone. Prompts' sums take longer than a decode step's, so both cannot be had at once.

mod linears;
mod one_of;
mod shape;
mod step;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use kernels::Device;
use kernels::machine::copy_bandwidth;
use serde_json::{Value, json};
use shard::comm::{Comm, Single};
use shard::models::{Model, ModelOptions, Quantization};

use crate::one_of::OneOf;
use crate::shape::{SHAPES, Shape};
use crate::step::Step;

/// Measures random models on the first GPU.
#[derive(Parser)]
struct Args {
    /// Of 1b, 8b, 70b, tiny [default: 1b and 8b].
    shapes: Vec<String>,

    /// Of `bfloat16` and the modes of --quantize, with commas [default: all].
    #[arg(long, value_delimiter = ',')]
    weights: Option<Vec<String>>,

    /// Rows of decode steps, with commas [default: 1 to 256].
    #[arg(long, value_delimiter = ',')]
    rows: Option<Vec<usize>>,

    /// Positions of a decoding row, with commas [default: 64, 1024].
    #[arg(long, value_delimiter = ',')]
    contexts: Option<Vec<usize>>,

    /// Lengths of prompts, with commas; 0: none [default: 512, 4096, 16384].
    #[arg(long, value_delimiter = ',')]
    prompts: Option<Vec<usize>>,

    /// Leave the linear layers alone out, as for one rank of several.
    #[arg(long)]
    without_linears: bool,

    /// Measure one rank of so many; others are not there.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    rank_of: u16,

    /// Microseconds that a sum over ranks takes; 0: no time.
    #[arg(long, default_value_t = 0.0, requires = "rank_of")]
    sum_us: f64,

    /// Where the JSON is written.
    #[arg(long, default_value = "gpu-check.json")]
    json: PathBuf,
}

impl Args {
    fn shapes(&self) -> anyhow::Result<Vec<&'static Shape>> {
        let names: Vec<&str> =
            if self.shapes.is_empty() { vec!["1b", "8b"] } else { self.shapes.iter().map(String::as_str).collect() };
        let find = |name| {
            SHAPES.iter().find(|shape| shape.name == name).ok_or_else(|| anyhow::anyhow!("there is no shape {name:?}"))
        };
        names.into_iter().map(find).collect()
    }

    /// Types of weights: None is the checkpoint's own.
    fn weights(&self) -> anyhow::Result<Vec<Option<Quantization>>> {
        let all: Vec<_> = [None].into_iter().chain(Quantization::ALL.map(Some)).collect();
        let Some(names) = &self.weights else { return Ok(all) };
        let find = |name: &String| {
            let found = all.iter().copied().find(|weights| name_of(*weights) == name);
            found.ok_or_else(|| anyhow::anyhow!("there are no weights {name:?}"))
        };
        names.iter().map(find).collect()
    }
}

fn name_of(weights: Option<Quantization>) -> &'static str {
    weights.map_or("bfloat16", Quantization::name)
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let (shapes, weights) = (args.shapes()?, args.weights()?);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let device = Device::cuda(0, threads, &cuda_code::CODE, &|progress| println!("{progress}"))?;
    println!("{}", device.describe());
    let is_tiny = shapes.iter().all(|shape| shape.name == "tiny");
    let copied = copy_bandwidth(&device, if is_tiny { 1 << 20 } else { 4 << 30 })?.unwrap_or(f64::NAN);
    println!("copy: {:.2} TB/s, reads and writes", copied / 1e12);
    let mut report =
        json!({ "device": device.describe(), "copy_bytes_per_second": copied, "linears": [], "models": [] });
    let mut add = |list: &str, entry: Value| -> anyhow::Result<()> {
        report[list].as_array_mut().expect("made above").push(entry);
        Ok(std::fs::write(&args.json, format!("{report:#}\n"))?)
    };
    for shape in shapes {
        let rows = args.rows.as_deref().unwrap_or(shape.batches);
        if !args.without_linears && args.rank_of == 1 {
            for entry in linears::measure(shape, rows, &device, copied)? {
                add("linears", entry)?;
            }
        }
        for &weights in &weights {
            add("models", check(shape, weights, &args, &device, copied)?)?;
        }
    }
    Ok(())
}

/// Measures a shape with one type of weights, prints it, and returns the same as JSON.
fn check(
    shape: &Shape,
    quantization: Option<Quantization>,
    args: &Args,
    device: &Device,
    bandwidth: f64,
) -> anyhow::Result<Value> {
    let ranks = usize::from(args.rank_of);
    let dir = shape.write(ranks)?;
    let began = Instant::now();
    let options = ModelOptions { quantization, ..ModelOptions::default() };
    let batches = args.rows.as_deref().unwrap_or(shape.batches);
    let comm: Arc<dyn Comm> = if ranks == 1 {
        Arc::new(Single)
    } else {
        let max_rows = batches.iter().copied().max().unwrap_or(0).max(1);
        let sum = Duration::try_from_secs_f64(args.sum_us * 1e-6)?;
        Arc::new(OneOf::new(ranks, sum, shape, max_rows, device)?)
    };
    let model = Model::load(&dir, device, comm, &options)?;
    let (loading, gigabytes) = (began.elapsed(), model.weights_bytes() as f64 / 1e9);
    let mode = name_of(quantization);
    let of = if ranks == 1 { String::new() } else { format!(", one rank of {ranks}, sums of {} us", args.sum_us) };
    println!("\n{} in {mode}{of}: {gigabytes:.2} GB of weights, loaded in {loading:.1?}", shape.name);
    println!(
        "{:>9} {:>9} {:>10} {:>10} {:>12} {:>10} {:>9}",
        "rows", "context", "ms", "of ten", "tokens/s", "TB/s", "of copy"
    );
    let (mut decode, mut prefill) = (Vec::new(), Vec::new());
    for &context in args.contexts.as_deref().unwrap_or(shape.contexts) {
        for &rows in batches {
            let cost = Step::new(shape, rows, 1, context).measure(&model, device)?;
            decode.push(cost.report(rows, context));
            let bytes = cost.bytes / cost.seconds;
            println!(
                "{rows:>9} {context:>9} {:>10.3} {:>10.3} {:>12.0} {:>10.3} {:>8.0} %",
                cost.seconds * 1e3,
                cost.seconds_of_ten * 1e3,
                rows as f64 / cost.seconds,
                bytes / 1e12,
                100.0 * bytes / bandwidth,
            );
        }
    }
    println!("{:>9} {:>9} {:>10} {:>10} {:>12} {:>10}", "prompt", "", "ms", "", "tokens/s", "TFLOP/s");
    for &rows in args.prompts.as_deref().unwrap_or(shape.prompts).iter().filter(|rows| **rows > 0) {
        let cost = Step::new(shape, 1, rows, rows).measure(&model, device)?;
        prefill.push(cost.report(rows, rows));
        let (flops, tokens) = (cost.flops / cost.seconds / 1e12, rows as f64 / cost.seconds);
        println!("{rows:>9} {:>9} {:>10.3} {:>10} {tokens:>12.0} {flops:>10.1}", "", cost.seconds * 1e3, "");
    }
    Ok(json!({
        "shape": shape.name,
        "weights": mode,
        "rank_of": ranks,
        "sum_us": args.sum_us,
        "weights_bytes": model.weights_bytes(),
        "loading_seconds": loading.as_secs_f64(),
        "decode": decode,
        "prefill": prefill,
    }))
}
