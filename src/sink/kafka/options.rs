//! Configuration to librdkafka properties. Those that the promises rest on are set here and cannot be configured.

use super::error;
use crate::config::kafka::Kafka;
use crate::sink::SendError;
use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use std::time::Duration;

/// How a producer is set up beyond the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// At most the smallest `max.message.bytes` of the topics: the broker's limit is per batch, so small records in a big batch fail too.
    pub batch_bytes: usize,
    /// One record per batch and one batch at a time, to find the one that fails.
    pub care: Care,
    /// The client's own limit for an answer; it shows a black hole, and bounds what a fenced producer may still have under way.
    pub socket_timeout: Duration,
}

/// How many records travel together. Alone, the one that fails is known, and nothing behind it in its partition is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Care {
    /// As many as fit.
    Batched,
    /// Each alone.
    Alone,
}

/// What the records that are sent now need most. One producer cannot serve both: how long a record waits for others to
/// travel with is a property of a producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Haste {
    /// To be there soon.
    Soon,
    /// To cost little, as in a backlog: large batches save the broker half of its work and us a fifth of ours.
    Bulk,
}

/// `linger.ms` of a backlog, if no other is configured.
const BULK_LINGER_MS: &str = "10";

/// librdkafka's default.
pub const BATCH_BYTES: usize = 1_000_000;

const OWNED: [(&str, &str, &str); 11] = [
    ("enable.idempotence", "true", "without it one retry re-orders"),
    ("enable.gapless.guarantee", "true", "a permanent error stops the producer: later records do not pass"),
    ("acks", "all", "a record counts when all in-sync replicas have it"),
    ("message.timeout.ms", "0", "a time-out would be a hole in the order"),
    ("partitioner", "murmur2_random", "a key lands where a Java producer puts it"),
    ("message.max.bytes", "1000000000", "the topic's own limit is checked before a record is queued"),
    (
        "queue.buffering.max.messages",
        "0",
        "no bound: the ledger is the bound, and lets one event pass however large it is",
    ),
    ("queue.buffering.max.kbytes", "2097151", "as large as it goes, for the same reason"),
    ("allow.auto.create.topics", "false", "a producer's default is true: a row must not make topics"),
    ("topic.metadata.propagation.max.ms", "300000", "a gap in the metadata is no missing topic"),
    ("retry.backoff.max.ms", "1000", "so that sending goes on soon when a broker is back"),
];

/// What the user may override.
const DEFAULTS: [(&str, &str); 6] = [
    ("linger.ms", "0"),
    ("compression.type", "lz4"),
    ("reconnect.backoff.max.ms", "1000"),
    ("batch.num.messages", "10000"),
    ("client.id", "outboxd"),
    ("message.copy.max.bytes", "1000"), // for each batch librdkafka allocates as much as it might copy: else all that is queued
];

/// Properties for asking about the cluster and its topics.
pub fn client(config: &Kafka, socket_timeout: Duration) -> ClientConfig {
    let mut properties = ClientConfig::new();
    properties.set_log_level(RDKafkaLogLevel::Info);
    properties.set("client.id", "outboxd").set("reconnect.backoff.max.ms", "1000");
    for (name, value) in config.properties.iter().filter(|(name, _)| !is_for_producing(name)) {
        properties.set(name, value.expose());
    }
    properties.set("bootstrap.servers", &config.brokers);
    properties.set("allow.auto.create.topics", "false");
    properties.set("socket.timeout.ms", socket_timeout.as_millis().to_string());
    properties
}

/// Whether librdkafka takes what is configured: it knows more properties than can be listed here.
///
/// # Errors
/// What it says against it.
pub fn verify(config: &Kafka) -> Result<(), SendError> {
    let tuning = Tuning { batch_bytes: BATCH_BYTES, care: Care::Batched, socket_timeout: Duration::from_secs(10) };
    let taken = producer(config, tuning).create_native_config();
    taken.map(drop).map_err(|failure| error::describe("kafka.properties", &failure))
}

/// Properties of a lane's producer for a backlog; `None` if one producer sends all.
pub fn bulk_producer(config: &Kafka, tuning: Tuning) -> Option<ClientConfig> {
    let is_configured = config.properties.iter().any(|(name, _)| name == "linger.ms");
    (tuning.care == Care::Batched && !is_configured).then(|| {
        let mut properties = producer(config, tuning);
        properties.set("linger.ms", BULK_LINGER_MS);
        properties
    })
}

