//! Copies that carry a cursor: from a template, of another Kafka, of the data directory.

use tokio::process::Command;

use super::{REBASE, ids};
use crate::guards::copies::copied;
use crate::guards::servers::{Server, run};
use crate::guards::{Scene, ask, evidence};
use crate::support::eventually::{PATIENCE, eventually};
use crate::support::postgres::Database;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_from_a_template_publishes_what_was_not_sent_once_its_cursor_is_rebased() {
    const NAME: &str = "a_copy_from_a_template";
    let mut scene = Scene::new(NAME).await;
    scene.publish_and_end(5).await;
    scene.write(4).await;
    let oid: String =
        ask(&scene.database, "select oid::text from pg_database where datname = current_database()").await;
    let copy = copied(&scene.database, NAME).await; // which writes three there
    let original = std::mem::replace(&mut scene.database, copy);
    scene.elsewhere(NAME).await;
    scene.relay.start();
    let meant = "if that is meant: outboxd cursor rebase";
    scene.refuses(&format!("copy of database {oid}: both would publish"), Some(meant)).await;
    let before = evidence(&original).await;
    let done = scene.operator(meant.split_once("outboxd ").unwrap().1).await;
    assert_eq!(done.code, 0, "{done}");
    assert!(done.stdout.contains("7 events stamped anew, 0 events made harmless"), "{done}");
    scene.relay.ready().await;
    let expected = ids(&scene.database, "id > 5").await;
    assert_eq!(expected.len(), 7);
    scene.publishes(&expected).await;
    scene.end().await;

    // and the original has not noticed
    assert_eq!(evidence(&original).await, before);
    let copy = std::mem::replace(&mut scene.database, original);
    scene.elsewhere(NAME).await;
    let expected = ids(&scene.database, "id > 5").await;
    scene.relay.start();
    scene.publishes(&expected).await;
    scene.end().await;
    drop(copy); // first: in it are objects of the original's owner
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cursor_of_another_kafka_goes_on_there_once_it_has_forgotten_the_old_one() {
    const NAME: &str = "a_cursor_of_another_kafka";
    let mut scene = Scene::new(NAME).await;
    scene.publish_and_end(5).await;
    scene.write(3).await;
    scene.owner("update outbox.cursors set kafka_cluster = 'other', saved_xid = pg_current_xact_id()").await;
    scene.elsewhere(NAME).await;
    scene.relay.start();
    let kafka: String = scene.shown().await["reason"].as_str().unwrap_or_default().to_owned();
    let meant = "if that is meant: outboxd cursor rebase --kafka";
    scene.refuses(&kafka, Some(meant)).await;
    assert!(kafka.starts_with("cursor belongs to Kafka cluster other, connected to "), "{kafka}");

    // a rebase without the flag does not forget it
    scene.rebase(&[]).await;
    scene.refuses(&kafka, Some(meant)).await;
    let done = scene.operator(meant.split_once("outboxd ").unwrap().1).await;
    assert_eq!(done.code, 0, "{done}");
    assert!(done.stdout.contains("the Kafka cluster is forgotten"), "{done}");
    scene.relay.ready().await;
    let expected = ids(&scene.database, "id > 5").await;
    scene.publishes(&expected).await;
    scene.end().await;
    let now: String = ask(&scene.database, "select kafka_cluster from outbox.cursors").await;
    assert!(kafka.contains(&now), "{now}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_directory_that_is_put_back_under_a_running_relay_goes_on_from_the_cursor_in_it() {
    const NAME: &str = "a_data_directory_put_back";
    let server = Server::up(None).await;
    let database = Database::create_on(&server.url, NAME).await;
    database.migrate().await;
    let mut scene = Scene::of(database, NAME).await;
    scene.publish_and_end(5).await;
    scene.write(2).await; // not sent when the copy is made
    let copy = async |from: &str, to: &str| {
        server.act("stop").await;
        let script = "rm -rf \"$1$3\" && cp -a \"$1$2\" \"$1$3\"";
        let data = server.data();
        run(Command::new("sh").args(["-euc", script, "sh"]).arg(&data).args([from, to])).await;
        server.act("start").await;
    };
    copy("", ".old").await;
    scene.relay.start();
    scene.everything_arrives().await;
    scene.write(10).await;
    scene.everything_arrives().await;

    // when the older state is put back, the relay's memory is ahead of it: ids and transaction ids come again
    copy(".old", "").await;
    scene.write(4).await;
    let expected = ids(&scene.database, "true").await;
    assert_eq!(expected.len(), 11);
    eventually("every event of the older state and behind it is in the topic", PATIENCE, async || {
        let records = scene.kafka.read(&scene.topic).await;
        let here = |id: &&String| records.iter().any(|record| record.header("id") == Some(id.as_str()));
        let there = expected.iter().filter(here).count();
        if there == expected.len() { Ok(()) } else { Err(format!("{there} of {}", expected.len())) }
    })
    .await;
    scene.end().await;
    assert_eq!(scene.shown().await["verdict"], "goes on");
    drop(scene); // before its server
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transaction_ids_that_went_back_in_place_lose_nothing_of_what_was_written_since() {
    const NAME: &str = "transaction_ids_that_went_back";
    let mut scene = Scene::new(NAME).await;
    scene.publish_and_end(5).await;

    // given a cursor from before, as a reset of the transaction log leaves it
    scene.owner("update outbox.cursors set s = '99999999999:99999999999:', saved_xid = pg_current_xact_id()").await;
    scene.write(3).await;
    scene.elsewhere(NAME).await;
    scene.relay.start();
    scene.refuses("transaction ids went back (database <n>, cursor 99999999999)", Some(REBASE)).await;

    // then nobody knows which of the events here are older than that: all of them come
    let done = scene.rebase(&[]).await;
    assert_eq!(done["restamped_events"], 8, "{done}");
    let expected = ids(&scene.database, "true").await;
    scene.relay.ready().await;
    scene.publishes(&expected).await;
    scene.end().await;
}
