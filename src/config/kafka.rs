//! `[kafka]`: the brokers, and what the operator may tell librdkafka.

use super::key::{Fallback, Form, Key, Kind};
use super::problem::{Fault, quoted};
use super::secret::Secret;
use super::section::Section;

/// Where the brokers are and how to speak to them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kafka {
    /// `host:port`, separated by commas without spaces.
    pub brokers: String,
    /// Properties of librdkafka, by name; none that outboxd owns.
    pub properties: Vec<(String, Secret)>,
    /// How a missing topic is made; without it, it is waited for.
    pub create_topics: Option<CreateTopics>,
}

/// The shape of a topic that we make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreateTopics {
    /// At least one. More partitions later break the order by key.
    pub partitions: i32,
    /// At least one.
    pub replication: i32,
}

const BROKERS: Key = Key {
    name: "brokers",
    doc: "Some brokers of the cluster, as `host:port`, separated by commas; the others are learnt from them.",
    kind: Kind::Value(
        Form::Text("`host:port` pairs separated by commas, such as `k1:9092,k2:9092`"),
        Fallback::Required,
    ),
};

const PARTITIONS: Key = Key {
    name: "partitions",
    doc: "The number of partitions. More of them later break the order by key.",
    kind: Kind::Value(Form::Integer { least: 1, most: i32::MAX as i64 }, Fallback::Required),
};

const REPLICATION: Key = Key {
    name: "replication",
    doc: "The number of brokers that keep a copy.",
    kind: Kind::Value(
        Form::Integer {
            least: 1,
            most: i16::MAX as i64, // 16 bits in the protocol
        },
        Fallback::Required,
    ),
};

const CREATE_TOPICS: Key = Key {
    name: "create_topics",
    doc: "Makes a missing topic in this shape. Without it, a missing topic is waited for, and that is said.",
    kind: Kind::OptionalTable(&[PARTITIONS, REPLICATION]),
};

const PROPERTIES: Key = Key {
    name: "properties",
    doc: "Properties of librdkafka, such as `security.protocol`; those that outboxd owns are refused.",
    kind: Kind::Entries(Form::Property),
};

pub(super) const KEYS: &[Key] = &[BROKERS, CREATE_TOPICS, PROPERTIES];

/// What a broker listens on if its address does not say.
const DEFAULT_PORT: u16 = 9092;

/// What outboxd sets itself, and why: names, beginnings (with a dot at the end) and endings (with `_` before).
/// A name stands before a beginning that covers it, so that it can say more.
const OWNED: &[(&str, &str)] = &[
    ("bootstrap.servers", "set `kafka.brokers` instead"),
    ("metadata.broker.list", "set `kafka.brokers` instead"),
    ("enable.idempotence", "it is on: without it, one retry breaks the order"),
    ("enable.gapless.guarantee", "it is on: later records must not pass a failed one"),
    ("message.timeout.ms", "it is 0: a record that times out is a hole in the order"),
    ("delivery.timeout.ms", "it is 0: a record that times out is a hole in the order"),
    ("max.in.flight", "it is 5, the most that idempotence allows"),
    ("max.in.flight.requests.per.connection", "it is 5, the most that idempotence allows"),
    ("partitioner", "it is murmur2_random: a key lands where a Java producer puts it"),
    ("acks", "it is all: less loses events with a broker"),
    ("request.required.acks", "it is all: less loses events with a broker"),
    ("retries", "librdkafka tries for ever: to give up is to lose"),
    ("message.send.max.retries", "librdkafka tries for ever: to give up is to lose"),
    ("transactional.id", "outboxd uses no transactions of Kafka"),
    ("allow.auto.create.topics", "it is off: set `kafka.create_topics` instead"),
    ("message.max.bytes", "it follows the limits of the topics"),
    ("topic.metadata.propagation.max.ms", "it is 5 minutes: a gap in the metadata is no missing topic"),
    ("socket.timeout.ms", "it follows `relay.lease`: what is under way ends before another relay sends"),
    ("request.timeout.ms", "it follows `relay.lease`: what is under way ends before another relay sends"),
    ("retry.backoff.max.ms", "it is 1 s: sending goes on soon when a broker is back"),
    ("queuing.strategy", "it is fifo: the other breaks the order"),
    ("delivery.report.only.error", "it is off: an event is settled by its report"),
    ("queue.buffering.max.ms", "set `linger.ms` instead"),
    ("queue.buffering.", "the queue is bounded by `relay.in_flight`"),
    (
        "statistics.interval.ms",
        "nobody takes these statistics, and they would fill the memory: see outboxd's own metrics",
    ),
    ("metadata.recovery.strategy", "it is rebootstrap: without it a client that has lost its brokers finds none again"),
    ("compression.codec", "set `compression.type` instead"),
    ("opaque", "it belongs to the program"),
    ("_cb", "it belongs to the program"),
];

