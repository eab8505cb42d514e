//! Prints what the operations reach beside what the machine can do: `just bench [threads] [filter]`.
//!
//! Medians of several runs. "roof" is the larger of bytes / read bandwidth and FLOPs / peak, the time no implementation
//! can beat; the last column is roof / measured. Linears are measured with weights that no cache holds, each round beside the
//! roofs of the same moment; quartiles of the share stand in brackets.

use std::ops::Range;
use std::time::{Duration, Instant};

use half::f16;
use kernels::machine::{ReadBuffer, ReadPattern, bf16_pass, bf16_peak, fma_pass, fma_peak, median_duration};
use kernels::ops::{
    Activation, AttentionRows, RmsScale, RopeTable, Scoring, SequenceRows, activate, add_rms_norm, attention, linear,
    rope_and_store_kv, sample,
};
use kernels::{
    BLOCK_SIZE, DType, Device, Int4Rows, Int4Source, KvCache, KvDType, LinearWeight, MatrixView, Result, Tensor,
    WeightType,
};

struct Bench {
    device: Device,
    filter: String,
    memory: ReadBuffer,
    pattern: ReadPattern,
    bandwidth: f64,
    peak: f64,
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let threads = args.next().and_then(|arg| arg.parse().ok()).unwrap_or(cores);
    let device = Device::cpu(threads);
    let memory = ReadBuffer::new(&device, 512 << 20)?;
    let (pattern, bandwidth) = memory.bandwidth().expect("a processor reads");
    let (_, cached) = ReadBuffer::new(&device, 512 << 10)?.bandwidth().expect("a processor reads");
    let peak = fma_peak(&device).expect("a processor computes");
    println!("{}", device.describe());
    println!("memory {:.1} GB/s ({pattern:?}), cache (512 KiB) {:.1} GB/s", bandwidth / 1e9, cached / 1e9);
    println!("fused multiply-add {:.1} GFLOP/s", peak / 1e9);
    if let Some(peak) = bf16_peak(&device) {
        println!("bf16 dot products {:.1} GFLOP/s", peak / 1e9);
    }
    println!("\n{:<44} {:>10} {:>9} {:>9} {:>6}", "operation", "time", "GB/s", "GFLOP/s", "roof");
    let bench = Bench { device, filter: args.next().unwrap_or_default(), memory, pattern, bandwidth, peak };
    bench.linears()?;
    bench.attentions()?;
    bench.rows()?;
    bench.sampling()
}

/// A matrix of 4-bit integers.
struct Codes {
    n: usize,
    k: usize,
}

impl Int4Source for Codes {
    fn rows(&self) -> usize {
        self.n
    }

    fn cols(&self) -> usize {
        self.k
    }

    fn read(&self, rows: Range<usize>, out: &mut Int4Rows) {
        let groups = rows.len() * self.k / 64;
        out.codes = (0..groups * 32).map(|at| at as u8).collect();
        out.scales = vec![f16::from_f32(0.01); groups];
        out.zeros = vec![8; groups];
    }
}

impl Bench {
    fn report(&self, name: &str, bytes: usize, flops: usize, f: impl FnMut()) {
        if !name.contains(&self.filter) {
            return;
        }
        let seconds = median_duration(f).as_secs_f64();
        let roof = (bytes as f64 / self.bandwidth).max(flops as f64 / self.peak);
        let (rate, speed) = (bytes as f64 / seconds / 1e9, flops as f64 / seconds / 1e9);
        println!("{name:<44} {:>7.1} µs {rate:>9.1} {speed:>9.1} {:>5.0}%", seconds * 1e6, 100.0 * roof / seconds);
    }

    /// The shapes of the demo model, of SmolLM2-135M and of Llama-3.2-1B, with the rows of decode and prefill.
    fn linears(&self) -> Result<()> {
        let demo = [(768, 256), (256, 256), (1024, 256), (256, 512), (2048, 256)];
        let small = [(960, 576), (576, 576), (3072, 576), (576, 1536), (49152, 576)];
        let large = [(3072, 2048), (2048, 2048), (16384, 2048), (2048, 8192), (128_256, 2048)];
        for (n, k) in demo.into_iter().chain(small).chain(large) {
            let floats = [DType::Bf16, DType::F32].map(WeightType::Float);
            let quantised = [WeightType::Int8, WeightType::Fp8, WeightType::Nf4, WeightType::Int4];
            for weight_type in floats.into_iter().chain(quantised) {
                let stored = match weight_type {
                    WeightType::Float(dtype) => dtype.to_string(),
                    quantised => format!("{quantised:?}").to_lowercase(),
                };
                let name = |m| format!("linear {stored} M={m} N={n} K={k}");
                let rows = [1, 2, 4, 8, 16, 32, 64, 512, 2048];
                // Logits are computed for the last row of a prompt only.
                let rows = rows.into_iter().filter(|m| name(*m).contains(&self.filter) && (n < 1 << 15 || *m <= 64));
                let rows: Vec<usize> = rows.collect();
                if !rows.is_empty() {
                    self.linear(&rows, n, k, weight_type, name)?;
                }
            }
        }
        Ok(())
    }

