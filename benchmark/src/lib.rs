//! `text-generation-benchmark`: how fast shards compute (over their sockets, as TGI's tool of this name measures), or how
//! fast a server answers (over HTTP).
//!
//! A runner ([`shards`] or [`http`]) fills a [`report`] while the interface, if there is a terminal, draws it. At the end the
//! report is printed.

mod args;
mod error;
mod http;
mod interface;
pub mod limits;
mod random;
pub mod report;
mod shards;
mod statistics;
mod stop;

use std::io::{IsTerminal, Write};

pub use args::{Api, Args, HttpArgs, Output, SamplingArgs, ShardArgs};
pub use error::Error;
pub use statistics::{Distribution, Summary};

use crate::report::{Live, Report};
use crate::stop::Stop;

/// Measures what the command line asks for and prints the report.
///
/// # Errors
/// What kept it from measuring everything. What was measured before is printed all the same.
pub fn run(args: Args) -> Result<(), Error> {
    let args = args.complete()?;
    let output = args.output;
    let has_interface = output.is_none() && std::io::stdout().is_terminal() && std::io::stdin().is_terminal();
    if !has_interface {
        log();
    }
    let runtime = tokio::runtime::Runtime::new().map_err(Error::Start)?;
    let (bench, report) = runtime.block_on(Bench::open(args))?;
    let (live, stop) = (Live::new(report), Stop::default());
    let measuring = runtime.spawn({
        let (live, stop) = (live.clone(), stop.clone());
        async move {
            // Dropped, a runner ends its streams and requests.
            tokio::select! {
                measured = bench.run(&live) => measured.map(|()| live.complete()),
                () = stop::signalled() => Err(Error::Stopped),
                () = stop.asked() => Err(Error::Stopped),
            }
        }
    });
    let drawn = if has_interface { interface::run(&live, &measuring, &stop) } else { Ok(()) };
    let measured = match runtime.block_on(measuring) {
        Ok(measured) => measured,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    };
    let report = live.snapshot();
    if report.points.iter().any(|point| !point.results.is_empty()) {
        print(&report, output.unwrap_or(Output::Markdown));
    }
    measured.and(drawn)
}

/// The runner of the mode.
enum Bench {
    /// Boxed: it holds the streams of all ranks in itself.
    Shards(Box<shards::Bench>),
    Http(http::Bench),
}

impl Bench {
    async fn open(args: Args) -> Result<(Bench, Report), Error> {
        match args.http.url {
            None => shards::Bench::open(args).await.map(|(bench, report)| (Bench::Shards(Box::new(bench)), report)),
            Some(_) => http::Bench::open(args).await.map(|(bench, report)| (Bench::Http(bench), report)),
        }
    }

    async fn run(self, live: &Live) -> Result<(), Error> {
        match self {
            Bench::Shards(bench) => bench.run(live).await,
            Bench::Http(bench) => bench.run(live).await,
        }
    }
}

fn print(report: &Report, output: Output) {
    let text = match output {
        Output::Json => format!("{:#}\n", report::json(report)),
        Output::Markdown => report::markdown(report),
    };
    // Whoever closed the pipe does not want to read it.
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// Progress on stderr; LOG_LEVEL as in TGI's tool.
fn log() {
    let level = std::env::var("LOG_LEVEL").unwrap_or_else(|_| "info".to_owned());
    let filter = tracing_subscriber::EnvFilter::new(level);
    let ansi = std::io::stderr().is_terminal();
    // A second call has no effect: a program that embeds this has its own.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(ansi).with_writer(std::io::stderr).try_init();
}
