//! From the command line to a [`Settings`] that holds together: TGI's rules, in TGI's order and words.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use router::api_key::{self, ApiKey};

use crate::args::{Args, DeviceKind, Dtype, KvCacheDtype, Quantize, RopeScaling};
use crate::error::LauncherError;
use crate::gpus;
use crate::limits::{DEFAULT_CUDA_STEP_TOKENS, DEFAULT_STEP_TOKENS, MAX_DEFAULT_SLOTS, MAX_SHARDS};

/// What the launcher was asked for, with every default filled in that does not depend on the model.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// A folder, a hub id, or `None` for the demo model.
    pub(crate) model_id: Option<String>,
    /// Processes of the tensor-parallel group.
    pub(crate) num_shard: u32,
    /// Prefix of the sockets; `None` for a private folder.
    pub(crate) shard_uds_path: Option<String>,
    /// Address to listen on.
    pub(crate) hostname: IpAddr,
    /// Port to listen on.
    pub(crate) port: u16,
    /// How long running requests may take to finish at the end.
    pub(crate) grace: Duration,
    /// What the shards are told.
    pub(crate) shard: ShardSettings,
    /// What the router is told.
    pub(crate) router: RouterSettings,
}

/// The settings that reach the shards.
#[derive(Clone, Debug)]
pub(crate) struct ShardSettings {
    /// What computes.
    pub(crate) device: DeviceKind,
    /// Part of a GPU's memory that may be used.
    pub(crate) cuda_memory_fraction: f64,
    /// Numbers of rows whose decode steps are captured as graphs; empty: the shard's own.
    pub(crate) cuda_graphs: Vec<usize>,
    /// Type to convert the weights to.
    pub(crate) dtype: Option<Dtype>,
    /// How to quantise them: one of the modes that a shard knows.
    pub(crate) quantize: Option<Quantize>,
    /// Type of the KV cache.
    pub(crate) kv_cache_dtype: KvCacheDtype,
    /// Folder for packed weights.
    pub(crate) packed_weights_cache: Option<PathBuf>,
    /// Forced RoPE scaling and its factor.
    pub(crate) rope: Option<(RopeScaling, f32)>,
    /// Rows that can be live.
    pub(crate) slots: usize,
    /// Token rows one plan may have.
    pub(crate) step_tokens: u32,
}

/// The settings that reach the router; names and units are those of the flags.
#[derive(Clone, Debug)]
pub(crate) struct RouterSettings {
    pub(crate) max_concurrent_requests: usize,
    pub(crate) max_best_of: usize,
    pub(crate) max_stop_sequences: usize,
    pub(crate) max_top_n_tokens: u32,
    pub(crate) max_input_tokens: Option<usize>,
    pub(crate) max_total_tokens: Option<usize>,
    pub(crate) max_batch_prefill_tokens: u32,
    pub(crate) max_batch_total_tokens: Option<u32>,
    pub(crate) max_batch_size: usize,
    pub(crate) speculate: u8,
    pub(crate) max_client_batch_size: usize,
    pub(crate) disable_grammar_support: bool,
    pub(crate) watermark_gamma: f64,
    pub(crate) watermark_delta: f32,
    pub(crate) validation_workers: usize,
    pub(crate) payload_limit: usize,
    pub(crate) cors_allow_origin: Vec<String>,
    pub(crate) api_key: Vec<ApiKey>,
    pub(crate) request_timeout: Option<u64>,
    pub(crate) aip_predict_route: Option<String>,
    pub(crate) aip_health_route: Option<String>,
    pub(crate) tokenizer_config_path: Option<String>,
}

