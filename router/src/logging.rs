//! Log lines: text for people, or one JSON object per line for the launcher and log collectors.

use std::io::{self, IsTerminal, Stdout, Write};
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::limits::{LOG_GATHERED_BYTES, LOG_GATHERING};

/// How lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Text,
    Json,
}

/// Writes what still waits when it is dropped.
#[must_use]
pub(crate) struct Flush(());

/// The lines of this process.
static LINES: LazyLock<Lines<Stdout>> = LazyLock::new(|| Lines::new(io::stdout()));

/// Installs the process-wide subscriber. A second call has no effect: tests and embedding programs may have their own.
pub(crate) fn init(format: Format) -> Flush {
    let filter = EnvFilter::new(directives(std::env::var("LOG_LEVEL").ok().as_deref()));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(&*LINES);
    let _ = match format {
        Format::Json => builder.json().flatten_event(true).try_init(),
        Format::Text => builder.with_ansi(io::stdout().is_terminal()).try_init(),
    };
    let gathering = std::thread::Builder::new().name("log".into()).spawn(|| LINES.write_gathered());
    LINES.lock().can_gather = gathering.is_ok();
    Flush(())
}

impl Drop for Flush {
    fn drop(&mut self) {
        // Whoever read the lines is gone; nobody else could be told.
        let _ = LINES.lock().write_out();
    }
}

/// Log lines on their way out, in order. One that comes alone is written at once, and so is every warning and error; the lines of a
/// busy server are written together: a system call and a wake-up of the reader for each of them would cost more than the line.
struct Lines<W> {
    state: Mutex<Gathered<W>>,
    /// The first line waits.
    some_wait: Condvar,
}

struct Gathered<W> {
    out: W,
    lines: Vec<u8>,
    last_written: Option<Instant>,
    /// A thread will write what waits.
    can_gather: bool,
}

impl<W: Write> Lines<W> {
    fn new(out: W) -> Self {
        let state = Gathered { out, lines: Vec::new(), last_written: None, can_gather: false };
        Self { state: Mutex::new(state), some_wait: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Gathered<W>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, line: &[u8], level: Level) -> io::Result<()> {
        let mut state = self.lock();
        let is_first = state.lines.is_empty();
        state.lines.extend_from_slice(line);
        let is_alone = state.last_written.is_none_or(|last| last.elapsed() >= LOG_GATHERING);
        if level <= Level::WARN || is_alone || !state.can_gather || state.lines.len() >= LOG_GATHERED_BYTES {
            return state.write_out();
        }
        if is_first {
            self.some_wait.notify_one();
        }
        Ok(())
    }

    /// Writes lines that were gathered, for ever.
    fn write_gathered(&self) {
        loop {
            let state = self.lock();
            drop(
                self.some_wait
                    .wait_while(state, |state| state.lines.is_empty())
                    .unwrap_or_else(PoisonError::into_inner),
            );
            std::thread::sleep(LOG_GATHERING);
            // As in `Flush`.
            let _ = self.lock().write_out();
        }
    }
}

impl<W: Write> Gathered<W> {
    fn write_out(&mut self) -> io::Result<()> {
        if self.lines.is_empty() {
            return Ok(());
        }
        let written = self.out.write_all(&self.lines).and_then(|()| self.out.flush());
        // Lines that cannot be written must not wait for ever.
        self.lines.clear();
        self.last_written = Some(Instant::now());
        written
    }
}

/// Takes one line.
struct Line<'a, W> {
    lines: &'a Lines<W>,
    level: Level,
}

impl<'a, W: Write> MakeWriter<'a> for &'static Lines<W> {
    type Writer = Line<'a, W>;

    fn make_writer(&'a self) -> Self::Writer {
        // Of an event that says no level: it may be an error.
        Line { lines: self, level: Level::ERROR }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Self::Writer {
        Line { lines: self, level: *metadata.level() }
    }
}

impl<W: Write> Write for Line<'_, W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.lines.add(line, self.level).map(|()| line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// LOG_LEVEL as TGI reads it: a level is meant for our own crates, anything else is a filter directive.
fn directives(log_level: Option<&str>) -> String {
    match log_level {
        None => "info".to_owned(),
        Some(level @ ("trace" | "debug")) => format!("info,router={level}"),
        Some(other) => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What has been written.
    fn written(lines: &Lines<Vec<u8>>) -> String {
        String::from_utf8(lines.lock().out.clone()).unwrap()
    }

    /// Lines for which somebody gathers, after one that was alone.
    fn busy() -> Lines<Vec<u8>> {
        let lines = Lines::new(Vec::new());
        lines.lock().can_gather = true;
        lines.add(b"alone\n", Level::INFO).unwrap();
        // However slow the test is.
        lines.lock().last_written = Some(Instant::now() + LOG_GATHERING * 1000);
        lines
    }

    #[test]
    fn a_line_that_comes_alone_is_written_at_once_and_the_next_ones_together() {
        let lines = busy();
        assert_eq!(written(&lines), "alone\n");
        lines.add(b"one\n", Level::INFO).unwrap();
        lines.add(b"two\n", Level::INFO).unwrap();
        assert_eq!(written(&lines), "alone\n");
        lines.lock().last_written = None;
        lines.add(b"three\n", Level::INFO).unwrap();
        assert_eq!(written(&lines), "alone\none\ntwo\nthree\n");
    }

    #[test]
    fn a_warning_is_written_at_once_with_what_waits_before_it() {
        let lines = busy();
        lines.add(b"one\n", Level::INFO).unwrap();
        lines.add(b"look\n", Level::WARN).unwrap();
        assert_eq!(written(&lines), "alone\none\nlook\n");
    }

    #[test]
    fn no_more_waits_than_the_bound() {
        let lines = busy();
        let line = [b'x'; 1024];
        for _ in 0..LOG_GATHERED_BYTES / line.len() - 1 {
            lines.add(&line, Level::INFO).unwrap();
        }
        assert_eq!(written(&lines), "alone\n");
        lines.add(&line, Level::INFO).unwrap();
        assert_eq!(written(&lines).len(), "alone\n".len() + LOG_GATHERED_BYTES);
    }

    #[test]
    fn the_thread_writes_what_waits() {
        let lines: &'static Lines<Vec<u8>> = Box::leak(Box::new(busy()));
        std::thread::spawn(|| lines.write_gathered());
        lines.add(b"one\n", Level::INFO).unwrap();
        let start = Instant::now();
        while written(lines) != "alone\none\n" {
            assert!(start.elapsed() < LOG_GATHERING * 1000, "it waits");
            std::thread::sleep(LOG_GATHERING);
        }
    }

    #[test]
    fn a_level_does_not_switch_libraries_to_debug() {
        assert_eq!(directives(None), "info");
        assert_eq!(directives(Some("debug")), "info,router=debug");
        assert_eq!(directives(Some("warn")), "warn");
        assert_eq!(directives(Some("router::engine=trace")), "router::engine=trace");
    }
}
