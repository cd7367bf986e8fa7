//! The configuration: any text, any environment.
//!
//! An input is the text of the file and then variables, `NAME=value` each, with a separator between them. A planted word
//! stands for a secret; wherever only secrets may stand, nothing that is told may hold it.

use std::collections::BTreeMap;

use outboxd::config::problem::Problem;
use outboxd::config::route::is_legal_topic;
use outboxd::config::{self, Config};
use toml::de::{DeTable, DeValue};

use crate::bytes::parts;

pub(crate) const WORDS: &[&str] = &[
    "[postgres]\n",
    "[kafka]\n",
    "[kafka.properties]\n",
    "[relay]\n",
    "[http]\n",
    "[log]\n",
    "[[outbox]]\n",
    "[[outbox.route]]\n",
    "url = ",
    "brokers = ",
    "create_topics = { partitions = 6, replication = 3 }\n",
    "poll = { min = \"2ms\", max = \"250ms\" }\n",
    "save_every = ",
    "in_flight = { events = 16000, size = \"28MiB\" }\n",
    "lease = ",
    "token = ",
    "listen = ",
    "filter = ",
    "name = ",
    "table = ",
    "start = ",
    "progress = ",
    "on_reject = ",
    "{ dead_letter = \"d\" }",
    "when = ",
    "topic = ",
    "topics = ",
    "key = ",
    "headers = ",
    "timestamp = ",
    "publish = ",
    "\"sasl.password\" = ",
    "{ env = \"SECRET\" }",
    "{ env = \"SOME\" }",
    "{ file = \"/nowhere/secret\" }",
    "=",
    "\"\"\"",
    "'''",
    "\n",
    "\"",
    "'",
    "#",
    "\u{1e}",
    "\u{1e}OUTBOXD__RELAY__LEASE=",
    "\u{1e}OUTBOXD__RELAY__IN_FLIGHT__EVENTS=",
    "\u{1e}OUTBOXD__KAFKA__BROKERS=",
    "\u{1e}OUTBOXD__KAFKA__CREATE_TOPICS__PARTITIONS=",
    "\u{1e}OUTBOXD__LOG__FILTER=",
    "?sslmode=require",
    "&password=",
    "?sslpassword=",
    "true",
    "\u{7f}",
    "\u{feff}",
    "é",
    "\\u0000",
    "\\u001b",
    "inf",
    "nan",
    "1979-05-27",
    "0x10",
    "[",
    "]",
    "a.b.c",
    "s3cret",
];

/// Where the planted word stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Planted {
    /// Only where nothing of a value is told.
    Hidden,
    /// Elsewhere too.
    Open,
}

/// No key, name or default holds it.
const SECRET: &str = "s3cret";

/// Where a value may hold a secret and nothing of it is told.
fn hides(path: &str) -> bool {
    let path = path.to_ascii_lowercase();
    path == "http.token" || (path.starts_with("kafka.properties.") && path.contains("password"))
}

/// Whether the secret stands in the file only where it is hidden; in a file that cannot be read, it stands nowhere else.
fn is_hidden(value: &DeValue<'_>, path: &str) -> bool {
    match value {
        DeValue::Table(table) => is_hidden_below(table, path),
        DeValue::Array(items) => items.iter().all(|item| is_hidden(item.get_ref(), path)),
        DeValue::String(text) if path == "postgres.url" => is_hidden_in(text),
        DeValue::String(text) => !text.contains(SECRET) || hides(path),
        DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_) | DeValue::Datetime(_) => true, // letters that the word has not
    }
}

fn is_hidden_below(table: &DeTable<'_>, path: &str) -> bool {
    table.iter().all(|(name, inner)| {
        let name = name.get_ref();
        let path = if path.is_empty() { name.to_string() } else { format!("{path}.{name}") };
        !name.contains(SECRET) && is_hidden(inner.get_ref(), &path)
    })
}

/// Parameters of an address that are shown. Of any other the name and the value may be a secret.
const TOLD: [&str; 17] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "application_name",
    "options",
];

/// Whether an address, if it is one, has the secret in its password or in a parameter that nobody reads, and nowhere else.
fn is_hidden_in(address: &str) -> bool {
    let Ok(mut url) = url::Url::parse(address) else { return true };
    let is_told = |name: &str| TOLD.contains(&name) || name.starts_with("options[");
    let pairs: Vec<(String, String)> = url.query_pairs().into_owned().filter(|(name, _)| is_told(name)).collect();
    if url.set_password(None).is_err() {
        return !address.contains(SECRET);
    }
    url.set_query(None);
    !url.as_str().contains(SECRET) && pairs.iter().all(|(name, value)| !format!("{name}={value}").contains(SECRET))
}

