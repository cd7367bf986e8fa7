//! What the operator wrote, as valid values: file and environment become one tree, the tree becomes sections,
//! and all that is wrong is told at once. Nothing here talks to a server; files are read only where a value
//! is a reference to one.
//!
//! A key is described once, beside the struct that holds it. What is known, what the environment reaches,
//! the defaults, the schema and `show` come from there.

pub mod http;
pub mod kafka;
mod key;
pub mod log;
pub mod outbox;
mod pattern;
pub mod postgres;
pub mod problem;
pub mod relay;
pub mod route;
mod schema;
pub mod secret;
mod section;
mod show;
mod template;
mod tree;

use std::collections::BTreeMap;

use self::http::Http;
use self::kafka::Kafka;
use self::key::{Key, Kind};
use self::log::Log;
use self::outbox::Outbox;
use self::postgres::Postgres;
use self::problem::Problem;
use self::relay::Relay;
use self::section::{Findings, Section};

/// The whole configuration, valid in itself. What the servers say to it is not known yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The database that holds the outbox.
    pub postgres: Postgres,
    /// The cluster that gets the records.
    pub kafka: Kafka,
    /// The pace and the bounds.
    pub relay: Relay,
    /// Health, metrics and status.
    pub http: Http,
    /// What goes to stderr.
    pub log: Log,
    /// In the order of the file; never empty, and no name comes twice.
    pub outboxes: Vec<Outbox>,
}

const POSTGRES: Key =
    Key { name: "postgres", doc: "The database that holds the outbox.", kind: Kind::Table(postgres::KEYS) };

const KAFKA: Key = Key { name: "kafka", doc: "The cluster that gets the records.", kind: Kind::Table(kafka::KEYS) };

const RELAY: Key = Key { name: "relay", doc: "The pace and the bounds of the relay.", kind: Kind::Table(relay::KEYS) };

const HTTP: Key = Key { name: "http", doc: "Health, metrics and status.", kind: Kind::Table(http::KEYS) };

const LOG: Key = Key { name: "log", doc: "What goes to stderr.", kind: Kind::Table(log::KEYS) };

const OUTBOX: Key = Key {
    name: "outbox",
    doc: "What is read, each with a cursor of its own. None given: one, named `default`, on `outbox.events`.",
    kind: Kind::Tables(outbox::KEYS),
};

const KEYS: &[Key] = &[POSTGRES, KAFKA, RELAY, HTTP, LOG, OUTBOX];

/// Reads the file and the environment, of which variables `OUTBOXD__…` override the file and any other
/// may be referred to. The findings are all there are, those with a line first and in its order.
pub fn load(text: &str, variables: &BTreeMap<String, String>) -> Result<Config, Vec<Problem>> {
    read(text, variables).map(|(config, _)| config)
}

/// The JSON Schema of the file (2020-12), for editors.
pub fn schema() -> serde_json::Value {
    schema::of(KEYS)
}

/// The effective configuration as TOML: defaults filled in, references as references, secrets as `***`.
pub fn show(text: &str, variables: &BTreeMap<String, String>) -> Result<String, Vec<Problem>> {
    read(text, variables).map(|(_, tree)| show::print(&tree, KEYS))
}

fn read(text: &str, variables: &BTreeMap<String, String>) -> Result<(Config, ::config::Value), Vec<Problem>> {
    let (tree, problems) = tree::read(text, variables, KEYS)?;
    let mut findings = Findings { variables, problems };
    let config = Config::read(&mut Section::root(&tree, KEYS, &mut findings));
    let mut problems = findings.problems;
    match config {
        Some(config) if problems.is_empty() => Ok((config, tree)),
        _ => {
            problems.sort_by_cached_key(|problem| (problem.line.is_none(), problem.line, problem.key.clone()));
            Err(problems)
        }
    }
}

impl Config {
    /// The names of all outboxes, in the order of the file.
    pub fn outbox_names(&self) -> Vec<String> {
        self.outboxes.iter().map(|outbox| outbox.name.to_string()).collect()
    }

