//! A right that is taken away while events flow, and given back.

use sqlx::PgConnection;

use super::stage::{Stage, tell};
use crate::support::acl::{Operation, allow, remove, sasl};
use crate::support::eventually::{PATIENCE, eventually};
use crate::support::postgres::{Role, say};
use crate::support::server;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_right_to_write_is_waited_for() {
    const NAME: &str = "a_lost_right_to_write";
    let mut stage = Stage::shared(NAME).await;
    stage.relay = stage
        .relay
        .set("kafka.brokers", server("OUTBOXD_TEST_KAFKA_SASL"))
        .set("kafka.properties", sasl("relay-secret"));
    for topic in &stage.topics {
        allow(&stage.kafka, topic, Operation::Write).await;
        allow(&stage.kafka, topic, Operation::Describe).await;
    }
    let plan = stage.plan(10);
    let storm = stage.begin(plan).await;
    storm.has_committed(300).await;
    stage.relay.freeze().await; // no session begins while it may write some of them
    for topic in &stage.topics {
        remove(&stage.kafka, topic, Operation::Write).await;
    }
    stage.relay.resume().await;
    let seen = stage.seen("waiting", &["authorization failed", "Write"]).await;
    stage.note_open().await;
    for topic in &stage.topics {
        allow(&stage.kafka, topic, Operation::Write).await;
    }
    let recovered = stage.recovers().await;
    eprintln!("{}", storm.stop().await);
    let verdict = stage.all_is_well().await;
    tell("the ACL to write is removed", &seen, Some(recovered), verdict.duplicates.count);
}

/// Ends what the role has open: a changed password counts for new connections only.
async fn end_sessions(admin: &mut PgConnection, role: &str) {
    eventually("the role has no session", PATIENCE, async || {
        let ended = "select count(pg_terminate_backend(pid)) from pg_stat_activity where usename = $1";
        let ended: i64 = sqlx::query_scalar(ended).bind(role).fetch_one(&mut *admin).await.unwrap();
        if ended == 0 { Ok(()) } else { Err(format!("{ended} sessions")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_may_not_log_in_is_waited_for() {
    const NAME: &str = "a_role_that_may_not_log_in";
    let mut stage = Stage::shared(NAME).await;
    let plan = stage.plan(10);
    let storm = stage.begin(plan).await;
    storm.has_committed(300).await;
    let (role, mut admin) = (format!("{}_relay", stage.database.name()), stage.database.connect(Role::Admin).await);
    say(&mut admin, &format!("alter role {role} nologin")).await;
    end_sessions(&mut admin, &role).await;
    let seen = stage.seen("waiting", &["is not permitted to log in", "pg_hba.conf"]).await;
    stage.note_unsaved().await;
    say(&mut admin, &format!("alter role {role} login")).await;
    let recovered = stage.recovers().await;
    eprintln!("{}", storm.stop().await);
    let verdict = stage.all_is_well().await;
    tell("Postgres refuses the role", &seen, Some(recovered), verdict.duplicates.count);
}