impl Kafka {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Option<Self> {
        let brokers = section.parse(&BROKERS, brokers);
        let create_topics = section.optional_table(&CREATE_TOPICS).map(|mut section| CreateTopics::read(&mut section));
        let properties = section.entries(&PROPERTIES, property);
        Some(Self { brokers: brokers?, properties: properties?, create_topics: create_topics.flatten() })
    }
}

impl CreateTopics {
    fn read(section: &mut Section<'_, '_>) -> Option<Self> {
        let partitions = section.integer(&PARTITIONS);
        let replication = section.integer(&REPLICATION);
        Some(Self { partitions: partitions?, replication: replication? })
    }
}

/// Hides a value by the name of its property, for `show`: better one too many.
pub(super) fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["password", "passphrase", "secret", "token", "jaas", "private", "key.pem", "oauthbearer.config"]
        .iter()
        .any(|word| name.contains(word))
}

fn brokers(text: &str) -> Result<String, Fault> {
    let hosts: Option<Vec<String>> = text.split(',').map(|host| broker(host.trim())).collect();
    hosts.map(|hosts| hosts.join(",")).ok_or_else(|| Fault::new(BROKERS.kind.form().expected()))
}

/// A broker's address with its port. An IPv6 address stands in brackets.
fn broker(text: &str) -> Option<String> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
        _ => (text, DEFAULT_PORT),
    };
    let inside = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let fits = match inside {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(is_of_host),
    };
    (fits && port > 0).then(|| format!("{host}:{port}"))
}

fn is_of_host(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_')
}

fn property(name: &str, value: &str) -> Result<Secret, Fault> {
    let owned = OWNED.iter().find(|(owned, _)| {
        name == *owned
            || (owned.starts_with('_') && name.ends_with(owned))
            || (owned.ends_with('.') && name.starts_with(owned))
    });
    if let Some((_, reason)) = owned {
        return Err(Fault::new("a property that outboxd does not set itself").hint(*reason));
    }
    if name.is_empty() || name.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(Fault::new("a property of librdkafka"));
    }
    if value.contains('\0') {
        return Err(Fault::new(format!("{} without a NUL", quoted(name))));
    }
    Ok(Secret::new(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brokers_get_their_ports_and_lose_their_spaces() {
        let cases = [
            ("127.0.0.1:9092", Some("127.0.0.1:9092")),
            ("k1, k2:9093 ,k1", Some("k1:9092,k2:9093,k1:9092")),
            ("[::1]:9092,[2001:db8::1]", Some("[::1]:9092,[2001:db8::1]:9092")),
            ("", None),
            ("k1,", None),
            ("k1:port", None),
            ("k1:0", None),
            ("k1:65536", None),
            ("PLAINTEXT://k1:9092", None),
            ("::1", None),
            ("k 1", None),
        ];
        for (text, expected) in cases {
            assert_eq!(brokers(text).ok().as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn what_outboxd_owns_is_refused_with_the_reason() {
        let cases = [
            ("acks", Some("it is all")),
            ("bootstrap.servers", Some("`kafka.brokers`")),
            ("queue.buffering.max.messages", Some("`relay.in_flight`")),
            ("statistics.interval.ms", Some("nobody takes")),
            ("metadata.recovery.strategy", Some("finds none again")),
            ("queue.buffering.max.ms", Some("`linger.ms`")),
            ("dr_msg_cb", Some("belongs to the program")),
            ("opaque", Some("belongs to the program")),
            ("linger.ms", None),
            ("batch.size", None),
            ("batch.num.messages", None),
            ("compression.type", None),
            ("security.protocol", None),
        ];
        for (name, reason) in cases {
            let hint = property(name, "1").err().and_then(|fault| fault.hint);
            assert_eq!(hint.is_some(), reason.is_some(), "{name}");
            assert!(hint.unwrap_or_default().contains(reason.unwrap_or_default()), "{name}");
        }
    }

    #[test]
    fn a_property_that_may_be_secret_is_hidden() {
        for name in ["sasl.password", "ssl.key.pem", "sasl.oauthbearer.client.secret", "SASL.JAAS.config"] {
            assert!(is_secret(name), "{name}");
        }
        for name in ["security.protocol", "sasl.username", "ssl.key.location"] {
            assert!(!is_secret(name), "{name}");
        }
    }
}