    fn read(root: &mut Section<'_, '_>) -> Option<Self> {
        let postgres = Postgres::read(&mut root.table(&POSTGRES));
        let kafka = Kafka::read(&mut root.table(&KAFKA));
        let relay = Relay::read(&mut root.table(&RELAY));
        let http = Http::read(&mut root.table(&HTTP));
        let log = Log::read(&mut root.table(&LOG));
        let outboxes = Outbox::read_all(root, &OUTBOX);
        Some(Self { postgres: postgres?, kafka: kafka?, relay: relay?, http: http?, log: log?, outboxes: outboxes? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"
        [postgres]
        url = "postgres://outboxd@127.0.0.1:5432/shop"
        [kafka]
        brokers = "127.0.0.1:9092"
    "#;
    const REFERENCE: &str = include_str!("../../deploy/outboxd.toml");

    fn variables(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        pairs.iter().map(owned).collect()
    }

    fn problems(text: &str, pairs: &[(&str, &str)]) -> Vec<Problem> {
        load(text, &variables(pairs)).unwrap_err()
    }

    #[test]
    fn twenty_mistakes_are_twenty_problems() {
        // given: a mark behind each mistake says what its problem holds
        let text = r#"
            [postgres]
            url = "postgres://127.0.0.1"            #! with a user
            [kafka]
            brokers = "k1:no"                       #! expected `host:port`
            brokerz = "k1"                          #! did you mean `kafka.brokers`?
            create_topics = { partitions = 0, replication = 1 } #! integer from 1
            [kafka.properties]
            acks = "1"                              #! it is all
            sasl.password = "hunter2"               #! needs quotes
            "linger.ms" = 2.5                       #! kafka.properties.linger.ms
            [relay]
            pool = { min = "1s" }                   #! did you mean `relay.poll`?
            poll = { min = "2s", max = "1s" }       #! at most 1s
            save_every = "5s"                       #! a third of `relay.lease`
            in_flight = { events = "many", size = "1KiB" } #! `many` #! `1KiB`
            shutdown_grace = 20                     #! with its unit
            [http]
            listen = "localhost:9464"               #! an IP address
            token = { env = "NO_SUCH_VARIABLE" }    #! `NO_SUCH_VARIABLE`
            [log]
            format = "jsno"                         #! did you mean `json`?
            [htpp]                                  #! did you mean `http`?
            [[outbox]]
            name = "a b"                            #! outbox[0].name
            table = "public.outbox"                 #! not yet
            start = "undelivered"                   #! not yet
            progress = "mark"                       #! not yet
            on_reject = "parc"                      #! did you mean `park`?
            [[outbox.route]]
            when = { event_type = 1 }               #! or a list of them
            topic = "{agregate_type}"               #! did you mean `{aggregate_type}`?
            key = "{aggregate_id"                   #! a `}` for each
            headers = { id = "x" }                  #! sets itself
            value = "json"                          #! `payload`
            on_reject = { dead_letter = "a b" }     #! the name of a topic
        "#;
        let expected: Vec<(usize, &str)> = (1..)
            .zip(text.lines())
            .flat_map(|(line, text)| text.split("#!").skip(1).map(move |mark| (line, mark.trim())))
            .collect();

        // when
        let problems = problems(text, &[]);

        // then
        assert!(expected.len() > 20);
        for (line, mark) in &expected {
            let told = |problem: &Problem| problem.line == Some(*line) && problem.to_string().contains(mark);
            assert!(problems.iter().any(told), "{line} {mark}: {problems:#?}");
        }
        assert_eq!(problems.len(), expected.len(), "{problems:#?}");
        assert!(problems.is_sorted_by_key(|problem| problem.line));
        assert!(!format!("{problems:?}").contains("hunter2"));
    }

    #[test]
    fn an_empty_file_lacks_two_keys() {
        let problems = problems("", &[]);
        let told: Vec<_> = problems.iter().map(|problem| problem.key.as_str()).collect();
        assert_eq!(told, ["kafka.brokers", "postgres.url"]);
    }

    #[test]
    fn a_table_in_the_wrong_shape_is_one_problem() {
        let cases = [
            ("postgres = 1\n[kafka]\nbrokers = \"k\"", "postgres"),
            (&format!("outbox = 1\n{MINIMAL}"), "outbox"),
            (&format!("outbox = [1]\n{MINIMAL}"), "outbox[0]"),
            (&format!("relay.poll = \"1s\"\n{MINIMAL}"), "relay.poll"),
            (&format!("relay = {{ env = \"X\" }}\n{MINIMAL}"), "relay.env"),
            (&format!("{MINIMAL}create_topics.partitions = 1"), "kafka.create_topics.replication"),
        ];
        for (text, key) in cases {
            let problems = problems(text, &[]);
            let told: Vec<_> = problems.iter().map(|problem| problem.key.as_str()).collect();
            assert_eq!(told, [key], "{problems:?}");
        }
    }

    #[test]
    fn two_outboxes_cannot_share_a_name() {
        let text = format!("{MINIMAL}[[outbox]]\n[[outbox]]\nname = \"b\"\n[[outbox]]\n");
        let problems = problems(&text, &[]);
        let [problem] = problems.as_slice() else {
            panic!("{problems:?}");
        };
        assert_eq!(problem.key, "outbox[2].name");
        assert_eq!(problem.line, Some(text.lines().count()));
    }

    #[test]
    fn the_environment_overrides_and_is_named_where_it_is_wrong() {
        let set = variables(&[
            ("OUTBOXD__RELAY__IN_FLIGHT__EVENTS", "5000"),
            ("OUTBOXD__KAFKA__BROKERS", "k1"),
            ("OUTBOXD__KAFKA__CREATE_TOPICS__PARTITIONS", "6"),
            ("OUTBOXD__KAFKA__CREATE_TOPICS__REPLICATION", "3"),
        ]);
        let config = load(MINIMAL, &set).unwrap();
        assert_eq!(config.relay.in_flight.events, 5000);
        assert_eq!(config.kafka.brokers, "k1:9092");
        assert!(config.kafka.create_topics.is_some());

        let cases = [
            ("OUTBOXD__RELAY__LEASE", "1s", Some("`1s`")),
            ("OUTBOXD__RELAY__POLL__MIN", "1s", Some("`1s`")),
            ("OUTBOXD__HTTP__TOKEN", "a b", None),
            ("OUTBOXD__POSTGRES__URL", "postgres://h", None),
        ];
        for (name, value, found) in cases {
            let problems = problems(MINIMAL, &[(name, value)]);
            let told: Vec<_> = problems.iter().map(|p| (p.line, p.key.as_str(), p.found.as_deref())).collect();
            assert_eq!(told, [(None, name, found)]);
        }
    }

    #[test]
    fn a_value_by_reference_is_used_and_never_printed() {
        let text = r#"
            [postgres]
            url = { env = "URL" }
            [kafka]
            brokers = { env = "BROKERS" }
            properties = { "sasl.password" = { env = "PASSWORD" }, "socket.keepalive.enable" = true }
            [relay]
            lease = { env = "LEASE" }
        "#;
        let url = "postgres://u:$ecret@127.0.0.1/shop";
        let mut set = variables(&[("URL", url), ("BROKERS", "$ecret"), ("PASSWORD", "$ecret"), ("LEASE", "9s")]);
        assert!(load(text, &set).unwrap_err()[0].found.is_none(), "$ is no host");

        set.insert("BROKERS".to_owned(), "k1".to_owned());
        let config = load(text, &set).unwrap();
        assert_eq!(config.postgres.url.expose(), url);
        let properties = config.kafka.properties.iter();
        let properties: Vec<_> = properties.map(|(name, value)| (name.as_str(), value.expose())).collect();
        assert_eq!(properties, [("sasl.password", "$ecret"), ("socket.keepalive.enable", "true")]);
        assert!(!format!("{config:?}").contains("$ecret"));
        let shown = show(text, &set).unwrap();
        assert!(!shown.contains("$ecret") && shown.contains("lease = { env = \"LEASE\" }"), "{shown}");

        set.insert("LEASE".to_owned(), "$ecret".to_owned());
        assert!(!format!("{:?}", load(text, &set)).contains("$ecret"));
    }

    #[test]
    fn what_is_shown_loads_again() {
        let set = variables(&[("KAFKA_PASSWORD", "p"), ("OUTBOXD_TOKEN", "t")]);
        let shown = show(&commented_in(), &set).unwrap();
        assert_eq!(load(&shown, &set), load(&commented_in(), &set), "{shown}");
    }

    /// The reference with every key that is off switched on.
    fn commented_in() -> String {
        let switched = |line: &str| match line.strip_prefix('#') {
            Some(key) if key.starts_with(|c: char| c.is_ascii_lowercase() || c == '"') => key.to_owned(),
            _ => line.to_owned(),
        };
        REFERENCE.lines().map(switched).collect::<Vec<_>>().join("\n")
    }

    fn assert_written(keys: &[Key], value: &toml::Value, path: &str) {
        for key in keys {
            let path = format!("{path}.{}", key.name);
            let written = value.get(key.name).unwrap_or_else(|| panic!("{path}"));
            match (key.kind, written) {
                (Kind::Tables(inner), toml::Value::Array(items)) => {
                    assert_written(inner, &items[0], &path);
                }
                (kind, _) => assert_written(kind.keys(), written, &path),
            }
        }
    }

    #[test]
    fn the_reference_holds_every_key_with_its_default() {
        let defaults = load(MINIMAL, &BTreeMap::new());
        assert!(defaults.is_ok(), "{defaults:?}");
        assert_eq!(load(REFERENCE, &BTreeMap::new()), defaults);
        let table: toml::Table = commented_in().parse().unwrap();
        assert_written(KEYS, &toml::Value::Table(table), "");
    }
}
