//! Prints what the operations reach beside what the machine can do: `just bench [threads] [filter]`.
//!
//! Medians of several runs. "roof" is the larger of bytes / read bandwidth and FLOPs / peak, the time no implementation
//! can beat; the last column is roof / measured.

use kernels::machine::{fma_peak, median_duration, read_bandwidth};
use kernels::ops::{
    AttentionRows, RopeTable, SequenceRows, add_rms_norm, attention, linear, rope_and_store_kv, sample, silu_mul,
};
use kernels::{BLOCK_SIZE, DType, Device, KvCache, KvDType, LinearWeight, MatrixView, Result, Tensor, WeightType};

struct Bench {
    device: Device,
    filter: String,
    bandwidth: f64,
    peak: f64,
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let threads = args.next().and_then(|arg| arg.parse().ok()).unwrap_or(cores);
    let device = Device::cpu(threads);
    let bandwidth = read_bandwidth(&device, 512 << 20)?.expect("a processor reads");
    let cached = read_bandwidth(&device, 512 << 10)?.expect("a processor reads");
    let peak = fma_peak(&device).expect("a processor computes");
    println!("{}", device.describe());
    println!("memory {:.1} GB/s, cache (512 KiB) {:.1} GB/s", bandwidth / 1e9, cached / 1e9);
    println!("fused multiply-add {:.1} GFLOP/s\n", peak / 1e9);
    println!("{:<44} {:>10} {:>9} {:>9} {:>6}", "operation", "time", "GB/s", "GFLOP/s", "roof");
    let bench = Bench { device, filter: args.next().unwrap_or_default(), bandwidth, peak };
    bench.linears()?;
    bench.attentions()?;
    bench.rows()?;
    bench.sampling()
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

    /// The demo model's shapes, then those of a model of one billion parameters.
    fn linears(&self) -> Result<()> {
        let shapes =
            [(768, 256), (256, 256), (1024, 256), (256, 512), (2048, 256), (3072, 2048), (16384, 2048), (2048, 8192)];
        for (n, k) in shapes {
            let floats = [DType::Bf16, DType::F32].map(WeightType::Float);
            for weight_type in floats.into_iter().chain([WeightType::Int8, WeightType::Fp8, WeightType::Nf4]) {
                let bytes = vec![0u8; n * k * 2];
                let matrix = MatrixView::dense(&bytes, DType::Bf16, n, k);
                let weight = LinearWeight::pack_as(&self.device, &[matrix], weight_type)?;
                let format = weight.format_name();
                for m in [1, 4, 8, 64, 512] {
                    let x = Tensor::zeros(&self.device, &[m, k], DType::F32)?;
                    let mut out = Tensor::zeros(&self.device, &[m, n], DType::F32)?;
                    let bytes = weight.bytes() + x.bytes() + out.bytes();
                    self.report(&format!("linear {format} M={m} N={n} K={k}"), bytes, 2 * m * n * k, || {
                        linear(&mut out, &x, &weight, None).expect("the shapes agree");
                    });
                }
            }
        }
        Ok(())
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
                self.report(&name, bytes, 4 * pairs * heads * dim, || {
                    attention(&mut out, &qkv, &kv, 0, &AttentionRows { sequences: &step }, 0.125, None)
                        .expect("the shapes agree");
                });
            }
        }
        Ok(())
    }

    fn rows(&self) -> Result<()> {
        for (tokens, hidden, inter) in [(1, 256, 512), (64, 256, 512), (64, 2048, 8192)] {
            let zeros = |cols| Tensor::zeros(&self.device, &[tokens, cols], DType::F32);
            let (mut out, mut residual, x) = (zeros(hidden)?, zeros(hidden)?, zeros(hidden)?);
            let weight = Tensor::zeros(&self.device, &[hidden], DType::F32)?;
            self.report(&format!("add_rms_norm {tokens}x{hidden}"), 4 * out.bytes(), 5 * out.len(), || {
                add_rms_norm(&mut out, &mut residual, &x, &weight, 1e-5).expect("the shapes agree");
            });
            let (mut out, gate_up) = (zeros(inter)?, zeros(2 * inter)?);
            self.report(&format!("silu_mul {tokens}x{inter}"), 3 * out.bytes(), 4 * out.len(), || {
                silu_mul(&mut out, &gate_up).expect("the shapes agree");
            });
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
