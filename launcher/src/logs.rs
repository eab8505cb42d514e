//! The one log of the whole server: the launcher's own lines and those of its children, as text or as TGI's JSON.
//!
//! Lines go through a bounded queue to a thread that writes them. A paused terminal therefore stops neither the
//! supervisor nor, through full pipes, the children; what does not fit is dropped and counted.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};

use serde_json::{Map, Value, json};

use crate::limits::{FLUSH_TIMEOUT, QUEUED_LINES};
use crate::log_line::{Level, LogLine};
use crate::supervisor::Member;

/// Target of the launcher's own events and of the shards' (TGI re-logs them as its own).
const TARGET: &str = "text_generation_launcher";

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// This process.
    Launcher,
    /// A child.
    Child(Member),
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Launcher => f.pad("launcher"),
            Source::Child(member) => member.fmt(f),
        }
    }
}

/// How lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// For people.
    Text {
        /// With ANSI colours.
        coloured: bool,
    },
    /// For machines: one object per line.
    Json,
}

impl Format {
    /// Text is coloured on a terminal, unless `NO_COLOR` (<https://no-color.org>) says otherwise.
    pub(crate) fn of_stdout(json_output: bool) -> Format {
        if json_output {
            return Format::Json;
        }
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Format::Text { coloured: std::io::stdout().is_terminal() && !no_color }
    }
}

/// A handle to the log; clones write to the same one.
#[derive(Clone, Debug)]
pub(crate) struct Logs {
    format: Format,
    /// The least severe level of the launcher's own lines. Children filter theirs, by the same variable.
    level: Level,
    queue: SyncSender<Job>,
    dropped: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Job {
    Line(String),
    /// Answered when every line before it is written.
    Flush(SyncSender<()>),
}

impl Logs {
    /// Starts writing to stdout. `LOG_LEVEL` filters the launcher's own lines; a directive for single targets
    /// (`router=debug`) concerns the children, who read it too.
    pub(crate) fn to_stdout(format: Format) -> Logs {
        let level = std::env::var("LOG_LEVEL").ok().and_then(|name| Level::parse(&name)).unwrap_or(Level::Info);
        let (queue, jobs) = mpsc::sync_channel(QUEUED_LINES);
        let dropped = Arc::new(AtomicU64::new(0));
        let logs = Logs { format, level, queue, dropped };
        let writer = logs.dropped.clone();
        std::thread::Builder::new()
            .name("log-writer".to_owned())
            .spawn(move || write_lines(&jobs, &writer, format))
            .expect("the first thread of the process can be started");
        logs
    }

    /// A line of the launcher's own.
    pub(crate) fn info(&self, message: impl Into<String>) {
        self.log(Level::Info, message, Map::new());
    }

    /// A line of the launcher's own, about something that is not as it should be.
    pub(crate) fn warn(&self, message: impl Into<String>) {
        self.log(Level::Warn, message, Map::new());
    }

    /// A line of the launcher's own, about something that failed.
    pub(crate) fn error(&self, message: impl Into<String>) {
        self.log(Level::Error, message, Map::new());
    }

    /// A line of the launcher's own with `fields`, which only JSON shows: the message says the same to people.
    pub(crate) fn log(&self, level: Level, message: impl Into<String>, fields: Map<String, Value>) {
        if level <= self.level {
            let fields = if self.format == Format::Json { fields } else { Map::new() };
            self.emit(Source::Launcher, &LogLine { timestamp: None, level, message: message.into(), fields });
        }
    }

    /// A line of a child, as it came from its pipe. `raw_level` is for lines that are not JSON.
    pub(crate) fn forward(&self, member: Member, line: &str, raw_level: Level) {
        match LogLine::parse(line) {
            // TGI prints the router's JSON verbatim.
            Some(_) if self.format == Format::Json && member == Member::Router => self.enqueue(line.to_owned()),
            Some(parsed) => self.emit(Source::Child(member), &parsed),
            None => self.emit(Source::Child(member), &LogLine::raw(line, raw_level)),
        }
    }

    /// Waits until everything logged so far is written, but not for ever.
    pub(crate) fn flush(&self) {
        let (done, written) = mpsc::sync_channel(1);
        if self.queue.try_send(Job::Flush(done)).is_ok() {
            let _ = written.recv_timeout(FLUSH_TIMEOUT);
        }
    }

    fn emit(&self, source: Source, line: &LogLine) {
        self.enqueue(render(self.format, source, line));
    }

