//! How the process speaks: tracing, metrics, and one function per change of state. Takes plain values, never a type of a higher level.

pub mod changes;
pub mod metrics;

use crate::config::log::{Log, LogFormat};
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

/// Sets up logging to stderr: JSON when stderr is not a terminal.
///
/// # Errors
/// The filter cannot be read; or logging was set up before.
pub fn start(log: &Log) -> Result<(), String> {
    let filter = EnvFilter::try_new(&log.filter).map_err(|error| format!("log.filter: {error}"))?;
    let json = match log.format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !std::io::stderr().is_terminal(),
    };
    let subscriber =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_span_events(FmtSpan::NONE);
    let done = if json {
        subscriber.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init()
    } else {
        subscriber.with_target(false).try_init()
    };
    done.map_err(|error| error.to_string())
}