    /// Every round measures the linear between two looks at the roofs: on a machine that is not alone, they move from one
    /// tenth of a second to the next. Calls take copies of the weight in turn, so that no cache serves them.
    fn linear(
        &self,
        rows: &[usize],
        n: usize,
        k: usize,
        weight_type: WeightType,
        name: impl Fn(usize) -> String,
    ) -> Result<()> {
        const COPIES_BYTES: usize = 256 << 20;
        const BATCH: Duration = Duration::from_millis(3);
        const ROUNDS: usize = 15;
        let source: Vec<u8> = (0..n * k * 2).map(|byte| (byte % 60) as u8).collect();
        let matrix = MatrixView::dense(&source, DType::Bf16, n, k);
        let pack = || match weight_type {
            WeightType::Int4 => LinearWeight::pack_int4(&self.device, &[&Codes { n, k }]),
            weight_type => LinearWeight::pack_as(&self.device, &[matrix], weight_type),
        };
        let first = pack()?;
        let copies = COPIES_BYTES.div_ceil(first.bytes());
        let weights = std::iter::once(Ok(first)).chain((1..copies).map(|_| pack())).collect::<Result<Vec<_>>>()?;
        for &m in rows {
            let x = Tensor::zeros(&self.device, &[m, k], DType::F32)?;
            let mut out = Tensor::zeros(&self.device, &[m, n], DType::F32)?;
            let mut turn = weights.iter().cycle();
            let mut run = |calls: usize| {
                let start = Instant::now();
                for weight in turn.by_ref().take(calls) {
                    linear(&mut out, &x, weight, None).expect("the shapes agree");
                }
                start.elapsed() / calls as u32
            };
            let calls = (BATCH.as_secs_f64() / run(copies).as_secs_f64()).ceil() as usize;
            let (bytes, flops) = (weights[0].bytes() + x.bytes() + m * n * 4, 2 * m * n * k);
            let mut times = Vec::new();
            let mut shares = Vec::new();
            for round in 0..ROUNDS {
                let roofs = || (self.memory_pass(round), self.peak_pass(weight_type));
                let (before, seconds, after) = (roofs(), run(calls).as_secs_f64(), roofs());
                let roof = |(bandwidth, peak): (f64, f64)| (bytes as f64 / bandwidth).max(flops as f64 / peak);
                times.push(seconds);
                shares.push((roof(before) + roof(after)) / 2.0 / seconds);
            }
            times.sort_by(f64::total_cmp);
            shares.sort_by(f64::total_cmp);
            let seconds = times[ROUNDS / 2];
            let (rate, speed) = (bytes as f64 / seconds / 1e9, flops as f64 / seconds / 1e9);
            let [low, median, high] = [ROUNDS / 4, ROUNDS / 2, ROUNDS - 1 - ROUNDS / 4].map(|at| 100.0 * shares[at]);
            let (name, micros) = (name(m), seconds * 1e6);
            println!("{name:<44} {micros:>7.1} µs {rate:>9.1} {speed:>9.1} {median:>5.0}% [{low:.0}, {high:.0}]");
        }
        Ok(())
    }

    /// Bytes per second of one pass over a part of the buffer.
    fn memory_pass(&self, round: usize) -> f64 {
        const PARTS: usize = 8;
        self.memory.pass(self.pattern, round % PARTS, PARTS).expect("a processor reads")
    }

    /// FLOPs per second of the multiply-adds that a linear with weights of `weight_type` is made of. Dot products of bytes have no
    /// roof here: with them, many rows may be faster than the one that is taken.
    fn peak_pass(&self, weight_type: WeightType) -> f64 {
        let pairs = match weight_type {
            WeightType::Float(DType::Bf16) | WeightType::Fp8 => bf16_pass(&self.device),
            _ => None,
        };
        pairs.or_else(|| fma_pass(&self.device)).expect("a processor computes")
    }

