//! `text-generation-launcher`: one executable, three roles.
//!
//! Started by a person it is the launcher: it finds the model, starts the shards and the router as processes of this
//! same executable (first argument `shard` or `router`), watches them, and stops them in order. It knows no request.

use std::process::ExitCode;

use clap::Parser;

mod args;
mod child;
mod child_argv;
mod compatibility;
mod demo;
mod environment;
mod error;
mod gpus;
mod limits;
mod log_line;
mod logs;
mod model;
mod ready;
mod runtime_dir;
mod serve;
mod signals;
mod supervisor;
mod validation;

fn main() -> ExitCode {
    let mut argv = std::env::args_os().peekable();
    let program = argv.next();
    // A role's own parser sees the role as its program name, so that its usage lines can be typed as printed.
    let result = match argv.peek().and_then(|role| role.to_str()) {
        Some("router") => router::command_line(argv),
        Some("shard") => shard::run(shard::Args::parse_from(argv)),
        _ => serve::launch(program.into_iter().chain(argv)).map_err(Into::into),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
