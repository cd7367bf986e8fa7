//! A large backlog is read in pages: in order, and in the same memory as a small one.

use crate::support::checker::Checker;
use crate::support::eventually::{PATIENCE, eventually};
use crate::support::kafka::Kafka;
use crate::support::postgres::{Database, Role, say};
use crate::support::relay::Relay;

const NAME: &str = "a_backlog_of_a_million_events";
const EVENTS: usize = 1_000_000;

/// What may be in flight (28 MiB by default), one page read ahead and one being read, the program, and what allocators keep.
const MOST_MEGABYTES: u64 = 28 + 64;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_of_a_million_events_is_read_in_order_and_in_constant_memory() {
    let database = Database::migrated(NAME).await;
    let kafka = Kafka::create(NAME);
    let topic = kafka.create_topic("order", 6).await;
    let insert = format!(
        "insert into outbox.events (aggregate_type, aggregate_id, event_type, payload)
         select 'order', (i % 1000)::text, 'Placed', jsonb_build_object('nr', i) from generate_series(1, {EVENTS}) i"
    );
    say(&mut database.connect(Role::Owner).await, &insert).await;

    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await;
    relay.start();
    let mut checker = Checker::new(database.committed().await);
    let mut reader = kafka.reader(&[&topic]);
    eventually("the backlog is published", PATIENCE * 3, async || {
        reader.read_on().await.iter().for_each(|record| checker.see(record));
        if checker.missing() == 0 { Ok(()) } else { Err(format!("{} events are missing", checker.missing())) }
    })
    .await;
    let peak = relay.peak_megabytes();
    relay.ready().await;
    relay.terminate().await;
    assert_eq!(relay.exit_code().await, Some(0));

    let verdict = checker.verdict(&[]);
    eprintln!("{verdict}; peak memory {peak} MB");
    assert!(verdict.is_sound() && verdict.duplicates.count == 0, "{verdict}");
    assert!(peak <= MOST_MEGABYTES, "peak memory {peak} MB, more than {MOST_MEGABYTES}");
}