/// Checks `args` and fills in defaults. Sentences for the log that end up in no error go to `warnings`.
///
/// # Errors
/// [`LauncherError::ArgumentValidation`] with TGI's text for the first rule that does not hold.
pub(crate) fn settings(args: Args, warnings: &mut Vec<String>) -> Result<Settings, LauncherError> {
    let Args { model, shards, server, limits, operation } = args;
    let gpus = if shards.device == DeviceKind::Cuda { gpus::visible() } else { None };
    let num_shard = num_shard(shards.sharded, shards.num_shard, gpus)?;

    let max_input_tokens = match (limits.max_input_tokens, limits.max_input_length) {
        (Some(tokens), Some(length)) => {
            return Err(LauncherError::argument(format!(
                "Both `max_input_tokens` ({tokens}) and `max_input_length` ({length}) are set. Please define only \
                 `max_input_tokens` as `max_input_length is deprecated for naming consistency."
            )));
        }
        (tokens, length) => tokens.or(length),
    };
    let max_total_tokens = limits.max_total_tokens;
    if let (Some(input), Some(total)) = (max_input_tokens, max_total_tokens)
        && input >= total
    {
        return Err(LauncherError::argument(format!(
            "`max_input_tokens`({input}) must be < `max_total_tokens`({total})"
        )));
    }
    positive("validation_workers", limits.validation_workers)?;
    if let (Some(batch), Some(total)) = (limits.max_batch_total_tokens, max_total_tokens)
        && total > batch as usize
    {
        return Err(LauncherError::argument(format!(
            "`max_total_tokens` must be <= `max_batch_total_tokens`. Given: {total} and {batch}"
        )));
    }

    // From here on the rules are ours: values with which nothing could be served.
    positive("max_concurrent_requests", limits.max_concurrent_requests)?;
    positive("max_client_batch_size", limits.max_client_batch_size)?;
    positive("payload_limit", server.payload_limit)?;
    let (gamma, delta) = (limits.watermark_gamma, limits.watermark_delta);
    if !(gamma > 0.0 && gamma < 1.0) {
        return Err(LauncherError::argument(format!("`watermark_gamma` must be > 0 and < 1. Given: {gamma}")));
    }
    if !delta.is_finite() {
        return Err(LauncherError::argument(format!("`watermark_delta` must be a finite number. Given: {delta}")));
    }
    let port = server.aip_http_port.unwrap_or(server.port);
    positive("port", usize::from(port))?;
    api_key::check(&server.api_key).map_err(|error| LauncherError::argument(error.to_string()))?;
    let quantize = model.quantize.map(|mode| quantize(mode, warnings)).transpose()?;
    let default_step_tokens = match shards.device {
        DeviceKind::Cpu => DEFAULT_STEP_TOKENS,
        DeviceKind::Cuda => {
            cuda_takes(model.kv_cache_dtype, model.dtype)?;
            if model.packed_weights_cache.is_some() {
                warnings.push("`packed_weights_cache` has no effect on a GPU, which packs weights itself".to_owned());
            }
            DEFAULT_CUDA_STEP_TOKENS
        }
    };
    let step_tokens = limits.max_batch_prefill_tokens.unwrap_or_else(|| {
        // A default must not contradict what was asked for: no step is larger than the cache.
        default_step_tokens.min(limits.max_batch_total_tokens.unwrap_or(u32::MAX))
    });
    positive("max_batch_prefill_tokens", step_tokens as usize)?;
    let slots = limits.max_batch_size.unwrap_or(limits.max_concurrent_requests.min(MAX_DEFAULT_SLOTS));
    positive("max_batch_size", slots)?;
    if let Some(factor) = model.rope_factor
        && !(factor.is_finite() && factor > 0.0)
    {
        return Err(LauncherError::argument(format!("`rope_factor` must be > 0. Given: {factor}")));
    }

    Ok(Settings {
        model_id: model.model_id,
        num_shard,
        shard_uds_path: shards.shard_uds_path,
        hostname: address(&server.hostname, warnings),
        port,
        grace: Duration::from_secs(operation.graceful_termination_timeout),
        shard: ShardSettings {
            device: shards.device,
            cuda_memory_fraction: shards.cuda_memory_fraction,
            cuda_graphs: shards.cuda_graphs.unwrap_or_default().0,
            dtype: model.dtype,
            quantize,
            kv_cache_dtype: model.kv_cache_dtype,
            packed_weights_cache: model.packed_weights_cache,
            rope: match (model.rope_scaling, model.rope_factor) {
                (None, None) => None,
                (scaling, factor) => Some((scaling.unwrap_or(RopeScaling::Linear), factor.unwrap_or(1.0))),
            },
            slots,
            // Every live row computes one token per step, so a step must hold at least a token per slot.
            step_tokens: step_tokens.max(u32::try_from(slots).unwrap_or(u32::MAX)),
        },
        router: RouterSettings {
            max_concurrent_requests: limits.max_concurrent_requests,
            max_best_of: limits.max_best_of,
            max_stop_sequences: limits.max_stop_sequences,
            max_top_n_tokens: limits.max_top_n_tokens,
            max_input_tokens,
            max_total_tokens,
            max_batch_prefill_tokens: step_tokens,
            max_batch_total_tokens: limits.max_batch_total_tokens,
            max_batch_size: slots,
            speculate: limits.speculate.unwrap_or(0),
            max_client_batch_size: limits.max_client_batch_size,
            disable_grammar_support: limits.disable_grammar_support,
            watermark_gamma: limits.watermark_gamma,
            watermark_delta: limits.watermark_delta,
            validation_workers: limits.validation_workers,
            payload_limit: server.payload_limit,
            cors_allow_origin: server.cors_allow_origin,
            api_key: server.api_key,
            request_timeout: server.request_timeout,
            aip_predict_route: server.aip_predict_route,
            aip_health_route: server.aip_health_route,
            tokenizer_config_path: model.tokenizer_config_path,
        },
    })
}

