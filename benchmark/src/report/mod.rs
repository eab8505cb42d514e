//! What was measured. The runners fill it while they measure, the interface draws it, and at the end it is printed.

mod json;
mod markdown;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;

pub use json::json;
pub use markdown::markdown;
pub(crate) use markdown::milliseconds;

use crate::statistics::{Distribution, Summary};

/// A run: what was measured, how, and what came out.
#[derive(Clone, Debug)]
pub struct Report {
    /// "shards" or "http".
    pub mode: &'static str,
    /// What is measured, in words.
    pub target: String,
    /// How, in the order in which it is shown.
    pub parameters: Vec<Parameter>,
    /// One point per batch size, concurrency or rate, in the order in which they are measured. Shared, so that a picture
    /// takes no copy; whoever records copies the one point at hand if a picture still holds it.
    pub points: Vec<Arc<Point>>,
    /// Whether everything that was asked for is there.
    pub is_complete: bool,
}

/// A flag and its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// Its name in JSON.
    pub key: &'static str,
    /// Its name in tables.
    pub title: &'static str,
    /// Its value; null if it was not given.
    pub value: Value,
}

/// A load and what it measured.
#[derive(Clone, Debug)]
pub struct Point {
    /// The load.
    pub load: Load,
    /// How far it is.
    pub phase: Phase,
    /// What it measured so far.
    pub results: Results,
}

/// How much is asked of the target at a time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Load {
    /// Rows of a batch.
    BatchSize(u32),
    /// Clients in a closed loop.
    Concurrency(u32),
    /// Arrivals a second.
    Rate(f64),
}

/// How far a point is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Phase {
    /// Not begun.
    Waiting,
    /// Runs that do not count.
    WarmingUp,
    /// This share of the work is done.
    Running(f64),
    /// Everything is measured.
    Done,
}

/// What a point measures.
#[derive(Clone, Debug)]
pub enum Results {
    /// Batches on shards.
    Batches(Batches),
    /// Requests to a server.
    Requests(Requests),
}

/// Latencies in seconds, throughputs in tokens per second: one value per batch, and for `decode_token` one per step.
#[derive(Clone, Debug, Default)]
pub struct Batches {
    /// From the first plan to the first token of the last row.
    pub prefill: Distribution,
    /// Between the tokens of a row.
    pub decode_token: Distribution,
    /// All decode steps of a batch.
    pub decode_total: Distribution,
    /// Prompt tokens.
    pub prefill_throughput: Distribution,
    /// Tokens after the first of each row.
    pub decode_throughput: Distribution,
}

/// Latencies in seconds, of completed requests only.
#[derive(Clone, Debug, Default)]
pub struct Requests {
    /// From the request (in an open loop: from its scheduled arrival) to its first token.
    pub time_to_first_token: Distribution,
    /// Between two events of a stream that carry text.
    pub inter_token: Distribution,
    /// The same, averaged over the tokens after the first of a request: what a client sees if events carry several.
    pub time_per_output_token: Distribution,
    /// From the request (or its scheduled arrival) to the end of its stream.
    pub end_to_end: Distribution,
    /// From the start of the first request to the end of the last.
    pub elapsed: Duration,
    /// Requests that were answered in full.
    pub completed: u64,
    /// The others, by kind.
    pub failures: BTreeMap<String, u64>,
    /// Prompt tokens of the completed ones, as far as the server says.
    pub prompt_tokens: u64,
    /// Tokens of all their replies.
    pub output_tokens: u64,
}

/// The name of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// In JSON.
    pub key: &'static str,
    /// In tables.
    pub title: &'static str,
}

/// One dot of the plot of throughput against latency.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dot {
    /// Tokens per second.
    pub throughput: f64,
    /// Seconds.
    pub latency: f64,
}

impl Load {
    /// What is varied.
    pub fn metric(self) -> Metric {
        match self {
            Load::BatchSize(_) => Metric { key: "batch_size", title: "Batch Size" },
            Load::Concurrency(_) => Metric { key: "concurrency", title: "Concurrency" },
            Load::Rate(_) => Metric { key: "rate", title: "Requests/s" },
        }
    }
}

impl std::fmt::Display for Load {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Load::BatchSize(number) | Load::Concurrency(number) => write!(f, "{number}"),
            Load::Rate(rate) => write!(f, "{rate}"),
        }
    }
}

impl Phase {
    /// Share of the work that is done.
    pub fn share(self) -> f64 {
        match self {
            Phase::Waiting | Phase::WarmingUp => 0.0,
            Phase::Running(share) => share.clamp(0.0, 1.0),
            Phase::Done => 1.0,
        }
    }
}

impl Results {
    /// Whether nothing was measured, not even a failure.
    pub fn is_empty(&self) -> bool {
        match self {
            Results::Batches(batches) => batches.prefill.summary().is_none(),
            Results::Requests(requests) => requests.completed + requests.failed() == 0,
        }
    }

    /// All latencies, in the order of tables.
    pub fn latencies(&self) -> Vec<(Metric, &Distribution)> {
        match self {
            Results::Batches(batches) => vec![
                (Metric { key: "prefill", title: "Prefill" }, &batches.prefill),
                (Metric { key: "decode_token", title: "Decode (token)" }, &batches.decode_token),
                (Metric { key: "decode_total", title: "Decode (total)" }, &batches.decode_total),
            ],
            Results::Requests(requests) => vec![
                (Metric { key: "time_to_first_token", title: "First token" }, &requests.time_to_first_token),
                (Metric { key: "inter_token", title: "Inter-token" }, &requests.inter_token),
                (Metric { key: "time_per_output_token", title: "Per output token" }, &requests.time_per_output_token),
                (Metric { key: "end_to_end", title: "End to end" }, &requests.end_to_end),
            ],
        }
    }

