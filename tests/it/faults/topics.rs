//! A topic that goes away while events flow, and comes back.

use tokio::time::Instant;

use super::stage::{PARTITIONS, Stage, tell};
use crate::support::checker::Checker;
use crate::support::eventually::{PATIENCE, eventually};
use crate::support::kafka::Kafka;
use crate::support::postgres::Database;
use crate::support::proxy::{Direction, Flow};
use crate::support::servers::Servers;
use crate::support::writer::LOCKED;

/// Who makes the topic again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Maker {
    Operator,
    Relay,
}

/// Deletes a topic in the middle of a storm. While the topic is read and deleted nothing reaches Kafka, and what had reached it is
/// answered: so it is known, of each event, whether it had been stored before.
async fn a_topic_is_deleted(name: &str, maker: Maker) {
    let (servers, proxy) = Servers::behind_proxy().await;
    let mut stage = Stage::new(Database::migrated(name).await, Kafka::create_on(servers.kafka(), name)).await;
    stage.relay.configure("kafka.brokers", proxy.address().to_string());
    if maker == Maker::Relay {
        let create = toml::Table::from_iter([
            ("partitions".to_owned(), toml::Value::from(PARTITIONS)),
            ("replication".to_owned(), 1.into()),
        ]);
        stage.relay = stage.relay.set("kafka.create_topics", create);
    }
    let plan = stage.plan(10);
    let storm = stage.begin(plan).await;
    storm.has_committed(300).await;

    // given all that was stored in it
    let topic = stage.topics[0].clone();
    stage.relay.freeze().await;
    proxy.flow(Direction::Requests, Flow::Hold);
    proxy.is_quiet().await;
    stage.note_open().await;
    let place = stage.database.place().await;
    let records = stage.kafka.read(&topic).await;
    stage.kafka.delete_topic(&topic).await;
    proxy.flow(Direction::Requests, Flow::Pass);
    stage.relay.resume().await;

    // then the lane says what it misses
    let mut mended = Instant::now();
    let seen = match maker {
        Maker::Operator => {
            let seen = stage.seen("waiting", &[&topic, "create the topic"]).await;
            stage.note_open().await;
            stage.kafka.create_topic(LOCKED[0], PARTITIONS).await;
            mended = Instant::now();
            seen
        }
        Maker::Relay => {
            eventually("the relay makes the topic again", PATIENCE, async || {
                let log = stage.relay.log();
                if log.contains("topic made") { Ok(()) } else { Err(format!("{:?}", stage.relay.status().await)) }
            })
            .await;
            stage.note_since(&place).await;
            "the log says: topic made".to_owned()
        }
    };
    stage.relays().await;
    let recovered = mended.elapsed();
    let tally = storm.stop().await;
    eprintln!("{tally}");

    // and what was not stored before is in the new topic, behind what was
    let mut checker = Checker::new(stage.database.committed().await);
    for record in &records {
        checker.see(record);
    }
    let reader = stage.reader();
    let verdict = stage.arrives(checker, reader).await;
    eprintln!("{} records in the topic that was deleted; {verdict}", records.len());
    stage.judge(&verdict);
    let by = if maker == Maker::Relay { "the relay makes it again" } else { "an operator makes it again" };
    tell(&format!("a topic is deleted, {by}"), &seen, Some(recovered), verdict.duplicates.count);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_topic_is_waited_for() {
    a_topic_is_deleted("a_deleted_topic_is_waited_for", Maker::Operator).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_topic_is_made_again() {
    a_topic_is_deleted("a_deleted_topic_is_made_again", Maker::Relay).await;
}
