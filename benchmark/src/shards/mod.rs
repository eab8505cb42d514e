//! Shard mode: batches of random prompts straight on the shards, without router, text and HTTP.
//!
//! Every run is a batch of its own: slots and blocks are taken at its start and freed at its end, and between its steps
//! two plans are in flight, as in service.

mod batch;
mod group;

use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::v1::{SamplingParams, Watermark};
use serde_json::json;

use self::batch::{Batch, Shape};
use self::group::{Facts, Group};
use crate::args::{Args, SamplingArgs};
use crate::error::Error;
use crate::random::Random;
use crate::report::{Batches, Live, Load, Parameter, Phase, Point, Report, Results};

/// Shards that can hold everything that will be asked of them.
pub(crate) struct Bench {
    group: Group,
    facts: Facts,
    args: Args,
    sampling: SamplingParams,
}

impl Bench {
    /// Connects, and checks everything before the first step.
    ///
    /// # Errors
    /// If the shards are not there, serve a router, or cannot hold a batch.
    pub(crate) async fn open(args: Args) -> Result<(Bench, Report), Error> {
        let mut group = Group::connect(&args.shards.master_shard_uds_path, args.shards.take_over).await?;
        let facts = group.facts().clone();
        let sampling = sampling(&args.sampling, args.seed);
        sampling.check(facts.vocab_size, facts.max_top_n_tokens).map_err(Error::Sampling)?;
        for &rows in &args.shards.batch_size {
            shape(&args, rows).check(&facts)?;
        }
        let report = report(&args, &facts);
        group.open().await?;
        Ok((Bench { group, facts, args, sampling }, report))
    }

    /// Measures every batch size.
    ///
    /// # Errors
    /// If a shard fails, or another router takes it over.
    pub(crate) async fn run(mut self, live: &Live) -> Result<(), Error> {
        for (index, rows) in self.args.shards.batch_size.clone().into_iter().enumerate() {
            let shape = shape(&self.args, rows);
            live.update(index, |point| point.phase = Phase::WarmingUp);
            for warmup in 0..self.args.warmups {
                self.measure(shape, u64::from(warmup)).await?;
            }
            tracing::info!("batch size {rows}: {} runs", self.args.shards.runs);
            for run in 0..self.args.shards.runs {
                let share = f64::from(run) / f64::from(self.args.shards.runs);
                live.update(index, |point| point.phase = Phase::Running(share));
                let measured = self.measure(shape, u64::from(self.args.warmups) + u64::from(run)).await?;
                live.update(index, |point| measured.record(shape, point));
            }
            live.update(index, |point| point.phase = Phase::Done);
        }
        Ok(())
    }

    /// One batch from its first prompt token to its last token.
    async fn measure(&mut self, shape: Shape, run: u64) -> Result<Measured, Error> {
        let mut seeds = Random::new(self.args.seed ^ (u64::from(shape.rows) << 32) ^ run);
        let batch = Batch::new(shape, &self.facts, &self.sampling, Random::new(seeds.next()));

        let started = Instant::now();
        let mut prefilled = started;
        self.group.steps(batch.prefill(), |at| prefilled = at).await?;

        // The first decode plan leaves when prefill is over: from here on, not from `prefilled`, it is decode.
        let decoding = Instant::now();
        let mut last = decoding;
        let mut tokens = Vec::with_capacity(shape.decode_steps() as usize);
        self.group
            .steps(batch.decode(), |at| {
                tokens.push(at.saturating_duration_since(last));
                last = at;
            })
            .await?;
        self.group.steps(std::iter::once(batch.free()), |_| ()).await?;
        Ok(Measured { prefill: prefilled - started, decode: last - decoding, tokens })
    }
}

/// The times of one batch.
struct Measured {
    prefill: Duration,
    decode: Duration,
    tokens: Vec<Duration>,
}

impl Measured {
    fn record(self, shape: Shape, point: &mut Point) {
        let Results::Batches(batches) = &mut point.results else { unreachable!("a run on shards has batches") };
        let rows = f64::from(shape.rows);
        let (prefill, decode) = (self.prefill.as_secs_f64(), self.decode.as_secs_f64());
        batches.prefill.record(prefill);
        batches.prefill_throughput.record(rows * f64::from(shape.sequence_length) / prefill);
        self.tokens.iter().for_each(|token| batches.decode_token.record(token.as_secs_f64()));
        batches.decode_total.record(decode);
        batches.decode_throughput.record(rows * f64::from(shape.decode_steps()) / decode);
    }
}

fn shape(args: &Args, rows: u32) -> Shape {
    Shape { rows, sequence_length: args.sequence_length, decode_length: args.decode_length }
}

fn sampling(args: &SamplingArgs, seed: u64) -> SamplingParams {
    SamplingParams {
        do_sample: args.do_sample,
        temperature: args.temperature,
        // TGI's tool writes "off" as 0.
        top_k: args.top_k.filter(|&k| k > 0).map(|k| i32::try_from(k).unwrap_or(i32::MAX)),
        top_p: args.top_p,
        typical_p: args.typical_p,
        repetition_penalty: args.repetition_penalty,
        frequency_penalty: args.frequency_penalty,
        top_n_tokens: args.top_n_tokens,
        seed: Some(seed),
        // The defaults of the router.
        watermark: args.watermark.then_some(Watermark { gamma: 0.5, delta: 2.0 }),
        ..SamplingParams::default()
    }
}

fn report(args: &Args, facts: &Facts) -> Report {
    let parameter = |key, title, value| Parameter { key, title, value };
    let mut parameters = vec![
        parameter("tokenizer_name", "Model", json!(args.tokenizer_name)),
        parameter("revision", "Revision", json!(args.revision)),
        parameter("world_size", "Shards", json!(facts.world_size)),
        parameter("sequence_length", "Sequence Length", json!(args.sequence_length)),
        parameter("decode_length", "Decode Length", json!(args.decode_length)),
        parameter("runs", "N Runs", json!(args.shards.runs)),
        parameter("warmups", "Warmups", json!(args.warmups)),
        parameter("seed", "Seed", json!(args.seed)),
    ];
    parameters.extend(args.sampling.parameters());
    let point = |&rows: &u32| Point {
        load: Load::BatchSize(rows),
        phase: Phase::Waiting,
        results: Results::Batches(Batches::default()),
    };
    Report {
        mode: "shards",
        target: facts.target.clone(),
        parameters,
        points: args.shards.batch_size.iter().map(point).map(Arc::new).collect(),
        is_complete: false,
    }
}