    /// The two curves of the plots: the phase, and where this point is on it.
    pub fn dots(&self) -> [(&'static str, Option<Dot>); 2] {
        let dot = |throughput: Option<f64>, latency: &Distribution| {
            Some(Dot { throughput: throughput?, latency: latency.percentile(50.0)? })
        };
        match self {
            Results::Batches(batches) => {
                let average = |throughput: &Distribution| throughput.summary().map(|summary: Summary| summary.average);
                [
                    ("Prefill", dot(average(&batches.prefill_throughput), &batches.prefill)),
                    ("Decode", dot(average(&batches.decode_throughput), &batches.decode_token)),
                ]
            }
            Results::Requests(requests) => {
                let throughput = requests.per_second(requests.output_tokens);
                [
                    ("First token", dot(throughput, &requests.time_to_first_token)),
                    ("Inter-token", dot(throughput, &requests.inter_token)),
                ]
            }
        }
    }
}

impl Batches {
    /// Throughputs in the order of tables.
    pub fn throughputs(&self) -> [(Metric, &Distribution); 2] {
        [
            (Metric { key: "prefill", title: "Prefill" }, &self.prefill_throughput),
            (Metric { key: "decode", title: "Decode" }, &self.decode_throughput),
        ]
    }
}

impl Requests {
    /// Requests that failed.
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// `count` over the elapsed time; `None` before the first request has ended.
    pub fn per_second(&self, count: u64) -> Option<f64> {
        (!self.elapsed.is_zero()).then(|| count as f64 / self.elapsed.as_secs_f64())
    }
}

/// A report that is being filled.
#[derive(Clone, Debug)]
pub struct Live(Arc<Mutex<Report>>);

impl Live {
    /// Starts with `report`.
    pub fn new(report: Report) -> Live {
        Live(Arc::new(Mutex::new(report)))
    }

    /// As it is now.
    pub fn snapshot(&self) -> Report {
        self.lock().clone()
    }

    /// Records into the point `index`.
    pub fn update(&self, index: usize, record: impl FnOnce(&mut Point)) {
        record(Arc::make_mut(&mut self.lock().points[index]));
    }

    /// Everything is there.
    pub fn complete(&self) {
        self.lock().is_complete = true;
    }

    fn lock(&self) -> MutexGuard<'_, Report> {
        // Whoever panicked while recording has left figures behind that are as good as those before.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub(crate) mod samples {
    //! Reports with known figures, for the tests of everything that shows them.

    use serde_json::json;

    use super::*;

    fn distribution(values: &[f64]) -> Distribution {
        let mut distribution = Distribution::default();
        values.iter().for_each(|value| distribution.record(*value));
        distribution
    }

    fn parameter(key: &'static str, title: &'static str, value: Value) -> Parameter {
        Parameter { key, title, value }
    }

    /// Two batch sizes measured, a third under way, a fourth to come.
    pub(crate) fn shards() -> Report {
        let batches = |rows: f64| Batches {
            prefill: distribution(&[0.010 * rows, 0.012 * rows, 0.017 * rows]),
            decode_token: distribution(&[0.0050, 0.0051, 0.0052, 0.0052, 0.0053, 0.0060]),
            decode_total: distribution(&[0.035, 0.036, 0.041]),
            prefill_throughput: distribution(&[1000.0, 830.0, 590.0]),
            decode_throughput: distribution(&[200.0 * rows, 190.0 * rows, 180.0 * rows]),
        };
        let point = |rows: u32, phase| {
            let results = if phase == Phase::Waiting { Batches::default() } else { batches(rows.into()) };
            Arc::new(Point { load: Load::BatchSize(rows), phase, results: Results::Batches(results) })
        };
        Report {
            mode: "shards",
            target: "llama, bfloat16, cpu (AVX-512, 2 threads)".to_owned(),
            parameters: vec![
                parameter("tokenizer_name", "Model", json!("gpt2")),
                parameter("sequence_length", "Sequence Length", json!(10)),
                parameter("top_k", "Top K", Value::Null),
                parameter("do_sample", "Do Sample", json!(false)),
            ],
            points: vec![
                point(1, Phase::Done),
                point(2, Phase::Done),
                point(4, Phase::Running(0.5)),
                point(8, Phase::Waiting),
            ],
            is_complete: false,
        }
    }

    /// One rate, with failures.
    pub(crate) fn http() -> Report {
        let requests = Requests {
            time_to_first_token: distribution(&[0.020, 0.030]),
            inter_token: distribution(&[0.004, 0.005, 0.006]),
            time_per_output_token: distribution(&[0.005]),
            end_to_end: distribution(&[0.060, 0.070]),
            elapsed: Duration::from_secs(2),
            completed: 2,
            failures: [("HTTP 429".to_owned(), 3), ("connection refused".to_owned(), 1)].into(),
            prompt_tokens: 20,
            output_tokens: 16,
        };
        let point = Point { load: Load::Rate(2.5), phase: Phase::Done, results: Results::Requests(requests) };
        Report {
            mode: "http",
            target: "http://127.0.0.1:3000/generate_stream".to_owned(),
            parameters: vec![parameter("api", "Route", json!("generate"))],
            points: vec![Arc::new(point)],
            is_complete: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_keeps_what_it_shows() {
        let live = Live::new(samples::shards());
        let picture = live.snapshot();
        live.update(2, |point| point.phase = Phase::Done);
        live.complete();
        assert_eq!(picture.points[2].phase, Phase::Running(0.5));
        assert_eq!(live.snapshot().points[2].phase, Phase::Done);
        assert!(live.snapshot().is_complete && !picture.is_complete);
    }
}
