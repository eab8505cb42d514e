//! TGI's flags that do nothing here, and those that cannot be honoured yet: one row each.
//!
//! A deployment that worked with TGI should start here unchanged if its meaning survives; where it would not (a
//! quantisation), starting anyway would be a silent lie, so it ends with an error that names the flag.

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};

/// One flag of TGI that is known by name only.
#[derive(Debug)]
pub(crate) struct Knob {
    /// Long flag without the dashes; also its id.
    pub(crate) flag: &'static str,
    /// Environment variable.
    pub(crate) env: &'static str,
    /// Why it does nothing, or what is missing.
    pub(crate) reason: &'static str,
}

const fn knob(flag: &'static str, env: &'static str, reason: &'static str) -> Knob {
    Knob { flag, env, reason }
}

/// Accepted with a warning: the server behaves as asked without them.
pub(crate) const NO_EFFECT: &[Knob] = &[
    knob("revision", "REVISION", "a local folder has no revisions"),
    knob("huggingface-hub-cache", "HUGGINGFACE_HUB_CACHE", "nothing is downloaded"),
    knob("trust-remote-code", "TRUST_REMOTE_CODE", "code from model folders is never executed"),
    knob("disable-custom-kernels", "DISABLE_CUSTOM_KERNELS", "there are no optional kernels"),
    knob("waiting-served-ratio", "WAITING_SERVED_RATIO", "every step mixes prefill and decode under one token budget"),
    knob("max-waiting-tokens", "MAX_WAITING_TOKENS", "every step mixes prefill and decode under one token budget"),
    knob("prometheus-port", "PROMETHEUS_PORT", "metrics are at /metrics on the main port"),
    knob("master-addr", "MASTER_ADDR", "shards meet in shared memory, not over TCP"),
    knob("master-port", "MASTER_PORT", "shards meet in shared memory, not over TCP"),
    knob("usage-stats", "USAGE_STATS", "usage statistics are never sent"),
    knob("otlp-service-name", "OTLP_SERVICE_NAME", "traces are not exported"),
    knob("enable-prefill-logprobs", "ENABLE_PREFILL_LOGPROBS", "logprobs of prompt tokens need no flag"),
];

/// Refused: the server would not do what was asked.
pub(crate) const NOT_SUPPORTED: &[Knob] = &[
    knob("lora-adapters", "LORA_ADAPTERS", "adapters cannot be loaded"),
    knob("weights-cache-override", "WEIGHTS_CACHE_OVERRIDE", "give the folder of the weights with --model-id"),
    knob("otlp-endpoint", "OTLP_ENDPOINT", "traces are not exported"),
    knob("ngrok", "NGROK", "there is no tunnel; it did not work in TGI 3 either"),
    knob("ngrok-authtoken", "NGROK_AUTHTOKEN", "there is no tunnel"),
    knob("ngrok-edge", "NGROK_EDGE", "there is no tunnel"),
];

/// Adds the flags of both tables to `command`, in groups of their own that only `--help` (not `-h`) shows.
pub(crate) fn register(command: Command) -> Command {
    let rows = |table: &'static [Knob], heading: &'static str| table.iter().map(move |knob| (knob, heading));
    rows(NO_EFFECT, "Accepted for compatibility with TGI, no effect here")
        .chain(rows(NOT_SUPPORTED, "Known from TGI, refused because not supported yet"))
        .fold(command, |command, (knob, heading)| {
            command.arg(
                Arg::new(knob.flag)
                    .long(knob.flag)
                    .env(knob.env)
                    // Some take a value in TGI and some do not; either spelling parses, the value means nothing here.
                    .num_args(0..=1)
                    .value_name("VALUE")
                    .hide_short_help(true)
                    .hide_env_values(true)
                    .help_heading(heading)
                    .help(capitalised(knob.reason)),
            )
        })
}

/// The rows of `table` that the command line or the environment asks for. A neutral value (`NGROK=false`,
/// `LORA_ADAPTERS=0`, an empty variable as Helm charts write it) asks for nothing.
pub(crate) fn given(table: &'static [Knob], matches: &ArgMatches) -> Vec<&'static Knob> {
    let is_given = |knob: &&Knob| match matches.value_source(knob.flag) {
        Some(ValueSource::CommandLine | ValueSource::EnvVariable) => {
            let value = matches.get_one::<String>(knob.flag).map(|value| value.trim().to_ascii_lowercase());
            !matches!(value.as_deref(), Some("" | "0" | "false"))
        }
        _ => false,
    };
    table.iter().filter(is_given).collect()
}

fn capitalised(sentence: &str) -> String {
    let (first, rest) = sentence.split_at(1);
    first.to_ascii_uppercase() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(table: &'static [Knob], words: &str) -> Vec<&'static str> {
        let matches = register(Command::new("launcher")).try_get_matches_from(words.split_whitespace()).unwrap();
        given(table, &matches).into_iter().map(|knob| knob.flag).collect()
    }

    #[test]
    fn flags_are_found_with_and_without_values() {
        assert_eq!(
            flags(NO_EFFECT, "launcher --trust-remote-code --prometheus-port 9000"),
            ["trust-remote-code", "prometheus-port"]
        );
        assert_eq!(flags(NOT_SUPPORTED, "launcher --lora-adapters a --ngrok"), ["lora-adapters", "ngrok"]);
        assert!(flags(NOT_SUPPORTED, "launcher --trust-remote-code").is_empty());
    }

    #[test]
    fn neutral_values_ask_for_nothing() {
        assert!(flags(NOT_SUPPORTED, "launcher --lora-adapters 0 --ngrok false").is_empty());
    }

    #[test]
    fn a_knob_is_in_one_table_only() {
        let mut names: Vec<_> = NO_EFFECT.iter().chain(NOT_SUPPORTED).map(|knob| knob.flag).collect();
        let before = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), before);
    }

    #[test]
    fn variables_follow_the_rule_of_tgi() {
        for knob in NO_EFFECT.iter().chain(NOT_SUPPORTED) {
            assert_eq!(knob.env, knob.flag.replace('-', "_").to_ascii_uppercase());
        }
    }
}
