//! Asleep: woken by each writer, at rest without one.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use sqlx::PgConnection;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::{asleep, hang, insert, published, rings, scene, sleeper, sleeping, with_doorbells};
use crate::guards::{ask, write};
use crate::support::eventually::{PATIENCE, eventually};
use crate::support::postgres::{Role, say};
use crate::support::seed;

/// How many single events: enough for each step of lying down to be met many times.
fn events() -> usize {
    if std::env::var("OUTBOXD_FAULTS").is_ok_and(|faults| faults == "long") { 10_000 } else { 500 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_single_event_is_slept_through() {
    let scene = sleeping("no_single_event_is_slept_through").await;
    let mut random = StdRng::seed_from_u64(seed());
    let mut app = scene.database.connect(Role::App).await;
    for nr in 1..=events() {
        // it lies down some 10 ms after an event: the next one comes before, meanwhile, or after
        sleep(Duration::from_micros(random.random_range(0..20_000))).await;
        if random.random_bool(0.3) {
            say(&mut app, "begin").await;
            say(&mut app, &insert("1")).await;
            sleep(Duration::from_micros(random.random_range(0..20_000))).await;
            say(&mut app, "commit").await;
        } else {
            say(&mut app, &insert("1")).await;
        }
        published(&scene.relay, "default", nr).await; // before the next one is written, which would wake it
    }
    let rung = rings(&scene.relay, "default").await;
    eprintln!("{} single events, woken {rung} times", events());
    assert!(rung > 0.0, "the doorbell was not met once");
    scene.everything_arrives().await;
}

/// One writer of several: single events, some of them in transactions that last, some rolled back.
async fn one_of_several(mut app: PgConnection, mut random: StdRng, transactions: usize, stream: String) {
    for _ in 0..transactions {
        sleep(Duration::from_micros(random.random_range(0..60_000))).await;
        say(&mut app, "begin").await;
        say(&mut app, &insert(&stream)).await;
        if random.random_bool(0.3) {
            say(&mut app, "savepoint s").await;
            say(&mut app, &insert(&stream)).await;
            say(&mut app, if random.random_bool(0.5) { "rollback to s" } else { "release s" }).await;
        }
        if random.random_bool(0.5) {
            sleep(Duration::from_micros(random.random_range(0..30_000))).await;
        }
        say(&mut app, if random.random_bool(0.2) { "rollback" } else { "commit" }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_writers_at_once_are_all_heard() {
    let scene = sleeping("several_writers_at_once_are_all_heard").await;
    let mut random = StdRng::seed_from_u64(seed());
    for _ in 0..5 {
        let mut writers = JoinSet::new();
        for stream in 0..4 {
            let (app, random) = (scene.database.connect(Role::App).await, StdRng::from_rng(&mut random));
            writers.spawn(one_of_several(app, random, 40, stream.to_string()));
        }
        writers.join_all().await;
        scene.everything_arrives().await; // the last of each round has nobody behind it
        asleep(&scene.relay, "default").await;
    }
}

#[tokio::test]
async fn two_outboxes_on_one_table_sleep_beside_each_other() {
    let mut scene = scene("two_outboxes_on_one_table_sleep").await;
    for name in ["left", "right"] {
        scene.kafka.create_topic(name, 1).await;
        hang(&scene, name).await;
    }
    let outboxes = with_doorbells(&scene.kafka, &["left", "right"]);
    scene.relay.configure("outbox", outboxes);
    scene.relay.start();
    scene.relay.ready().await;
    for nr in 1..=100 {
        for name in ["left", "right"] {
            asleep(&scene.relay, name).await;
        }
        write(&scene.database, 1).await;
        for name in ["left", "right"] {
            published(&scene.relay, name, nr).await;
        }
    }
    for name in ["left", "right"] {
        assert!(rings(&scene.relay, name).await >= 100.0, "{name} was not woken each time");
        let topic = scene.kafka.topic(name);
        assert_eq!(scene.kafka.read(&topic).await.len(), 100, "{name}");
    }
}

#[tokio::test]
async fn who_sleeps_reads_nothing_and_asks_now_and_then() {
    let scene = sleeping("who_sleeps_reads_nothing").await;
    let reading = "select state_change::text from pg_stat_activity where datname = current_database() and query like '%late as materialized%' and pid <> pg_backend_pid()";
    let (read_at, bell): (String, i32) = (ask(&scene.database, reading).await, sleeper(&scene.database).await);
    let asking = format!("select query_start::text from pg_stat_activity where pid = {bell}");
    let mut asked: String = ask(&scene.database, &asking).await;
    for _ in 0..3 {
        asked = eventually("the sleeper asks whether the doorbell hangs", PATIENCE, async || {
            let now: String = ask(&scene.database, &asking).await;
            if now == asked { Err(now) } else { Ok(now) }
        })
        .await;
    }
    let now: String = ask(&scene.database, reading).await;
    assert_eq!(now, read_at, "three questions long, no read");
    assert_eq!(sleeper(&scene.database).await, bell, "all the while it was asleep");
    asleep(&scene.relay, "default").await;
}

/// A transaction that has written and stays open keeps the relay awake, and nobody rings.
#[tokio::test]
async fn a_writer_that_stays_open_keeps_the_relay_awake() {
    let scene = sleeping("a_writer_that_stays_open_keeps_the_relay_awake").await;
    let mut open = scene.database.connect(Role::App).await;
    let mut app = scene.database.connect(Role::App).await;
    say(&mut open, "begin").await;
    say(&mut open, &insert("open")).await; // finds it asleep, and has nothing to hold
    let mut nr = 0;
    eventually("a statement finds it awake", PATIENCE, async || {
        nr += 1;
        say(&mut app, &insert("1")).await;
        published(&scene.relay, "default", nr).await;
        say(&mut open, &insert("open")).await;
        let held = super::holders(&scene.database, "ShareLock").await;
        if held > 0 { Ok(()) } else { Err("it sleeps".to_owned()) }
    })
    .await;
    for nr in nr + 1..nr + 10 {
        say(&mut app, &insert("1")).await;
        published(&scene.relay, "default", nr).await;
        assert_eq!(super::holders(&scene.database, "ExclusiveLock").await, 0, "asleep beside an open writer");
    }
    say(&mut open, "commit").await;
    scene.everything_arrives().await;
    asleep(&scene.relay, "default").await;
}
