//! The command line: TGI's flag and environment names for everything that exists here.
//!
//! Flags of TGI that do nothing here, or nothing yet, are rows of the tables in `compatibility.rs`.

use clap::builder::BoolishValueParser;
use clap::{ArgAction, CommandFactory, FromArgMatches, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use proto::MAX_DRAFT_TOKENS;
use router::api_key::ApiKey;
use router::limits::{MAX_GRACE_SECONDS, MAX_REQUEST_TIMEOUT_SECONDS};
use shard::args::memory_fraction;

use crate::compatibility::{self, Knob};

/// Serves a large language model over TGI's and OpenAI's HTTP routes.
///
/// Without arguments it serves a small demonstration model that is embedded in this executable. Every flag can be given
/// as an environment variable too; the command line wins.
#[derive(clap::Parser, Debug)]
#[command(name = "text-generation-launcher", version, max_term_width = 110, after_help = AFTER_HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) model: Model,
    #[command(flatten)]
    pub(crate) shards: Shards,
    #[command(flatten)]
    pub(crate) server: Server,
    #[command(flatten)]
    pub(crate) limits: Limits,
    #[command(flatten)]
    pub(crate) operation: Operation,
}

const AFTER_HELP: &str = "\
Try:
  text-generation-launcher
  curl http://127.0.0.1:3000/v1/chat/completions -H 'Content-Type: application/json' \\
       -d '{\"messages\": [{\"role\": \"user\", \"content\": \"What is two plus three?\"}]}'";

/// What is served.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Model")]
pub(crate) struct Model {
    /// Folder with config.json, tokenizer.json and *.safetensors. Without it: the embedded demo model.
    #[arg(long, env, value_name = "FOLDER")]
    pub(crate) model_id: Option<String>,
    /// Convert the weights to this type while loading [default: as in the checkpoint].
    #[arg(long, env)]
    pub(crate) dtype: Option<Dtype>,
    /// Quantise the weights of linear layers while loading: `eetq` (8-bit integers), `fp8`, `bitsandbytes-nf4` (4 bits). Or expect a
    /// checkpoint that is quantised already: `awq`, `gptq`, `fp8`, `compressed-tensors` [default: as in the checkpoint].
    #[arg(long, env, value_name = "MODE", hide_possible_values = true)]
    pub(crate) quantize: Option<Quantize>,
    /// Store keys and values in this type: `fp8_e4m3fn` and `fp8_e5m2` take half the memory of 16 bits, and of its traffic.
    /// `auto`: the type of the weights before they are quantised.
    #[arg(long, env, default_value = "auto")]
    pub(crate) kv_cache_dtype: KvCacheDtype,
    /// Folder that keeps the weights as they are packed for this machine, so that a restart need not pack them again. As large
    /// as the weights; its files are replaced when the model changes.
    #[arg(long, env, value_name = "FOLDER")]
    pub(crate) packed_weights_cache: Option<PathBuf>,
    /// RoPE scaling instead of the one in config.json.
    #[arg(long, env)]
    pub(crate) rope_scaling: Option<RopeScaling>,
    /// Factor of the RoPE scaling; without `--rope-scaling` it means linear.
    #[arg(long, env)]
    pub(crate) rope_factor: Option<f32>,
    /// A tokenizer_config.json (chat template) to use instead of the model's own.
    #[arg(long, env, value_name = "FILE")]
    pub(crate) tokenizer_config_path: Option<String>,
}

