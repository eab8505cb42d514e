//! The command lines of the children. Everything is passed explicitly, so that a variable which the launcher has already
//! understood (or refused) cannot mean something else to a child.

use std::ffi::OsString;
use std::path::Path;

use clap::ValueEnum;
use router::api_key::ApiKey;

use crate::model::Model;
use crate::validation::Settings;

/// A command line under construction.
struct Argv(Vec<OsString>);

impl Argv {
    fn of(role: &str) -> Argv {
        Argv(vec![role.into()])
    }

    fn flag(mut self, name: &str) -> Argv {
        self.0.push(format!("--{name}").into());
        self
    }

    /// `--name=value`: a value that begins with a dash stays a value.
    fn value(mut self, name: &str, value: impl Into<OsString>) -> Argv {
        let mut word = OsString::from(format!("--{name}="));
        word.push(value.into());
        self.0.push(word);
        self
    }

    fn number(self, name: &str, value: impl ToString) -> Argv {
        self.value(name, value.to_string())
    }

    fn path(self, name: &str, path: Option<&Path>) -> Argv {
        match path {
            Some(path) => self.value(name, path),
            None => self,
        }
    }

    fn option(self, name: &str, value: Option<impl ToString>) -> Argv {
        match value {
            Some(value) => self.number(name, value),
            None => self,
        }
    }
}

/// The command line of a shard. `comm_name` is the shared-memory segment in which its group meets.
pub(crate) fn shard(
    settings: &Settings,
    model: &Model,
    uds_prefix: &str,
    rank: u32,
    threads: usize,
    comm_name: &str,
) -> Vec<OsString> {
    let shard = &settings.shard;
    let (scaling, factor) = shard.rope.unzip();
    let graphs = shard.cuda_graphs.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    Argv::of("shard")
        .value("model-dir", &model.dir)
        .number("rank", rank)
        .number("world-size", settings.num_shard)
        .value("uds-path", uds_prefix)
        .value("device", name_of(shard.device))
        .number("cuda-memory-fraction", shard.cuda_memory_fraction)
        .option("cuda-graphs", (!graphs.is_empty()).then_some(graphs))
        .number("threads", threads)
        .number("max-batch-size", shard.slots)
        .number("max-step-tokens", shard.step_tokens)
        .value("comm-name", comm_name)
        .option("dtype", shard.dtype.map(name_of))
        .option("quantize", shard.quantize.map(name_of))
        .value("kv-cache-dtype", name_of(shard.kv_cache_dtype))
        .option("rope-scaling", scaling.map(name_of))
        .option("rope-factor", factor)
        .option("max-batch-total-tokens", settings.router.max_batch_total_tokens)
        .option("max-total-tokens", settings.router.max_total_tokens)
        .path("packed-weights-cache", shard.packed_weights_cache.as_deref())
        .flag("json-output")
        .0
}

/// The command line of the router.
pub(crate) fn router(settings: &Settings, model: &Model, uds_prefix: &str) -> Vec<OsString> {
    let router = &settings.router;
    let argv = Argv::of("router")
        .value("model-dir", &model.dir)
        .value("model-id", &model.id)
        .value("shard-uds-path", uds_prefix)
        .number("num-shard", settings.num_shard)
        .number("hostname", settings.hostname)
        .number("port", settings.port)
        .number("max-concurrent-requests", router.max_concurrent_requests)
        .number("max-best-of", router.max_best_of)
        .number("max-stop-sequences", router.max_stop_sequences)
        .number("max-top-n-tokens", router.max_top_n_tokens)
        .option("max-input-tokens", router.max_input_tokens)
        .option("max-total-tokens", router.max_total_tokens)
        .number("max-batch-prefill-tokens", router.max_batch_prefill_tokens)
        .option("max-batch-total-tokens", router.max_batch_total_tokens)
        .number("max-batch-size", router.max_batch_size)
        .number("speculate", router.speculate)
        .number("validation-workers", router.validation_workers)
        .number("payload-limit", router.payload_limit)
        .number("max-client-batch-size", router.max_client_batch_size)
        .number("watermark-gamma", router.watermark_gamma)
        .number("watermark-delta", router.watermark_delta)
        .number("graceful-termination-timeout", settings.grace.as_secs())
        .option("request-timeout", router.request_timeout)
        .option("aip-predict-route", router.aip_predict_route.as_ref())
        .option("aip-health-route", router.aip_health_route.as_ref())
        .number("aip-http-port", settings.port)
        .option("tokenizer-config-path", router.tokenizer_config_path.as_ref());
    let argv = if router.disable_grammar_support { argv.flag("disable-grammar-support") } else { argv };
    router
        .cors_allow_origin
        .iter()
        .fold(argv, |argv, origin| argv.value("cors-allow-origin", origin))
        .flag("json-output")
        .0
}

