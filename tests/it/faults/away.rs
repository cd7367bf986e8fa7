//! A server goes away while events flow, and comes back: the relay goes on by itself, and nothing is lost.

use std::time::Duration;

use super::scene::is;
use crate::support::checker::Checker;
use crate::support::eventually::{PATIENCE, eventually};
use crate::support::kafka::Kafka;
use crate::support::postgres::{Database, Role};
use crate::support::relay::Relay;
use crate::support::seed;
use crate::support::servers::Servers;
use crate::support::writer::{LOCKED, NUMBERED, Plan, Storm};

async fn a_server_goes_away(name: &str, server: &str, verb: &str) {
    let seed = seed();
    let servers = Servers::start(&[]).await;
    let database = Database::create_on(servers.postgres(), name).await;
    database.migrate().await;
    let kafka = Kafka::create_on(servers.kafka(), name);
    let mut topics = Vec::new();
    for aggregate_type in [LOCKED[0], LOCKED[1], NUMBERED] {
        topics.push(kafka.create_topic(aggregate_type, 3).await);
    }
    let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
    let mut relay = Relay::new(&database.url(Role::Relay), &kafka).await;
    relay.start();
    relay.ready().await;

    // when the server goes in the middle of a storm, and comes back
    let plan = Plan { events_per_second: 500, ..Plan::new(seed, Duration::from_secs(8)) };
    let storm = Storm::start(&database, plan).await;
    storm.has_committed(300).await;
    servers.does(verb, server).await;
    is(&relay, "waiting").await;
    let why = relay.get("/readyz").await.unwrap();
    assert_eq!(why.status, 503, "{why:?}");
    assert_eq!(relay.get("/livez").await.unwrap().status, 200, "a server that is away is no reason to be restarted");
    servers.does("start", server).await;
    let tally = storm.stop().await;
    eprintln!("OUTBOXD_SEED={seed}: {verb} of {server}: {tally}");

    // then the same process goes on, and all arrives in order
    let mut checker = Checker::new(database.committed().await);
    let mut reader = kafka.reader(&topics);
    eventually(&format!("OUTBOXD_SEED={seed}: every event is in a topic"), PATIENCE, async || {
        reader.read_on().await.iter().for_each(|record| checker.see(record));
        if checker.missing() == 0 { Ok(()) } else { Err(checker.verdict(&[]).to_string()) }
    })
    .await;
    relay.ready().await;
    relay.terminate().await;
    assert_eq!(relay.exit_code().await, Some(0), "OUTBOXD_SEED={seed}: SIGTERM");
    reader.read_on().await.iter().for_each(|record| checker.see(record));
    let verdict = checker.verdict(&[]);
    assert!(verdict.is_sound(), "OUTBOXD_SEED={seed}: {verdict}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_kafka_is_waited_for() {
    a_server_goes_away("a_stopped_kafka_is_waited_for", "kafka", "stop").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_kafka_is_waited_for() {
    a_server_goes_away("a_killed_kafka_is_waited_for", "kafka", "kill").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_postgres_is_waited_for() {
    a_server_goes_away("a_stopped_postgres_is_waited_for", "postgres", "stop").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_postgres_is_waited_for() {
    a_server_goes_away("a_killed_postgres_is_waited_for", "postgres", "kill").await;
}
