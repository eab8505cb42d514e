//! Log lines: text for people, or one JSON object per line for the launcher and log collectors.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// How lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Text,
    Json,
}

/// Installs the process-wide subscriber. A second call has no effect: tests and embedding programs may have their own.
pub(crate) fn init(format: Format) {
    let filter = EnvFilter::new(directives(std::env::var("LOG_LEVEL").ok().as_deref()));
    let builder = tracing_subscriber::fmt().with_env_filter(filter);
    let _ = match format {
        Format::Json => builder.json().flatten_event(true).try_init(),
        Format::Text => builder.with_ansi(std::io::stdout().is_terminal()).try_init(),
    };
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

    #[test]
    fn a_level_does_not_switch_libraries_to_debug() {
        assert_eq!(directives(None), "info");
        assert_eq!(directives(Some("debug")), "info,router=debug");
        assert_eq!(directives(Some("warn")), "warn");
        assert_eq!(directives(Some("router::engine=trace")), "router::engine=trace");
    }
}
