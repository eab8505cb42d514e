//! The command line: TGI's flags with their names and defaults, and those of the HTTP mode beside them.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use serde_json::{Value, json};

use crate::error::Error;
use crate::limits::MAX_POINTS;
use crate::report::Parameter;

/// Measures shards over their sockets (as TGI's tool does), or with --url any server over HTTP.
#[derive(Clone, Debug, Parser)]
#[command(name = "text-generation-benchmark", version)]
pub struct Args {
    /// Name of the model: shown in reports, and sent as `model` on OpenAI's routes. No tokenizer is loaded: shards get random
    /// token ids, and a server counts the tokens itself.
    #[arg(long, short, env, default_value = "tgi")]
    pub tokenizer_name: String,
    /// Revision of the model, shown in reports.
    #[arg(long, env, default_value = "main")]
    pub revision: String,
    /// Tokens of each prompt.
    #[arg(long, short, env, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub sequence_length: u32,
    /// Tokens of each reply, the first of which prefill makes.
    #[arg(long, short, env, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    pub decode_length: u32,
    /// Batches (or requests) that are run first, for each batch size, and not counted.
    #[arg(long, short, env, default_value_t = 1)]
    pub warmups: u32,
    /// Of token ids, words, arrivals and sampling: the same seed is the same load.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// What is printed. Without it: an interface if there is a terminal, and Markdown.
    #[arg(long, value_enum)]
    pub output: Option<Output>,

    /// What shards get.
    #[command(flatten)]
    pub shards: ShardArgs,
    /// What a server gets.
    #[command(flatten)]
    pub http: HttpArgs,
    /// How either chooses tokens.
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

/// Flags of the shard mode.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Shards")]
pub struct ShardArgs {
    /// Rows of a batch; repeat the flag to measure several [default: 1 2 4 8 16 32].
    #[arg(long, short, value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "url")]
    pub batch_size: Vec<u32>,
    /// Batches that are measured for each batch size.
    #[arg(long, short, env, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub runs: u32,
    /// Socket of rank 0; those of the other ranks end in their numbers.
    #[arg(long, short, env, default_value = "/tmp/text-generation-server-0")]
    pub master_shard_uds_path: PathBuf,
    /// Measure although a router is served. Its stream ends; unless it is stopped it comes back and ends ours.
    #[arg(long, conflicts_with = "url")]
    pub take_over: bool,
}

/// Flags of the HTTP mode.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "HTTP")]
pub struct HttpArgs {
    /// Measure the server at this address, http://HOST:PORT.
    #[arg(long)]
    pub url: Option<String>,
    /// The route that is called, always streaming.
    #[arg(long, value_enum, default_value_t = Api::Generate)]
    pub api: Api,
    /// Closed loop: so many clients, each of which sends its next request when the last one has ended; repeat the flag to
    /// measure several [default: 1].
    #[arg(long, requires = "url", conflicts_with = "rate", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub concurrency: Vec<u32>,
    /// Open loop: so many arrivals a second (Poisson), whatever the server does; repeat the flag to measure several.
    #[arg(long, requires = "url", value_parser = positive)]
    pub rate: Vec<f64>,
    /// Requests for each concurrency or rate [default: 100, or without end if --duration is given].
    #[arg(long, requires = "url", value_parser = clap::value_parser!(u64).range(1..))]
    pub requests: Option<u64>,
    /// Seconds in which requests are started, for each concurrency or rate.
    #[arg(long, requires = "url", value_parser = positive)]
    pub duration: Option<f64>,
    /// One prompt a line, {"prompt": ".."}, instead of random words; used in turn.
    #[arg(long, requires = "url")]
    pub prompts: Option<PathBuf>,
    /// Sent as a bearer token.
    #[arg(long, env, hide_env_values = true)]
    pub api_key: Option<String>,
}

/// How tokens are chosen. What is not given is off.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Divides the logits.
    #[arg(long, env)]
    pub temperature: Option<f32>,
    /// Sample from this many most likely tokens; 0 is off.
    #[arg(long, env)]
    pub top_k: Option<u32>,
    /// Sample from the smallest set of tokens with this much probability.
    #[arg(long, env)]
    pub top_p: Option<f32>,
    /// Locally typical sampling with this much probability.
    #[arg(long, env)]
    pub typical_p: Option<f32>,
    /// Penalty on tokens of prompt and reply; 1 is none.
    #[arg(long, env)]
    pub repetition_penalty: Option<f32>,
    /// Penalty in proportion to a token's share of prompt and reply.
    #[arg(long, env)]
    pub frequency_penalty: Option<f32>,
    /// Mark the reply with a green list.
    #[arg(long, env)]
    pub watermark: bool,
    /// Without it tokens are chosen greedily, whatever else is given.
    #[arg(long, env)]
    pub do_sample: bool,
    /// Also return this many most likely tokens.
    #[arg(long, env)]
    pub top_n_tokens: Option<u32>,
}

/// What is printed at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// One object (docs/benchmark.md).
    Json,
    /// Tables, as TGI's tool prints them.
    Markdown,
}

/// A route of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Api {
    /// TGI's `/generate_stream`.
    Generate,
    /// OpenAI's `/v1/chat/completions`.
    Chat,
    /// OpenAI's `/v1/completions`.
    Completions,
}