/// TGI's rules about `--sharded` and `--num-shard`, with as many GPUs as the environment shows.
fn num_shard(sharded: Option<bool>, num_shard: Option<usize>, gpus: Option<usize>) -> Result<u32, LauncherError> {
    let num_shard = match (sharded, num_shard.or(gpus.filter(|_| sharded != Some(false)))) {
        (Some(true), None) => {
            return Err(LauncherError::argument(
                "`sharded` is true but `num_shard` is not set, and there are no GPUs to count: give `--num-shard`",
            ));
        }
        (Some(true), Some(n)) if n <= 1 => {
            return Err(LauncherError::argument("`sharded` is true but `num_shard` <= 1"));
        }
        // As in TGI, `--sharded false --num-shard n` means n.
        (_, n) => n.unwrap_or(1),
    };
    match num_shard {
        0 => Err(LauncherError::argument("`num_shard` cannot be < 1")),
        1..=MAX_SHARDS => Ok(num_shard as u32),
        _ => Err(LauncherError::argument(format!("`num_shard` must be <= {MAX_SHARDS}. Given: {num_shard}"))),
    }
}

/// What the kernels of a GPU cannot do yet, refused before anything is loaded.
fn cuda_takes(kv_cache_dtype: KvCacheDtype, dtype: Option<Dtype>) -> Result<(), LauncherError> {
    let refuse = |sentence: &str| Err(LauncherError::argument(sentence));
    match (kv_cache_dtype, dtype) {
        (KvCacheDtype::F32, _) => refuse(
            "`kv_cache_dtype` with `device` cuda is `auto`, the type of the weights, bfloat16 or float16, or `fp8_e4m3fn` or `fp8_e5m2`",
        ),
        (_, Some(Dtype::Float32)) => {
            refuse("`dtype` is float32, which is not computed on a GPU: bfloat16 and float16 are")
        }
        _ => Ok(()),
    }
}

/// The mode that the shards know for one of TGI's.
fn quantize(mode: Quantize, warnings: &mut Vec<String>) -> Result<Quantize, LauncherError> {
    let name = mode.to_possible_value().expect("no mode is hidden from the command line").get_name().to_owned();
    match mode {
        // Whether the checkpoint goes with it, the shards look themselves.
        Quantize::Eetq
        | Quantize::Fp8
        | Quantize::BitsandbytesNf4
        | Quantize::Awq
        | Quantize::Gptq
        | Quantize::CompressedTensors => Ok(mode),
        Quantize::Bitsandbytes => {
            warnings.push("`bitsandbytes` is deprecated, use `eetq`, which is what happens now".to_owned());
            Ok(Quantize::Eetq)
        }
        Quantize::BitsandbytesFp4 => Err(LauncherError::argument(
            "`quantize` is `bitsandbytes-fp4`, which is not supported; `bitsandbytes-nf4` takes as much memory and is more exact",
        )),
        Quantize::Exl2 | Quantize::Marlin => Err(LauncherError::argument(format!(
            "`quantize` is `{name}`, a format of checkpoints that is not supported; those of `awq`, `gptq`, `fp8` and \
             `compressed-tensors` (FP8) are. While loading, \
             `eetq`, `fp8` and `bitsandbytes-nf4` quantise a float32, float16 or bfloat16 checkpoint"
        ))),
    }
}