    fn enqueue(&self, line: String) {
        if let Err(TrySendError::Full(_)) = self.queue.try_send(Job::Line(line)) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn write_lines(jobs: &Receiver<Job>, dropped: &AtomicU64, format: Format) {
    // Errors are ignored: a reader that closed the pipe (`| head`) must not end the server.
    let write = |line: &str| drop(writeln!(std::io::stdout(), "{line}"));
    for job in jobs {
        match job {
            Job::Line(line) => {
                let lost = dropped.swap(0, Ordering::Relaxed);
                if lost > 0 {
                    let message = format!("{lost} log lines were dropped because the output was blocked");
                    write(&render(format, Source::Launcher, &LogLine::raw(&message, Level::Warn)));
                }
                write(&line);
            }
            Job::Flush(done) => drop(done.send(())),
        }
    }
}

fn render(format: Format, source: Source, line: &LogLine) -> String {
    let now;
    let timestamp = match &line.timestamp {
        Some(timestamp) => timestamp,
        None => {
            now = format!("{:.6}", jiff::Timestamp::now());
            &now
        }
    };
    match format {
        Format::Text { coloured } => text(coloured, timestamp, source, line),
        Format::Json => json_line(timestamp, source, line),
    }
}

/// `2026-11-21T08:10:00.123456Z  INFO shard-0   message`
fn text(coloured: bool, timestamp: &str, source: Source, line: &LogLine) -> String {
    let (level, message) = (line.level.name(), line.text());
    if !coloured {
        return format!("{timestamp} {level:>5} {source:<8}  {message}");
    }
    let level_colour = match line.level {
        Level::Error => 31,
        Level::Warn => 33,
        Level::Info => 32,
        Level::Debug => 34,
        Level::Trace => 35,
    };
    let source_colour = match source {
        Source::Launcher => 1,
        Source::Child(Member::Router) => 36,
        Source::Child(Member::Shard(rank)) => [35, 34, 33, 32][rank as usize % 4],
    };
    format!(
        "\x1b[2m{timestamp}\x1b[0m \x1b[{level_colour}m{level:>5}\x1b[0m \x1b[{source_colour}m{source:<8}\x1b[0m  {message}"
    )
}

/// The layout of TGI's launcher: tracing's default JSON, shards' lines within a span `shard-manager{rank}`.
fn json_line(timestamp: &str, source: Source, line: &LogLine) -> String {
    let mut fields = Map::new();
    fields.insert("message".to_owned(), Value::String(line.message.clone()));
    fields.extend(line.fields.clone());
    let target = match source {
        Source::Child(Member::Router) => "text_generation_router",
        _ => TARGET,
    };
    let mut object = json!({ "timestamp": timestamp, "level": line.level.name(), "fields": fields, "target": target });
    if let Source::Child(Member::Shard(rank)) = source {
        let span = json!({ "rank": rank, "name": "shard-manager" });
        object["spans"] = json!([span]);
        object["span"] = span;
    }
    object.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(message: &str) -> LogLine {
        LogLine { timestamp: Some("T".to_owned()), ..LogLine::raw(message, Level::Info) }
    }

    #[test]
    fn text_is_aligned() {
        let plain = Format::Text { coloured: false };
        assert_eq!(render(plain, Source::Launcher, &line("a")), "T  INFO launcher  a");
        assert_eq!(render(plain, Source::Child(Member::Router), &line("b")), "T  INFO router    b");
        assert_eq!(render(plain, Source::Child(Member::Shard(1)), &line("c")), "T  INFO shard-1   c");
        let coloured = render(Format::Text { coloured: true }, Source::Child(Member::Shard(1)), &line("c"));
        assert!(coloured.contains("\x1b[32m INFO\x1b[0m"), "{coloured:?}");
    }

    #[test]
    fn json_has_the_layout_of_tgi() {
        assert_eq!(
            render(Format::Json, Source::Launcher, &line("a")),
            r#"{"timestamp":"T","level":"INFO","fields":{"message":"a"},"target":"text_generation_launcher"}"#
        );
        let shard: Value =
            serde_json::from_str(&render(Format::Json, Source::Child(Member::Shard(1)), &line("c"))).unwrap();
        assert_eq!(shard["span"], json!({ "rank": 1, "name": "shard-manager" }));
        assert_eq!(shard["spans"][0], shard["span"]);
    }

    #[test]
    fn own_time_stamps_have_microseconds() {
        let rendered = render(Format::Text { coloured: false }, Source::Launcher, &LogLine::raw("m", Level::Warn));
        let timestamp = rendered.split(' ').next().unwrap();
        assert_eq!(timestamp.len(), "2026-11-21T08:10:00.123456Z".len(), "{timestamp}");
    }
}