    fn attentions(&self) -> Result<()> {
        let decode = |sequences: usize, context: usize| (sequences, 1, context - 1);
        for (heads, kv_heads, dim) in [(8, 4, 32), (32, 8, 64), (32, 8, 128)] {
            for (sequences, rows, start) in
                // One long sequence, some, many; a prompt's first chunk, a whole prompt, a late chunk.
                [
                    decode(1, 256),
                    decode(1, 2048),
                    decode(1, 16_384),
                    decode(8, 2048),
                    decode(32, 1024),
                    decode(64, 80),
                    decode(64, 256),
                    decode(64, 1024),
                    (1, 512, 0),
                    (1, 2048, 0),
                    (1, 512, 3584),
                ]
            {
                let context = start + rows;
                let blocks = context.div_ceil(BLOCK_SIZE);
                let kv = KvCache::new(&self.device, 1, sequences * blocks, kv_heads, dim, KvDType::Bf16)?;
                // As a server hands them out: rows that grow side by side take blocks in turn.
                let id = |s: usize, block: usize| (block * sequences + s) as u32;
                let ids: Vec<u32> = (0..sequences).flat_map(|s| (0..blocks).map(move |b| id(s, b))).collect();
                let step: Vec<_> = (0..sequences)
                    .map(|s| SequenceRows {
                        first_row: s * rows,
                        num_rows: rows,
                        start_position: start,
                        block_table: &ids[s * blocks..][..blocks],
                    })
                    .collect();
                let tokens = sequences * rows;
                let qkv = Tensor::zeros(&self.device, &[tokens, (heads + 2 * kv_heads) * dim], DType::F32)?;
                let mut out = Tensor::zeros(&self.device, &[tokens, heads * dim], DType::F32)?;
                let pairs = sequences * (start + 1..=context).sum::<usize>();
                let name = format!("attention {heads}/{kv_heads}x{dim} {sequences}x{rows} rows, context {context}");
                let bytes = 2 * out.bytes() + kv.bytes();
                let scoring = Scoring { scale: 0.125, softcap: None, window: None };
                self.report(&name, bytes, 4 * pairs * heads * dim, || {
                    attention(&mut out, &qkv, &kv, 0, &AttentionRows::new(&step), scoring).expect("the shapes agree");
                });
            }
        }
        Ok(())
    }

    fn rows(&self) -> Result<()> {
        self.report("hand-over of 8 empty pieces", 0, 0, || self.device.for_each(8, |_| {}));
        for (tokens, hidden, inter) in [(1, 256, 512), (64, 256, 512), (64, 2048, 8192)] {
            let zeros = |cols| Tensor::zeros(&self.device, &[tokens, cols], DType::F32);
            let (mut out, mut residual, x) = (zeros(hidden)?, zeros(hidden)?, zeros(hidden)?);
            let weight = Tensor::zeros(&self.device, &[hidden], DType::F32)?;
            let scale = RmsScale { weight: &weight, eps: 1e-5, rounds_first: true };
            self.report(&format!("add_rms_norm {tokens}x{hidden}"), 4 * out.bytes(), 5 * out.len(), || {
                add_rms_norm(&mut out, &mut residual, &x, scale).expect("the shapes agree");
            });
            let (mut out, gate_up) = (zeros(inter)?, zeros(2 * inter)?);
            for activation in [Activation::Silu, Activation::Gelu, Activation::GeluTanh] {
                let name = format!("{activation:?} as a gate {tokens}x{inter}");
                self.report(&name, 3 * out.bytes(), 4 * out.len(), || {
                    activate(&mut out, &gate_up, activation).expect("the shapes agree");
                });
            }
            let (heads, kv_heads) = (hidden / 64, (hidden / 256).max(1));
            let mut qkv = zeros((heads + 2 * kv_heads) * 64)?;
            let rope = RopeTable::new(&self.device, 64, 1024, &[0.5; 32], 1.0)?;
            let mut kv = KvCache::new(&self.device, 1, tokens.div_ceil(BLOCK_SIZE), kv_heads, 64, KvDType::Bf16)?;
            let positions: Vec<u32> = (0..tokens as u32).collect();
            self.report(&format!("rope_and_store_kv {tokens}x{hidden}"), 2 * qkv.bytes(), 3 * qkv.len(), || {
                rope_and_store_kv(&mut qkv, heads, &rope, &positions, &positions, &mut kv, 0)
                    .expect("the shapes agree");
            });
        }
        Ok(())
    }

    fn sampling(&self) -> Result<()> {
        for vocab in [2048, 128_256] {
            // Logits as a language model gives them: a few large ones, the rest in a wide valley.
            let logits: Vec<f32> = (0..vocab).map(|id| ((id * 7919) % vocab) as f32 / vocab as f32 * 16.0).collect();
            let bytes = 4 * vocab;
            self.report(&format!("row_stats {vocab}"), bytes, 0, || {
                std::hint::black_box(sample::row_stats(&self.device, &logits));
            });
            self.report(&format!("argmax {vocab}"), bytes, 0, || {
                std::hint::black_box(sample::argmax(&self.device, &logits));
            });
            let mut position = 0;
            self.report(&format!("gumbel_argmax {vocab}"), bytes, 0, || {
                position += 1;
                std::hint::black_box(sample::gumbel_argmax(&self.device, &logits, None, 1, position));
            });
            let mut scratch = Vec::new();
            self.report(&format!("visit_descending {vocab}, 50 entries"), bytes, 0, || {
                let mut left = 50;
                sample::visit_descending(&logits, &mut scratch, |_| {
                    left -= 1;
                    left > 0
                });
            });
        }
        Ok(())
    }
}
