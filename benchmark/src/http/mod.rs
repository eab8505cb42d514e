//! HTTP mode: streamed requests to a server, by clients that wait for their answers (closed loop) or at times that do not
//! depend on the server (open loop).
//!
//! In an open loop every latency counts from the scheduled arrival, so that a server which delays its clients cannot hide
//! it (coordinated omission).

mod call;
mod prompts;
mod protocol;
mod schedule;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use self::call::{Answer, Caller, Failure};
use self::prompts::Prompts;
use self::schedule::Poisson;
use crate::args::Args;
use crate::error::Error;
use crate::limits::{MAX_FAILURE_KINDS, MAX_IN_FLIGHT};
use crate::report::{Live, Load, Parameter, Phase, Point, Report, Requests, Results};

/// A server that answers, and the load it will get.
#[derive(Clone)]
pub(crate) struct Bench(Arc<Shared>);

struct Shared {
    args: Args,
    caller: Caller,
    prompts: Prompts,
    loads: Vec<Load>,
    /// Requests made so far: each has its own prompt, at every load, so that no cache of prefixes makes prompts free.
    numbers: AtomicU64,
}

impl Bench {
    /// Looks whether the server answers, and how long its words are.
    ///
    /// # Errors
    /// If it does not, or the address or the prompts cannot be used.
    pub(crate) async fn open(args: Args) -> Result<(Bench, Report), Error> {
        let caller = Caller::new(&args)?;
        let prompts = Prompts::open(&args, &caller).await?;
        let loads: Vec<Load> = match args.http.rate.is_empty() {
            true => args.http.concurrency.iter().copied().map(Load::Concurrency).collect(),
            false => args.http.rate.iter().copied().map(Load::Rate).collect(),
        };
        let report = report(&args, &caller, &prompts, &loads);
        Ok((Bench(Arc::new(Shared { args, caller, prompts, loads, numbers: AtomicU64::new(0) })), report))
    }

    /// Measures every load.
    ///
    /// # Errors
    /// If a warm-up request fails: then all others would, too.
    pub(crate) async fn run(self, live: &Live) -> Result<(), Error> {
        let Shared { args, caller, loads, .. } = &*self.0;
        for (index, &load) in loads.iter().enumerate() {
            live.update(index, |point| point.phase = Phase::WarmingUp);
            for _ in 0..args.warmups {
                if let Err(failure) = self.call().await {
                    return Err(Error::Server { url: caller.target().to_owned(), reason: failure.to_string() });
                }
            }
            tracing::info!("{} {load}", load.metric().title);
            let recorder = Recorder::new(live.clone(), index, args);
            match load {
                Load::Concurrency(clients) => self.closed_loop(clients, &recorder).await,
                Load::Rate(rate) => self.open_loop(rate, &recorder).await,
                Load::BatchSize(_) => unreachable!("batches are for shards"),
            }
            live.update(index, |point| point.phase = Phase::Done);
        }
        Ok(())
    }

    async fn closed_loop(&self, clients: u32, recorder: &Recorder) {
        let mut running = JoinSet::new();
        for _ in 0..clients {
            let (bench, recorder) = (self.clone(), recorder.clone());
            running.spawn(async move {
                while recorder.begin_next() {
                    let started = Instant::now();
                    recorder.end(started, bench.call().await);
                }
            });
        }
        drain(running).await;
    }

    async fn open_loop(&self, rate: f64, recorder: &Recorder) {
        let places = Arc::new(Semaphore::new(MAX_IN_FLIGHT));
        let mut running = JoinSet::new();
        for offset in Poisson::new(rate, self.0.args.seed) {
            let arrival = recorder.0.started + offset;
            if recorder.0.duration.is_some_and(|duration| offset >= duration) || !recorder.begin_next() {
                break;
            }
            tokio::time::sleep_until(arrival.into()).await;
            // Tasks that have ended give their memory back.
            while running.try_join_next().is_some() {}
            match places.clone().try_acquire_owned() {
                Err(_) => recorder.end(arrival, Err(Failure::NotSent)),
                Ok(place) => {
                    let (bench, recorder) = (self.clone(), recorder.clone());
                    running.spawn(async move {
                        recorder.end(arrival, bench.call().await);
                        drop(place);
                    });
                }
            }
        }
        drain(running).await;
    }

