//! What an operator sees of a cursor, with no more than the relay's rights.

use serde_json::json;

use crate::guards::{Scene, ask};
use crate::support::kafka::Kafka;
use crate::support::postgres::Role;
use crate::support::relay::Relay;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cursor_is_shown_before_its_first_start_at_work_and_at_rest() {
    let mut scene = Scene::new("a_cursor_is_shown").await;
    let text = async |scene: &Scene, words: &[&str]| {
        let output = scene.relay.command(&["cursor", "show"]).await;
        assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{output}");
        for word in words {
            assert!(output.stdout.contains(word), "{word}: {output}");
        }
    };
    let shown = scene.shown().await;
    assert_eq!((&shown["verdict"], &shown["cursor"]), (&json!("begins"), &json!(null)), "{shown}");
    text(&scene, &["default (lane 0)", "never started", "server"]).await;

    scene.write(3).await;
    scene.relay.start();
    scene.everything_arrives().await;
    let owner: String = ask(&scene.database, "select owner from outbox.cursors").await;
    text(&scene, &[&format!("held by {owner} until 2"), "goes on", "the same: system "]).await;
    scene.end().await;
    scene.write(2).await;
    let place: String = ask(&scene.database, "select concat_ws(' ', s, t, after) from outbox.cursors").await;
    text(&scene, &["free", &place, "all transactions before ", "2 events, the oldest", "epoch", "kafka"]).await;
    let shown = scene.shown().await;
    let cursor = &shown["cursor"];
    assert_eq!((&cursor["position"], &cursor["lease"], &cursor["epoch"]), (&json!(place), &json!("free"), &json!(1)));
    assert_eq!((&shown["verdict"], &shown["backlog_events"]), (&json!("goes on"), &json!(2)), "{shown}");
    assert_eq!(cursor["saved_in"], shown["server"]);

    // what the guards say, and what they do not say without an answer of Kafka
    scene.owner("update outbox.cursors set timeline = '00000009', saved_xid = pg_current_xact_id()").await;
    text(&scene, &["goes on: timeline 00000009 -> 00000001: failed over"]).await;
    scene.owner("update outbox.cursors set kafka_cluster = 'other', saved_xid = pg_current_xact_id()").await;
    text(&scene, &["refused: cursor belongs to Kafka cluster other", "outboxd cursor rebase --kafka", "2 events"])
        .await;
    scene.owner("update outbox.cursors set s = s").await;
    text(&scene, &["was not written here", "run: outboxd cursor rebase", "not known"]).await;
    let status = scene.relay.command(&["status"]).await;
    assert!(status.stdout.contains("was not written here") && !status.stdout.contains("lag"), "{status}");
    scene.relay = scene.relay.set("kafka.brokers", "127.0.0.1:9");
    let output = scene.relay.command(&["cursor", "show"]).await;
    assert!(output.code == 0 && output.stderr.contains("is not compared"), "{output}");
}

#[tokio::test]
async fn a_cursor_without_a_server_or_a_schema_says_so() {
    const NAME: &str = "a_cursor_without_a_server";
    let kafka = Kafka::create(NAME);
    let away = Relay::new("postgres://outboxd@127.0.0.1:9/shop", &kafka).await;
    for arguments in [&["show"][..], &["rebase", "--yes"], &["set", "--to", "latest"]] {
        let output = away.command(&[&["cursor"], arguments].concat()).await;
        assert!(output.code == 69 && output.stderr.contains("127.0.0.1:9"), "{arguments:?}: {output}");
    }
    let database = crate::support::postgres::Database::create(NAME).await;
    let empty = Relay::new(&database.url(Role::Relay), &kafka).await;
    for arguments in [&["show"][..], &["rebase", "--yes"], &["set", "--to", "latest"]] {
        let output = empty.command(&[&["cursor"], arguments].concat()).await;
        assert!(output.code == 1 && output.stderr.contains("hint: run: outboxd migrate"), "{arguments:?}: {output}");
    }
}