/// TGI listens on 0.0.0.0 when the name is no address, because Docker and Kubernetes set HOSTNAME to the container's
/// name. `localhost` is the one name whose meaning is beyond doubt, and narrower.
fn address(hostname: &str, warnings: &mut Vec<String>) -> IpAddr {
    if hostname == "localhost" {
        return Ipv4Addr::LOCALHOST.into();
    }
    hostname.parse().unwrap_or_else(|_| {
        warnings.push(format!("`{hostname}` (--hostname or HOSTNAME) is not an IP address; listening on 0.0.0.0"));
        Ipv4Addr::UNSPECIFIED.into()
    })
}

fn positive(name: &str, value: usize) -> Result<(), LauncherError> {
    if value == 0 { Err(LauncherError::argument(format!("`{name}` must be > 0"))) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    fn check(words: &str) -> Result<Settings, String> {
        let argv = std::iter::once("launcher").chain(words.split_whitespace()).map(OsString::from);
        let args = crate::args::parse(argv).expect("the command line parses").args;
        settings(args, &mut Vec::new()).map_err(|error| error.to_string())
    }

    #[track_caller]
    fn refused(words: &str, text: &str) {
        assert_eq!(check(words).unwrap_err(), format!("Invalid argument: {text}"));
    }

    #[test]
    fn shards() {
        assert_eq!(check("").unwrap().num_shard, 1);
        assert_eq!(check("--num-shard 2").unwrap().num_shard, 2);
        assert_eq!(check("--sharded true --num-shard 4").unwrap().num_shard, 4);
        assert_eq!(check("--sharded false").unwrap().num_shard, 1);
        assert_eq!(check("--sharded false --num-shard 2").unwrap().num_shard, 2);
        refused("--num-shard 0", "`num_shard` cannot be < 1");
        refused("--num-shard 65", "`num_shard` must be <= 64. Given: 65");
        refused("--sharded true --num-shard 1", "`sharded` is true but `num_shard` <= 1");
        assert!(check("--sharded true").unwrap_err().contains("give `--num-shard`"));
    }

    #[test]
    fn gpus_that_show_are_used() {
        let table = [
            (None, None, Some(4), 4),
            (None, None, None, 1),
            (None, Some(2), Some(4), 2),
            (Some(true), None, Some(4), 4),
            (Some(false), None, Some(4), 1),
            (Some(false), Some(2), Some(4), 2),
        ];
        for (sharded, given, gpus, expected) in table {
            assert_eq!(num_shard(sharded, given, gpus).unwrap(), expected, "{sharded:?} {given:?} {gpus:?}");
        }
        let error = num_shard(Some(true), None, Some(1)).unwrap_err().to_string();
        assert!(error.contains("`sharded` is true but `num_shard` <= 1"), "{error}");
    }

    #[test]
    fn a_gpu_is_asked_for_what_it_can_do() {
        assert_eq!(check("--device cuda --num-shard 2").unwrap().num_shard, 2);
        assert_eq!(check("--device cuda --quantize fp8").unwrap().shard.quantize, Some(Quantize::Fp8));
        let settings = check("--device cuda --cuda-memory-fraction 0.8").unwrap();
        assert_eq!((settings.shard.device, settings.shard.cuda_memory_fraction), (DeviceKind::Cuda, 0.8));
        assert_eq!(settings.shard.step_tokens, DEFAULT_CUDA_STEP_TOKENS);
        assert_eq!(check("--cuda-graphs 1,8").unwrap().shard.cuda_graphs, [1, 8]);
        let settings = check("--cuda-graphs= --cuda-memory-fraction=").unwrap();
        assert_eq!((settings.shard.cuda_graphs, settings.shard.cuda_memory_fraction), (vec![], 1.0));
        let settings = check("--device cuda --kv-cache-dtype fp8_e5m2").unwrap();
        assert_eq!(settings.shard.kv_cache_dtype, KvCacheDtype::Fp8E5m2);
        for (words, name) in [("--kv-cache-dtype f32", "`kv_cache_dtype`"), ("--dtype float32", "`dtype` is float32")] {
            assert!(check(&format!("--device cuda {words}")).unwrap_err().contains(name), "{words}");
        }
    }

    #[test]
    fn modes_of_quantisation() {
        assert_eq!(check("").unwrap().shard.quantize, None);
        assert_eq!(check("--quantize fp8").unwrap().shard.quantize, Some(Quantize::Fp8));
        let mut warnings = Vec::new();
        assert_eq!(quantize(Quantize::Bitsandbytes, &mut warnings).unwrap(), Quantize::Eetq);
        assert_eq!(warnings.len(), 1);
        for (name, mode) in
            [("awq", Quantize::Awq), ("gptq", Quantize::Gptq), ("compressed-tensors", Quantize::CompressedTensors)]
        {
            assert_eq!(check(&format!("--quantize {name}")).unwrap().shard.quantize, Some(mode));
        }
        for name in ["exl2", "marlin"] {
            let error = check(&format!("--quantize {name}")).unwrap_err();
            assert!(error.contains(&format!("`{name}`, a format of checkpoints that is not supported")), "{error}");
        }
        assert!(check("--quantize bitsandbytes-fp4").unwrap_err().contains("`bitsandbytes-nf4` takes as much memory"));
    }

    #[test]
    fn token_limits() {
        refused(
            "--max-input-tokens 5 --max-input-length 6",
            "Both `max_input_tokens` (5) and `max_input_length` (6) are set. Please define only `max_input_tokens` as \
             `max_input_length is deprecated for naming consistency.",
        );
        refused(
            "--max-input-tokens 10 --max-total-tokens 10",
            "`max_input_tokens`(10) must be < `max_total_tokens`(10)",
        );
        refused(
            "--max-total-tokens 20 --max-batch-total-tokens 19",
            "`max_total_tokens` must be <= `max_batch_total_tokens`. Given: 20 and 19",
        );
        assert_eq!(check("--max-input-length 7").unwrap().router.max_input_tokens, Some(7));
    }

    #[test]
    fn zeros_are_refused() {
        for name in
            ["validation_workers", "max_concurrent_requests", "max_batch_size", "max_batch_prefill_tokens", "port"]
        {
            refused(&format!("--{} 0", name.replace('_', "-")), &format!("`{name}` must be > 0"));
        }
    }

    #[test]
    fn rope() {
        assert_eq!(check("").unwrap().shard.rope, None);
        assert_eq!(check("--rope-factor 2").unwrap().shard.rope, Some((RopeScaling::Linear, 2.0)));
        assert_eq!(check("--rope-scaling dynamic").unwrap().shard.rope, Some((RopeScaling::Dynamic, 1.0)));
        refused("--rope-factor 0", "`rope_factor` must be > 0. Given: 0");
    }

    #[test]
    fn a_step_holds_a_token_of_every_slot() {
        let settings = check("--max-batch-prefill-tokens 16 --max-batch-size 64").unwrap();
        assert_eq!((settings.shard.step_tokens, settings.router.max_batch_prefill_tokens), (64, 16));
        assert_eq!(check("--max-concurrent-requests 1000").unwrap().shard.slots, MAX_DEFAULT_SLOTS);
    }

    #[test]
    fn names_that_are_no_address() {
        let mut warnings = Vec::new();
        assert_eq!(address("::1", &mut warnings), "::1".parse::<IpAddr>().unwrap());
        assert_eq!(address("localhost", &mut warnings), Ipv4Addr::LOCALHOST);
        assert!(warnings.is_empty());
        assert_eq!(address("3f1c0a", &mut warnings), Ipv4Addr::UNSPECIFIED);
        assert_eq!(warnings.len(), 1);
    }
}
