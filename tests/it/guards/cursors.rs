//! Is this the database, and the Kafka, for which the cursor was saved?

use toml::{Table, Value};

use super::{Scene, ask, refuses};
use crate::support::eventually::{PATIENCE, eventually};
use crate::support::relay::Relay;

/// What happened to the cursor row, and what is said. In the texts, `<kafka>` and the like are what the row has.
struct Case {
    set: &'static str,
    message: &'static str,
    hint: &'static str,
    reset: &'static str,
}

const REBASE: &str = "run: outboxd cursor rebase";
const WENT_BACK: &str = "the WAL went back behind the saved cursor: an older state of this database was put back";

const CASES: [Case; 6] = [
    Case {
        set: "s = s", // whoever writes the row by hand leaves `saved_xid` as it was
        message: "the cursor of default was not written here (xmin <xmin>, saved <saved>): restored, copied or rewritten; new events would look delivered",
        hint: REBASE,
        reset: "saved_xid = pg_current_xact_id()",
    },
    Case {
        set: "s = '99999999999:99999999999:', saved_xid = pg_current_xact_id()",
        message: "transaction ids went back (database <n>, cursor 99999999999)",
        hint: REBASE,
        reset: "s = '<s>', saved_xid = pg_current_xact_id()",
    },
    Case {
        set: "t = '99999999999:99999999999:', after = 0, saved_xid = pg_current_xact_id()",
        message: "transaction ids went back (database <n>, cursor 99999999999)",
        hint: REBASE,
        reset: "t = null, after = null, saved_xid = pg_current_xact_id()",
    },
    Case {
        set: "saved_lsn = 'FFFFFFFF/0', saved_xid = pg_current_xact_id()",
        message: WENT_BACK,
        hint: REBASE,
        reset: "saved_lsn = '0/1', saved_xid = pg_current_xact_id()",
    },
    Case {
        set: "kafka_cluster = 'other', saved_xid = pg_current_xact_id()",
        message: "cursor belongs to Kafka cluster other, connected to <kafka>, where these events never were",
        hint: "if that is meant: outboxd cursor rebase --kafka",
        reset: "kafka_cluster = '<kafka>', saved_xid = pg_current_xact_id()",
    },
    Case {
        set: "lanes = 4, saved_xid = pg_current_xact_id()",
        message: "the cursor has 4 lanes, this outboxd works outboxes of one lane only",
        hint: "use the version of outboxd that made them",
        reset: "lanes = 1, saved_xid = pg_current_xact_id()",
    },
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cursor_that_does_not_belong_here_is_refused() {
    let mut scene = Scene::new("a_cursor_that_does_not_belong_here").await;
    scene.publish_and_end(3).await;
    for Case { set, message, hint, reset } in CASES {
        let column =
            async |column| ask::<String>(&scene.database, &format!("select {column}::text from outbox.cursors")).await;
        let (kafka, s) = (column("kafka_cluster").await, column("s").await);
        scene.owner(&format!("update outbox.cursors set {set}")).await;
        let message = message
            .replace("<kafka>", &kafka)
            .replace("<xmin>", &column("xmin").await)
            .replace("<saved>", &column("saved_xid").await);
        scene.write(1).await;
        scene.relay.start();
        scene.refuses(&message, Some(hint)).await;
        scene.check_says("error", &message, Some(hint)).await;
        scene.relay.kill().await;
        scene
            .owner(&format!("update outbox.cursors set {}", reset.replace("<kafka>", &kafka).replace("<s>", &s)))
            .await;
        assert_eq!(scene.findings().await.len(), 0, "after `{reset}`");
    }
    scene.publish_and_end(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgraded_or_failed_over_server_is_told_and_no_reason_to_stop() {
    let mut scene = Scene::new("an_upgraded_or_failed_over_server").await;
    scene.publish_and_end(3).await;
    for (set, told) in [
        ("system_id = 1", "cursor intact: upgraded or moved; run ANALYZE"),
        // a WAL that is shorter than the old server's says nothing there
        ("system_id = 2, saved_lsn = 'FFFFFFFF/0'", "cursor intact: upgraded or moved; run ANALYZE"),
        ("timeline = '00000009', saved_lsn = 'FFFFFFFF/0'", "timeline 00000009 -> 00000001: failed over"),
    ] {
        scene.owner(&format!("update outbox.cursors set {set}, saved_xid = pg_current_xact_id()")).await;
        let before = scene.relay.log().len();
        assert_eq!(scene.findings().await.len(), 0, "{set}");
        scene.write(1).await;
        scene.relay.start();
        scene.everything_arrives().await;
        scene.end().await;
        let log = scene.relay.log();
        assert!(log[before..].contains(told), "{set}: not told: {told}\n{}", &log[before..]);
    }
}

/// The configuration of one outbox.
fn outbox(scene: &Scene, name: &str, start: Option<&str>) -> Vec<Table> {
    let route = Table::from_iter([("topic".to_owned(), Value::from(scene.kafka.template()))]);
    let mut outbox =
        Table::from_iter([("name".to_owned(), Value::from(name)), ("route".to_owned(), Value::from(vec![route]))]);
    outbox.extend(start.map(|start| ("start".to_owned(), Value::from(start))));
    vec![outbox]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renamed_outbox_does_not_publish_everything_again_unless_told() {
    let mut scene = Scene::new("a_renamed_outbox_does_not_publish").await;
    scene.publish_and_end(5).await;

    // given a new name beside the old cursor
    let mut renamed: Relay = scene.beside().await.set("outbox", outbox(&scene, "renamed", None));
    renamed.start();
    let message = "outbox renamed has no cursor, and others have: a new one, or a renamed one?";
    let hint = "say `start = \"earliest\"` or `start = \"latest\"` in its [[outbox]], or give it the old name";
    refuses(&renamed, message, Some(hint)).await;
    assert_eq!(scene.published().await, 5);
    renamed.kill().await;
    for command in [&["check"][..], &["cursor", "show"]] {
        let output = renamed.command(command).await;
        assert!(output.stdout.contains(message) && output.stdout.contains(hint), "{command:?}: {output}");
    }

    // when told to begin now, it publishes what comes
    renamed = renamed.set("outbox", outbox(&scene, "renamed", Some("latest")));
    renamed.start();
    renamed.ready().await;
    scene.write(2).await;
    reaches(&scene, 7).await;
    renamed.terminate().await;
    assert_eq!(renamed.exit_code().await, Some(0));

    // and a third one that is told to begin with the first event publishes all
    let mut again = scene.beside().await.set("outbox", outbox(&scene, "again", Some("earliest")));
    again.start();
    reaches(&scene, 14).await;
    again.terminate().await;
    assert_eq!(again.exit_code().await, Some(0));
    assert_eq!(scene.published().await, 14);
}

async fn reaches(scene: &Scene, records: i64) {
    eventually("the topic has the records", PATIENCE, async || {
        let published = scene.published().await;
        if published == records { Ok(()) } else { Err(format!("{published} of {records}")) }
    })
    .await;
}