/// What computes, and how the model is spread over processes.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Shards")]
pub(crate) struct Shards {
    /// What computes: `cpu`, or `cuda` for an NVIDIA GPU (its kernels were not yet confirmed on one: docs/gpu-status.md).
    #[arg(long, env, default_value = "cpu", hide_possible_values = true)]
    pub(crate) device: DeviceKind,
    /// Part of a GPU's memory that may be used, above 0 and at most 1.
    #[arg(long, env, value_name = "FRACTION", default_value_t = 1.0, value_parser = cuda_memory_fraction)]
    pub(crate) cuda_memory_fraction: f64,
    /// Numbers of rows whose decode steps are captured as CUDA graphs, with commas; 0: none [default: some up to the batch size].
    #[arg(long, env, value_name = "ROWS")]
    pub(crate) cuda_graphs: Option<GraphRows>,
    /// Number of tensor-parallel shard processes, each on a GPU of its own with --device cuda [default: the GPUs that CUDA_VISIBLE_DEVICES or
    /// NVIDIA_VISIBLE_DEVICES name, else 1].
    #[arg(long, env)]
    pub(crate) num_shard: Option<usize>,
    /// Demand (true) or forbid (false) tensor parallelism.
    #[arg(long, env, value_name = "BOOL", value_parser = BoolishValueParser::new())]
    pub(crate) sharded: Option<bool>,
    /// Prefix of the shards' unix sockets: shard r listens on {PREFIX}-{r} [default: a private folder].
    #[arg(long, env, value_name = "PREFIX")]
    pub(crate) shard_uds_path: Option<String>,
}

/// Where clients connect.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "HTTP")]
pub(crate) struct Server {
    /// IP address to listen on. A name that is no address (Docker sets HOSTNAME to one) means 0.0.0.0.
    #[arg(long, env, default_value = "0.0.0.0")]
    pub(crate) hostname: String,
    /// Port to listen on.
    #[arg(short, long, env, default_value_t = 3000)]
    pub(crate) port: u16,
    /// Origin that browsers may call from; may be repeated [default: any].
    #[arg(long, env, value_name = "ORIGIN")]
    pub(crate) cors_allow_origin: Vec<String>,
    /// Largest request body in bytes; beyond it 413.
    #[arg(long, env, value_name = "BYTES", default_value_t = 2_000_000)]
    pub(crate) payload_limit: usize,
    /// Key that clients must send, as `Authorization: Bearer KEY` or `x-api-key: KEY`; may be repeated, or a list with
    /// commas [default: none, everyone is served]. Prefer the environment: other users of the machine can read a command
    /// line.
    #[arg(long, env, value_name = "KEY", value_delimiter = ',', hide_env_values = true)]
    pub(crate) api_key: Vec<ApiKey>,
    /// Seconds a request may take until its answer is complete; then 504, or an error event if it streams [default: no
    /// limit].
    #[arg(long, env, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=MAX_REQUEST_TIMEOUT_SECONDS))]
    pub(crate) request_timeout: Option<u64>,
    /// Path of predictions on Vertex AI, which sets the variable: the same as /vertex.
    #[arg(long, env, value_name = "PATH", hide_short_help = true)]
    pub(crate) aip_predict_route: Option<String>,
    /// Path of health checks on Vertex AI, which sets the variable: the same as /health.
    #[arg(long, env, value_name = "PATH", hide_short_help = true)]
    pub(crate) aip_health_route: Option<String>,
    /// Port that Vertex AI connects to (it sets the variable); it wins over --port.
    #[arg(long, env, value_name = "PORT", hide_short_help = true)]
    pub(crate) aip_http_port: Option<u16>,
}

