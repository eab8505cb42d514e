//! The router's command line: TGI's names, environment variables and defaults.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::{CommandFactory, FromArgMatches, Parser};

use proto::MAX_DRAFT_TOKENS;
use proto::v1::Watermark;

use crate::api_key::{self, ApiKey, ApiKeyError};
use crate::engine::ShardFacts;
use crate::limits::{MAX_GRACE_SECONDS, MAX_N, MAX_REQUEST_TIMEOUT_SECONDS, MAX_ROUTE_BYTES, MAX_TOP_LOGPROBS};
use crate::params::ParamLimits;
use crate::{routes, server};

/// Serves HTTP for one model that runs in the shards behind a unix-socket prefix.
#[derive(Clone, Debug, Parser)]
#[command(name = "text-generation-router", version, about)]
pub struct Args {
    /// Folder with tokenizer.json, and where the model has them tokenizer_config.json and chat templates.
    #[arg(long, env)]
    pub model_dir: PathBuf,
    /// Name under which the model is served.
    #[arg(long, env, default_value = "tgi")]
    pub model_id: String,
    /// Prefix of the shards' unix sockets; rank n listens on `{prefix}-{n}`.
    #[arg(long, env, default_value = "/tmp/text-generation-server")]
    pub shard_uds_path: String,
    /// Ranks of the shard group.
    #[arg(long, env, default_value_t = 1)]
    pub num_shard: u32,
    /// Address to listen on.
    #[arg(long, env, default_value = "0.0.0.0")]
    pub hostname: String,
    /// Port to listen on; 0 takes a free one, which is logged.
    #[arg(long, short, env, default_value_t = 3000)]
    pub port: u16,
    /// Requests running or waiting; beyond it clients get 429.
    #[arg(long, env, default_value_t = 128)]
    pub max_concurrent_requests: usize,
    /// Largest `best_of`.
    #[arg(long, env, default_value_t = 2)]
    pub max_best_of: usize,
    /// Most stop sequences of a request.
    #[arg(long, env, default_value_t = 4)]
    pub max_stop_sequences: usize,
    /// Largest `top_n_tokens`.
    #[arg(long, env, default_value_t = 5)]
    pub max_top_n_tokens: u32,
    /// Longest prompt in tokens [default: one less than max_total_tokens].
    #[arg(long, env)]
    pub max_input_tokens: Option<usize>,
    /// Longest prompt and reply together in tokens [default: what the model and the KV cache allow].
    #[arg(long, env)]
    pub max_total_tokens: Option<usize>,
    /// Token budget of one step [default: what the shards can compute in one step].
    #[arg(long, env)]
    pub max_batch_prefill_tokens: Option<u32>,
    /// Tokens the KV cache shall hold; checked here, obeyed by the shards.
    #[arg(long, env)]
    pub max_batch_total_tokens: Option<u32>,
    /// Most rows of one step [default: what the shards can hold].
    #[arg(long, env)]
    pub max_batch_size: Option<u32>,
    /// Longest draft in tokens: what followed the same tokens earlier in the sequence is computed beside the next token, and kept
    /// as far as it is right. Replies are the same without, and where they repeat their prompt, slower; 0 for none.
    #[arg(long, env, default_value_t = 0, value_parser = clap::value_parser!(u8).range(..=i64::from(MAX_DRAFT_TOKENS)))]
    pub speculate: u8,
    /// Threads that tokenize and render chat templates.
    #[arg(long, env, default_value_t = 2)]
    pub validation_workers: usize,
    /// Largest request body in bytes.
    #[arg(long, env, default_value_t = 2_000_000)]
    pub payload_limit: usize,
    /// Seconds that requests may still run after SIGTERM; then they are dropped.
    #[arg(long, env, default_value_t = 90, value_parser = clap::value_parser!(u64).range(..=MAX_GRACE_SECONDS))]
    pub graceful_termination_timeout: u64,
    /// Most prompts of one completions request.
    #[arg(long, env, default_value_t = 4)]
    pub max_client_batch_size: usize,
    /// Origins that browsers may call from [default: all].
    #[arg(long, env)]
    pub cors_allow_origin: Vec<String>,
    /// Key that clients must send, as `Authorization: Bearer KEY` or `x-api-key: KEY`; may be repeated, or a list with
    /// commas [default: none, everyone is served]. Prefer the environment: other users of the machine can read a
    /// command line.
    #[arg(long, env, value_name = "KEY", value_delimiter = ',', hide_env_values = true)]
    pub api_key: Vec<ApiKey>,
    /// Seconds a request may take until its answer is complete: then 504, or an error event if it streams [default:
    /// no limit].
    #[arg(long, env, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=MAX_REQUEST_TIMEOUT_SECONDS))]
    pub request_timeout: Option<u64>,
    /// Where Vertex AI sends predictions (it sets the variable): the same as `/vertex`.
    #[arg(long, env, value_name = "PATH")]
    pub aip_predict_route: Option<String>,
    /// Where Vertex AI asks for health (it sets the variable): the same as `/health`.
    #[arg(long, env, value_name = "PATH")]
    pub aip_health_route: Option<String>,
    /// Port that Vertex AI connects to (it sets the variable); it wins over `--port`, as in TGI.
    #[arg(long, env, value_name = "PORT")]
    pub aip_http_port: Option<u16>,
    /// A tokenizer_config.json whose chat template is used instead of the model's.
    #[arg(long, env)]
    pub tokenizer_config_path: Option<PathBuf>,
    /// Refuse requests with a grammar.
    #[arg(long, env)]
    pub disable_grammar_support: bool,
    /// Share of the vocabulary that a watermark makes likelier, between 0 and 1.
    #[arg(long, env, default_value_t = 0.5)]
    pub watermark_gamma: f64,
    /// What a watermark adds to the scores of these tokens.
    #[arg(long, env, default_value_t = 2.0, allow_negative_numbers = true)]
    pub watermark_delta: f32,
    /// Log one JSON object per line.
    #[arg(long, env)]
    pub json_output: bool,
}

