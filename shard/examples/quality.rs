//! What quantisation of weights or KV cache costs in quality: KL divergence and top-1 agreement against the same model in bfloat16, as a
//! table in Markdown.
//!
//! `cargo run --release -p shard --example quality -- [model folder]...` (default: the demo model). The text is what the bfloat16 model
//! itself writes, drawn from its own distribution after the prompts of the folder's golden.json, and every mode is shown the same
//! text (teacher forcing): so each position of the comparison is one that the model comes to in use.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kernels::ops::sample::gumbel_argmax;
use kernels::{Arena, BLOCK_SIZE, DType, Device, KvCache, KvDType};
use shard::comm::Single;
use shard::models::{Model, ModelOptions, Quantization, SequenceRows, StepInput, StepRows};

/// Texts per model: their positions, about 7,000, give the mean divergence to a few per cent.
const TEXTS: usize = 64;

/// Tokens of a text, if the model's context holds as many.
const TEXT_TOKENS: usize = 128;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut dirs: Vec<PathBuf> = std::env::args().skip(1).map(PathBuf::from).collect();
    if dirs.is_empty() {
        dirs.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("../launcher/demo-model"));
    }
    let device = Device::cpu(std::thread::available_parallelism().map_or(1, usize::from));
    println!("{}\n", device.describe());
    println!("| model | mode | weights MiB | KL mean | KL 99 % | KL largest | top-1 agreement | NLL | positions |");
    println!("|---|---|---|---|---|---|---|---|---|");
    for dir in dirs {
        let name = std::fs::canonicalize(&dir)?.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let bf16 = ModelOptions { dtype: Some(DType::Bf16), ..ModelOptions::default() };
        let mut reference = Run::load(&dir, &device, &bf16)?;
        let texts = reference.write(&prompts(&dir)?)?;
        let expected = texts.iter().map(|text| reference.logits(text, 0)).collect::<Result<Vec<_>, _>>()?;
        let modes = Quantization::ALL.map(Some);
        let float = ModelOptions { dtype: Some(DType::F32), ..ModelOptions::default() };
        let rows = [("bfloat16", bf16.clone()), ("float32", float)].into_iter();
        let quantized = modes
            .into_iter()
            .flatten()
            .map(|mode| (mode.name(), ModelOptions { quantization: Some(mode), ..bf16.clone() }));
        let kv = [KvDType::F8E4m3, KvDType::F8E5m2]
            .map(|kv_dtype| (format!("KV {kv_dtype}"), ModelOptions { kv_dtype: Some(kv_dtype), ..bf16.clone() }));
        let rows = rows.chain(quantized).map(|(mode, options)| (mode.to_owned(), options));
        for (mode, options) in rows.chain(kv) {
            let mut run = Run::load(&dir, &device, &options)?;
            let mut divergence = Divergence::default();
            for (text, expected) in texts.iter().zip(&expected) {
                for (at, (p, q)) in expected.iter().zip(run.logits(text, 0)?).enumerate() {
                    divergence.add(p, &q, text.get(at + 1).copied());
                }
            }
            println!(
                "| {name} | {mode} | {:.2} | {} |",
                run.model.weights_bytes() as f64 / f64::from(1 << 20),
                divergence.row()
            );
        }
    }
    Ok(())
}

/// The prompts of a folder's golden.json (either of its two forms), or else the token 1 alone.
fn prompts(dir: &Path) -> Result<Vec<Vec<u32>>, Box<dyn std::error::Error>> {
    let path = dir.join("golden.json");
    if !path.exists() {
        return Ok(vec![vec![1]]);
    }
    let golden: serde_json::Value = serde_json::from_slice(&std::fs::read(path)?)?;
    let cases = golden.get("cases").unwrap_or(&golden).as_array().ok_or("golden.json holds no list of cases")?;
    let ids = |case: &serde_json::Value| {
        let ids = case.get("prompt_ids").or(case.get("input_ids"));
        ids.and_then(|ids| serde_json::from_value(ids.clone()).ok()).ok_or("a case of golden.json has no token ids")
    };
    Ok(cases.iter().map(ids).collect::<Result<Vec<_>, _>>()?)
}

