//! Events that cannot become a record, or that Kafka will never take, under each policy. Other streams are never disturbed.

mod dead_letters;
mod halting;
mod parking;
mod releasing;

use std::collections::HashMap;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use serde_json::Value;

use crate::delivery::values;
use crate::support::acl::{Operation, allow, sasl};
use crate::support::checker::Record;
use crate::support::eventually::{PATIENCE, eventually};
use crate::support::kafka::Kafka;
use crate::support::postgres::{Database, Role};
use crate::support::relay::Relay;
use crate::support::server;

/// Sets a topic's setting, and no other.
pub(crate) async fn configure(kafka: &Kafka, topic: &str, name: &str, value: &str) {
    let mut config = ClientConfig::new();
    let admin: AdminClient<DefaultClientContext> = config.set("bootstrap.servers", kafka.brokers()).create().unwrap();
    let entries = HashMap::from([(name, value)]);
    let change = AlterConfig { specifier: ResourceSpecifier::Topic(topic), entries };
    let options = AdminOptions::new().request_timeout(Some(Duration::from_secs(10)));
    let changed = admin.alter_configs([&change], &options).await.expect("an answer");
    assert!(changed.iter().all(Result::is_ok), "{changed:?}");
}

/// A relay whose user may write and see the topic, and not ask for its limits: then it learns them by their refusals.
async fn unknowing(database: &Database, kafka: &Kafka, topic: &str) -> Relay {
    allow(kafka, topic, Operation::Write).await;
    allow(kafka, topic, Operation::Describe).await;
    let relay = Relay::new(&database.url(Role::Relay), kafka).await;
    relay.set("kafka.brokers", server("OUTBOXD_TEST_KAFKA_SASL")).set("kafka.properties", sasl("relay-secret"))
}

/// The values in the order in which they came first.
fn first_appearances(records: &[Record]) -> Vec<String> {
    let mut seen = Vec::new();
    for value in values(records) {
        if !seen.contains(&value) {
            seen.push(value);
        }
    }
    seen
}

/// What `outboxd parked list` says.
async fn parked(relay: &Relay) -> Vec<Value> {
    let output = relay.command(&["parked", "list", "--limit", "100000", "--output", "json"]).await;
    assert_eq!(output.code, 0, "{}", output.stderr);
    serde_json::from_str(&output.stdout).unwrap()
}

/// Waits until so many streams are parked, and says what is known of them.
async fn are_parked(relay: &Relay, streams: usize) -> Vec<Value> {
    eventually(&format!("{streams} streams are parked"), PATIENCE, async || {
        let found = parked(relay).await;
        if found.len() == streams { Ok(found) } else { Err(format!("{found:?}; {:?}", relay.status().await)) }
    })
    .await
}

/// Runs a command that has to succeed, and returns what it says beside its data.
async fn decides(relay: &Relay, arguments: &[&str]) -> String {
    let output = relay.command(&[&["parked"], arguments].concat()).await;
    assert_eq!(output.code, 0, "outboxd parked {arguments:?}: {}", output.stderr);
    output.stderr
}