/// Arguments that contradict each other or the shards. Printed with TGI's prefix and texts.
#[derive(Debug, thiserror::Error)]
pub enum ArgsError {
    /// A flag that must be positive is zero.
    #[error("Argument validation error: `{field}` must be > 0")]
    Zero {
        /// The flag.
        field: &'static str,
    },
    /// No room for a reply.
    #[error("Argument validation error: `max_input_tokens` must be < `max_total_tokens`. Given: {input} and {total}")]
    InputTokens {
        /// `max_input_tokens`.
        input: usize,
        /// `max_total_tokens`.
        total: usize,
    },
    /// One request could not fit into the cache.
    #[error(
        "Argument validation error: `max_total_tokens` must be <= `max_batch_total_tokens`. Given: {total} and {batch}"
    )]
    TotalTokens {
        /// `max_total_tokens`.
        total: usize,
        /// What the KV cache holds.
        batch: usize,
    },
    /// More than the model can tell positions apart.
    #[error("Argument validation error: `max_total_tokens` must be <= the model's {context} positions. Given: {total}")]
    Context {
        /// `max_total_tokens`.
        total: usize,
        /// `max_position_embeddings`.
        context: usize,
    },
    /// A step larger than the cache.
    #[error(
        "Argument validation error: `max_batch_prefill_tokens` must be <= `max_batch_total_tokens`. Given: {prefill} and {batch}"
    )]
    PrefillTokens {
        /// `max_batch_prefill_tokens`.
        prefill: u32,
        /// `max_batch_total_tokens`.
        batch: u32,
    },
    /// No share of a vocabulary, or no number.
    #[error("Argument validation error: `{field}` must be {expected}. Given: {value}")]
    Watermark {
        /// The flag.
        field: &'static str,
        /// The rule in words.
        expected: &'static str,
        /// What was given.
        value: f64,
    },
    /// Keys that cannot be used.
    #[error("Argument validation error: {0}")]
    ApiKey(#[from] ApiKeyError),
    /// A route that no router could hold.
    #[error(
        "Argument validation error: `{field}` must be a path as in a URL, of at most {MAX_ROUTE_BYTES} bytes, without braces, `*` and query. Given: {given}"
    )]
    Route {
        /// The flag.
        field: &'static str,
        /// What was given.
        given: String,
    },
    /// The shards' context or cache is too small for any request.
    #[error("Not enough memory to handle `max_total_tokens={total}`")]
    TooSmall {
        /// What they allow.
        total: usize,
    },
}

/// The router as a program: serves, or with `print-schema` prints its OpenAPI document.
///
/// # Errors
/// As [`server::run`]. A command line that does not parse ends the process with clap's text and exit code 2.
pub fn command_line(argv: impl IntoIterator<Item = OsString>) -> anyhow::Result<()> {
    let matches = command().get_matches_from(argv);
    if matches.subcommand_name() == Some(PRINT_SCHEMA) {
        println!("{}", routes::openapi_text());
        return Ok(());
    }
    server::run(Args::from_arg_matches(&matches).unwrap_or_else(|error| error.exit()))
}

/// TGI's subcommand.
const PRINT_SCHEMA: &str = "print-schema";

