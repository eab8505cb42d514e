//! The measurements, one function per group of rows.

use std::time::{Duration, Instant};

use integration_tests::{Process, Setup};

use crate::load::{Clients, Route};
use crate::pace;
use crate::report::{Report, Unit};
use crate::setup::{Router, Tokenizer};

const STREAMS: usize = 64;
const TOKENS: usize = 128;
/// Waves of streams in one round: long enough that a round is some tenths of a second.
const WAVES: usize = 4;
/// How long processes are left alone before their memory or idle time is read.
const SETTLE: Duration = Duration::from_secs(3);

/// Resident memory of a router that nobody has asked anything.
pub(crate) async fn memory(report: &mut Report, tokenizer: &Tokenizer) {
    let router = Router::start(tokenizer, pace(Duration::ZERO));
    tokio::time::sleep(SETTLE).await;
    report.add("memory", "idle", Unit::Mebibytes, Some(40.0), vec![mebibytes(&router.process())]);
}

/// 64 streams of 128 tokens from instantaneous steps.
pub(crate) async fn streams(report: &mut Report, tokenizer: &Tokenizer, rounds: usize, route: Route) {
    let router = Router::start(tokenizer, pace(Duration::ZERO));
    let mut clients = Clients::connect(router.port, STREAMS).await;
    clients.stream(route, TOKENS, false).await;
    let (mut costs, mut rates) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (time, start) = (router.process().cpu_time(), Instant::now());
        for _ in 0..WAVES {
            clients.stream(route, TOKENS, false).await;
        }
        let tokens = (STREAMS * TOKENS * WAVES) as f64;
        rates.push(tokens / start.elapsed().as_secs_f64());
        costs.push(micros(router.process().cpu_time() - time) / tokens);
    }
    let goal = if route == Route::Chat { 14.0 } else { 8.0 };
    report.add(route.name(), "router CPU per token, 64 streams", Unit::Microseconds, Some(goal), costs);
    report.add(route.name(), "tokens per second", Unit::PerSecond, None, rates);
}

/// `/generate` for one token, 64 clients at once.
pub(crate) async fn requests(report: &mut Report, tokenizer: &Tokenizer, rounds: usize) {
    const EACH: usize = 64;
    let router = Router::start(tokenizer, pace(Duration::ZERO));
    let mut clients = Clients::connect(router.port, STREAMS).await;
    clients.answers(Route::Generate, 1, 8).await;
    let (mut costs, mut rates) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (time, start) = (router.process().cpu_time(), Instant::now());
        clients.answers(Route::Generate, 1, EACH).await;
        let requests = (STREAMS * EACH) as f64;
        rates.push(requests / start.elapsed().as_secs_f64());
        costs.push(micros(router.process().cpu_time() - time) / requests);
    }
    report.add("generate", "router CPU per request of one token", Unit::Microseconds, Some(80.0), costs);
    report.add("generate", "requests per second", Unit::PerSecond, None, rates);
}

/// Streams of steps that take 10 ms: gaps, delay, time and memory. What most servers do most of the time: the router has
/// nothing to do between steps, then something for every stream.
pub(crate) async fn steps(report: &mut Report, tokenizer: &Tokenizer, rounds: usize, streams: usize) {
    const STEP: Duration = Duration::from_millis(10);
    let router = Router::start(tokenizer, pace(STEP));
    let mut clients = Clients::connect(router.port, streams).await;
    clients.stream(Route::GenerateStream, 8, true).await;
    let (mut gaps, mut typical, mut late, mut costs, mut memory) = (vec![], vec![], vec![], vec![], vec![]);
    for _ in 0..rounds {
        let time = router.process().cpu_time();
        let watch = Peak::watch(router.process());
        let mut seen = clients.stream(Route::GenerateStream, TOKENS, true).await;
        memory.push(watch.end());
        costs.push(micros(router.process().cpu_time() - time) / seen.events as f64);
        gaps.push(percentile(&mut seen.gaps, 99));
        typical.push(percentile(&mut seen.ages, 50));
        late.push(percentile(&mut seen.ages, 99));
    }
    let is_largest = streams == 512;
    let group = format!("steps_{streams}");
    report.add(&group, "gap p99", Unit::Milliseconds, is_largest.then_some(15.0), gaps);
    report.add(&group, "delay after the step p50", Unit::Milliseconds, None, typical);
    report.add(&group, "delay after the step p99", Unit::Milliseconds, None, late);
    report.add(&group, "router CPU per token", Unit::Microseconds, None, costs);
    report.add(&group, "resident memory", Unit::Mebibytes, is_largest.then_some(120.0), memory);
}

/// What a whole server with the demo model computes while nobody asks.
pub(crate) fn idle_server(report: &mut Report) {
    const WATCHED: Duration = Duration::from_secs(20);
    let server = Setup::new().start();
    std::thread::sleep(SETTLE);
    let launcher = Process::of(server.pid()).expect("the launcher runs");
    let processes: Vec<Process> = std::iter::once(launcher).chain(server.children()).collect();
    let times = |processes: &[Process]| -> Vec<Duration> { processes.iter().map(Process::cpu_time).collect() };
    let (before, start) = (times(&processes), Instant::now());
    std::thread::sleep(WATCHED);
    let (after, elapsed) = (times(&processes), start.elapsed().as_secs_f64());
    let shares: Vec<f64> =
        before.iter().zip(&after).map(|(before, after)| (*after - *before).as_secs_f64() / elapsed * 100.0).collect();
    report.add("idle_server", "all processes", Unit::PercentOfCore, Some(1.0), vec![shares.iter().sum()]);
    for (process, share) in processes.iter().zip(shares) {
        let role = if process.pid as u32 == server.pid() { "launcher" } else { process.role() };
        report.add("idle_server", role, Unit::PercentOfCore, None, vec![share]);
    }
}

/// The largest resident memory while it watches.
struct Peak {
    stop: std::sync::mpsc::Sender<()>,
    watcher: std::thread::JoinHandle<f64>,
}

impl Peak {
    fn watch(process: Process) -> Peak {
        const INTERVAL: Duration = Duration::from_millis(100);
        let (stop, stopped) = std::sync::mpsc::channel();
        let watcher = std::thread::spawn(move || {
            let mut peak: f64 = 0.0;
            loop {
                peak = peak.max(mebibytes(&process));
                if stopped.recv_timeout(INTERVAL) != Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                    return peak;
                }
            }
        });
        Peak { stop, watcher }
    }

    fn end(self) -> f64 {
        drop(self.stop);
        self.watcher.join().expect("the watcher does not panic")
    }
}

fn mebibytes(process: &Process) -> f64 {
    process.resident_bytes() as f64 / f64::from(1 << 20)
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// In milliseconds.
fn percentile(times: &mut [Duration], percent: usize) -> f64 {
    times.sort_unstable();
    let at = (times.len() * percent / 100).min(times.len().saturating_sub(1));
    times.get(at).map_or(0.0, |time| time.as_secs_f64() * 1e3)
}
