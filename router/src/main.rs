//! The router as a program of its own, for containers that hold one role.

use clap::Parser;

fn main() -> anyhow::Result<()> {
    router::run(router::Args::parse())
}