fn command() -> clap::Command {
    let print_schema = clap::Command::new(PRINT_SCHEMA).about("Print the OpenAPI document of the HTTP routes and exit");
    Args::command().subcommand(print_schema).subcommand_negates_reqs(true)
}

impl Args {
    /// The rules that need no shard.
    ///
    /// # Errors
    /// [`ArgsError`] with the flag and its value.
    pub fn check(&self) -> Result<(), ArgsError> {
        for (field, is_zero) in [
            ("validation_workers", self.validation_workers == 0),
            ("max_batch_size", self.max_batch_size == Some(0)),
            ("max_concurrent_requests", self.max_concurrent_requests == 0),
            ("max_best_of", self.max_best_of == 0),
            ("max_batch_prefill_tokens", self.max_batch_prefill_tokens == Some(0)),
            ("max_client_batch_size", self.max_client_batch_size == 0),
            ("num_shard", self.num_shard == 0),
        ] {
            if is_zero {
                return Err(ArgsError::Zero { field });
            }
        }
        api_key::check(&self.api_key)?;
        for (field, route) in
            [("aip_predict_route", &self.aip_predict_route), ("aip_health_route", &self.aip_health_route)]
        {
            if let Some(route) = route.as_ref().filter(|route| !is_route(route)) {
                return Err(ArgsError::Route { field, given: route.clone() });
            }
        }
        if let (Some(prefill), Some(batch)) = (self.max_batch_prefill_tokens, self.max_batch_total_tokens)
            && prefill > batch
        {
            return Err(ArgsError::PrefillTokens { prefill, batch });
        }
        if let (Some(input), Some(total)) = (self.max_input_tokens, self.max_total_tokens)
            && input >= total
        {
            return Err(ArgsError::InputTokens { input, total });
        }
        let (gamma, delta) = (self.watermark_gamma, self.watermark_delta);
        for (field, value, is_valid, expected) in [
            ("watermark_gamma", gamma, gamma > 0.0 && gamma < 1.0, "> 0 and < 1"),
            ("watermark_delta", delta.into(), delta.is_finite(), "a finite number"),
        ] {
            if !is_valid {
                return Err(ArgsError::Watermark { field, expected, value });
            }
        }
        Ok(())
    }

    /// The limits of a request, as far as flags leave them open derived from what the shards can hold: the context of
    /// the model, but no more than the whole KV cache.
    ///
    /// # Errors
    /// [`ArgsError`] if a flag asks for more than that.
    pub fn param_limits(&self, facts: &ShardFacts) -> Result<ParamLimits, ArgsError> {
        let (context, batch) = (facts.max_position_embeddings as usize, facts.capacity_tokens() as usize);
        let max_total_tokens = match self.max_total_tokens {
            Some(total) if total > context => return Err(ArgsError::Context { total, context }),
            Some(total) if total > batch => return Err(ArgsError::TotalTokens { total, batch }),
            Some(total) => total,
            None => context.min(batch),
        };
        if max_total_tokens < 2 {
            return Err(ArgsError::TooSmall { total: max_total_tokens });
        }
        let max_input_tokens = self.max_input_tokens.unwrap_or(max_total_tokens - 1);
        if max_input_tokens >= max_total_tokens {
            return Err(ArgsError::InputTokens { input: max_input_tokens, total: max_total_tokens });
        }
        Ok(ParamLimits {
            max_best_of: self.max_best_of,
            max_stop_sequences: self.max_stop_sequences,
            max_top_n_tokens: self.max_top_n_tokens.min(facts.max_top_n_tokens),
            max_top_logprobs: MAX_TOP_LOGPROBS.min(facts.max_top_n_tokens),
            max_input_tokens,
            max_total_tokens,
            max_n: MAX_N.min(self.max_concurrent_requests),
            has_grammars: !self.disable_grammar_support,
            watermark: Watermark { gamma: self.watermark_gamma, delta: self.watermark_delta },
        })
    }

    /// Where to listen. A hostname that is no address (a container's own name in HOSTNAME) means everywhere, as in TGI.
    pub fn address(&self) -> SocketAddr {
        let ip = self.hostname.parse().unwrap_or_else(|_| {
            tracing::warn!(hostname = self.hostname, "Invalid hostname, defaulting to 0.0.0.0");
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        });
        SocketAddr::new(ip, self.aip_http_port.unwrap_or(self.port))
    }
}

