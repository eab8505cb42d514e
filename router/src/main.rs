//! The router as a program of its own, for containers that hold one role.

fn main() -> anyhow::Result<()> {
    router::command_line(std::env::args_os())
}
