//! `text-generation-benchmark`: measures shards over their sockets, or a server over HTTP.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match benchmark::run(benchmark::Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("text-generation-benchmark: {error}");
            ExitCode::FAILURE
        }
    }
}
