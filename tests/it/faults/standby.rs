//! The primary dies and its standby is promoted: writers and relay reach the new primary under the same address.

use tokio::time::Instant;

use super::stage::{Stage, tell};
use crate::guards::copies::follow;
use crate::guards::servers::Server;
use crate::support::checker::Checker;
use crate::support::eventually::{PATIENCE, eventually};
use crate::support::kafka::Kafka;
use crate::support::postgres::{Database, connect, say};
use crate::support::switch::Switch;
use crate::support::writer::{Kind, Plan};

/// Whether a commit waits for the standby.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standby {
    Synchronous,
    Asynchronous,
}

/// What the standby has not been told by the primary is lost with it; so many records tell of it.
const LEFT_BEHIND: usize = 100;

/// A commit that waits for nothing is what neither standby promises to have. And where the second phase of a transaction is
/// among what is left behind, it is open again, with its locks, until somebody looks into `pg_prepared_xacts`.
const WITHOUT: &[Kind] = &[Kind::Unflushed, Kind::Prepared];

/// With a synchronous standby everything that a writer was told to be committed is there after the promotion: a commit is
/// invisible, to the relay as well, until the standby has it. That holds for writers that wait (`synchronous_commit = on`, and
/// the wait not cancelled) and for a primary that is killed; a commit that does not wait is published when the primary has it on
/// disk, and can be missing afterwards.
///
/// An asynchronous standby lacks what it had not received: committed, published in part, and gone with the primary. The
/// records of those events stay in Kafka, where no row tells of them any more; their ids and their places in the streams come
/// again for other events. Nothing that the new primary has is lost, and its order is kept.
async fn the_standby_is_promoted(name: &str, kind: Standby) {
    let (primary, standby) = tokio::join!(Server::up(None), Server::up(None));
    follow(&standby, &primary).await;
    let mut admin = connect(&primary.url).await;
    if kind == Standby::Synchronous {
        say(&mut admin, "alter system set synchronous_standby_names = '*'").await;
        say(&mut admin, "select pg_reload_conf()").await;
    }
    let wanted = if kind == Standby::Synchronous { "sync" } else { "async" };
    eventually(&format!("the standby is {wanted}"), PATIENCE, async || {
        let state: Option<String> =
            sqlx::query_scalar("select sync_state from pg_stat_replication where state = 'streaming'")
                .fetch_optional(&mut admin)
                .await
                .unwrap();
        if state.as_deref() == Some(wanted) { Ok(()) } else { Err(format!("{state:?}")) }
    })
    .await;
    let (switch, url) = Switch::before(&primary.url).await;
    let database = Database::create_on(&url, name).await;
    database.migrate().await;
    let mut stage = Stage::new(database, Kafka::create(name)).await;

    // when the primary dies in the middle of a storm
    let plan = Plan { without: WITHOUT, ..stage.plan(12) };
    let storm = stage.begin(plan).await;
    storm.has_committed(400).await;
    if kind == Standby::Asynchronous {
        standby.act("stop").await;
        let known = stage.database.committed().await.len();
        stage.has_published(known + LEFT_BEHIND).await;
    }
    primary.act("kill").await;
    let seen = stage.seen("waiting", &["connecting"]).await;
    stage.relay.freeze().await;
    if kind == Standby::Asynchronous {
        standby.act("start").await;
    }
    say(&mut connect(&standby.url).await, "alter system set synchronous_standby_names = ''").await;
    say(&mut connect(&standby.url).await, "select pg_promote()").await;
    switch.points_to(&standby.url);
    let mended = Instant::now();
    stage.note_unsaved().await;
    stage.relay.resume().await;

    // then the relay notices it, says so, and goes on by itself
    stage.relays().await;
    let recovered = mended.elapsed();
    let log = stage.relay.log();
    assert!(log.contains("timeline 00000001 -> 00000002: failed over; the cursor is read again"), "{log}");
    let before = storm.stop().await;
    eprintln!("{before}");
    let rows = stage.database.committed().await;
    if kind == Standby::Synchronous {
        // every commit that was told is there; of one that was under way nobody knows
        assert!(
            rows.len() >= before.events,
            "OUTBOXD_SEED={}: {} events in the table, {before}",
            stage.seed,
            rows.len()
        );
    }
    let reader = stage.reader();
    let mut verdict = stage.arrives(Checker::new(rows), reader).await;
    eprintln!("{verdict}");
    let mut duplicates = verdict.duplicates.count.to_string();
    if kind == Standby::Asynchronous {
        assert!(verdict.phantom.count > 0, "the standby had everything, so nothing is proved");
        duplicates =
            format!("{duplicates}, and {} records of events that only the old primary had", verdict.phantom.count);
        verdict.phantom.count = 0;
    }
    stage.judge(&verdict);
    let fault = if kind == Standby::Synchronous { "synchronous" } else { "asynchronous, late" };
    tell(&format!("the primary is killed, its standby ({fault}) promoted"), &seen, Some(recovered), duplicates);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_synchronous_standby_has_all_that_was_published() {
    the_standby_is_promoted("a_synchronous_standby_has_all", Standby::Synchronous).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_an_asynchronous_standby_only_its_gap_is_missing() {
    the_standby_is_promoted("behind_an_asynchronous_standby", Standby::Asynchronous).await;
}