/// The variable by which the router gets its keys: everybody on the machine may read a command line (`ps`), but only the
/// same user an environment. `None` without keys; no child inherits the launcher's own.
pub(crate) fn api_keys(settings: &Settings) -> Option<OsString> {
    let keys: Vec<&str> = settings.router.api_key.iter().map(ApiKey::secret).collect();
    (!keys.is_empty()).then(|| keys.join(",").into())
}

/// The spelling of a choice on the command line.
fn name_of(choice: impl ValueEnum) -> String {
    choice.to_possible_value().expect("no choice is hidden from the command line").get_name().to_owned()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn settings(words: &str) -> Settings {
        let argv = std::iter::once("launcher").chain(words.split_whitespace()).map(OsString::from);
        crate::validation::settings(crate::args::parse(argv).unwrap().args, &mut Vec::new()).unwrap()
    }

    const EVERYTHING: &str = "--num-shard 2 --cuda-memory-fraction 0.5 --cuda-graphs 1,4 --dtype bfloat16 --quantize bitsandbytes-nf4 --packed-weights-cache /w \
        --kv-cache-dtype fp8_e4m3fn --rope-scaling dynamic --rope-factor 2.5 --port 8080 \
        --max-input-tokens 100 --max-total-tokens 200 --max-batch-total-tokens 4000 --max-batch-size 8 \
        --cors-allow-origin http://a --cors-allow-origin http://b --tokenizer-config-path /t.json --request-timeout 60 \
        --api-key sk-1 --api-key sk-2 --aip-predict-route /p --aip-health-route /h --aip-http-port 9090 \
        --speculate 7 --disable-grammar-support --watermark-gamma 0.25 --watermark-delta -1.5";

    fn model() -> Model {
        Model { dir: "/models/x".into(), id: "x".to_owned(), is_chat: false }
    }

    #[test]
    fn children_understand_what_they_are_told() {
        for words in ["", EVERYTHING] {
            let argv = shard(&settings(words), &model(), "/run/tgi", 1, 2, "name");
            shard::Args::try_parse_from(&argv).unwrap_or_else(|error| panic!("{argv:?}: {error}"));
            let argv = router(&settings(words), &model(), "/run/tgi");
            router::Args::try_parse_from(&argv).unwrap_or_else(|error| panic!("{argv:?}: {error}"));
        }
    }

    #[test]
    fn values_are_passed_on() {
        let argv = shard(&settings(EVERYTHING), &model(), "/run/tgi", 1, 2, "name");
        for word in [
            "--rank=1",
            "--device=cpu",
            "--cuda-memory-fraction=0.5",
            "--cuda-graphs=1,4",
            "--world-size=2",
            "--dtype=bfloat16",
            "--quantize=bitsandbytes-nf4",
            "--kv-cache-dtype=fp8_e4m3fn",
            "--packed-weights-cache=/w",
            "--rope-scaling=dynamic",
            "--rope-factor=2.5",
        ] {
            assert!(argv.contains(&word.into()), "{word} in {argv:?}");
        }
        let argv = router(&settings(EVERYTHING), &model(), "/run/tgi");
        for word in [
            "--graceful-termination-timeout=90",
            "--port=9090",
            "--request-timeout=60",
            "--aip-predict-route=/p",
            "--aip-health-route=/h",
            "--cors-allow-origin=http://b",
            "--max-input-tokens=100",
            "--speculate=7",
            "--tokenizer-config-path=/t.json",
        ] {
            assert!(argv.contains(&word.into()), "{word} in {argv:?}");
        }
    }

    #[test]
    fn keys_are_on_no_command_line() {
        let argv = router(&settings(EVERYTHING), &model(), "/run/tgi");
        assert!(!argv.iter().any(|word| word.to_string_lossy().contains("sk-")), "{argv:?}");
        assert_eq!(api_keys(&settings(EVERYTHING)), Some("sk-1,sk-2".into()));
        assert_eq!(api_keys(&settings("")), None);
    }
}