    async fn call(&self) -> Result<Answer, Failure> {
        let Shared { caller, prompts, numbers, .. } = &*self.0;
        let number = numbers.fetch_add(1, Ordering::Relaxed);
        caller.call(&prompts.prompt(number), number).await
    }
}

async fn drain(mut running: JoinSet<()>) {
    while let Some(ended) = running.join_next().await {
        if let Err(error) = ended
            && error.is_panic()
        {
            std::panic::resume_unwind(error.into_panic());
        }
    }
}

/// Counts the requests of one load and records how they ended.
#[derive(Clone)]
struct Recorder(Arc<Recording>);

struct Recording {
    live: Live,
    index: usize,
    started: Instant,
    requests: Option<u64>,
    duration: Option<Duration>,
    begun: AtomicU64,
}

impl Recorder {
    fn new(live: Live, index: usize, args: &Args) -> Recorder {
        let (requests, duration) = (args.http.requests, args.http.duration());
        Recorder(Arc::new(Recording {
            live,
            index,
            started: Instant::now(),
            requests,
            duration,
            begun: AtomicU64::new(0),
        }))
    }

    /// Whether another request is to be made now.
    fn begin_next(&self) -> bool {
        let Recording { started, requests, duration, begun, .. } = &*self.0;
        duration.is_none_or(|duration| started.elapsed() < duration)
            && requests.is_none_or(|requests| begun.fetch_add(1, Ordering::Relaxed) < requests)
    }

    /// A request that began (or was to begin) at `began` is over.
    fn end(&self, began: Instant, outcome: Result<Answer, Failure>) {
        let Recording { live, index, started, requests, duration, .. } = &*self.0;
        let elapsed = started.elapsed();
        live.update(*index, |point| {
            let Results::Requests(results) = &mut point.results else { unreachable!("requests have such results") };
            results.elapsed = results.elapsed.max(elapsed);
            match outcome {
                Ok(answer) => answer.record(began, results),
                Err(failure) => {
                    // A server may invent kinds without end.
                    let has_room = results.failures.len() < MAX_FAILURE_KINDS;
                    let kind = Some(failure.kind()).filter(|kind| has_room || results.failures.contains_key(kind));
                    *results.failures.entry(kind.unwrap_or_else(|| "other".to_owned())).or_default() += 1;
                }
            }
            let ended = results.completed + results.failed();
            let by_count = requests.map_or(0.0, |requests| ended as f64 / requests as f64);
            let by_time = duration.map_or(0.0, |duration| elapsed.as_secs_f64() / duration.as_secs_f64());
            point.phase = Phase::Running(by_count.max(by_time));
        });
    }
}

fn report(args: &Args, caller: &Caller, prompts: &Prompts, loads: &[Load]) -> Report {
    let parameter = |key, title, value| Parameter { key, title, value };
    let mut parameters = vec![
        parameter("tokenizer_name", "Model", json!(args.tokenizer_name)),
        parameter("revision", "Revision", json!(args.revision)),
        parameter("api", "Route", json!(args.http.api.name())),
        parameter("prompts", "Prompts", json!(prompts.to_string())),
        parameter("sequence_length", "Sequence Length", json!(args.sequence_length)),
        parameter("decode_length", "Decode Length", json!(args.decode_length)),
        parameter("requests", "Requests", json!(args.http.requests)),
        parameter("duration_seconds", "Duration (s)", json!(args.http.duration)),
        parameter("warmups", "Warmups", json!(args.warmups)),
        parameter("seed", "Seed", json!(args.seed)),
    ];
    parameters.extend(args.sampling.parameters());
    let point = |&load| Point { load, phase: Phase::Waiting, results: Results::Requests(Requests::default()) };
    Report {
        mode: "http",
        target: caller.target().to_owned(),
        parameters,
        points: loads.iter().map(point).map(Arc::new).collect(),
        is_complete: false,
    }
}
