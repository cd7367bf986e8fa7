//! What the doorbell does to writers.

use sqlx::Executor as _;

use super::{Ear, asleep, hang, holders, insert, published, scene, sleeping};
use crate::guards::write;
use crate::support::eventually::{PATIENCE, eventually};
use crate::support::postgres::{Role, say};

/// A notification for each transaction would take a lock of the whole cluster at each commit.
#[tokio::test]
async fn writers_do_not_ring_while_nobody_sleeps_and_do_not_wait_for_each_other() {
    let scene = scene("writers_do_not_ring_while_nobody_sleeps").await;
    hang(&scene, "default").await;
    hang(&scene, "other").await;
    let mut ears = [Ear::new(&scene.database, "default").await, Ear::new(&scene.database, "other").await];
    let mut writers = Vec::new();
    for _ in 0..8 {
        let mut writer = scene.database.connect(Role::App).await;
        say(&mut writer, "begin").await;
        say(&mut writer, &insert("1")).await; // none waits for those before it
        writers.push(writer);
    }
    assert_eq!(holders(&scene.database, "ShareLock").await, 16, "one lock for each outbox");
    for writer in &mut writers {
        say(writer, "commit").await;
    }
    write(&scene.database, 100).await;
    say(&mut scene.database.connect(Role::App).await, "select outbox.emit('order', '2', 'Placed')").await;
    for ear in &mut ears {
        assert_eq!(ear.rang(&scene.database).await, 0);
    }
    assert_eq!(holders(&scene.database, "ShareLock").await, 0, "kept by nobody");
}

#[tokio::test]
async fn who_finds_a_sleeper_rings_when_it_commits_and_not_when_it_rolls_back() {
    let scene = sleeping("who_finds_a_sleeper_rings").await;
    let mut ear = Ear::new(&scene.database, "default").await;
    let mut app = scene.database.connect(Role::App).await;
    say(&mut app, &format!("begin; {}; rollback", insert("1"))).await;
    assert_eq!(ear.rang(&scene.database).await, 0, "nothing was written");
    for (nr, writes) in (1..).zip([insert("1").as_str(), "select outbox.emit('order', '2', 'Placed')"]) {
        asleep(&scene.relay, "default").await;
        say(&mut app, writes).await;
        assert_eq!(ear.rang(&scene.database).await, 1, "{writes}");
        published(&scene.relay, "default", nr).await; // so it woke
    }
    // a session that replays changes runs no ordinary trigger
    asleep(&scene.relay, "default").await;
    let mut admin = scene.database.connect(Role::Admin).await;
    say(&mut admin, "set session_replication_role = replica").await;
    say(&mut admin, &insert("1")).await;
    assert_eq!(ear.rang(&scene.database).await, 1);
    // a rebase stamps events anew, and other outboxes read them again
    published(&scene.relay, "default", 3).await;
    asleep(&scene.relay, "default").await;
    scene.owner("update outbox.events set xid = xid").await;
    assert_eq!(ear.rang(&scene.database).await, 1);
    scene.everything_arrives().await;
}

#[tokio::test]
async fn who_rang_cannot_be_prepared_and_nothing_else_is_different() {
    let scene = sleeping("who_rang_cannot_be_prepared").await;
    let mut app = scene.database.connect(Role::App).await;
    let prepared = format!("doorbell_{}", scene.database.name());

    // asleep
    say(&mut app, "begin").await;
    say(&mut app, &insert("1")).await;
    let refused = app.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(format!("prepare transaction '{prepared}'")))).await;
    let error = refused.unwrap_err();
    assert_eq!(error.as_database_error().unwrap().code().as_deref(), Some("0A000"), "{error}");
    say(&mut app, &insert("1")).await;
    published(&scene.relay, "default", 1).await;

    // awake, as long as a writer is active: it keeps its share of the lock, and so does the prepared one
    eventually("a transaction that writes finds the relay awake", PATIENCE, async || {
        say(&mut app, "begin").await;
        say(&mut app, &insert("prepared")).await;
        if holders(&scene.database, "ShareLock").await > 0 {
            return Ok(());
        }
        say(&mut app, "commit").await;
        Err("it sleeps".to_owned())
    })
    .await;
    say(&mut app, &format!("prepare transaction '{prepared}'")).await;
    assert_eq!(holders(&scene.database, "ShareLock").await, 1);
    say(&mut app, &insert("1")).await;
    scene.everything_arrives().await; // what is committed
    say(&mut app, &format!("commit prepared '{prepared}'")).await;
    scene.everything_arrives().await;
    asleep(&scene.relay, "default").await;
}

/// Standing still, it keeps no writer ringing, and may wake up later as if nothing had been.
#[tokio::test]
async fn a_frozen_relay_loses_the_lock_and_writers_stop_ringing() {
    let mut scene = sleeping("a_frozen_relay_loses_the_lock").await;
    let mut ear = Ear::new(&scene.database, "default").await;
    scene.relay.freeze().await;
    write(&scene.database, 3).await;
    assert_eq!(ear.rang(&scene.database).await, 3, "frozen, it seems to sleep");
    eventually("the server frees the lock", PATIENCE, async || match holders(&scene.database, "ExclusiveLock").await {
        0 => Ok(()),
        locks => Err(format!("{locks} held")),
    })
    .await;
    write(&scene.database, 3).await;
    assert_eq!(ear.rang(&scene.database).await, 0);
    scene.relay.resume().await;
    scene.arrives().await;
    asleep(&scene.relay, "default").await;
    write(&scene.database, 1).await;
    scene.arrives().await;
}
