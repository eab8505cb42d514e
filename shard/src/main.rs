//! `text-generation-shard`: the shard alone, for containers that hold one role.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match shard::run(shard::Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("text-generation-shard: {error:#}");
            ExitCode::FAILURE
        }
    }
}
