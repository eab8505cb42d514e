//! Every metric of the engine, in one table: TGI's names where TGI has the thing, ours (also under `tgi_`) where not.
//!
//! TGI's `tgi_batch_filter_duration` and `tgi_batch_concat_duration` time RPCs that do not exist here. `method` is
//! `prefill` for a step that contains prompt chunks, else `decode`.

use std::time::Duration;

use crate::scheduler::{Counters, Load};

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution.
    Histogram,
}

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// For `# HELP`.
    pub help: &'static str,
}

macro_rules! table {
    ($($constant:ident $kind:ident $name:literal $help:literal;)*) => {
        $(const $constant: &str = $name;)*
        /// The engine's metrics. The HTTP side describes them to the exporter.
        pub const METRICS: &[Metric] = &[$(Metric { name: $name, kind: Kind::$kind, help: $help }),*];
    };
}

table! {
    INFERENCE_COUNT Counter "tgi_batch_inference_count" "Steps sent to the shards, by method";
    INFERENCE_SUCCESS Counter "tgi_batch_inference_success" "Steps the shards answered, by method";
    INFERENCE_FAILURE Counter "tgi_batch_inference_failure" "Steps lost with a shard epoch, by method";
    INFERENCE_DURATION Histogram "tgi_batch_inference_duration" "Seconds from a step's possible start to its result, by method";
    FORWARD_DURATION Histogram "tgi_batch_forward_duration" "Seconds of a step's forward pass, by method";
    DECODE_DURATION Histogram "tgi_batch_decode_duration" "Seconds of a step's sampling, by method";
    CONCAT Counter "tgi_batch_concat" "Steps in which requests joined running ones, by reason";
    NEXT_SIZE Histogram "tgi_batch_next_size" "Requests that enter the batch in one step";
    CURRENT_SIZE Gauge "tgi_batch_current_size" "Requests in the running batch";
    CURRENT_MAX_TOKENS Gauge "tgi_batch_current_max_tokens" "Prompt and longest reply of the running requests, in tokens";
    QUEUE_SIZE Gauge "tgi_queue_size" "Requests that wait for the batch";
    QUEUE_DURATION Histogram "tgi_request_queue_duration" "Seconds from queueing to the first batch";
    KV_USED Gauge "tgi_kv_blocks_used" "KV blocks that belong to running requests";
    KV_CACHED Gauge "tgi_kv_blocks_cached" "KV blocks that belong to nobody and can be reused by prefix";
    KV_FREE Gauge "tgi_kv_blocks_free" "KV blocks without contents";
    PREEMPTIONS Counter "tgi_preemptions" "Requests sent back to the queue for want of KV blocks";
    PREFIX_HIT_TOKENS Counter "tgi_prefix_cache_hit_tokens" "Prompt tokens taken from the prefix cache";
    WASTED_ROWS Counter "tgi_wasted_rows" "Rows computed for requests that had already ended";
    SKIPPED_TOKENS Histogram "tgi_request_skipped_tokens" "Speculated tokens per request";
    DRAFT_TOKENS Counter "tgi_speculation_draft_tokens" "Draft tokens computed";
    ACCEPTED_DRAFT_TOKENS Counter "tgi_speculation_accepted_tokens" "Draft tokens that became tokens of a reply";
    PLANS_IN_FLIGHT Histogram "tgi_plan_queue_depth" "Plans ahead of the shards when a result arrives; 0 means they starve";
    PLAN_DURATION Histogram "tgi_plan_duration" "Seconds to decide one step";
    MASK_DURATION Histogram "tgi_grammar_mask_duration" "Seconds to read a token and compute the mask that follows it";
    GRAMMAR_FAILURES Counter "tgi_grammar_failures" "Requests that their grammar failed after they were queued";
    RECOVERIES Counter "tgi_engine_recoveries" "Shard epochs that ended and were replaced";
}

/// What a step contains, for the label `method`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Prefill,
    Decode,
}

impl Method {
    fn label(self) -> &'static str {
        match self {
            Method::Prefill => "prefill",
            Method::Decode => "decode",
        }
    }
}

pub(super) fn step_sent(method: Method, planning: Duration, entering: usize, running_before: usize) {
    metrics::counter!(INFERENCE_COUNT, "method" => method.label()).increment(1);
    metrics::histogram!(PLAN_DURATION).record(planning.as_secs_f64());
    if entering > 0 {
        metrics::histogram!(NEXT_SIZE).record(entering as f64);
        if running_before > 0 {
            // The one of TGI's three reasons that is true here: prompts join in chunks at every step.
            metrics::counter!(CONCAT, "reason" => "chunking").increment(1);
        }
    }
}

pub(super) fn step_answered(method: Method, duration: Duration, timings: &proto::v1::Timings, ahead: usize) {
    let seconds = |nanoseconds: u64| Duration::from_nanos(nanoseconds).as_secs_f64();
    metrics::counter!(INFERENCE_SUCCESS, "method" => method.label()).increment(1);
    metrics::histogram!(INFERENCE_DURATION, "method" => method.label()).record(duration.as_secs_f64());
    metrics::histogram!(FORWARD_DURATION, "method" => method.label()).record(seconds(timings.forward_ns));
    metrics::histogram!(DECODE_DURATION, "method" => method.label()).record(seconds(timings.sample_ns));
    metrics::histogram!(PLANS_IN_FLIGHT).record(ahead as f64);
}

pub(super) fn step_lost(method: Method) {
    metrics::counter!(INFERENCE_FAILURE, "method" => method.label()).increment(1);
}

/// A row of a step with drafts got `tokens` tokens beside the one that every row gets.
pub(super) fn tokens_skipped(tokens: usize) {
    // At most `MAX_DRAFT_TOKENS`, so the conversion is exact.
    metrics::histogram!(SKIPPED_TOKENS).record(tokens as f64);
}

pub(super) fn epoch_replaced() {
    metrics::counter!(RECOVERIES).increment(1);
}

pub(super) fn mask_computed(duration: Duration) {
    metrics::histogram!(MASK_DURATION).record(duration.as_secs_f64());
}

pub(super) fn grammar_failed() {
    metrics::counter!(GRAMMAR_FAILURES).increment(1);
}

pub(super) fn request_scheduled(queued: Duration) {
    metrics::histogram!(QUEUE_DURATION).record(queued.as_secs_f64());
}

pub(super) fn state(load: &Load, counters: &Counters) {
    metrics::gauge!(CURRENT_SIZE).set(load.running as f64);
    metrics::gauge!(CURRENT_MAX_TOKENS).set(load.running_max_tokens as f64);
    metrics::gauge!(QUEUE_SIZE).set(load.waiting as f64);
    metrics::gauge!(KV_USED).set(load.blocks.used);
    metrics::gauge!(KV_CACHED).set(load.blocks.cached);
    metrics::gauge!(KV_FREE).set(load.blocks.free);
    metrics::counter!(PREEMPTIONS).absolute(counters.preemptions);
    metrics::counter!(PREFIX_HIT_TOKENS).absolute(counters.prefix_hit_tokens);
    metrics::counter!(WASTED_ROWS).absolute(counters.wasted_rows);
    metrics::counter!(DRAFT_TOKENS).absolute(counters.draft_tokens);
    metrics::counter!(ACCEPTED_DRAFT_TOKENS).absolute(counters.accepted_draft_tokens);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_prefixed_and_described() {
        let mut names: Vec<&str> = METRICS.iter().map(|metric| metric.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), METRICS.len());
        assert!(METRICS.iter().all(|metric| metric.name.starts_with("tgi_") && !metric.help.is_empty()));
    }
}