/// What one request, and all of them together, may take.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Limits")]
pub(crate) struct Limits {
    /// Requests in the server at one time; beyond it 429.
    #[arg(long, env, default_value_t = 128)]
    pub(crate) max_concurrent_requests: usize,
    /// Largest `best_of`.
    #[arg(long, env, default_value_t = 2)]
    pub(crate) max_best_of: usize,
    /// Most stop strings of a request.
    #[arg(long, env, default_value_t = 4)]
    pub(crate) max_stop_sequences: usize,
    /// Largest `top_n_tokens`. `top_logprobs` goes to 20, as in OpenAI's API.
    #[arg(long, env, default_value_t = 5)]
    pub(crate) max_top_n_tokens: u32,
    /// Most tokens of a prompt [default: the context minus one].
    #[arg(long, env)]
    pub(crate) max_input_tokens: Option<usize>,
    /// Older name of --max-input-tokens.
    #[arg(long, env, hide_short_help = true)]
    pub(crate) max_input_length: Option<usize>,
    /// Most tokens of a prompt and its answer together [default: the model's context].
    #[arg(long, env)]
    pub(crate) max_total_tokens: Option<usize>,
    /// Tokens one step may compute, running rows and pieces of prompts together [default: 512, on a GPU 4096]. A long prompt
    /// is computed in pieces of at most this size, so that running streams go on.
    #[arg(long, env)]
    pub(crate) max_batch_prefill_tokens: Option<u32>,
    /// Tokens the KV cache may hold [default: from the free memory].
    #[arg(long, env)]
    pub(crate) max_batch_total_tokens: Option<u32>,
    /// Rows one step may have [default: --max-concurrent-requests, at most 256].
    #[arg(long, env)]
    pub(crate) max_batch_size: Option<usize>,
    /// Longest draft in tokens: what followed the same tokens earlier in prompt and reply is computed beside the next token and
    /// kept as far as it is right, as many tokens as pay. Replies are the same with and without; those that repeat passages
    /// come faster. Not for requests with a grammar [default: 0, no drafts].
    #[arg(long, env, value_name = "TOKENS", value_parser = draft_tokens)]
    pub(crate) speculate: Option<u8>,
    /// Refuse requests with a grammar.
    #[arg(long, env, action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(crate) disable_grammar_support: bool,
    /// Share of the vocabulary that a watermark makes likelier, between 0 and 1.
    #[arg(long, env, default_value_t = 0.5)]
    pub(crate) watermark_gamma: f64,
    /// What a watermark adds to the scores of these tokens.
    #[arg(long, env, default_value_t = 2.0, allow_negative_numbers = true)]
    pub(crate) watermark_delta: f32,
    /// Most prompts in one /v1/completions call.
    #[arg(long, env, default_value_t = 4)]
    pub(crate) max_client_batch_size: usize,
    /// Tokenizer threads of the router.
    #[arg(long, env, default_value_t = 2)]
    pub(crate) validation_workers: usize,
}

/// How the launcher itself behaves.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Operation")]
pub(crate) struct Operation {
    /// Log one JSON object per line instead of text. LOG_LEVEL (error, warn, info, debug) filters either.
    #[arg(long, env, action = ArgAction::SetTrue, value_parser = BoolishValueParser::new())]
    pub(crate) json_output: bool,
    /// Log the runtime environment (for bug reports), then start.
    #[arg(short = 'e', long = "env", action = ArgAction::SetTrue)]
    pub(crate) print_environment: bool,
    /// Seconds that running requests get to finish after SIGTERM or Ctrl-C.
    #[arg(
        short, long, env, value_name = "SECONDS", default_value_t = 90,
        value_parser = clap::value_parser!(u64).range(..=MAX_GRACE_SECONDS),
    )]
    pub(crate) graceful_termination_timeout: u64,
}

/// The value of `--speculate`. An empty variable, as Helm charts write it, asks for nothing.
fn draft_tokens(value: &str) -> Result<u8, String> {
    let value = if value.trim().is_empty() { "0" } else { value.trim() };
    let tokens = value.parse().ok().filter(|tokens| *tokens <= MAX_DRAFT_TOKENS);
    tokens.ok_or_else(|| format!("it is a number of tokens from 0 to {MAX_DRAFT_TOKENS}"))
}

/// The value of `--cuda-memory-fraction`. An empty variable asks for nothing.
fn cuda_memory_fraction(value: &str) -> Result<f64, String> {
    if value.trim().is_empty() { Ok(1.0) } else { memory_fraction(value.trim()) }
}

/// The value of `--cuda-graphs`: numbers of rows with commas. An empty variable leaves them to the shard.
#[derive(Clone, Debug, Default)]
pub(crate) struct GraphRows(pub(crate) Vec<usize>);

