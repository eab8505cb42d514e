//! The router's metrics: TGI's names, buckets and help texts, in one table each.
//!
//! Labels come from closed enums only. What the scheduler and the engine emit is listed in `engine/metrics.rs`.

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::engine::metrics::{Kind, Metric};
use crate::generation::Timings;
use crate::limits::METRICS_UPKEEP;
use crate::params::ParamLimits;

/// Why a request failed: the only values of `tgi_request_failure`'s label `err`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureKind {
    Overloaded,
    Validation,
    Incomplete,
    /// The client went away.
    Dropped,
    Generation,
    Template,
}

impl FailureKind {
    /// Counts one failure.
    pub(crate) fn count(self) {
        let err = match self {
            Self::Overloaded => "overloaded",
            Self::Validation => "validation",
            Self::Incomplete => "incomplete",
            Self::Dropped => "dropped",
            Self::Generation => "generation",
            Self::Template => "template",
        };
        metrics::counter!("tgi_request_failure", "err" => err).increment(1);
    }
}

const fn metric(kind: Kind, name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind, help }
}

/// The metrics of this layer, with TGI's help texts.
const METRICS: &[Metric] = &[
    metric(Kind::Counter, "tgi_request_count", "Total number of requests"),
    metric(Kind::Counter, "tgi_request_success", "Number of successful requests"),
    metric(Kind::Counter, "tgi_request_failure", "Number of failed requests, by reason"),
    metric(Kind::Histogram, "tgi_request_duration", "Request duration"),
    metric(Kind::Histogram, "tgi_request_validation_duration", "Request validation duration"),
    metric(Kind::Histogram, "tgi_request_inference_duration", "Request inference duration"),
    metric(Kind::Histogram, "tgi_request_mean_time_per_token_duration", "Mean time per token per request"),
    metric(Kind::Histogram, "tgi_request_generated_tokens", "Generated tokens per request"),
    metric(Kind::Histogram, "tgi_request_input_length", "Input token length per request"),
    metric(Kind::Histogram, "tgi_request_max_new_tokens", "Maximum new tokens per request"),
    metric(Kind::Counter, "tgi_grammar_cache_hits", "Grammars found compiled or being compiled"),
    metric(Kind::Counter, "tgi_grammar_cache_misses", "Grammars that had to be compiled"),
    metric(Kind::Gauge, "tgi_grammar_cache_bytes", "Approximate bytes of the compiled grammars kept"),
    metric(
        Kind::Gauge,
        "tgi_grammar_parked_bytes",
        "Bytes of the lexers that wait for the next reply of their grammar",
    ),
    metric(Kind::Histogram, "tgi_grammar_compile_duration", "Seconds to compile one grammar, refused ones included"),
];

/// A grammar needed no compilation of its own.
pub(crate) fn grammar_cache_hit() {
    metrics::counter!("tgi_grammar_cache_hits").increment(1);
}

/// A grammar is compiled for the first time, or again.
pub(crate) fn grammar_cache_miss() {
    metrics::counter!("tgi_grammar_cache_misses").increment(1);
}

/// The compiled grammars take this much.
pub(crate) fn grammar_cache_bytes(bytes: usize) {
    // Far below 2^52, so the conversion is exact.
    metrics::gauge!("tgi_grammar_cache_bytes").set(bytes as f64);
}

/// The lexers between two replies take this much.
pub(crate) fn grammar_parked_bytes(bytes: usize) {
    // Far below 2^52, so the conversion is exact.
    metrics::gauge!("tgi_grammar_parked_bytes").set(bytes as f64);
}

/// A compilation ended, well or not.
pub(crate) fn grammar_compiled(duration: std::time::Duration) {
    metrics::histogram!("tgi_grammar_compile_duration").record(duration.as_secs_f64());
}

/// A request for one generation arrived.
pub(crate) fn request_arrived() {
    metrics::counter!("tgi_request_count").increment(1);
}

/// A request passed validation.
pub(crate) fn request_validated(input_tokens: usize, max_new_tokens: u32) {
    // Token counts are far below 2^52, so the conversion is exact.
    metrics::histogram!("tgi_request_input_length").record(input_tokens as f64);
    metrics::histogram!("tgi_request_max_new_tokens").record(f64::from(max_new_tokens));
}

/// A generation is complete. (Its time in the queue is the engine's to measure.)
pub(crate) fn request_succeeded(timings: &Timings, generated_tokens: u32) {
    metrics::counter!("tgi_request_success").increment(1);
    metrics::histogram!("tgi_request_duration").record(timings.total.as_secs_f64());
    metrics::histogram!("tgi_request_validation_duration").record(timings.validation.as_secs_f64());
    metrics::histogram!("tgi_request_inference_duration").record(timings.inference.as_secs_f64());
    metrics::histogram!("tgi_request_mean_time_per_token_duration").record(timings.time_per_token.as_secs_f64());
    metrics::histogram!("tgi_request_generated_tokens").record(f64::from(generated_tokens));
}

