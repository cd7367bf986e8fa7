//! An event is visible before it is on disk when its writer does not wait: it is held back until it is, and no longer.

use crate::support::eventually::{PATIENCE, eventually};
use crate::support::kafka::Kafka;
use crate::support::postgres::{Database, Role, say};
use crate::support::relay::Relay;

const NAME: &str = "an_unflushed_commit_is_not_held_back";

/// The WAL writer flushes up to the last asynchronous commit, and whole pages; behind it the open transaction has written.
#[tokio::test]
async fn an_unflushed_commit_is_not_held_back_by_an_open_transaction() {
    let database = Database::migrated(NAME).await;
    let kafka = Kafka::create(NAME);
    let topic = kafka.create_topic("order", 1).await;
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await;
    relay.start();
    relay.ready().await;

    let insert = "insert into outbox.events (aggregate_type, aggregate_id, event_type) values ('order'";
    let mut open = database.connect(Role::App).await;
    say(&mut open, &format!("begin; {insert}, 'open', 'Begun')")).await;
    let mut writer = database.connect(Role::App).await;
    say(&mut writer, "set synchronous_commit = off").await;
    for nr in 1..=20 {
        say(&mut writer, &format!("{insert}, '{nr}', 'Unflushed')")).await;
        say(&mut open, &format!("{insert}, 'open', 'Written behind it')")).await;
        eventually(&format!("commit {nr} is published while the other transaction is open"), PATIENCE, async || {
            let found = kafka.read(&topic).await.len();
            if found == nr { Ok(()) } else { Err(format!("{found} records")) }
        })
        .await;
    }
    say(&mut open, "rollback").await;
    relay.terminate().await;
    assert_eq!(relay.exit_code().await, Some(0));
    assert_eq!(kafka.read(&topic).await.len(), 20);
}
