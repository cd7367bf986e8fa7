//! Error code to kind, here and nowhere else. Sources: `rdkafka.h`, the protocol's list of errors, and KIP-360 for the fatal ones.

use crate::sink::{SendError, SendErrorKind};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

/// Classifies an error of librdkafka. What is not listed is the environment's: it waits, visibly, and is never taken for the record's fault.
pub fn classify(code: Code) -> SendErrorKind {
    match code {
        Code::MessageSizeTooLarge
        | Code::InvalidTopic
        | Code::MessageBatchTooLarge
        | Code::InvalidTimestamp
        | Code::PolicyViolation
        | Code::InvalidRecord => SendErrorKind::Rejection,
        Code::InvalidDifferentRecord | Code::PurgeQueue | Code::PurgeInflight => SendErrorKind::NotMine,
        Code::Fatal
        | Code::GaplessGuarantee
        | Code::Inconsistent
        | Code::OutOfOrderSequenceNumber
        | Code::InvalidProducerEpoch
        | Code::UnknownProducerId
        | Code::State => SendErrorKind::Fatal,
        Code::Fenced | Code::ProducerFenced => SendErrorKind::Fenced,
        _ => SendErrorKind::Environment,
    }
}

/// Describes an error with what it was about.
pub fn describe(about: &str, error: &KafkaError) -> SendError {
    let code = error.rdkafka_error_code();
    let kind = code.map_or(SendErrorKind::Environment, classify);
    let what = match (code, error) {
        (Some(code), _) => format!("{about}: {} ({code:?})", plain(code)),
        (None, KafkaError::ClientConfig(_, said, name, value)) => format!("{about}: {}", without(value, name, said)),
        (None, _) => format!("{about}: {error}"),
    };
    SendError {
        kind,
        code: code.map_or_else(|| "client".to_owned(), |code| format!("{code:?}")),
        what,
        hint: code.and_then(hint).map(str::to_owned),
    }
}

impl SendError {
    /// Adds what librdkafka says beyond the code, without what changes from try to try. The code alone does not tell a
    /// certificate of a stranger from one of another host.
    #[must_use]
    pub fn because(mut self, reason: &str) -> Self {
        let lasting = reason.split(" (after ").next().unwrap_or(reason);
        self.what = format!("{}: {lasting}", self.what);
        self
    }
}

/// librdkafka's words about a property, without its value: that may be a secret under a name that is misspelt.
fn without(value: &str, name: &str, said: &str) -> String {
    let said = if value.is_empty() { said.to_owned() } else { said.replace(value, "***") };
    if said.contains(name) { said } else { format!("{name}: {said}") }
}

/// librdkafka's words, without its prefixes.
fn plain(code: Code) -> String {
    let text = code.to_string();
    text.split_once(": ").map_or(text.clone(), |(_, rest)| rest.trim_end_matches(')').to_owned())
}

/// librdkafka says that the brokers belong to another cluster than those before: the lane has to look into that with clients that know neither.
pub fn other_cluster(message: &str) -> SendError {
    SendError {
        kind: SendErrorKind::Environment,
        code: "client".to_owned(),
        what: format!("kafka: {message}"),
        hint: None,
    }
}

/// What the broker said that makes a producer fatal. librdkafka keeps it in its text only: the code, and the reports of the
/// records, speak of the order that can no longer be kept.
const BEHIND_FATAL: [Code; 9] = [
    Code::TopicAuthorizationFailed,
    Code::ClusterAuthorizationFailed,
    Code::TransactionalIdAuthorizationFailed,
    Code::MessageSizeTooLarge,
    Code::MessageBatchTooLarge,
    Code::InvalidTopic,
    Code::InvalidTimestamp,
    Code::PolicyViolation,
    Code::InvalidRecord,
];

/// Describes a fatal error by its cause, if its text names one.
pub fn describe_fatal(text: &str) -> Option<SendError> {
    let cause = BEHIND_FATAL.into_iter().find(|code| text.contains(&plain(*code)))?;
    let topic = text.split_once("ProduceRequest for ").and_then(|(_, rest)| rest.split_once(" ["));
    let about = topic.map_or_else(|| "kafka".to_owned(), |(topic, _)| format!("topic {topic}"));
    Some(describe(&about, &KafkaError::Global(cause)))
}

fn hint(code: Code) -> Option<&'static str> {
    Some(match code {
        Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition => {
            "create the topic, or leave it to outboxd with `kafka.create_topics`; it goes on by itself"
        }
        Code::TopicAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed => {
            "allow the user of outboxd Write and Describe on the topic (and IdempotentWrite on the cluster before Kafka 3)"
        }
        Code::SaslAuthenticationFailed | Code::Authentication | Code::UnsupportedSASLMechanism => {
            "check `sasl.mechanisms`, `sasl.username` and `sasl.password` in [kafka.properties]"
        }
        Code::SSL => {
            "check `security.protocol` and `ssl.ca.location` in [kafka.properties], and that the certificates carry the names in `kafka.brokers`"
        }
        Code::BrokerTransportFailure | Code::AllBrokersDown | Code::Resolve => {
            "check `kafka.brokers`, the brokers and the network; outboxd goes on by itself"
        }
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge => {
            "raise `max.message.bytes` of the topic, or write smaller events"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_of_a_fatal_error_is_read_from_its_text() {
        let text = "ProduceRequest for shop.orders [3] with 2 message(s) failed: Broker: Topic authorization failed (broker 1)";
        let error = describe_fatal(text).unwrap();
        assert_eq!(error.kind, SendErrorKind::Environment);
        assert_eq!(error.what, "topic shop.orders: Topic authorization failed (TopicAuthorizationFailed)");
        let text = "Failed to acquire idempotence PID from broker x: Broker: Cluster authorization failed";
        assert_eq!(
            describe_fatal(text).unwrap().what,
            "kafka: Cluster authorization failed (ClusterAuthorizationFailed)"
        );
        let text = "ProduceRequest for a [0] with 1 message(s) failed: Broker: Policy violation";
        assert_eq!(describe_fatal(text).unwrap().kind, SendErrorKind::Rejection);
        assert_eq!(describe_fatal("Epoch bump failed"), None);
    }

    #[test]
    fn only_what_is_the_records_own_fault_is_a_rejection() {
        let table = [
            (Code::MessageSizeTooLarge, SendErrorKind::Rejection),
            (Code::InvalidTopic, SendErrorKind::Rejection),
            (Code::PolicyViolation, SendErrorKind::Rejection),
            (Code::InvalidRecord, SendErrorKind::Rejection),
            (Code::InvalidTimestamp, SendErrorKind::Rejection),
            (Code::UnknownTopicOrPartition, SendErrorKind::Environment),
            (Code::TopicAuthorizationFailed, SendErrorKind::Environment),
            (Code::BrokerTransportFailure, SendErrorKind::Environment),
            (Code::MessageTimedOut, SendErrorKind::Environment),
            (Code::ThrottlingQuotaExceeded, SendErrorKind::Environment),
            (Code::PurgeInflight, SendErrorKind::NotMine),
            (Code::InvalidDifferentRecord, SendErrorKind::NotMine),
            (Code::OutOfOrderSequenceNumber, SendErrorKind::Fatal),
            (Code::GaplessGuarantee, SendErrorKind::Fatal),
            (Code::ProducerFenced, SendErrorKind::Fenced),
            (Code::Unknown, SendErrorKind::Environment),
        ];
        for (code, kind) in table {
            assert_eq!(classify(code), kind, "{code:?}");
        }
    }
}
