//! A key lands where a Java producer puts it, so that consumers see one stream in one partition, whoever wrote it.

use serde_json::Value;

use crate::delivery::{arrive, stop, write_numbers};
use crate::support::eventually::{PATIENCE, eventually};
use crate::support::kafka::Kafka;
use crate::support::postgres::{Database, Role};
use crate::support::relay::Relay;

const NAME: &str = "keys_land_where_java_puts_them";

/// Partition counts in the golden file; each is the topic of an aggregate type.
const COUNTS: [(&str, i32); 4] = [("1", 1), ("2", 2), ("7", 7), ("12", 12)];

/// Written by the Java client: `tests/golden/Partitions.java`.
fn golden() -> Vec<Value> {
    serde_json::from_str(include_str!("../golden/java_partitions.json")).unwrap()
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

#[tokio::test]
async fn keys_land_where_java_puts_them() {
    let golden = golden();
    let negative = golden.iter().filter(|case| case["murmur2"].as_i64().unwrap() < 0).count();
    let empty = golden.iter().filter(|case| case["key_hex"] == "").count();
    assert!(golden.len() > 60 && negative > 20 && empty == 1, "the golden file lacks the odd cases");

    // given a topic for each number of partitions, and an event for each key
    let database = Database::migrated(NAME).await;
    let kafka = Kafka::create(NAME);
    let mut app = database.connect(Role::App).await;
    for (aggregate_type, partitions) in COUNTS {
        kafka.create_topic(aggregate_type, partitions).await;
        for case in &golden {
            let key = String::from_utf8(bytes(case["key_hex"].as_str().unwrap())).unwrap();
            sqlx::query(
                "insert into outbox.events (aggregate_type, aggregate_id, event_type) values ($1, $2, 'Moved')",
            )
            .bind(aggregate_type)
            .bind(key)
            .execute(&mut app)
            .await
            .unwrap();
        }
    }

    // when they are published
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await;
    relay.start();

    // then each is where the Java producer put that key
    for (aggregate_type, partitions) in COUNTS {
        let topic = kafka.topic(aggregate_type);
        let records = eventually(&format!("all keys are in {topic}"), PATIENCE, async || {
            let records = kafka.read(&topic).await;
            if records.len() == golden.len() { Ok(records) } else { Err(format!("{} records", records.len())) }
        })
        .await;
        for case in &golden {
            let key = bytes(case["key_hex"].as_str().unwrap());
            let record = records.iter().find(|record| record.key.as_deref() == Some(&key[..]));
            let found = record.map(|record| i64::from(record.partition));
            assert_eq!(found, case["partitions"][aggregate_type].as_i64(), "{case} of {partitions}");
        }
    }
}

#[tokio::test]
async fn more_partitions_are_noticed_and_said() {
    const NAME: &str = "more_partitions_are_noticed";
    let (database, kafka) = (Database::migrated(NAME).await, Kafka::create(NAME));
    let topic = kafka.create_topic("order", 1).await;
    let properties: toml::Table = "\"topic.metadata.refresh.interval.ms\" = \"200\"".parse().unwrap();
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await.set("kafka.properties", properties);
    relay.start();
    write_numbers(&database, "order", 1..=3).await;
    let mut reader = kafka.reader(&[&topic]);
    arrive(&mut reader, 3, &relay).await;

    kafka.add_partitions(&topic, 6).await;
    eventually("the log says it", PATIENCE, async || {
        let log = relay.log();
        if log.contains("topic has another number of partitions") { Ok(()) } else { Err(log) }
    })
    .await;
    write_numbers(&database, "order", 4..=40).await;
    eventually("the events behind it arrive", PATIENCE, async || {
        let records: i64 = kafka.ends(&[&topic]).await.values().sum();
        if records == 40 { Ok(()) } else { Err(format!("{records}")) }
    })
    .await;
    stop(&mut relay).await;
}
