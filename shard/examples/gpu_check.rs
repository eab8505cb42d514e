//! What a GPU does with models of 1B and 8B: the first thing to run on a machine with one, and needs nothing but this executable.
//!
//! `cargo run --release -p shard --example gpu_check [1b|8b|tiny ...]` (default: 1b and 8b). Models of these shapes are made of random
//! numbers in the folder for temporary files (2.5 and 16 GB) and kept for the next time. Prints the device's copy bandwidth, then decode
//! steps and prompts with the share of that bandwidth which their bytes are, or their arithmetic; each is the median of at least seven.
//! Decode steps are graphs, and their weights bfloat16 and quantised. "of ten" is a step's time where ten are asked for before anybody
//! waits: what is between the two, the host makes. The same numbers are written to `gpu-check.json`, in seconds and bytes.
//!
//! The bytes and products are those that the plan device counts, the same for whoever computes them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use kernels::machine::{copy_bandwidth, median_duration};
use kernels::{Arena, BLOCK_SIZE, Device, StepLists};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::{Value, json};
use shard::comm::Single;
use shard::models::{DecodeGraphs, Model, ModelOptions, Quantization, SequenceRows, StepInput, StepRows};

/// A model's extents.
struct Shape {
    name: &'static str,
    hidden: usize,
    intermediate: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocab: usize,
    is_tied: bool,
    /// Positions of a decoding row; rows of decode steps; lengths of prompts.
    context: usize,
    batches: &'static [usize],
    prompts: &'static [usize],
}

/// Llama-3.2-1B's.
const LLAMA_1B: Shape = Shape {
    name: "1b",
    hidden: 2048,
    intermediate: 8192,
    layers: 16,
    heads: 32,
    kv_heads: 8,
    head_dim: 64,
    vocab: 128_256,
    is_tied: true,
    context: 1024,
    batches: &[1, 8, 32, 64, 128, 256],
    prompts: &[512, 4096, 16_384],
};

const SHAPES: [Shape; 3] = [
    LLAMA_1B,
    // Llama-3.1-8B's.
    Shape { name: "8b", hidden: 4096, intermediate: 14_336, layers: 32, head_dim: 128, is_tied: false, ..LLAMA_1B },
    // For a try of this program where the GPU is a simulated one.
    Shape {
        name: "tiny",
        hidden: 128,
        intermediate: 256,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 32,
        vocab: 512,
        is_tied: false,
        context: 64,
        batches: &[1, 3],
        prompts: &[80],
    },
];