/// The environment, and whether the secret is only where it may be.
fn variables(parts: impl Iterator<Item = String>) -> (BTreeMap<String, String>, bool) {
    let mut variables =
        BTreeMap::from([("SECRET".to_owned(), SECRET.to_owned()), ("SOME".to_owned(), "7s".to_owned())]);
    let mut hidden = true;
    for part in parts {
        let Some((name, value)) = part.split_once('=') else { continue };
        hidden &= !name.contains(SECRET);
        hidden &= !value.contains(SECRET)
            || match name {
                "OUTBOXD__HTTP__TOKEN" => true,
                "OUTBOXD__POSTGRES__URL" => is_hidden_in(value),
                _ => !name.starts_with("OUTBOXD__"),
            };
        variables.insert(name.to_owned(), value.to_owned());
    }
    (variables, hidden)
}

pub(crate) fn target(input: &[u8]) {
    let mut parts = parts(input).into_iter();
    let text = parts.next().unwrap_or_default();
    let (variables, hidden) = variables(parts);
    // read as the daemon reads it, which takes a number of any size; of a file that cannot be read, a finding repeats nothing
    let hidden = hidden && DeTable::parse(&text).map_or(true, |table| is_hidden_below(table.get_ref(), ""));
    let planted = if hidden { Planted::Hidden } else { Planted::Open };
    match config::load(&text, &variables) {
        Ok(config) => valid(&config, &text, &variables, planted),
        Err(problems) => findings(&problems, &text, planted),
    }
}

/// Each finding is one line, or two, and those with a line come first, in their order.
fn findings(problems: &[Problem], text: &str, planted: Planted) {
    assert!(!problems.is_empty(), "refused without a reason");
    let places: Vec<_> = problems.iter().map(|problem| (problem.line.is_none(), problem.line)).collect();
    assert!(places.is_sorted(), "{problems:#?}");
    for problem in problems {
        let said = problem.to_string();
        let lines = said.lines().count();
        assert!(lines == 1 + usize::from(problem.hint.is_some()), "{said:?}");
        assert!(!said.chars().any(|c| c.is_control() && c != '\n'), "{said:?}");
        assert!(!problem.expected.is_empty(), "{problem:?}");
        assert!(problem.line.is_none_or(|line| (1..=text.split('\n').count()).contains(&line)), "{problem:?}");
        assert!(planted == Planted::Open || !said.contains(SECRET), "a secret is told: {said}");
    }
}

/// A valid configuration keeps its promises, and what is shown of it loads as the same.
fn valid(config: &Config, text: &str, variables: &BTreeMap<String, String>, planted: Planted) {
    promises(config);
    let shown = config::show(text, variables).expect("what is valid can be shown");
    let hidden = planted == Planted::Hidden;
    assert!(!hidden || !shown.contains(SECRET), "a secret is shown: {shown}");
    let referred = text.contains("env"); // what is no secret, such as the brokers, may be kept elsewhere too
    assert!(!hidden || referred || !format!("{config:?}").contains(SECRET), "a secret is in the debug form");
    let rest: BTreeMap<String, String> = variables
        .iter()
        .filter(|(name, _)| !name.starts_with("OUTBOXD__"))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let again = config::load(&shown, &rest).unwrap_or_else(|problems| panic!("{problems:#?}\n{shown}"));
    assert_eq!(format!("{again:?}"), format!("{config:?}"), "{shown}");
    let open = |config: &Config| -> Vec<(String, String)> {
        let properties = config.kafka.properties.iter();
        properties
            .map(|(name, value)| (name.clone(), value.expose().to_owned()))
            .filter(|(_, value)| !shown.contains("***") || !value.contains("***"))
            .collect()
    };
    if !shown.contains("***") {
        assert_eq!(open(&again), open(config), "{shown}");
        let (one, other) =
            (url::Url::parse(again.postgres.url.expose()), url::Url::parse(config.postgres.url.expose()));
        assert_eq!(one, other, "{shown}");
    }
    let twice = config::show(&shown, &rest).expect("what was shown can be shown");
    assert_eq!(twice, shown, "showing changes nothing");
}

/// What the rest of the program relies on.
fn promises(config: &Config) {
    let relay = &config.relay;
    assert!(relay.poll.min <= relay.poll.max && relay.save_every * 3 <= relay.lease, "{relay:?}");
    assert!(!config.outboxes.is_empty(), "no outbox");
    for (place, outbox) in config.outboxes.iter().enumerate() {
        let name = outbox.name.as_str();
        assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)), "{name:?}");
        assert!((1..=63).contains(&name.len()), "{name:?}");
        assert!(config.outboxes[..place].iter().all(|other| other.name != outbox.name), "{name} comes twice");
        assert_eq!(outbox.table.to_string(), "\"outbox\".\"events\"");
        assert!(!outbox.routes.is_empty(), "no route");
        for route in &outbox.routes {
            assert!(!route.topic.literal_prefix().is_empty() || !route.topics.is_empty(), "{route:?}");
            assert!(route.topic.as_literal().is_none_or(is_legal_topic), "{route:?}");
        }
    }
    assert!(config.kafka.properties.iter().all(|(name, _)| name != "acks" && name != "enable.idempotence"));
}