impl FromStr for GraphRows {
    type Err = String;

    fn from_str(value: &str) -> Result<GraphRows, String> {
        let numbers = value.split(',').map(str::trim).filter(|number| !number.is_empty());
        let number = |number: &str| number.parse().map_err(|_| format!("`{number}` is no number of rows"));
        numbers.map(number).collect::<Result<_, _>>().map(GraphRows)
    }
}

/// Kinds of devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceKind {
    /// The processor.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

/// Types that weights can be converted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lower")]
pub(crate) enum Dtype {
    /// IEEE half precision.
    Float16,
    /// The upper half of a float32.
    #[value(name = "bfloat16")]
    BFloat16,
    /// IEEE single precision (TGI has no name for it; `float32` is PyTorch's).
    Float32,
}

/// Types of the KV cache: TGI's two, and those of weights, which other engines offer too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KvCacheDtype {
    /// That of the weights.
    Auto,
    /// The upper half of a float32.
    #[value(alias = "bfloat16")]
    Bf16,
    /// IEEE half precision.
    #[value(alias = "float16")]
    F16,
    /// IEEE single precision.
    #[value(alias = "float32")]
    F32,
    /// 8 bits, four of them exponent: up to 448.
    #[value(name = "fp8_e4m3fn")]
    Fp8E4m3fn,
    /// 8 bits, five of them exponent: up to 57344, with fewer digits.
    #[value(name = "fp8_e5m2")]
    Fp8E5m2,
}

/// TGI's modes of quantisation. The first five happen while loading; the others are formats of checkpoints, of which some are known by
/// name only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Quantize {
    /// 8-bit integers, a scale per output.
    Eetq,
    /// FP8 E4M3, a scale per output; or a checkpoint of such numbers.
    Fp8,
    /// 4-bit NormalFloat, a scale per output and 64 inputs.
    BitsandbytesNf4,
    /// The older name of 8-bit integers.
    Bitsandbytes,
    /// 4-bit floats.
    BitsandbytesFp4,
    /// A checkpoint that AWQ quantised.
    Awq,
    /// A checkpoint that GPTQ quantised.
    Gptq,
    /// A checkpoint of FP8 numbers that compressed-tensors describes.
    CompressedTensors,
    Exl2,
    Marlin,
}

/// Scalings that can be forced from the command line. Those of config.json are more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RopeScaling {
    /// Positions divided by the factor.
    Linear,
    /// Base grows with the sequence.
    Dynamic,
}

/// The command line as parsed, with the rows of the compatibility tables that were used.
#[derive(Debug)]
pub(crate) struct Parsed {
    /// The flags that exist here.
    pub(crate) args: Args,
    /// Flags without effect that were given.
    pub(crate) no_effect: Vec<&'static Knob>,
    /// Flags that cannot be honoured and were given.
    pub(crate) not_supported: Vec<&'static Knob>,
}