fn main() -> anyhow::Result<()> {
    let named: Vec<String> = std::env::args().skip(1).collect();
    let is_wanted = |shape: &&Shape| match named.is_empty() {
        true => shape.name != "tiny",
        false => named.iter().any(|name| name == shape.name),
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let device = Device::cuda(0, threads, &cuda_code::CODE, &|progress| println!("{progress}"))?;
    println!("{}", device.describe());
    let is_tiny = named.iter().all(|name| name == "tiny") && !named.is_empty();
    let copied = copy_bandwidth(&device, if is_tiny { 1 << 20 } else { 4 << 30 })?.unwrap_or(f64::NAN);
    println!("copy: {:.2} TB/s, reads and writes", copied / 1e12);
    let mut models = Vec::new();
    for shape in SHAPES.iter().filter(is_wanted) {
        models.extend(check(shape, &device, copied)?);
    }
    let report = json!({ "device": device.describe(), "copy_bytes_per_second": copied, "models": models });
    std::fs::write("gpu-check.json", format!("{report:#}\n"))?;
    Ok(())
}

/// Measures a shape in every type of weights, prints it, and returns the same as JSON.
fn check(shape: &Shape, device: &Device, bandwidth: f64) -> anyhow::Result<Vec<Value>> {
    let dir = shape.write()?;
    let mut models = Vec::new();
    for quantization in [None, Some(Quantization::Int8), Some(Quantization::Fp8), Some(Quantization::Nf4)] {
        let began = Instant::now();
        let options = ModelOptions { quantization, ..ModelOptions::default() };
        let model = Model::load(&dir, device, Arc::new(Single), &options)?;
        let (loading, gigabytes) = (began.elapsed(), model.weights_bytes() as f64 / 1e9);
        let mode = quantization.map_or("bfloat16", Quantization::name);
        println!("\n{} in {mode}: {gigabytes:.2} GB of weights, loaded in {loading:.1?}", shape.name);
        println!(
            "{:>9} {:>9} {:>10} {:>10} {:>12} {:>10} {:>9}",
            "rows", "context", "ms", "of ten", "tokens/s", "TB/s", "of copy"
        );
        let (mut decode, mut prefill) = (Vec::new(), Vec::new());
        for &rows in shape.batches {
            let step = Step::new(shape, rows, 1, shape.context);
            let cost = step.measure(&model, device)?;
            decode.push(cost.report(rows));
            let bytes = cost.bytes / cost.seconds;
            println!(
                "{rows:>9} {:>9} {:>10.3} {:>10.3} {:>12.0} {:>10.3} {:>8.0} %",
                shape.context,
                cost.seconds * 1e3,
                cost.seconds_of_ten * 1e3,
                rows as f64 / cost.seconds,
                bytes / 1e12,
                100.0 * bytes / bandwidth,
            );
        }
        println!("{:>9} {:>9} {:>10} {:>10} {:>12} {:>10}", "prompt", "", "ms", "of ten", "tokens/s", "TFLOP/s");
        for &rows in shape.prompts {
            let step = Step::new(shape, 1, rows, rows);
            let cost = step.measure(&model, device)?;
            prefill.push(cost.report(rows));
            let (flops, tokens) = (cost.flops / cost.seconds / 1e12, rows as f64 / cost.seconds);
            let [ms, of_ten] = [cost.seconds, cost.seconds_of_ten].map(|seconds| seconds * 1e3);
            println!("{rows:>9} {:>9} {ms:>10.3} {of_ten:>10.3} {tokens:>12.0} {flops:>10.1}", "");
        }
        models.push(json!({
            "shape": shape.name,
            "weights": mode,
            "weights_bytes": model.weights_bytes(),
            "loading_seconds": loading.as_secs_f64(),
            "context": shape.context,
            "decode": decode,
            "prefill": prefill,
        }));
    }
    Ok(models)
}

/// Sequences that compute their last rows.
struct Step {
    tables: Vec<Vec<u32>>,
    rows: usize,
    context: usize,
    vocab: usize,
}

/// What a step takes.
struct Cost {
    seconds: f64,
    /// A tenth of ten in a row.
    seconds_of_ten: f64,
    bytes: f64,
    flops: f64,
}

impl Cost {
    fn report(&self, rows: usize) -> Value {
        let Cost { seconds, seconds_of_ten, bytes, flops } = self;
        json!({ "rows": rows, "seconds": seconds, "seconds_of_ten": seconds_of_ten, "bytes": bytes, "flops": flops })
    }
}

impl Step {
    fn new(shape: &Shape, sequences: usize, rows: usize, context: usize) -> Step {
        let blocks = context.div_ceil(BLOCK_SIZE);
        // As a server hands them out: sequences that grow side by side take blocks in turn.
        let table = |sequence| (0..blocks).map(move |block| (block * sequences + sequence) as u32).collect();
        Step { tables: (0..sequences).map(table).collect(), rows, context, vocab: shape.vocab }
    }

    fn measure(&self, model: &Model, device: &Device) -> anyhow::Result<Cost> {
        let Step { tables, rows, context, vocab } = self;
        let (sequences, start) = (tables.len(), context - rows);
        let positions: Vec<u32> = tables.iter().flat_map(|_| start as u32..*context as u32).collect();
        let slot = |table: &[u32], position: usize| {
            table[position / BLOCK_SIZE] * BLOCK_SIZE as u32 + (position % BLOCK_SIZE) as u32
        };
        let slots: Vec<u32> =
            tables.iter().flat_map(|table| (start..*context).map(move |at| slot(table, at))).collect();
        let ids: Vec<u32> = (0..positions.len()).map(|row| (row * 7919 % vocab) as u32).collect();
        let mut spans = Vec::with_capacity(sequences);
        for (index, table) in tables.iter().enumerate() {
            let (first_row, num_rows) = (index * rows, *rows);
            spans.push(SequenceRows { first_row, num_rows, start_position: start, block_table: table });
        }
        let sample_rows: Vec<u32> = (1..=sequences).map(|end| (end * rows - 1) as u32).collect();
        let step = StepRows {
            input_ids: &ids,
            continued: &[],
            positions: &positions,
            slot_mapping: &slots,
            sequences: &spans,
            sample_rows: &sample_rows,
        };

        let blocks = sequences * context.div_ceil(BLOCK_SIZE);
        let plan = model.plan(&step, blocks)?;
        let mut kv = model.new_kv_cache(blocks)?;
        let mut arena = Arena::new(device, plan.arena_bytes)?;
        let mut lists = StepLists::new(device, model.step_limits(ids.len(), sequences, sequences, *context))?;
        let single_rows = if *rows == 1 { &[sequences][..] } else { &[] };
        let mut graphs = DecodeGraphs::capture(single_rows, model, device, &mut arena, &mut kv, &mut lists)?;
        let mut run = |times: usize| -> anyhow::Result<()> {
            for _ in 0..times {
                let mark = arena.mark();
                match graphs.begin(&step, &mut lists)? {
                    Some(step) => {
                        lists.send()?;
                        step.forward(model, &mut arena)?;
                    }
                    None => {
                        lists.begin()?;
                        let input = StepInput::new(&step, &mut lists)?;
                        lists.send()?;
                        model.forward(&mut arena, &mut kv, &input)?;
                    }
                }
                arena.release(mark);
            }
            Ok(device.synchronize()?)
        };
        run(1)?;
        let mut median = |times| median_duration(|| run(times).expect("it ran once")).as_secs_f64() / times as f64;
        let (seconds, seconds_of_ten) = (median(1), median(10));
        Ok(Cost { seconds, seconds_of_ten, bytes: plan.cost.bytes as f64, flops: plan.cost.flops as f64 })
    }
}

impl Shape {
    /// The folder of a checkpoint of this shape.
    fn write(&self) -> anyhow::Result<PathBuf> {
        let dir = std::env::temp_dir().join(format!("gpu-check-{}", self.name));
        if dir.join("config.json").exists() {
            return Ok(dir);
        }
        std::fs::create_dir_all(&dir)?;
        self.write_weights(&dir.join("model.safetensors"))?;
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": self.hidden,
            "intermediate_size": self.intermediate, "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim, "vocab_size": self.vocab,
            "max_position_embeddings": 32_768, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "hidden_act": "silu",
            "tie_word_embeddings": self.is_tied, "torch_dtype": "bfloat16", "eos_token_id": 1,
        });
        // Last: a folder with it is complete.
        std::fs::write(dir.join("config.json"), config.to_string())?;
        Ok(dir)
    }

    fn write_weights(&self, path: &Path) -> anyhow::Result<()> {
        let Shape { hidden, intermediate, heads, kv_heads, head_dim, vocab, .. } = *self;
        let mut shapes = vec![
            ("model.embed_tokens.weight".to_owned(), vec![vocab, hidden]),
            ("model.norm.weight".to_owned(), vec![hidden]),
        ];
        if !self.is_tied {
            shapes.push(("lm_head.weight".to_owned(), vec![vocab, hidden]));
        }
        for layer in 0..self.layers {
            let tensors = [
                ("input_layernorm", vec![hidden]),
                ("self_attn.q_proj", vec![heads * head_dim, hidden]),
                ("self_attn.k_proj", vec![kv_heads * head_dim, hidden]),
                ("self_attn.v_proj", vec![kv_heads * head_dim, hidden]),
                ("self_attn.o_proj", vec![hidden, heads * head_dim]),
                ("post_attention_layernorm", vec![hidden]),
                ("mlp.gate_proj", vec![intermediate, hidden]),
                ("mlp.up_proj", vec![intermediate, hidden]),
                ("mlp.down_proj", vec![hidden, intermediate]),
            ];
            shapes.extend(
                tensors.into_iter().map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape)),
            );
        }
        let bytes_of = |shape: &[usize]| 2 * shape.iter().product::<usize>();
        // Numbers of about 0.02 with random signs and digits, as weights have; every tensor begins with the same ones.
        let longest = shapes.iter().map(|(_, shape)| bytes_of(shape)).max().unwrap_or(0);
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            half::bf16::from_f32(((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * 0.035).to_le_bytes()
        };
        let block: Vec<u8> = (0..longest.min(32 << 20) / 2).flat_map(|_| random()).collect();
        let numbers: Vec<u8> = block.iter().copied().cycle().take(longest).collect();
        let views = shapes.iter().map(|(name, shape)| {
            let view = TensorView::new(Dtype::BF16, shape.clone(), &numbers[..bytes_of(shape)]);
            (name, view.expect("there are as many numbers"))
        });
        Ok(serialize_to_file(views, None, path)?)
    }
}
