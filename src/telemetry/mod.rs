//! How the process speaks: tracing, metrics, and one function per change of state. Takes plain values, never a type of a higher level.

pub mod changes;
pub mod metrics;

use crate::config::log::{Log, LogFormat};
use std::io::IsTerminal;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt};

/// The log of the process, once it is set up.
#[derive(Debug)]
pub struct Voice {
    filter: Handle<EnvFilter, Registry>,
    /// What the configuration says now.
    log: Log,
}

impl Voice {
    /// Sets up logging to stderr: JSON when stderr is not a terminal.
    ///
    /// # Errors
    /// The filter cannot be read; or logging was set up before.
    pub fn start(log: &Log) -> Result<Self, String> {
        let (filter, handle) = reload::Layer::new(filter(log)?);
        let json = match log.format {
            LogFormat::Json => true,
            LogFormat::Text => false,
            LogFormat::Auto => !std::io::stderr().is_terminal(),
        };
        // A log that nobody takes any more is no reason to end: the layer would say so on stderr, and panic there.
        let lines = fmt::layer().with_writer(std::io::stderr).log_internal_errors(false);
        let registry = tracing_subscriber::registry().with(filter);
        let done = if json {
            registry.with(lines.json().flatten_event(true).with_current_span(false).with_span_list(false)).try_init()
        } else {
            registry.with(lines.with_target(false)).try_init()
        };
        done.map_err(|error| error.to_string())?;
        Ok(Self { filter: handle, log: log.clone() })
    }

    /// Goes on as the new configuration says: its filter from now on, its format from the next start on, which it says once.
    ///
    /// # Errors
    /// The filter cannot be read.
    pub fn follow(&mut self, log: &Log) -> Result<(), String> {
        if log.filter != self.log.filter {
            self.filter.reload(filter(log)?).map_err(|error| error.to_string())?;
        }
        if log.format != self.log.format {
            changes::log_format_later();
        }
        self.log = log.clone();
        Ok(())
    }
}

fn filter(log: &Log) -> Result<EnvFilter, String> {
    EnvFilter::try_new(&log.filter).map_err(|error| format!("log.filter: {error}"))
}