impl Args {
    /// Replaces what was left out by its default and refuses what clap cannot see.
    ///
    /// # Errors
    /// [`Error::Flags`].
    pub(crate) fn complete(mut self) -> Result<Args, Error> {
        let flags = |text: String| Err(Error::Flags(text));
        if self.http.url.is_none() {
            if self.decode_length < 2 {
                return flags("--decode-length is 1; shards need at least 2: prefill makes the first token".to_owned());
            }
            if self.shards.batch_size.is_empty() {
                self.shards.batch_size = vec![1, 2, 4, 8, 16, 32];
            }
        } else if self.http.rate.is_empty() && self.http.concurrency.is_empty() {
            self.http.concurrency = vec![1];
        }
        if self.http.requests.is_none() && self.http.duration.is_none() {
            self.http.requests = Some(100);
        }
        for (flag, given) in [
            ("batch-size", self.shards.batch_size.len()),
            ("concurrency", self.http.concurrency.len()),
            ("rate", self.http.rate.len()),
        ] {
            if given > MAX_POINTS {
                return flags(format!("--{flag} is given {given} times, limit {MAX_POINTS}"));
            }
        }
        if self.http.url.is_some() && self.http.api != Api::Generate && self.sampling.watermark {
            return flags(format!("--watermark has no field on the route of --api {}", self.http.api.name()));
        }
        Ok(self)
    }
}

impl SamplingArgs {
    /// As reports show them.
    pub(crate) fn parameters(&self) -> Vec<Parameter> {
        let parameter = |key, title, value| Parameter { key, title, value };
        // As it was written: 0.9 is no 0.8999999761581421.
        let number =
            |value: Option<f32>| value.map_or(Value::Null, |value| json!((f64::from(value) * 1e6).round() / 1e6));
        vec![
            parameter("top_n_tokens", "Top N Tokens", json!(self.top_n_tokens)),
            parameter("temperature", "Temperature", number(self.temperature)),
            parameter("top_k", "Top K", json!(self.top_k)),
            parameter("top_p", "Top P", number(self.top_p)),
            parameter("typical_p", "Typical P", number(self.typical_p)),
            parameter("repetition_penalty", "Repetition Penalty", number(self.repetition_penalty)),
            parameter("frequency_penalty", "Frequency Penalty", number(self.frequency_penalty)),
            parameter("watermark", "Watermark", json!(self.watermark)),
            parameter("do_sample", "Do Sample", json!(self.do_sample)),
        ]
    }
}

impl HttpArgs {
    /// How long requests are started.
    pub(crate) fn duration(&self) -> Option<Duration> {
        self.duration.map(Duration::from_secs_f64)
    }
}

impl Api {
    /// As on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Api::Generate => "generate",
            Api::Chat => "chat",
            Api::Completions => "completions",
        }
    }
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        // A million: nothing that can be scheduled comes near, and all of it fits a Duration.
        Ok(value) if value > 0.0 && value <= 1e6 => Ok(value),
        _ => Err("must be a number above 0 and at most 1000000".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, String> {
        let words = std::iter::once("text-generation-benchmark").chain(line.split_whitespace());
        let args = Args::try_parse_from(words).map_err(|error| error.to_string())?;
        args.complete().map_err(|error| error.to_string())
    }

    #[test]
    fn tgis_command_line_means_what_it_meant() {
        let args = parse("-t gpt2").unwrap();
        assert_eq!(args.shards.batch_size, [1, 2, 4, 8, 16, 32]);
        assert_eq!((args.sequence_length, args.decode_length, args.shards.runs, args.warmups), (10, 8, 10, 1));
        assert_eq!(args.shards.master_shard_uds_path.to_str(), Some("/tmp/text-generation-server-0"));
        let args =
            parse("-t gpt2 -b 3 -b 5 -s 7 -d 9 -r 2 -w 0 -m /tmp/x-0 --top-k 5 --do-sample --watermark").unwrap();
        assert_eq!(args.shards.batch_size, [3, 5]);
        assert_eq!((args.sequence_length, args.decode_length, args.shards.runs, args.warmups), (7, 9, 2, 0));
        assert!(args.sampling.do_sample && args.sampling.watermark);
    }

    #[test]
    fn http_has_its_own_defaults() {
        let args = parse("--url http://localhost:3000").unwrap();
        assert_eq!((args.http.concurrency, args.http.requests), (vec![1], Some(100)));
        let args = parse("--url http://localhost:3000 --rate 2.5 --duration 3").unwrap();
        assert_eq!((args.http.rate, args.http.requests), (vec![2.5], None));
        assert!(args.http.concurrency.is_empty());
    }

    #[test]
    fn contradictions_are_refused() {
        #[track_caller]
        fn check(line: &str, expected: &str) {
            let error = parse(line).unwrap_err();
            assert!(error.contains(expected), "{line}: {error}");
        }
        check("--rate 3", "--url <URL>");
        check("--url http://x --rate 3 --concurrency 2", "cannot be used with");
        check("--url http://x --batch-size 3", "cannot be used with");
        check("--url http://x --rate 0", "must be a number above 0");
        check("--decode-length 1", "--decode-length is 1; shards need at least 2");
        check("--url http://x --api chat --watermark", "--watermark has no field on the route of --api chat");
        check("--sequence-length 0", "0 is not in");
        let many = "-b 1 ".repeat(65);
        check(&many, "--batch-size is given 65 times, limit 64");
    }
}