/// A model with room for one text.
struct Run {
    model: Model,
    device: Device,
    kv: KvCache,
    arena: Arena,
}

impl Run {
    fn load(dir: &Path, device: &Device, options: &ModelOptions) -> Result<Run, shard::Error> {
        let model = Model::load(dir, device, Arc::new(Single), options)?;
        let tokens = TEXT_TOKENS.min(model.spec().max_position_embeddings);
        let kv = model.new_kv_cache(tokens.div_ceil(BLOCK_SIZE))?;
        let arena = Arena::new(device, model.arena_bytes(tokens, 1, tokens))?;
        Ok(Run { model, device: device.clone(), kv, arena })
    }

    /// The texts: prompts, in turn, and what the model makes of them, by one seed each.
    fn write(&mut self, prompts: &[Vec<u32>]) -> Result<Vec<Vec<u32>>, shard::Error> {
        let tokens = TEXT_TOKENS.min(self.model.spec().max_position_embeddings);
        let write = |seed: usize| {
            let mut text = prompts[seed % prompts.len()].clone();
            text.truncate(tokens / 2);
            let mut next = self.logits(&text, 0)?.pop().unwrap_or_default();
            while text.len() < tokens {
                text.push(gumbel_argmax(&self.device, &next, None, seed as u64, text.len() as u32));
                next = self.logits(&text[text.len() - 1..], text.len() - 1)?.pop().unwrap_or_default();
            }
            Ok(text)
        };
        (0..TEXTS).map(write).collect()
    }

    /// The logits after each of `ids`, which begin at position `start` of the one sequence.
    fn logits(&mut self, ids: &[u32], start: usize) -> Result<Vec<Vec<f32>>, shard::Error> {
        let blocks: Vec<u32> = (0..(start + ids.len()).div_ceil(BLOCK_SIZE) as u32).collect();
        let positions: Vec<u32> = (start..start + ids.len()).map(|position| position as u32).collect();
        let step = StepRows {
            input_ids: ids,
            continued: &[],
            positions: &positions,
            slot_mapping: &positions,
            sequences: &[SequenceRows {
                first_row: 0,
                num_rows: ids.len(),
                start_position: start,
                block_table: &blocks,
            }],
            sample_rows: &(0..ids.len() as u32).collect::<Vec<_>>(),
        };
        let mark = self.arena.mark();
        let logits = self.model.forward(&mut self.arena, &mut self.kv, &StepInput::of_host(&step))?;
        let rows = logits.as_f32().chunks_exact(logits.cols()).map(<[f32]>::to_vec).collect();
        self.arena.release(mark);
        Ok(rows)
    }
}

/// How far one model's distributions are from another's.
#[derive(Default)]
struct Divergence {
    /// In nats, one per position.
    kl: Vec<f64>,
    /// Of the text, in nats.
    nll: Vec<f64>,
    agreed: usize,
}

impl Divergence {
    fn add(&mut self, p: &[f32], q: &[f32], next: Option<u32>) {
        let (log_p, log_q) = (log_softmax(p), log_softmax(q));
        self.kl.push(log_p.iter().zip(&log_q).map(|(p, q)| p.exp() * (p - q)).sum());
        self.agreed += usize::from(arg_max(&log_p) == arg_max(&log_q));
        self.nll.extend(next.map(|id| -log_q[id as usize]));
    }

    fn row(mut self) -> String {
        self.kl.sort_by(f64::total_cmp);
        let (count, mean) = (self.kl.len(), |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64);
        let (high, largest) = (self.kl[(count - 1) * 99 / 100], self.kl[count - 1]);
        let agreement = 100.0 * self.agreed as f64 / count as f64;
        format!(
            "{:.6} | {high:.5} | {largest:.4} | {agreement:.2} % | {:.4} | {count}",
            mean(&self.kl),
            mean(&self.nll)
        )
    }
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|x| f64::from(x - max).exp()).sum();
    logits.iter().map(|x| f64::from(x - max) - sum.ln()).collect()
}

fn arg_max(values: &[f64]) -> Option<usize> {
    (0..values.len()).max_by(|a, b| values[*a].total_cmp(&values[*b]).then(b.cmp(a)))
}