/// Parses `argv`, whose first item is the program.
///
/// # Errors
/// clap's own error, which knows its text and exit code (2; 0 for `--help` and `--version`).
pub(crate) fn parse(argv: impl IntoIterator<Item = OsString>) -> Result<Parsed, clap::Error> {
    let command = compatibility::register(Args::command());
    let matches = command.try_get_matches_from(argv)?;
    let args = Args::from_arg_matches(&matches)?;
    Ok(Parsed {
        args,
        no_effect: compatibility::given(compatibility::NO_EFFECT, &matches),
        not_supported: compatibility::given(compatibility::NOT_SUPPORTED, &matches),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_words(words: &str) -> Result<Parsed, clap::Error> {
        parse(words.split_whitespace().map(OsString::from))
    }

    #[test]
    fn the_command_is_well_formed() {
        compatibility::register(Args::command()).debug_assert();
    }

    #[test]
    fn defaults_are_those_of_tgi() {
        let args = parse_words("launcher").unwrap().args;
        let limits = &args.limits;
        assert_eq!((args.server.hostname.as_str(), args.server.port), ("0.0.0.0", 3000));
        assert_eq!(args.server.payload_limit, 2_000_000);
        assert_eq!(
            (limits.max_concurrent_requests, limits.max_best_of, limits.max_stop_sequences, limits.max_top_n_tokens),
            (128, 2, 4, 5)
        );
        assert_eq!((limits.max_client_batch_size, limits.validation_workers), (4, 2));
        assert_eq!(args.operation.graceful_termination_timeout, 90);
    }

    #[test]
    fn short_flags_and_repeated_origins() {
        let args = parse_words("launcher -p 8080 -g 5 -e --cors-allow-origin http://a --cors-allow-origin http://b");
        let args = args.unwrap().args;
        assert_eq!((args.server.port, args.operation.graceful_termination_timeout), (8080, 5));
        assert!(args.operation.print_environment);
        assert_eq!(args.server.cors_allow_origin, ["http://a", "http://b"]);
    }

    #[test]
    fn dtypes_have_the_names_of_tgi() {
        for (name, dtype) in [("float16", Dtype::Float16), ("bfloat16", Dtype::BFloat16), ("float32", Dtype::Float32)] {
            let args = parse_words(&format!("launcher --dtype {name}")).unwrap().args;
            assert_eq!(args.model.dtype, Some(dtype));
        }
    }

    #[test]
    fn drafts_have_a_longest_length_and_are_off_by_default() {
        let speculate = |words: &str| parse_words(words).map(|parsed| parsed.args.limits.speculate);
        assert_eq!(speculate("launcher").unwrap(), None);
        assert_eq!(speculate("launcher --speculate 0").unwrap(), Some(0));
        assert_eq!(speculate("launcher --speculate=").unwrap(), Some(0));
        assert_eq!(speculate("launcher --speculate 32").unwrap(), Some(32));
        for refused in ["33", "-1", "many"] {
            let error = speculate(&format!("launcher --speculate={refused}")).unwrap_err().to_string();
            assert!(error.contains("from 0 to 32"), "{error}");
        }
    }

    #[test]
    fn modes_of_quantisation_have_the_names_of_tgi() {
        for name in "awq compressed-tensors eetq exl2 gptq marlin bitsandbytes bitsandbytes-nf4 bitsandbytes-fp4 fp8"
            .split_whitespace()
        {
            assert!(
                parse_words(&format!("launcher --quantize {name}")).unwrap().args.model.quantize.is_some(),
                "{name}"
            );
        }
        assert!(parse_words("launcher --quantize int8").unwrap_err().to_string().contains("eetq"));
    }

    #[test]
    fn kv_cache_types_have_the_names_of_tgi_and_of_other_engines() {
        let parsed = |name: &str| parse_words(&format!("launcher --kv-cache-dtype {name}")).map(|parsed| parsed.args);
        for (name, dtype) in [
            ("auto", KvCacheDtype::Auto),
            ("bf16", KvCacheDtype::Bf16),
            ("bfloat16", KvCacheDtype::Bf16),
            ("f16", KvCacheDtype::F16),
            ("f32", KvCacheDtype::F32),
            ("fp8_e4m3fn", KvCacheDtype::Fp8E4m3fn),
            ("fp8_e5m2", KvCacheDtype::Fp8E5m2),
        ] {
            assert_eq!(parsed(name).unwrap().model.kv_cache_dtype, dtype, "{name}");
        }
        let error = parsed("int8").unwrap_err().to_string();
        assert!(error.contains("'int8'") && error.contains("fp8_e4m3fn, fp8_e5m2"), "{error}");
    }

    #[test]
    fn unknown_flags_are_clap_errors_with_exit_code_2() {
        let error = parse_words("launcher --no-such-flag").unwrap_err();
        assert_eq!(error.exit_code(), 2);
    }
}
