//! The shard's command line, as the launcher writes it.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// One rank of a model: weights, KV cache, step executor.
#[derive(Clone, Debug, Parser)]
#[command(name = "text-generation-shard", version)]
pub struct Args {
    /// Folder with config.json and safetensors files.
    #[arg(long)]
    pub model_dir: PathBuf,

    /// This process's rank, below --world-size.
    #[arg(long, default_value_t = 0)]
    pub rank: usize,

    /// Ranks that the model is split over.
    #[arg(long, default_value = "1")]
    pub world_size: NonZeroUsize,

    /// The socket is this path with -RANK appended.
    #[arg(long, default_value = "/tmp/text-generation-server")]
    pub uds_path: String,

    /// What computes: the processor, or the GPU with the number of the rank among those that CUDA_VISIBLE_DEVICES shows.
    #[arg(long, default_value = "cpu")]
    pub device: DeviceKind,

    /// Part of a GPU's memory that may be used, above 0 and at most 1.
    #[arg(long, default_value_t = 1.0, value_parser = memory_fraction)]
    pub cuda_memory_fraction: f64,

    /// Numbers of rows whose decode steps are captured as graphs on a GPU, with commas; 0: none [default: some up to --max-batch-size].
    #[arg(long, value_delimiter = ',')]
    pub cuda_graphs: Option<Vec<usize>>,

    /// Threads that compute [default: the machine's, divided by --world-size].
    #[arg(long)]
    pub threads: Option<NonZeroUsize>,

    /// Sequences that can be live at once.
    #[arg(long, default_value = "64")]
    pub max_batch_size: NonZeroUsize,

    /// Tokens that one step may compute.
    #[arg(long, default_value = "512")]
    pub max_step_tokens: NonZeroUsize,

    /// Name of the ranks' shared-memory segment; needed if --world-size is above 1.
    #[arg(long)]
    pub comm_name: Option<String>,

    /// Element type of the weights [default: as in the checkpoint].
    #[arg(long)]
    pub dtype: Option<Dtype>,

    /// Quantise the weights of linear layers while loading, or expect a checkpoint that is quantised like this [default: as in the
    /// checkpoint].
    #[arg(long)]
    pub quantize: Option<Quantize>,

    /// Element type of the KV cache; `auto`: that of the weights before they are quantised.
    #[arg(long, default_value = "auto")]
    pub kv_cache_dtype: KvCacheDtype,

    /// Folder that keeps packed weights from one start to the next [default: none].
    #[arg(long)]
    pub packed_weights_cache: Option<PathBuf>,

    /// KV capacity in tokens over all sequences [default: from the available memory].
    #[arg(long)]
    pub max_batch_total_tokens: Option<usize>,

    /// Longest sequence, prompt and answer [default: the model's].
    #[arg(long)]
    pub max_total_tokens: Option<usize>,

    /// Stretches the model's positions beyond its training.
    #[arg(long, requires = "rope_factor")]
    pub rope_scaling: Option<RopeScaling>,

    /// By how much --rope-scaling stretches.
    #[arg(long, requires = "rope_scaling")]
    pub rope_factor: Option<f32>,

    /// Log JSON objects, one per line.
    #[arg(long)]
    pub json_output: bool,

    /// Exit when the parent process is no longer this one.
    #[arg(long)]
    pub parent_pid: Option<u32>,
}

/// Kinds of devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeviceKind {
    /// The processor.
    Cpu,
    /// A GPU.
    Cuda,
}

/// A part of memory: above 0 and at most 1.
///
/// # Errors
/// A sentence for the command line.
pub fn memory_fraction(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(fraction) if fraction > 0.0 && fraction <= 1.0 => Ok(fraction),
        _ => Err("it must be above 0 and at most 1".to_owned()),
    }
}

/// Element types of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    /// 32 bits.
    Float32,
    /// IEEE half.
    Float16,
    /// The upper half of a float32.
    Bfloat16,
}

/// Element types of the KV cache: those of 8 bits by the names of TGI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KvCacheDtype {
    /// That of the weights.
    Auto,
    /// The upper half of a float32.
    #[value(alias = "bfloat16")]
    Bf16,
    /// IEEE half.
    #[value(alias = "float16")]
    F16,
    /// 32 bits.
    #[value(alias = "float32")]
    F32,
    /// OCP FP8 with four bits of exponent.
    #[value(name = "fp8_e4m3fn")]
    Fp8E4m3fn,
    /// OCP FP8 with five bits of exponent.
    #[value(name = "fp8_e5m2")]
    Fp8E5m2,
}