/// Properties of a lane's producer. Its queue has no bound that bites: the ledger bounds what waits in it.
pub fn producer(config: &Kafka, tuning: Tuning) -> ClientConfig {
    let mut properties = client(config, tuning.socket_timeout);
    for (name, value) in DEFAULTS {
        properties.set(name, value);
    }
    for (name, value) in &config.properties {
        properties.set(name, value.expose());
    }
    for (name, value, _) in OWNED {
        properties.set(name, value);
    }
    let timeout = tuning.socket_timeout.as_millis().to_string();
    let batch_bytes = configured_batch(config).map_or(tuning.batch_bytes, |wanted| wanted.min(tuning.batch_bytes));
    properties.set("bootstrap.servers", &config.brokers);
    properties.set("socket.timeout.ms", &timeout);
    properties.set("request.timeout.ms", &timeout);
    properties.set("batch.size", batch_bytes.to_string());
    properties.set("max.in.flight", if tuning.care == Care::Alone { "1" } else { "5" }); // 5 is the most that idempotence allows
    if tuning.care == Care::Alone {
        properties.set("batch.num.messages", "1");
    }
    properties
}

fn configured_batch(config: &Kafka) -> Option<usize> {
    config.properties.iter().find(|(name, _)| name == "batch.size").and_then(|(_, value)| value.expose().parse().ok())
}

/// Properties that an asking client would warn about.
fn is_for_producing(name: &str) -> bool {
    ["linger.ms", "batch.", "compression.", "queue.buffering.", "sticky."].iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::secret::Secret;

    fn kafka(properties: &[(&str, &str)]) -> Kafka {
        let properties =
            properties.iter().map(|(name, value)| ((*name).to_owned(), Secret::new((*value).to_owned()))).collect();
        Kafka { brokers: "127.0.0.1:9092".to_owned(), properties, create_topics: None }
    }

    const PLAIN: Tuning =
        Tuning { batch_bytes: BATCH_BYTES, care: Care::Batched, socket_timeout: Duration::from_secs(10) };

    #[test]
    fn what_the_promises_rest_on_cannot_be_configured() {
        let config = kafka(&[("acks", "1"), ("partitioner", "random"), ("linger.ms", "20")]);
        let properties = producer(&config, PLAIN);
        for (name, value, _) in OWNED {
            assert_eq!(properties.get(name), Some(value), "{name}");
        }
        assert_eq!(properties.get("linger.ms"), Some("20"));
    }

    /// What is set over a configured value would leave its owner believing in it.
    #[test]
    fn what_is_set_and_no_default_is_refused_in_the_configuration() {
        let properties = producer(&kafka(&[]), PLAIN);
        let may_be_set = DEFAULTS.map(|(name, _)| name);
        for &name in properties.config_map().keys() {
            if may_be_set.contains(&name) || name == "batch.size" {
                continue; // of two sizes of a batch, the lower one counts
            }
            let file = format!(
                "postgres.url = \"postgres://u@h/d\"\nkafka.brokers = \"h\"\nkafka.properties.\"{name}\" = \"1\""
            );
            let problems = crate::config::load(&file, &std::collections::BTreeMap::new()).unwrap_err();
            assert!(problems[0].key.contains(name), "{name}: {problems:?}");
        }
    }

    #[test]
    fn a_careful_producer_sends_one_record_at_a_time() {
        let properties = producer(&kafka(&[("batch.num.messages", "500")]), Tuning { care: Care::Alone, ..PLAIN });
        assert_eq!((properties.get("max.in.flight"), properties.get("batch.num.messages")), (Some("1"), Some("1")));
    }

    #[test]
    fn security_and_compression_are_built_in() {
        let native = producer(&kafka(&[]), PLAIN).create_native_config().unwrap();
        let features = native.get("builtin.features").unwrap();
        for feature in ["gzip", "snappy", "lz4", "zstd", "ssl", "sasl_plain", "sasl_scram"] {
            assert!(features.split(',').any(|found| found.trim() == feature), "{feature} is not among {features}");
        }
    }

    #[test]
    fn what_librdkafka_does_not_take_is_found_before_anything_is_started() {
        assert!(verify(&kafka(&[("linger.ms", "20")])).is_ok());
        for wrong in [("linger.mss", "hunter2"), ("linger.ms", "soon")] {
            let refused = verify(&kafka(&[wrong])).unwrap_err();
            assert!(refused.what.contains(wrong.0) && !refused.what.contains(wrong.1), "{refused:?}");
        }
    }

    #[test]
    fn librdkafka_takes_all_of_it() {
        for care in [Care::Batched, Care::Alone] {
            producer(&kafka(&[("batch.size", "5000")]), Tuning { care, ..PLAIN }).create_native_config().unwrap();
        }
    }
}
