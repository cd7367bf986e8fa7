//! `[log]`: what the process writes to stderr.

use tracing_subscriber::EnvFilter;

use super::key::{Fallback, Form, Key, Kind};
use super::problem::{Fault, nearest, quoted};
use super::section::{Section, Word};

/// The shape of the log and how much of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// How a line looks.
    pub format: LogFormat,
    /// Levels by target, in the syntax of `tracing`.
    pub filter: String,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// For the eye.
    Text,
    /// For a collector.
    Json,
}

const FORMAT: Key = Key {
    name: "format",
    doc: "How a line looks: text on a terminal and json elsewhere, or always one of them.",
    kind: Kind::Value(Form::Word(&["auto", "text", "json"]), Fallback::Text("auto")),
};

const FORMATS: &[Word<LogFormat>] =
    &[("auto", Some(LogFormat::Auto)), ("text", Some(LogFormat::Text)), ("json", Some(LogFormat::Json))];

const FILTER: Key = Key {
    name: "filter",
    doc: "The least level that is written, by target if need be: `info,outboxd::sink=debug`.",
    kind: Kind::Value(Form::Text("levels such as `info` or `info,outboxd::sink=debug`"), Fallback::Text("info")),
};

pub(super) const KEYS: &[Key] = &[FORMAT, FILTER];

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

impl Log {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Option<Self> {
        let format = section.word(&FORMAT, FORMATS);
        let filter = section.parse(&FILTER, filter);
        Some(Self { format: format?, filter: filter? })
    }
}

/// `tracing` takes a lone word that is no level for the name of a target and then writes nothing else, so
/// a slip of the pen would silence the log.
fn filter(text: &str) -> Result<String, Fault> {
    let fault = || Fault::new(FILTER.kind.form().expected());
    let directives: Vec<&str> = text.split(',').map(str::trim).collect();
    for directive in &directives {
        let is_level = LEVELS.contains(&directive.to_ascii_lowercase().as_str());
        if !is_level && !directive.contains(['=', '[']) {
            let hint = nearest(directive, LEVELS);
            return Err(Fault {
                found: Some(quoted(directive)),
                hint: hint.map(|near| format!("did you mean {}?", quoted(near))),
                ..fault()
            });
        }
    }
    let filter = directives.join(",");
    EnvFilter::try_new(&filter).map_err(|_| fault())?;
    Ok(filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_would_silence_the_log_is_refused() {
        let cases = [
            ("info", true),
            ("WARN", true),
            ("info,outboxd::sink=debug", true),
            ("info, sqlx=warn", true),
            ("off", true),
            ("inof", false),
            ("outboxd", false),
            ("", false),
            ("info,", false),
            ("sqlx=loud", false),
        ];
        for (text, expected) in cases {
            assert_eq!(filter(text).is_ok(), expected, "{text}");
        }
        let hint = filter("inof").unwrap_err().hint;
        assert_eq!(hint.as_deref(), Some("did you mean `info`?"));
    }
}
