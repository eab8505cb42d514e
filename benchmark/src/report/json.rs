//! A report as one JSON object. docs/benchmark.md describes it; a change that a reader could notice raises the version.

use serde_json::{Map, Value, json};

use super::{Batches, Point, Report, Requests, Results};
use crate::statistics::{Distribution, Summary};

/// Raised when a field changes its name or meaning; new fields may come at any time.
const SCHEMA_VERSION: u32 = 1;

/// The report as one object.
pub fn json(report: &Report) -> Value {
    let parameters: Map<String, Value> =
        report.parameters.iter().map(|parameter| (parameter.key.to_owned(), parameter.value.clone())).collect();
    json!({
        "schema_version": SCHEMA_VERSION,
        "benchmark_version": env!("CARGO_PKG_VERSION"),
        "mode": report.mode,
        "target": report.target,
        "complete": report.is_complete,
        "parameters": parameters,
        "points": report.points.iter().map(|point| json_point(point)).collect::<Vec<_>>(),
    })
}

fn json_point(point: &Point) -> Value {
    let latencies: Map<String, Value> = point
        .results
        .latencies()
        .into_iter()
        .map(|(metric, distribution)| (metric.key.to_owned(), json_summary(distribution)))
        .collect();
    let load = match point.load {
        super::Load::BatchSize(number) | super::Load::Concurrency(number) => json!(number),
        super::Load::Rate(rate) => json!(rate),
    };
    let mut object = Map::new();
    object.insert(point.load.metric().key.to_owned(), load);
    object.insert("latency_seconds".to_owned(), latencies.into());
    let Value::Object(rest) = (match &point.results {
        Results::Batches(batches) => json_batches(batches),
        Results::Requests(requests) => json_requests(requests),
    }) else {
        unreachable!("both are objects")
    };
    object.extend(rest);
    object.into()
}

fn json_batches(batches: &Batches) -> Value {
    let throughputs: Map<String, Value> = batches
        .throughputs()
        .into_iter()
        .map(|(metric, values)| (metric.key.to_owned(), json_summary(values)))
        .collect();
    json!({ "throughput_tokens_per_second": throughputs })
}

fn json_requests(requests: &Requests) -> Value {
    json!({
        "requests_per_second": requests.per_second(requests.completed),
        "output_tokens_per_second": requests.per_second(requests.output_tokens),
        "elapsed_seconds": requests.elapsed.as_secs_f64(),
        "completed": requests.completed,
        "failed": requests.failed(),
        "failures": requests.failures,
        "prompt_tokens": requests.prompt_tokens,
        "output_tokens": requests.output_tokens,
    })
}

/// Null if nothing was measured.
fn json_summary(distribution: &Distribution) -> Value {
    distribution.summary().map_or(Value::Null, |Summary { count, average, lowest, highest, p50, p90, p99 }| {
        json!({
            "count": count, "average": average, "lowest": lowest, "highest": highest, "p50": p50, "p90": p90, "p99": p99,
        })
    })
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::report::samples;

    #[test]
    fn a_run_on_shards() {
        let value = json(&samples::shards());
        assert_eq!(value["points"].as_array().unwrap().len(), 4);
        let first = json!({ "head": {
            "schema_version": value["schema_version"], "mode": value["mode"], "complete": value["complete"],
            "target": value["target"], "parameters": value["parameters"],
        }, "point": value["points"][0] });
        expect![[r#"
            {
              "head": {
                "schema_version": 1,
                "mode": "shards",
                "complete": false,
                "target": "llama, bfloat16, cpu (AVX-512, 2 threads)",
                "parameters": {
                  "tokenizer_name": "gpt2",
                  "sequence_length": 10,
                  "top_k": null,
                  "do_sample": false
                }
              },
              "point": {
                "batch_size": 1,
                "latency_seconds": {
                  "prefill": {
                    "count": 3,
                    "average": 0.013,
                    "lowest": 0.01,
                    "highest": 0.017,
                    "p50": 0.01200103759765625,
                    "p90": 0.017,
                    "p99": 0.017
                  },
                  "decode_token": {
                    "count": 6,
                    "average": 0.0053,
                    "lowest": 0.005,
                    "highest": 0.006,
                    "p50": 0.005199432373046875,
                    "p90": 0.006,
                    "p99": 0.006
                  },
                  "decode_total": {
                    "count": 3,
                    "average": 0.037333333333333336,
                    "lowest": 0.035,
                    "highest": 0.041,
                    "p50": 0.035980224609375,
                    "p90": 0.040985107421875,
                    "p99": 0.040985107421875
                  }
                },
                "throughput_tokens_per_second": {
                  "prefill": {
                    "count": 3,
                    "average": 806.6666666666666,
                    "lowest": 590.0,
                    "highest": 1000.0,
                    "p50": 830.5,
                    "p90": 1000.0,
                    "p99": 1000.0
                  },
                  "decode": {
                    "count": 3,
                    "average": 190.0,
                    "lowest": 180.0,
                    "highest": 200.0,
                    "p50": 190.125,
                    "p90": 200.0,
                    "p99": 200.0
                  }
                }
              }
            }"#]]
        .assert_eq(&serde_json::to_string_pretty(&first).unwrap());
        assert_eq!(value["points"][3]["latency_seconds"]["prefill"], Value::Null);
    }

    #[test]
    fn a_run_over_http() {
        expect![[r#"
            [
              {
                "rate": 2.5,
                "latency_seconds": {
                  "time_to_first_token": {
                    "count": 2,
                    "average": 0.025,
                    "lowest": 0.02,
                    "highest": 0.03,
                    "p50": 0.0200042724609375,
                    "p90": 0.03,
                    "p99": 0.03
                  },
                  "inter_token": {
                    "count": 3,
                    "average": 0.005,
                    "lowest": 0.004,
                    "highest": 0.006,
                    "p50": 0.005001068115234375,
                    "p90": 0.006,
                    "p99": 0.006
                  },
                  "time_per_output_token": {
                    "count": 1,
                    "average": 0.005,
                    "lowest": 0.005,
                    "highest": 0.005,
                    "p50": 0.005,
                    "p90": 0.005,
                    "p99": 0.005
                  },
                  "end_to_end": {
                    "count": 2,
                    "average": 0.065,
                    "lowest": 0.06,
                    "highest": 0.07,
                    "p50": 0.060028076171875,
                    "p90": 0.07,
                    "p99": 0.07
                  }
                },
                "requests_per_second": 1.0,
                "output_tokens_per_second": 8.0,
                "elapsed_seconds": 2.0,
                "completed": 2,
                "failed": 4,
                "failures": {
                  "HTTP 429": 3,
                  "connection refused": 1
                },
                "prompt_tokens": 20,
                "output_tokens": 16
              }
            ]"#]]
        .assert_eq(&serde_json::to_string_pretty(&json(&samples::http())["points"]).unwrap());
    }
}