/// Modes of quantisation, by the names of TGI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Quantize {
    /// 8-bit integers, a scale per output.
    Eetq,
    /// FP8 E4M3, a scale per output; or a checkpoint of such numbers.
    Fp8,
    /// 4-bit NormalFloat, a scale per output and 64 inputs; the output head has 8 bits.
    BitsandbytesNf4,
    /// A checkpoint that AWQ quantised.
    Awq,
    /// A checkpoint that GPTQ quantised.
    Gptq,
    /// A checkpoint of FP8 numbers that compressed-tensors describes.
    CompressedTensors,
}

/// Kinds of RoPE scaling that TGI offers on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RopeScaling {
    /// Positions divided by the factor.
    Linear,
    /// NTK-aware base, by the factor.
    Dynamic,
}

impl Args {
    /// Numbers of rows whose decode steps are captured as graphs: as asked for, or up to all rows that can be live, each
    /// 8 or a quarter more than the one before: so little is computed for nothing.
    pub fn graph_rows(&self) -> Vec<usize> {
        let most = self.max_batch_size.get();
        if let Some(asked) = &self.cuda_graphs {
            return asked.iter().copied().filter(|rows| (1..=most).contains(rows)).collect();
        }
        let mut rows = vec![1];
        while let Some(&last) = rows.last()
            && last < most
        {
            rows.push((last + last.clamp(1, 8).max(last / 4 / 8 * 8)).min(most));
        }
        rows
    }

    /// Threads that compute.
    pub fn compute_threads(&self) -> usize {
        let machine = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        self.threads.map_or_else(|| (machine() / self.world_size.get()).max(1), NonZeroUsize::get)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_launchers_command_line_parses() {
        let line = "shard --model-dir /m --rank 1 --world-size 2 --uds-path /tmp/u --threads 3 --max-batch-size 8 \
                    --max-step-tokens 256 --comm-name /c --dtype bfloat16 --max-batch-total-tokens 4096 \
                    --packed-weights-cache /w --max-total-tokens 1024 --rope-scaling linear --rope-factor 2.5 \
                    --quantize bitsandbytes-nf4 --kv-cache-dtype fp8_e5m2 --json-output --device cuda \
                    --cuda-memory-fraction 0.9 --cuda-graphs 1,8";
        let args = Args::try_parse_from(line.split_whitespace()).unwrap();
        assert_eq!((args.rank, args.world_size.get(), args.compute_threads()), (1, 2, 3));
        assert_eq!((args.dtype, args.rope_scaling), (Some(Dtype::Bfloat16), Some(RopeScaling::Linear)));
        assert_eq!(args.kv_cache_dtype, KvCacheDtype::Fp8E5m2);
        assert_eq!((args.rope_factor, args.quantize), (Some(2.5), Some(Quantize::BitsandbytesNf4)));
        assert_eq!((args.device, args.cuda_memory_fraction), (DeviceKind::Cuda, 0.9));
        assert_eq!(args.graph_rows(), [1, 8]);
        let graphs = |line: &str| Args::try_parse_from(line.split_whitespace()).unwrap().graph_rows();
        assert!(graphs("shard --model-dir m --cuda-graphs 0").is_empty());
        assert_eq!(graphs("shard --model-dir m --cuda-graphs 1,99 --max-batch-size 12"), [1]);
        assert_eq!(graphs("shard --model-dir m --max-batch-size 12"), [1, 2, 4, 8, 12]);
        assert_eq!(graphs("shard --model-dir m --max-batch-size 80"), [1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64, 80]);
        assert!(args.json_output);
        let quantize = |line: &str| Args::try_parse_from(line.split_whitespace()).unwrap().quantize;
        assert_eq!(quantize("shard --model-dir m --quantize awq"), Some(Quantize::Awq));
        assert_eq!(quantize("shard --model-dir m --quantize gptq"), Some(Quantize::Gptq));
    }

    #[test]
    fn impossible_values_are_refused() {
        let refused = |line: &str| Args::try_parse_from(line.split_whitespace()).unwrap_err().to_string();
        assert!(refused("shard").contains("--model-dir"));
        assert!(refused("shard --model-dir m --world-size 0").contains("--world-size"));
        assert!(refused("shard --model-dir m --max-step-tokens 0").contains("--max-step-tokens"));
        assert!(refused("shard --model-dir m --dtype int3").contains("float32"));
        assert!(refused("shard --model-dir m --kv-cache-dtype fp8").contains("fp8_e4m3fn"));
        assert!(refused("shard --model-dir m --quantize exl2").contains("bitsandbytes-nf4"));
        assert!(refused("shard --model-dir m --rope-scaling linear").contains("--rope-factor"));
        assert!(refused("shard --model-dir m --cuda-memory-fraction 1.1").contains("at most 1"));
    }
}
