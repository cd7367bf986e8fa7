//! Commits that Postgres forgets in a crash: none of them reaches Kafka.

use std::collections::HashMap;
use std::time::Duration;

use sqlx::PgConnection;
use tokio::process::Command;
use tokio::time::Instant;
use uuid::Uuid;

use super::stage::{Stage, is_long, tell};
use crate::support::eventually::{PATIENCE, eventually};
use crate::support::kafka::Kafka;
use crate::support::postgres::{Database, Role, connect, say};
use crate::support::servers::Servers;
use crate::support::writer::Kind;

const NAME: &str = "a_commit_that_a_crash_undoes";

/// Two-phase commits are flushed at once, and with them all that was committed before.
const WITHOUT: &[Kind] = &[Kind::Prepared];

/// Every other one hits a relay that is frozen.
fn crashes() -> u64 {
    if is_long() { 12 } else { 2 }
}

/// All events that can be seen until the server is gone, whether they are on disk or not.
async fn watch(mut connection: PgConnection) -> HashMap<i64, Uuid> {
    let mut seen = HashMap::new();
    let newest = sqlx::query_scalar("select coalesce(max(id), 0) from outbox.events");
    let Ok(mut last): Result<i64, _> = newest.fetch_one(&mut connection).await else { return seen };
    let later = "select id, event_id from outbox.events where id > $1";
    while let Ok(rows) = sqlx::query_as::<_, (i64, Uuid)>(later).bind(last - 500).fetch_all(&mut connection).await {
        last = rows.iter().map(|(id, _)| *id).fold(last, i64::max);
        seen.extend(rows);
    }
    seen
}

async fn now(connection: &mut PgConnection, ids: &[i64]) -> HashMap<i64, Uuid> {
    let rows = sqlx::query_as("select id, event_id from outbox.events where id = any ($1)").bind(ids);
    rows.fetch_all(connection).await.unwrap().into_iter().collect()
}

/// Freezes the WAL writer of a server: what is committed without waiting stays in memory, until somebody else's commit flushes it.
async fn freeze_the_wal_writer(admin: &str) {
    let writer = "select pid from pg_stat_activity where backend_type = 'walwriter'";
    let pid: i32 = eventually("there is a WAL writer", PATIENCE, async || {
        let pid = sqlx::query_scalar(writer).fetch_optional(&mut connect(admin).await).await.unwrap();
        pid.ok_or_else(|| "none".to_owned())
    })
    .await;
    let frozen = Command::new("sh").arg("-c").arg(format!("kill -s STOP {pid}")).status().await.unwrap();
    assert!(frozen.success(), "the WAL writer, process {pid}, was not frozen");
}

/// All writers commit with `synchronous_commit = off`, and are not on disk before a commit of the relay's own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_a_crash_undoes_never_reaches_kafka() {
    let servers = Servers::start(&[]).await;
    let mut admin = connect(servers.postgres()).await;
    let database = Database::create_on(servers.postgres(), NAME).await;
    database.migrate().await;
    say(&mut admin, &format!("alter role {}_app set synchronous_commit = off", database.name())).await;
    let mut stage = Stage::new(database, Kafka::create_on(servers.kafka(), NAME)).await;

    // a save flushes, too; only the barrier should
    stage.relay = stage.relay.set("relay.save_every", "2s");
    let plan = crate::support::writer::Plan { without: WITHOUT, ..stage.plan(6 + 5 * crashes()) };
    let storm = stage.begin(plan).await;
    let (mut undone, mut again) = (0, 0);
    let (mut seen, mut recovered) = (String::new(), Duration::ZERO);
    for crash in 1..=crashes() {
        storm.has_committed(storm.commits() + 200).await;
        freeze_the_wal_writer(servers.postgres()).await;
        let watcher = watch(stage.database.connect(Role::Admin).await);
        let crashing = async {
            if crash % 2 == 0 {
                // a relay that does nothing flushes nothing: more is undone, and ids come again
                stage.relay.freeze().await;
                storm.has_committed(storm.commits() + 100).await;
            }
            servers.does("kill", "postgres").await;
        };
        let (before, ()) = tokio::join!(watcher, crashing);
        stage.relay.resume().await;
        seen = stage.seen("waiting", &["connecting"]).await;

        // frozen, it cannot move the cursor before it is known what may come twice
        stage.relay.freeze().await;
        servers.does("start", "postgres").await;
        let mended = Instant::now();
        stage.note_unsaved().await;
        stage.relay.resume().await;
        stage.relays().await;
        recovered = recovered.max(mended.elapsed());

        storm.has_committed(storm.commits() + 100).await;
        let ids: Vec<i64> = before.keys().copied().collect();
        let after = now(&mut stage.database.connect(Role::Admin).await, &ids).await;
        let gone = before.iter().filter(|(id, event)| after.get(id) != Some(event)).count();
        eprintln!("crash {crash}: {gone} of {} visible events were undone", before.len());
        undone += gone;
        again += before.iter().filter(|(id, event)| after.get(id).is_some_and(|other| other != *event)).count();
    }
    let tally = storm.stop().await;
    eprintln!("{tally}; {undone} visible events were undone, {again} of their ids came again for other events");

    // then what was undone is nowhere, and an id that came again is another event
    let verdict = stage.all_is_well().await;
    eprintln!("{verdict}");
    assert!(undone > 0, "OUTBOXD_SEED={}: no crash undid a commit, so nothing is proved: {tally}", stage.seed);
    assert!(again > 0, "OUTBOXD_SEED={}: no id came again, so nothing is proved: {tally}", stage.seed);
    tell("Postgres crashes with commits that are not on disk", &seen, Some(recovered), verdict.duplicates.count);
}