/// Whether `route` is a path that means only itself: segments that begin with `:` or `*` and braces are patterns to the
/// router (or were, so that it refuses them).
fn is_route(route: &str) -> bool {
    route.len() <= MAX_ROUTE_BYTES
        && route.starts_with('/')
        && !route.contains("/:")
        && route.bytes().all(|byte| byte.is_ascii_graphic() && !b"{}*?#".contains(&byte))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn args(flags: &[&str]) -> Args {
        Args::parse_from(["text-generation-router", "--model-dir", "/m"].iter().chain(flags))
    }

    fn facts(max_position_embeddings: u32, num_blocks: u32) -> ShardFacts {
        ShardFacts {
            world_size: 1,
            device: "cpu".into(),
            dtype: "float32".into(),
            model_type: "llama".into(),
            vocab_size: 300,
            max_position_embeddings,
            block_size: 16,
            num_blocks,
            max_slots: 8,
            max_step_tokens: 512,
            max_logit_rows: 64,
            eos_token_ids: vec![],
            max_top_n_tokens: 5,
            weights_bytes: 0,
            kv_cache_bytes: 0,
        }
    }

    #[track_caller]
    fn check(flags: &[&str], expected: &str) {
        let args = args(flags);
        let outcome = args.check().and_then(|()| args.param_limits(&facts(1024, 32)));
        let text = outcome.map_or_else(
            |error| error.to_string(),
            |limits| format!("input {} total {}", limits.max_input_tokens, limits.max_total_tokens),
        );
        assert_eq!(text, expected, "{flags:?}");
    }

    #[test]
    fn limits_come_from_flags_or_from_what_the_shards_hold() {
        check(&[], "input 511 total 512");
        check(&["--max-total-tokens", "100"], "input 99 total 100");
        check(&["--max-input-tokens", "100"], "input 100 total 512");
        check(&["--max-input-tokens", "10", "--max-total-tokens", "20"], "input 10 total 20");
    }

    #[test]
    fn contradictions_have_tgis_texts() {
        let error = |text: &str| format!("Argument validation error: {text}");
        check(&["--validation-workers", "0"], &error("`validation_workers` must be > 0"));
        check(&["--max-batch-size", "0"], &error("`max_batch_size` must be > 0"));
        check(&["--watermark-gamma", "1"], &error("`watermark_gamma` must be > 0 and < 1. Given: 1"));
        check(&["--watermark-delta", "inf"], &error("`watermark_delta` must be a finite number. Given: inf"));
        check(
            &["--max-input-tokens", "20", "--max-total-tokens", "20"],
            &error("`max_input_tokens` must be < `max_total_tokens`. Given: 20 and 20"),
        );
        check(
            &["--max-total-tokens", "513"],
            &error("`max_total_tokens` must be <= `max_batch_total_tokens`. Given: 513 and 512"),
        );
        check(
            &["--max-total-tokens", "2000"],
            &error("`max_total_tokens` must be <= the model's 1024 positions. Given: 2000"),
        );
        check(
            &["--max-batch-prefill-tokens", "600", "--max-batch-total-tokens", "512"],
            &error("`max_batch_prefill_tokens` must be <= `max_batch_total_tokens`. Given: 600 and 512"),
        );
    }

    #[test]
    fn the_command_is_well_formed_and_prints_its_schema_without_a_model() {
        command().debug_assert();
        let matches = command().try_get_matches_from(["text-generation-router", "print-schema"]).unwrap();
        assert_eq!(matches.subcommand_name(), Some(PRINT_SCHEMA));
        assert!(command().try_get_matches_from(["text-generation-router"]).is_err(), "a server needs its model");
    }

    #[test]
    fn keys_come_one_by_one_or_as_a_list() {
        let args = args(&["--api-key", "a,b", "--api-key=c"]);
        assert_eq!(args.api_key.iter().map(ApiKey::secret).collect::<Vec<_>>(), ["a", "b", "c"]);
        check(&["--api-key", ""], "Argument validation error: `api_key` number 1 is empty; remove it, or give a key");
    }

    #[test]
    fn vertex_sets_routes_and_the_port() {
        let route = "/v1/endpoints/1/deployedModels/2:predict";
        check(&["--aip-predict-route", route, "--aip-health-route", "/health"], "input 511 total 512");
        for bad in ["predict", "/{x}", "/a/:b", "/a/*b", "/a?b", "/a b", ""] {
            let error = args(&[&format!("--aip-health-route={bad}")]).check().unwrap_err().to_string();
            assert!(error.contains("`aip_health_route` must be a path") && error.ends_with(bad), "{error}");
        }
        assert_eq!(args(&["--port", "80", "--aip-http-port", "8080"]).address().port(), 8080);
    }

    #[test]
    fn a_hostname_that_is_no_address_listens_everywhere() {
        assert_eq!(args(&["--hostname", "127.0.0.1", "--port", "80"]).address().to_string(), "127.0.0.1:80");
        assert_eq!(args(&["--hostname", "pod-7"]).address().to_string(), "0.0.0.0:3000");
    }
}
