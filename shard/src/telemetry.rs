//! Logging of the shard process.

use tracing_subscriber::EnvFilter;

/// Logs to stdout: JSON objects, one per line, for the launcher; text for a person. `LOG_LEVEL` holds a level or filter
/// directives; the default is `info`.
pub(crate) fn init(json: bool) {
    let filter = std::env::var("LOG_LEVEL").ok().and_then(|level| EnvFilter::try_new(level).ok());
    let builder = tracing_subscriber::fmt().with_env_filter(filter.unwrap_or_else(|| EnvFilter::new("info")));
    // An executable that plays several roles may have a subscriber already: the first one stays.
    let _ = if json { builder.json().try_init() } else { builder.compact().try_init() };
}