/// Installs the process-wide recorder and describes every metric of this layer.
///
/// # Errors
/// If a recorder is already installed.
pub(crate) fn install(limits: &ParamLimits) -> anyhow::Result<PrometheusHandle> {
    let handle = builder(limits)?.install_recorder()?;
    describe();
    Ok(handle)
}

/// Sorts samples into their buckets from time to time, for ever. The recorder does so only when it is scraped: where nobody
/// scrapes, every sample of every step would be kept.
pub(crate) async fn keep_up(recorder: PrometheusHandle) {
    loop {
        tokio::time::sleep(METRICS_UPKEEP).await;
        recorder.run_upkeep();
    }
}

fn builder(limits: &ParamLimits) -> anyhow::Result<PrometheusBuilder> {
    let exact = |name: &str| Matcher::Full(name.to_owned());
    Ok(PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("duration".to_owned()), &duration_buckets())?
        .set_buckets_for_metric(exact("tgi_grammar_mask_duration"), &mask_buckets())?
        .set_buckets_for_metric(exact("tgi_request_input_length"), &linear_buckets(limits.max_input_tokens))?
        .set_buckets_for_metric(exact("tgi_request_generated_tokens"), &linear_buckets(limits.max_total_tokens))?
        .set_buckets_for_metric(exact("tgi_request_max_new_tokens"), &linear_buckets(limits.max_total_tokens))?
        .set_buckets_for_metric(exact("tgi_request_skipped_tokens"), &skipped_buckets())?
        .set_buckets_for_metric(exact("tgi_batch_next_size"), &(1..=1024).map(f64::from).collect::<Vec<_>>())?)
}

fn describe() {
    for Metric { name, kind, help } in METRICS.iter().chain(crate::engine::metrics::METRICS) {
        match kind {
            Kind::Counter => metrics::describe_counter!(*name, *help),
            Kind::Gauge => metrics::describe_gauge!(*name, *help),
            Kind::Histogram => metrics::describe_histogram!(*name, *help),
        }
    }
}

/// 35 steps of half again, from 0.15 ms to 146 s (TGI's values to the last bit: the product is built step by step).
fn duration_buckets() -> Vec<f64> {
    std::iter::successors(Some(0.0001 * 1.5), |bound| Some(bound * 1.5)).take(35).collect()
}

/// 1, 2 and 5 of every power of ten from 1 µs to 5 s, after which a mask has failed its request.
fn mask_buckets() -> Vec<f64> {
    (-6..=0)
        .flat_map(|power| [1, 2, 5].map(|step| format!("{step}e{power}")))
        .map(|bound| {
            // Read as decimals, so that 2 µs is 0.000002 in the exposition.
            bound.parse().expect("it is a number")
        })
        .collect()
}

/// Every number that there can be. TGI has a summary here, which its own dashboard cannot read.
fn skipped_buckets() -> Vec<f64> {
    (0..=proto::MAX_DRAFT_TOKENS).map(f64::from).collect()
}

/// 100 equal steps up to `max`.
fn linear_buckets(max: usize) -> Vec<f64> {
    // Token counts are far below 2^52, so the conversion is exact.
    let max = max as f64;
    (0..100).map(|step| max / 100.0 * f64::from(step + 1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_buckets_are_tgis() {
        let buckets = duration_buckets();
        assert_eq!(buckets.len(), 35);
        assert_eq!(buckets[0].to_string(), "0.00015000000000000001");
        assert_eq!(buckets[34].to_string(), "145.61096060497135");
    }

    #[test]
    fn counters_keep_their_names_and_histograms_have_buckets() {
        let recorder = builder(&crate::params::tests::limits()).unwrap().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            describe();
            metrics::counter!("tgi_request_count").increment(1);
            FailureKind::Overloaded.count();
            metrics::histogram!("tgi_request_input_length").record(3.0);
            metrics::histogram!("tgi_request_duration").record(0.5);
            metrics::histogram!("tgi_grammar_mask_duration").record(0.000_03);
        });
        let text = handle.render();
        assert!(text.contains("# HELP tgi_request_count Total number of requests\n"), "{text}");
        assert!(text.contains("\ntgi_request_count 1\n"), "{text}");
        assert!(text.contains("tgi_request_failure{err=\"overloaded\"} 1\n"), "{text}");
        assert!(text.contains("tgi_request_input_length_bucket{le=\"0.63\"} 0\n"), "{text}");
        assert!(text.contains("tgi_request_duration_bucket{le=\"0.00015000000000000001\"} 0\n"), "{text}");
        assert!(text.contains("tgi_grammar_mask_duration_bucket{le=\"0.00002\"} 0\n"), "{text}");
        assert!(text.contains("tgi_grammar_mask_duration_bucket{le=\"0.00005\"} 1\n"), "{text}");
    }
}
